"""`./spine exec [--focus] NAME -- COMMAND...`: runs a program in a room, its streams joined to ours.

Touches: the operator's port. The exit code is the program's own, 128 and a number when a signal ended it; our
own errors are told in three lines, with their own codes.
"""

import argparse
import sys

from bus.envelope import Code
from spine.errors import Exit, SpineError
from spine.ground.attach import add_choice, attach
from spine.ground.port import PortFailure
from spine.room import program
from spine.room.lease import Lease

HELP = "run a program in a persona's room"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.usage = "./spine exec [--focus] [--json] NAME -- COMMAND [WORD ...]"
    parser.add_argument("--focus", action="store_true", help="give the persona the focus first")
    parser.add_argument("persona", metavar="NAME", help="in whose room")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="what to run there, after --")
    add_choice(parser)


def run(args: argparse.Namespace) -> int:
    """Run."""
    with Lease(attach(args.ground)) as lease:
        try:
            if args.focus:
                lease.port().call("freezer.focus", {"persona": args.persona})
            return program.run(
                lease, args.persona, args.command, (0, sys.stdout.fileno(), sys.stderr.fileno())
            )
        except PortFailure as failure:
            raise _told(args.persona, failure) from failure


def _told(persona: str, failure: PortFailure) -> SpineError:
    """The failure as a person needs it who named a persona."""
    fixes = {
        Code.FROZEN: (f"{persona} is FROZEN", f"./spine exec --focus {persona} -- ...", Exit.REFUSED),
        Code.NOT_FOUND: (f"{persona} has no room", f"./spine persona start {persona}", Exit.NO_SUCH_THING),
    }
    found = fixes.get(failure.failure.code)
    if found is None:
        return failure
    what, fix, code = found
    return SpineError(what, failure.failure.message, fix, code, failure.code)
