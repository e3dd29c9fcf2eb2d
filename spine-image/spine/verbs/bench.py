"""`./spine bench`: how fast and how small it is, beside what people would pick instead, in one run.

Sets the peers up in the cache (Debian packages, Python wheels), measures ours and theirs in turn, prints the
table of ratios. A peer that cannot be had stands in the table with the reason. Writes into the tree only with
`--write`. A goal that is missed is said, and is no failure: a figure is not an error.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys

from spine.errors import Exit, SpineError
from spine.progress import Progress

HELP = "measure it beside its peers: a table of ratios"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("--quick", action="store_true", help="fewer rounds, under three minutes")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="these families, or FAMILY/ROW with * for any"
    )
    parser.add_argument("--list", action="store_true", help="name the rows and measure nothing")
    parser.add_argument("--seed", default="1", help="of the order of the rounds (default: 1)")
    parser.add_argument(
        "--write", action="store_true", help="write docs/benchmarks.md, its pictures and the evidence"
    )


def run(args: argparse.Namespace) -> int:
    """Measure and tell."""
    # The bench needs the Python packages, which help and completion do not have.
    from tests.bench import run as bench

    if args.list:
        chosen = bench.chosen(args.only, args.quick)
        rows = {f"{name}/{row.name}": row.what for name, found in chosen.items() for row in found}
        listed = "".join(f"{name}: {what}\n" for name, what in rows.items())
        sys.stdout.write(json.dumps({"rows": rows}) + "\n" if args.json else listed)
        return Exit.OK
    if args.write and (args.only or args.quick):
        raise SpineError(
            "only a whole run is written down",
            "the page says of every row what it came to, with all rounds",
            "./spine bench --write",
            Exit.USAGE,
        )
    # Whoever ends us must not leave a spine or a supervisor behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    document = bench.run(args.only, args.quick, args.seed, Progress())
    if args.write:
        for name in bench.write(document):
            sys.stderr.write(f"spine: wrote {name}\n")
    sys.stdout.write(bench.as_json(document) if args.json else bench.as_text(document))
    return Exit.OK
