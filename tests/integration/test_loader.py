"""What the boot loader that we ship makes of our two volumes, and what the rescue does then.

The slots' programs are stand-ins (`marker.c`) that say which they are and restart, so that one power-on shows
the whole way from all tries to none in a minute; the last test boots the real image from the rescue.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from spine import paths
from spine.ground import accel, gpt
from spine.ground.disk import sparse_copy
from spine.ground.qemu import Machine
from spine.ground.qmp import QmpError
from spine.image import disk, rescue
from tests.integration.boots import Boot
from tests.integration.live import Live, within

pytestmark = pytest.mark.machine

# What else may lie where the programs are: nothing of it is started, counted or shown.
HOSTILE = {
    f"{disk.PROGRAMS}/{name}": b"MZ, and no program"
    for name in (
        "spine-c+3-0.efi",
        "spine-a+9-0.efi.efi",
        "spine-b+9-0.efi/is-a-directory",
        "spine-a+10-0.efi",
        f"spine-{'b' * 200}+3-0.efi",
        "%s%n+3-0.efi",
    )
}
EPOCH = 1_700_000_000
SOURCE, SCRIPT = ((paths.ROOT / path).read_bytes() for path in rescue.FILES)
MARKER = (Path(__file__).parent / "marker.c").read_bytes()
WAITS = "Waiting for a key."
# A firmware takes three seconds from a reset to the boot loader, emulated; seven times, beside other work.
SEQUENCE_S = 240.0
# How long nothing must happen in a rescue that is left alone.
QUIET_S = 5.0


@pytest.fixture
def image(report: Mapping[str, object]) -> Path:
    """The built disk image. Booted only as a copy."""
    assert report["version"]
    return paths.out() / "spine.img"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine that is off."""
    made = Machine(tmp_path / "machine")
    yield made
    made.kill()


def mtools(image: Path, volume: str, command: str, *words: str) -> bytes:
    at = gpt.read(image)[volume].start
    done = subprocess.run([command, "-i", f"{image}@@{at}", *words], capture_output=True, check=True)
    return done.stdout


def names(image: Path) -> set[str]:
    """The names of all programs on both volumes, without the hostile ones."""
    listed = b"".join(mtools(image, name, "mdir", "-b", "::EFI/Linux") for name in ("boot-a", "boot-b"))
    files = {line.rsplit("/", 1)[-1] for line in listed.decode().split() if not line.endswith("/")}
    return files - {path.rsplit("/", 1)[-1] for path in HOSTILE}


def stand_ins(
    image: Path,
    tmp_path: Path,
    counters: tuple[str, str],
    versions: tuple[str, str] = ("1", "1"),
    source: bytes = SOURCE,
) -> Path:
    """A disk with the image's own boot loader and configuration, our rescue, and stand-ins for the slots."""
    made = tmp_path / "disk.img"
    first, rescuer = (rescue.make(tmp_path, source, SCRIPT, first=first) for first in (True, False))
    volumes: dict[str, bytes | Path] = {}
    for letter, counter, version in zip("ab", counters, versions, strict=True):
        name = f"boot-{letter}"
        loader = mtools(image, name, "mcopy", f"::{disk.LOADER_PATH}", "-")
        marker = MARKER.replace(b"WHICH", letter.encode()).replace(b"=VERSION", f"={version}".encode())
        files = disk.volume(letter, first, loader, rescue.make(tmp_path, marker, SCRIPT), rescuer)
        assert mtools(image, name, "mcopy", "::loader/loader.conf", "-") in files.values()
        renamed = {path.replace(disk.COUNTER, counter): data for path, data in files.items()} | HOSTILE
        volumes[name] = disk.make_boot(tmp_path, letter, renamed, EPOCH)
    disk.write_disk(made, volumes)
    return made


def started(machine: Machine) -> str:
    """The letters of the stand-ins that ran, one after another."""
    return "".join(re.findall(r"started ([ab])", machine.console.text()))


