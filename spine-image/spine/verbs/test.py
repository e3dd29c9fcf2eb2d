"""`./spine test`: every check of the tree in one command.

Runs pytest, of which ruff, mypy --strict and the laws of the tree are a part. The grounds asked for are
promised to the tests by SPINE_GROUNDS: there, what is missing is a failure and not a skip.

Touches: nothing but the environment of the pytest it becomes.
Fails: with pytest's exit code.
"""

from __future__ import annotations

import argparse
import os
import sys

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument(
        "ground", nargs="?", choices=GROUNDS, default="all", help="which tests (default: all)"
    )
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")


def run(args: argparse.Namespace) -> int:
    """Become pytest."""
    expression, promised = GROUNDS[args.ground]
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
    command = [sys.executable, "-m", "pytest", *(["-m", expression] if expression else []), *args.pytest]
    os.execv(sys.executable, command)
