"""`./spine stop`: shut the running ground down in order, and by force after a deadline.

Touches: the QEMU or keeper process of the ground, its record and sockets. Keeps the disk and the console.
"""

import argparse
import json
import sys

from spine.errors import Exit, SpineError
from spine.ground import state
from spine.ground.attach import add_choice, attach
from spine.ground.container import STOP_S as CONTAINER_STOP_S
from spine.ground.container import Container
from spine.ground.qemu import STOP_S as MACHINE_STOP_S
from spine.progress import Progress

HELP = "shut the spine down, in order"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    add_choice(parser)


def run(args: argparse.Namespace) -> int:
    """Stop."""
    try:
        ground = attach(args.ground)
    except SpineError:
        where = state.directory("container")
        if args.ground != "machine" and Container.attach(where) is None:
            # One that died by itself may have left a cgroup behind.
            with state.locked(where):
                Container(where).clean()
        raise
    kind = "container" if isinstance(ground, Container) else "machine"
    limit_s = CONTAINER_STOP_S if kind == "container" else MACHINE_STOP_S
    progress = Progress()
    with state.locked(state.directory(kind)):
        progress.start(f"shutting the {kind} down")
        orderly = ground.stop()
        progress.done()
    if args.json:
        sys.stdout.write(json.dumps({"stopped": kind, "orderly": orderly}) + "\n")
    if not orderly:
        progress.say(f"the {kind} did not shut down within {limit_s:.0f} s: it was ended by force")
        return Exit.FAILED
    return Exit.OK