@pytest.mark.proves("INV-RESCUE-1")
@pytest.mark.parametrize(
    ("boot", "counters", "versions", "order", "left"),
    [
        (Boot.SEQUENCE, ("+3-0", "+3-0"), ("1", "1"), "bbbaaa", {"a+0-3", "b+0-3"}),
        (Boot.SPENT_B, ("+2-1", "+0-3"), ("1", "1"), "aa", {"a+0-3", "b+0-3"}),
        (Boot.NEWER_A, ("+1-0", "+1-0"), ("1.10.0", "1.9.0"), "ab", {"a+0-1", "b+0-1"}),
    ],
)
def test_every_try_of_both_volumes_is_counted_and_then_comes_the_rescue(
    image: Path,
    tmp_path: Path,
    machine: Machine,
    boot: Boot,
    counters: tuple[str, str],
    versions: tuple[str, str],
    order: str,
    left: set[str],
) -> None:
    assert boot
    made = stand_ins(image, tmp_path, counters, versions)
    machine.start(made, accel=accel.choose("auto")[0])
    machine.console.wait_text(WAITS, SEQUENCE_S)
    assert started(machine) == order
    assert names(made) == {*(f"spine-{name}.efi" for name in left), "spine-rescue.efi"}


@pytest.mark.proves("INV-RESCUE-3")
def test_a_boot_volume_that_is_gone_is_no_end(image: Path, tmp_path: Path, machine: Machine) -> None:
    assert Boot.NO_BOOT_A
    made = stand_ins(image, tmp_path, ("+3-0", "+2-0"))
    part = gpt.read(made)["boot-a"]
    with open(made, "r+b") as file:
        file.seek(part.start)
        file.write(bytes(part.size))
    machine.start(made, accel=accel.choose("auto")[0])
    machine.console.wait_text(WAITS, SEQUENCE_S)
    assert started(machine) == "bb"
    said = machine.console.text()
    assert re.search(r"pair a +no program of it on any volume", said)
    assert re.search(r"pair b +spine-b\+0-2.efi +no try left +its program can be read", said)
    assert not [path for path in HOSTILE if path.split("/")[2] in said]


@pytest.mark.proves("INV-RESCUE-1")
@pytest.mark.proves("INV-RESCUE-2")
def test_when_both_pairs_are_spent_a_person_is_told_and_can_try_one_again(
    image: Path, tmp_path: Path, machine: Machine
) -> None:
    assert Boot.RESCUE
    made = tmp_path / "disk.img"
    sparse_copy(image, made)
    for letter in "ab":
        fresh = f"::{disk.program_path(letter)}"
        mtools(made, f"boot-{letter}", "mren", fresh, f"spine-{letter}+0-3.efi")
    machine.start(made, accel=accel.choose("auto")[0])
    machine.console.wait_text(WAITS, SEQUENCE_S)
    said = machine.console.text()
    for letter in "ab":
        assert re.search(
            rf"pair {letter} +spine-{letter}\+0-3.efi +no try left +its program can be read", said
        )
    assert "Nothing durable was touched" in said
    assert "./spine usb" in said
    picture = tmp_path / "screen.ppm"
    machine.screendump(picture)
    pixels = picture.read_bytes()[64:]
    assert 1000 < sum(1 for at in range(0, len(pixels), 3) if pixels[at] > 64) < len(pixels) // 3 // 4
    mark = machine.console.mark()
    with machine.qmp() as session:
        with pytest.raises(QmpError, match=r"silent|timed out"):
            session.wait_event("RESET", QUIET_S)
        assert machine.console.text(mark) == ""
        assert names(made) == {"spine-a+0-3.efi", "spine-b+0-3.efi", "spine-rescue.efi"}
        session.execute("send-key", {"keys": [{"type": "qcode", "data": "b"}]})
    machine.wait_ready(since=mark)
    live = Live("machine", machine)
    assert live.boot_facts()["slot"] == "b"
    within("healthy and armed again", lambda: "spine-b+3-0.efi" in names(made))
