"""`./spine demo`: shows what the spine promises, on a ground of its own, each step with the commands it ran.

Touches: a directory of its own in the state directory, and what the commands touch that it runs there; a
spine that runs already is left alone. Ends with exit code 1 at the first claim that does not hold, and shows
what was seen. What it booted is stopped, whatever happens, unless `--keep` was given.
"""

import argparse
import json
import shlex
import signal
import sys
from pathlib import Path

from spine import paths
from spine.demo.narrate import Kind, Narrator
from spine.demo.picture import svg
from spine.demo.run import Demo
from spine.demo.steps import steps
from spine.errors import Exit, SpineError
from spine.ground import state

HELP = "see it survive: power cut, killed organ, frozen persona, flipped byte"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument(
        "--container", action="store_true", help="in namespaces of this kernel, no QEMU (needs root)"
    )
    parser.add_argument("--keep", action="store_true", help="leave it running afterwards")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="save what was shown, as an SVG")


def run(args: argparse.Namespace) -> int:
    """Play it."""
    home = paths.private(paths.private(paths.state()) / "demo")
    try:
        with state.locked(home):
            return _play(args, home)
    except SpineError as error:
        if error.exit_code == Exit.REFUSED and "starting or stopping the demo" in error.what:
            raise SpineError(
                "another demo is running",
                f"it holds {home / 'lock'}",
                "wait for it, then: ./spine demo",
                Exit.REFUSED,
            ) from error
        raise


def _play(args: argparse.Namespace, home: Path) -> int:
    for kind in state.KINDS:
        if state.read(home / paths.NAME / kind) is not None:
            raise SpineError(
                "a demo that was kept still runs",
                f"its {kind} lives in {home}",
                f"XDG_STATE_HOME={shown(home)} ./spine stop --{kind}",
                Exit.REFUSED,
            )
    # Whoever ends us must not leave a machine behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    ground = "container" if args.container else "machine"
    narrator = Narrator(sys.stderr if args.json else sys.stdout)
    demo = Demo(home, ground, narrator)
    demo.throw_away()
    failed: SpineError | None = None
    narrator.tell(Kind.CLAIM, "A spine of its own, so that one that you have booted is not touched:")
    narrator.tell(Kind.COMMAND, f"export XDG_STATE_HOME={shown(home)}")
    try:
        demo.play(steps(ground))
    except SpineError as error:
        failed = error
    finally:
        demo.end()
        if not args.keep:
            demo.stop()
    _tell_end(demo, narrator, failed, kept=args.keep)
    if args.picture:
        args.picture.write_text(svg(narrator.lines, f"./spine demo — {ground}"), encoding="utf-8")
    if args.json:
        document = demo.report.document() | (failed.document() if failed else {})
        sys.stdout.write(json.dumps(document) + "\n")
    elif failed:
        raise failed
    return failed.exit_code if failed else Exit.OK


def _tell_end(demo: Demo, narrator: Narrator, failed: SpineError | None, *, kept: bool) -> None:
    if failed is None:
        count = len(demo.report.steps)
        narrator.tell(Kind.TITLE, f"{count} steps, each as promised, {demo.report.after_boot_s} s after boot")
    if kept:
        narrator.tell(Kind.CLAIM, "Left running: ./spine status, ./spine exec courier -- sh, ./spine stop")
    elif failed is None:
        demo.throw_away()


def shown(path: Path) -> str:
    """The path as a person types it in a shell. Pure but for where the home directory is."""
    try:
        below = path.relative_to(Path.home())
    except (ValueError, RuntimeError):
        return shlex.quote(str(path))
    return f"~/{shlex.quote(str(below))}"
