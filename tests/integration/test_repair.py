"""A machine whose slots rotted while it was off: it ends with both the same, as the host reads the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from spine import paths
from spine.errors import SpineError
from spine.ground import accel, gpt
from spine.ground.disk import sparse_copy
from spine.ground.qemu import Machine
from tests.integration.boots import Boot
from tests.integration.live import Live, within
from tests.integration.test_machine import counters, flip

pytestmark = pytest.mark.machine

# Three tries that panic and one that does not, emulated, beside other work.
BOOTS_S = 900.0
# The second copy; of the first one all but the last sector.
TABLE_BYTES = 33 * 512
# Places in the two headers: the first is in sector 1, the other in the last sector.
PRIMARY, BACKUP = 512 + 40, 512 - 40
PAIR_A = ("boot-a", "slot-a")

PowerOn = Callable[..., Live]


@pytest.fixture
def image(report: Mapping[str, object]) -> Path:
    """The built disk image. Booted only as a copy."""
    assert report["version"]
    return paths.out() / "spine.img"


@pytest.fixture
def power_on(tmp_path: Path) -> Iterator[PowerOn]:
    """Start machines on given disks; end them all afterwards."""
    started: list[Machine] = []

    def start(boot: Boot, disk: Path, **options: object) -> Live:
        machine = Machine(tmp_path / boot.name.lower())
        started.append(machine)
        how, _ = accel.choose("auto")
        machine.start(disk, accel=how, **options)  # type: ignore[arg-type]  # passed on as given
        return Live("machine", machine)

    yield start
    for machine in started:
        machine.kill()


def part(disk: Path, name: str) -> bytes:
    """A partition's bytes."""
    place = gpt.read(disk)[name]
    with disk.open("rb") as file:
        file.seek(place.start)
        return file.read(place.size)


def unread(report: Mapping[str, object]) -> int:
    """A place in a slot that no boot reads: in the program of the other letter."""
    slot = report["slot"]
    assert isinstance(slot, dict)
    return int(slot["parts"]["uki-a"][0]) + 77


def blessed(live: Live) -> dict[str, object]:
    """What integrity says once both pairs are as they should be; boots may come and go until then."""
    found: dict[str, object] = {}

    def settled() -> bool:
        try:
            found.update(live.call("integrity.slots"))
        except (SpineError, OSError):
            return False  # it restarts
        assert found["lost"] is False, found
        return found["blessed"] is True

    within("both pairs are as they should be", settled, BOOTS_S)
    return found


def tables(disk: Path) -> tuple[bytes, bytes]:
    """Both copies of the partition table, with the protective one."""
    with disk.open("rb") as file:
        first = file.read(TABLE_BYTES)
        file.seek(-TABLE_BYTES, 2)
        return first, file.read(TABLE_BYTES)


def repaired(disk: Path, image: Path) -> None:
    """All that the image had is there again, as the host reads the disk."""
    assert tables(disk) == tables(image)
    for name in ("slot-a", "slot-b"):
        assert part(disk, name) == part(image, name), name
    assert counters(disk) == {"a": (3, 0), "b": (3, 0)}


@pytest.mark.proves("INV-SLOT-17")
def test_a_slot_that_cannot_start_is_written_anew_by_the_other(
    image: Path, tmp_path: Path, power_on: PowerOn
) -> None:
    disk = tmp_path / "disk.img"
    sparse_copy(image, disk)
    # Every boot reads the first block. The partition table is the firmware's to put right.
    flip(disk, gpt.read(disk)["slot-b"].start + 96)
    flip(disk, PRIMARY)
    live = power_on(Boot.REPAIR, disk)
    found = blessed(live)
    assert found["active"] == "a"
    assert found["report"] == "replaced slot-b and boot-b from slot-a"
    live.ground.kill()
    repaired(disk, image)
    assert part(disk, "boot-b") == part(image, "boot-b")


@pytest.mark.proves("INV-SLOT-13")
def test_a_slot_that_is_bad_where_no_boot_reads_it_leaves_and_is_written_anew(
    image: Path, tmp_path: Path, power_on: PowerOn, report: Mapping[str, object]
) -> None:
    disk = tmp_path / "disk.img"
    sparse_copy(image, disk)
    flip(disk, gpt.read(disk)["slot-b"].start + unread(report))
    flip(disk, disk.stat().st_size - BACKUP)
    live = power_on(Boot.REPAIR_SELF, disk)
    assert isinstance(live.ground, Machine)
    found = blessed(live)
    assert found["active"] == "a"
    said = live.ground.console.text()
    assert said.count("spine: stage healthy") == 2
    live.ground.kill()
    repaired(disk, image)
    assert part(disk, "boot-b") == part(image, "boot-b")
