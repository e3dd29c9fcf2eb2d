"""`./spine test`: every check of the tree in one command.

Runs pytest, of which ruff, mypy --strict and the laws of the tree are a part. The grounds asked for are
promised to the tests by SPINE_GROUNDS: there, what is missing is a failure and not a skip. Tests run side by
side, one worker more than processors; `./spine test -- -n 0` runs them one by one, as --pdb needs it.

Touches: nothing but the environment of the pytest it becomes.
Fails: with pytest's exit code.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from spine.errors import Exit, SpineError
from spine.paths import ROOT

HELP = "run the checks and the tests: all of them, or those of one ground"

# ground → (pytest's mark expression, what is promised to be there)
GROUNDS = {
    "all": ("", "container machine"),
    "pure": ("not container and not machine", ""),
    "container": ("container", "container"),
    "machine": ("machine", "machine"),
}

# Many tests wait for something, machines too: one more than there are processors finds room.
WORKERS_MORE = 1
# Each may have a machine of 700 MB, and beyond this the longest group of tests is what takes the time.
WORKERS_MAX = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument(
        "ground",
        nargs="?",
        default="all",
        metavar=f"{{{','.join(GROUNDS)}}}",
        help="which tests (default: all)",
    )
    parser.add_argument(
        "pytest", nargs="*", help="arguments for pytest, after --   (-n 0: one test at a time)"
    )


def meant(ground: str, more: Sequence[str]) -> tuple[str, list[str]]:
    """The ground, and what is for pytest: argparse takes the first word for a ground, also behind `--`.

    SpineError for a word that is neither.
    """
    if ground in GROUNDS:
        return ground, list(more)
    if ground.startswith("-") or (ROOT / ground.partition("::")[0]).exists():
        return "all", [ground, *more]
    raise SpineError(
        f"there is no ground {ground!r}",
        f"the grounds are {', '.join(GROUNDS)}",
        "./spine test --help",
        Exit.USAGE,
    )


def workers(processors: int) -> int:
    """How many tests run side by side."""
    return min(processors + WORKERS_MORE, WORKERS_MAX)


def command(ground: str, more: Sequence[str], processors: int) -> list[str]:
    """The pytest to become. What the person says comes last, and counts. Pure.

    Which tests stay in one worker, and which begin, is said in tests/side_by_side.py.
    """
    expression, _promised = GROUNDS[ground]
    return [
        *(sys.executable, "-m", "pytest", "-n", str(workers(processors))),
        *(["-m", expression] if expression else []),
        *more,
    ]


def run(args: argparse.Namespace) -> int:
    """Become pytest."""
    ground, more = meant(args.ground, args.pytest)
    _expression, promised = GROUNDS[ground]
    if "container" in promised.split() and os.geteuid() != 0:
        if ground == "container":
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
    os.execv(sys.executable, command(ground, more, len(os.sched_getaffinity(0))))
