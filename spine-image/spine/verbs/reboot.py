"""`./spine reboot`: bay0 shuts down in order and starts anew; returns when the operator answers again.

Touches: the operator's port; the reset button of a machine whose operator is silent.
"""

import argparse
import json
import sys

from spine.errors import Exit, SpineError
from spine.ground.attach import add_choice, attach
from spine.ground.qemu import Machine
from spine.progress import Progress

HELP = "restart the spine, in order, and wait until it is ready"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    add_choice(parser)


def run(args: argparse.Namespace) -> int:
    """Reboot."""
    ground = attach(args.ground)
    progress = Progress()
    mark = ground.console.mark()
    orderly = True
    with progress.stage("restarting"):
        try:
            with ground.port() as port:
                port.call("operator.power", {"action": "reboot"})
        except SpineError as error:
            if not isinstance(ground, Machine):
                raise
            progress.say(f"{error.what}: pressing the reset button")
            orderly = False
            ground.reset()
        ground.wait_ready(since=mark, on_stage=lambda stage: progress.note(stage.name))
    if args.json:
        sys.stdout.write(json.dumps({"rebooted": True, "orderly": orderly, "pid": ground.pid}) + "\n")
    return Exit.OK
