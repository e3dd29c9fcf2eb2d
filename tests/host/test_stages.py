"""How far a boot has come, read from real serial output, in whatever pieces it arrives."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from spine.ground.stages import CAUSES, MACHINE, Stage, Stages, last_lines, plain

# As QEMU's firmware, systemd-boot, the kernel and bay0 wrote it, shortened.
BOOT = (
    b"\x1b[2J\x1b[01;01H\x1b[=3h\x1b[2J\x1b[01;01H"
    b'BdsDxe: loading Boot0001 "UEFI Misc Device" from Pci(0x1,0x0)\r\n'
    b'BdsDxe: starting Boot0001 "UEFI Misc Device" from Pci(0x1,0x0)\r\n'
    b"[    0.413000] something the kernel says\r\n"
    b"spine: stage bay0 4573\r\nspine: stage organ.gate 9632\r\nspine: stage ready 9781\r\n"
)
SHELL = b'BdsDxe: starting Boot0002 "EFI Internal Shell" from Fv(7CB8)\r\nUEFI Interactive Shell v2.2\r\n'
PASSED = [*MACHINE, "bay0", "organ.gate", "ready"]


def names(stages: list[Stage]) -> list[str]:
    return [stage.name for stage in stages]


def test_a_whole_boot() -> None:
    stages = Stages()
    found = stages.feed(BOOT)
    assert names(found) == PASSED
    assert found[-1] == Stage("ready", 9781)
    assert stages.reached == "ready"
    assert stages.restarts == 0


@given(cuts=st.lists(st.integers(0, len(BOOT)), max_size=10))
def test_the_pieces_do_not_matter(cuts: list[int]) -> None:
    stages = Stages()
    edges = [0, *sorted(cuts), len(BOOT)]
    found = [stage for a, b in itertools.pairwise(edges) for stage in stages.feed(BOOT[a:b])]
    assert names(found) == PASSED


def test_a_restart_begins_anew() -> None:
    stages = Stages()
    assert names(stages.feed(BOOT + BOOT)) == PASSED * 2
    assert stages.restarts == 1
    stages.feed(BOOT.split(b"[ ")[0])
    assert stages.restarts == 2
    assert stages.reached == "boot loader"
    assert not stages.spoke()


def test_the_firmwares_shell_is_no_boot_loader() -> None:
    stages = Stages()
    stages.feed(SHELL)
    assert stages.reached == "firmware"
    assert stages.cause() == CAUSES["firmware"]


def test_a_panic_is_the_cause() -> None:
    stages = Stages()
    stages.feed(BOOT[: BOOT.index(b"spine: stage organ")])
    stages.feed(b"[   12.1] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00004600\r\n")
    assert stages.cause()[0] == "the kernel panicked: Attempted to kill init! exitcode=0x00004600"


def test_a_container_has_no_firmware() -> None:
    assert names(Stages(()).feed(b"BdsDxe: starting x\n[ 0.0] x\nspine: stage bay0 3\n")) == ["bay0"]


@given(junk=st.binary(max_size=500))
def test_junk_is_no_stage_of_bay0(junk: bytes) -> None:
    stages = Stages()
    for stage in stages.feed(junk.replace(b"spine", b"") + b"\n"):
        assert stage.name in MACHINE
    assert "\x1b[" not in plain(junk)
    assert len(last_lines(junk, 3)) <= 3


def test_a_line_without_end_is_bounded() -> None:
    stages = Stages()
    for _ in range(100):
        stages.feed(b"x" * 10_000)
    assert len(stages._rest) <= 4096
