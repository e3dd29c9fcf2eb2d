"""`./spine tap`: every message on the bus as both ends see it, live or from a recording.

Only the arguments are here, so that `--help` needs nothing set up; the rest is `spine/tap/show.py`.
"""

import argparse
from pathlib import Path

from spine.ground.attach import add_choice

HELP = "watch, record and replay what travels on the bus"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("--organ", action="append", help="only messages from or to this organ")
    parser.add_argument("--method", action="append", metavar="ORGAN.METHOD", help="only this method")
    parser.add_argument("--kind", action="append", choices=("call", "reply", "failure", "event", "hello"))
    parser.add_argument("--count", type=int, metavar="N", help="end after N records that are shown")
    parser.add_argument("--seconds", type=float, metavar="S", help="end after S seconds")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write all records to FILE (pcapng)")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="show a recording")
    parser.add_argument(
        "--export",
        type=Path,
        metavar="DIRECTORY",
        help="write each call and answer that is shown to a file of its own, beside a schema for it; "
        "to read one: capnp decode --quiet DIRECTORY/gate.put.capnp Params <DIRECTORY/000001-....bin "
        "(Results for an answer)",
    )
    add_choice(parser)


def run(args: argparse.Namespace) -> int:
    """Show."""
    from spine.tap import show

    return show.run(args)
