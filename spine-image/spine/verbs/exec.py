"""`./spine exec [--focus] NAME -- COMMAND...`: runs a program in a room, its streams joined to ours.

Touches: the operator's port. The exit code is the program's own, 128 and a number when a signal ended it; our
own errors are told in three lines, with their own codes. With `--json` what the program wrote, to its end, is
part of the one object. What ends us ends the program.
"""

import argparse
import json
import signal
import sys

from spine import values
from spine.errors import Exit, SpineError
from spine.ground.attach import add_choice, attach
from spine.ground.port import PortFailure
from spine.room import program
from spine.room.lease import Lease
from spine.room.refusals import told

HELP = "run a program in a persona's room"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.usage = "./spine exec [--focus] [--json] [--container | --machine] NAME -- COMMAND [WORD ...]"
    parser.epilog = (
        "What comes after -- is the program's. Its exit code is ours; 128 and a number says which signal "
        "ended it; 127: there is no such program. Ctrl-C ends it. With --json what it wrote is in the object."
    )
    parser.add_argument("--focus", action="store_true", help="give the persona the focus first")
    parser.add_argument("persona", metavar="NAME", help="in whose room")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="what to run there, after --")
    add_choice(parser)


def run(args: argparse.Namespace) -> int:
    """Run."""
    wrote: dict[str, bytearray] = {"output": bytearray(), "error": bytearray()}
    output, error = program.into(sys.stdout.fileno()), program.into(sys.stderr.fileno())
    if args.json:
        output, error = wrote["output"].extend, wrote["error"].extend
    # As ctrl-C does: the program must be told, or it would be left behind.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        with Lease(attach(args.ground)) as lease:
            if args.focus:
                lease.port().call("freezer.focus", {"persona": args.persona})
            ended = program.run(lease, args.persona, args.command, sys.stdin.fileno(), output, error)
    except PortFailure as failure:
        raise told(args.persona, failure) from failure
    except KeyboardInterrupt:
        raise SpineError(
            f"{args.command[0]} was interrupted, and ended",
            "ctrl-C was pressed",
            "run the same command again",
            Exit.INTERRUPTED,
        ) from None
    code = program.exit_code(ended, args.command[0])
    if args.json:
        document = {"exit": code, "ended": ended, **{name: bytes(data) for name, data in wrote.items()}}
        sys.stdout.write(json.dumps(values.as_json(document)) + "\n")
    return code


def _end(number: int, _frame: object) -> None:
    sys.exit(program.SIGNAL_BASE + number)
