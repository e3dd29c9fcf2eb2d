"""`./spine test`: every check of the tree in one command.

Runs pytest, of which ruff, mypy --strict and the laws of the tree are a part. The grounds asked for are
promised to the tests by SPINE_GROUNDS: there, what is missing is a failure and not a skip. Tests run side by
side, a worker for each processor; `./spine test -- -n 0` runs them one by one, as --pdb needs it.

Touches: nothing but the environment of the pytest it becomes.
Fails: with pytest's exit code.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from spine.errors import SpineError
from spine.paths import ROOT

HELP = "run the checks and the tests: all of them, or those of one ground"

# ground → (pytest's mark expression, what is promised to be there)
GROUNDS = {
    "all": ("", "container machine"),
    "pure": ("not container and not machine", ""),
    "container": ("container", "container"),
    "machine": ("machine", "machine"),
}

# Many tests wait for something, so that a second one finds room even on a single processor.
WORKERS_MIN = 2
# Each may have a machine of 700 MB, and beyond this the longest group of tests is what takes the time.
WORKERS_MAX = 8
# Groups of tests stay in one worker, and begin in the order that tests/side_by_side.py gives them.
GROUPED = ("--dist", "loadgroup", "--no-loadscope-reorder")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument(
        "ground", nargs="?", choices=GROUNDS, default="all", help="which tests (default: all)"
    )
    parser.add_argument(
        "pytest", nargs="*", help="arguments for pytest, after --   (-n 0: one test at a time)"
    )


def workers(processors: int) -> int:
    """How many tests run side by side."""
    return min(max(processors, WORKERS_MIN), WORKERS_MAX)


def command(ground: str, more: Sequence[str], processors: int) -> list[str]:
    """The pytest to become. What the person says comes last, and counts. Pure."""
    expression, _promised = GROUNDS[ground]
    return [
        *(sys.executable, "-m", "pytest", "-n", str(workers(processors)), *GROUPED),
        *(["-m", expression] if expression else []),
        *more,
    ]


def run(args: argparse.Namespace) -> int:
    """Become pytest."""
    _expression, promised = GROUNDS[args.ground]
    if "container" in promised.split() and os.geteuid() != 0:
        if args.ground == "container":
            raise SpineError(
                "the container tests did not run",
                "they make namespaces and cgroups, which needs root",
                "sudo ./spine test container",
                exit_code=3,
            )
        promised = "machine"
        print("spine: not root: the container tests will be skipped", file=sys.stderr)
    os.environ["SPINE_GROUNDS"] = promised
    os.chdir(ROOT)
    os.execv(sys.executable, command(args.ground, args.pytest, len(os.sched_getaffinity(0))))
