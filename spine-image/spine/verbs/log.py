"""`./spine log [ORGAN]`: an organ's log as the spine keeps it, or without a name the console of the ground.

Touches: the operator's port for an organ; for the console a file of this host, which is there after the
spine died too.
"""

import argparse
import json
import sys

from bus.envelope import Code
from spine.errors import Exit, SpineError
from spine.ground import state
from spine.ground.attach import add_choice, attach
from spine.ground.port import PortFailure
from spine.ground.stages import plain

HELP = "the log of an organ, or the console"

FILES = {"machine": "serial.log", "container": "console.log"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument(
        "organ", nargs="?", help="whose log; without it the console, from boot loader to last words"
    )
    parser.add_argument(
        "-n", dest="bytes", type=int, default=0, metavar="BYTES", help="only the last BYTES bytes"
    )
    add_choice(parser)


def run(args: argparse.Namespace) -> int:
    """Print."""
    if args.bytes < 0:
        raise SpineError(
            "a log has no negative length", f"-n {args.bytes}", "./spine log -n 1000", Exit.USAGE
        )
    data = _organ(args) if args.organ else _console(args)
    if args.json:
        document = {"organ": args.organ, "text": data.decode("utf-8", errors="replace")}
        sys.stdout.write(json.dumps(document) + "\n")
    elif sys.stdout.isatty():
        # A log may hold what a hostile program wrote; a terminal obeys control sequences.
        sys.stdout.write("".join(c for c in plain(data) if c.isprintable() or c in "\n\t"))
    else:
        sys.stdout.buffer.write(data)
    return Exit.OK


def _organ(args: argparse.Namespace) -> bytes:
    with attach(args.ground).port() as port:
        try:
            text = port.call("operator.log", {"organ": args.organ, "bytes": args.bytes})["text"]
        except PortFailure as failure:
            if failure.failure.code is not Code.NOT_FOUND:
                raise
            raise SpineError(
                f"there is no organ {args.organ}",
                failure.why,
                f"./spine status; ./spine persona log {args.organ}   (of a persona)",
                Exit.NO_SUCH_THING,
                failure.code,
            ) from failure
    assert isinstance(text, bytes)
    return text


def _console(args: argparse.Namespace) -> bytes:
    kind = args.ground
    if kind is None:
        try:
            kind = state.running().kind
        except SpineError:
            kind = state.current()
    file = state.directory(kind) / FILES[kind]
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        suffix = " --container" if kind == "container" else ""
        raise SpineError(
            f"the {kind} has no console yet",
            f"{file} is not there",
            f"./spine boot --detach{suffix}",
            Exit.NO_SUCH_THING,
        ) from error
    text = plain(data).encode("utf-8", errors="replace")
    return text[-args.bytes :] if args.bytes else text
