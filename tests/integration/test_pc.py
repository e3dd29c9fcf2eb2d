"""The image for real PCs, in QEMU with a PC's devices; and how the kernel says that it is set.

The first test here builds a second kernel where the cache has none: ten minutes on two cores.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from spine import paths
from spine.ground import accel
from spine.ground.disk import sparse_copy
from spine.ground.qemu import CARD_MAC, STOP_S, Hardware, Machine
from spine.image import hardening, parameters
from spine.image.build import build
from spine.progress import Progress
from tests.integration.boots import Boot
from tests.integration.live import Live, within
from tests.integration.test_machine import counters

pytestmark = pytest.mark.machine


@pytest.mark.proves("INV-IMAGE-7")
def test_the_running_kernel_is_set_as_the_document_says(machine: Live) -> None:
    told = machine.probe("settings")
    assert isinstance(told, dict)
    for name, value in parameters.SYSCTLS.items():
        assert told[name] == value, name
    loaded = tomllib.loads((paths.ROOT / hardening.TABLE).read_text())
    for row in hardening.rows(loaded):
        if row.kind == "sysctl" and row.name in told and row.name not in loaded["why"]["sysctl"]:
            assert told[row.name] == row.wanted, row.name
    assert told["kernel.panic_on_oops"] == "1"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The disk images of the profile: for development, and for production."""
    found = {}
    for kind in ("development", "production"):
        out = tmp_path_factory.mktemp(kind)
        report = build(out, profile="pc", production=kind == "production", progress=Progress())
        assert report["profile"] == "pc"
        found[kind] = out / "spine.img"
    return found


@pytest.fixture
def pc(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path / "pc")
    yield machine
    machine.kill()


def power_on(pc: Machine, boot: Boot, image: Path, hardware: Hardware, *, port: bool = True) -> Path:
    """Start it on a copy; the copy. Each start is one of the budget's."""
    assert boot.name.startswith("PC_")
    disk = pc.directory.with_name("disk.img")
    sparse_copy(image, disk)
    how, _ = accel.choose("auto")
    pc.start(disk, accel=how, hardware=hardware, port=port, memory_mib=1024)
    return disk


def lit(pc: Machine) -> int:
    """How many points of the screen are lit."""
    picture = pc.directory / "screen.ppm"
    pc.screendump(picture)
    kind, width, height = picture.read_bytes().split(maxsplit=3)[:3]
    assert kind == b"P6"
    pixels = picture.read_bytes()[-3 * int(width) * int(height) :]
    return sum(1 for at in range(0, len(pixels), 3) if pixels[at] > 64)


def test_it_starts_from_nvme_and_finds_what_a_pc_has(pc: Machine, images: Mapping[str, Path]) -> None:
    disk = power_on(pc, Boot.PC_NVME, images["development"], Hardware.NVME)
    pc.wait_ready()
    live = Live("machine", pc)
    assert live.boot_facts()["verified"] is True
    within("the counter is armed again", lambda: set(counters(disk).values()) == {(3, 0)})
    # bay0 holds the board's watchdog, netroom the card.
    assert live.boot_facts()["missing"] == []
    links = live.call("netroom.links")["links"]
    assert isinstance(links, list)
    assert [link["mac"] for link in links] == [CARD_MAC]
    live.call("gate.put", persona="linda", key=b"kept", value=b"on nvme")
    assert live.call("gate.get", persona="linda", key=b"kept")["value"] == b"on nvme"
    assert lit(pc) > 1000
    # The keyboard: ctrl-alt-delete is an orderly end.
    with pc.qmp() as session:
        keys = [{"type": "qcode", "data": key} for key in ("ctrl", "alt", "delete")]
        session.execute("send-key", {"keys": keys})
    pc.wait_exit(STOP_S)


def test_it_starts_without_any_device_of_virtual_machines(pc: Machine, images: Mapping[str, Path]) -> None:
    """The production image, which has no operator: its disk tells that it became healthy."""
    disk = power_on(pc, Boot.PC_SATA, images["production"], Hardware.AHCI, port=False)
    within("a try is taken", lambda: (2, 1) in counters(disk).values())
    within("the counter is armed again", lambda: set(counters(disk).values()) == {(3, 0)})
    assert lit(pc) > 1000
    assert pc.stop() is True


def test_it_starts_from_a_stick(pc: Machine, images: Mapping[str, Path]) -> None:
    """A disk behind USB appears when it does; the root is waited for."""
    power_on(pc, Boot.PC_USB, images["development"], Hardware.USB)
    pc.wait_ready()
    assert Live("machine", pc).boot_facts()["verified"] is True
    assert pc.stop() is True
