"""`./spine powercut`: the power goes. What was not surely on the disk by then is gone; the ground is off.

Touches: the QEMU process of the machine and its disk, or the processes of the container and the file system
of its gate. Says exactly what was done, since the two are not the same.
"""

import argparse
import json
import sys

from spine.errors import SpineError
from spine.ground import state
from spine.ground.attach import add_choice, attach
from spine.ground.container import Container
from spine.ground.powercut import LogError

HELP = "cut the power: what was not flushed to the disk is gone"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    add_choice(parser)


def run(args: argparse.Namespace) -> int:
    """Cut."""
    ground = attach(args.ground)
    kind = "container" if isinstance(ground, Container) else "machine"
    figures: dict[str, int] = {}
    with state.locked(state.directory(kind)):
        if isinstance(ground, Container):
            ground.power_cut()
            did = (
                "all processes were killed, and the gate's file system was stopped without its journal\n"
                "(EXT4_IOC_SHUTDOWN): what was not on its device by then is gone"
            )
        else:
            try:
                lost = ground.power_cut()
            except LogError as error:
                raise SpineError(
                    "the log of the machine's writes cannot be read",
                    str(error),
                    "./spine boot --fresh --log-writes   (the disk is as QEMU left it)",
                ) from error
            figures = {"writes": lost.writes, "lost": lost.lost, "lostBytes": lost.lost_bytes}
            did = (
                f"QEMU was killed, and of its {lost.writes} writes to the disk the {lost.lost} which no\n"
                f"flush had followed ({lost.lost_bytes} bytes) were thrown away"
            )
    if args.json:
        sys.stdout.write(json.dumps({"powercut": kind, **figures}) + "\n")
    else:
        sys.stdout.write(did + "\n")
    return 0
