"""Finds the running ground that a verb is about."""

import argparse

from spine.ground import state
from spine.ground.container import Container
from spine.ground.qemu import Machine


def add_choice(parser: argparse.ArgumentParser) -> None:
    """The options by which a person says which ground is meant (`args.ground`); None: the current one."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--container",
        dest="ground",
        action="store_const",
        const="container",
        help="the container, not the ground that was booted last",
    )
    which.add_argument(
        "--machine",
        dest="ground",
        action="store_const",
        const="machine",
        help="the machine, not the ground that was booted last",
    )


def attach(kind: str | None) -> Machine | Container:
    """The ground of this kind, or the current one. SpineError (4) when it does not run."""
    ground = state.running(kind)
    where = state.directory(ground.kind)
    found = Machine.attach(where) if ground.kind == "machine" else Container.attach(where)
    # It may have ended between the two looks.
    return found if found is not None else attach(kind)
