"""`./spine focus NAME`: gives the focus to a room, and returns when the kernel says that it runs.

Touches: the operator's port.
"""

import argparse
import json
import sys

from spine.errors import Exit
from spine.ground.attach import add_choice, attach
from spine.ground.port import PortFailure
from spine.room.refusals import told

HELP = "give the focus to a persona; every other one stands still"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("persona", metavar="NAME", help="whose room is to run")
    add_choice(parser)


def run(args: argparse.Namespace) -> int:
    """Move the focus."""
    with attach(args.ground).port() as port:
        try:
            port.call("freezer.focus", {"persona": args.persona})
        except PortFailure as failure:
            raise told(args.persona, failure) from failure
    if args.json:
        sys.stdout.write(json.dumps({"focus": args.persona}) + "\n")
    else:
        sys.stdout.write(f"{args.persona} has the focus   (./spine exec {args.persona} -- COMMAND)\n")
    return Exit.OK
