"""The write log of one update: a machine takes in a new version, restarts into it, and settles.

The development image, old and new: a production image has no port, and takes an update from a persona that
was granted it; what integrity writes then is the same. The logged disk is judged with both versions blessed.

Touches: one QEMU process with a directory of its own, the disk, the log.
Fails: with SpineError when the update is refused or the machine does not settle.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from spine import paths
from spine.errors import Exit, SpineError
from spine.ground import powercut
from spine.ground.disk import sparse_copy
from spine.ground.qemu import Machine
from spine.image import keys, update
from spine.progress import Progress
from spine.verbs.update import other_version, send
from tests.faults import blessed
from tests.faults.stage import Stage, built

# Above every version that the tree will have.
NEW_VERSION = "999.0"
# From the restart until both pairs are the new version's; two boots of a slow host and two pairs written.
SETTLE_S = 900.0
LOOK_S = 2.0


def stages(work: Path) -> tuple[Stage, Stage]:
    """The development image as it is, and of a later version."""
    project = (paths.ROOT / "pyproject.toml").read_bytes()
    newer = {"pyproject.toml": other_version(project, NEW_VERSION)}
    return (
        built(work, production=False, name="update-old"),
        built(work, production=False, name="update-new", replace=newer),
    )


def log(old: Stage, new: Stage, keep: Path, work: Path, options: Mapping[str, object]) -> None:
    """Leave the disk from before and the log of an update in `keep`."""
    keep.mkdir(parents=True, exist_ok=True)
    disk, writes = work / "update.img", keep / "writes.part"
    sparse_copy(old.disk, disk)
    sparse_copy(disk, keep / powercut.BASE_FILE)
    part = new.places.partitions["slot-a"]
    brought = update.unpack(update.pack(new.read(part.start, part.size), _verify), _verify)
    machine = Machine(work / "update")
    try:
        nodes = powercut.blockdevs(disk, writes)
        machine.start(disk, blockdevs=nodes, extra=("-smp", "1"), **options)  # type: ignore[arg-type]
        machine.wait_ready()
        _until("the old version is confirmed", lambda: _healthy(machine))
        with machine.port() as port:
            send(port, brought.block, brought.slot, Progress())
            port.call("operator.power", {"action": "reboot"})
        releases = [old.release, new.release]

        def settled() -> bool:
            seen = blessed.look(disk, releases)
            return seen.whole == new.release.name and seen.armed

        _until("both pairs are the new version's", settled)
    finally:
        machine.kill()
        disk.unlink(missing_ok=True)
    writes.rename(keep / powercut.LOG_FILE)


def _healthy(machine: Machine) -> bool:
    with machine.port() as port:
        boot = json.loads(str(port.call("operator.status")["json"]))["organs"]["boot"]
    return boot["healthy"] is True


def _until(what: str, done: Callable[[], bool]) -> None:
    end = time.monotonic() + SETTLE_S
    while not done():
        if time.monotonic() > end:
            raise SpineError(
                "the update did not settle",
                f"not within {SETTLE_S:.0f} s: {what}",
                "python -m tests.faults.matrix --only 'cut update'",
                Exit.TIMEOUT,
            )
        time.sleep(LOOK_S)


def _verify(signature: bytes, message: bytes) -> None:
    keys.check(keys.public_bytes(keys.release_key()), signature, message)
