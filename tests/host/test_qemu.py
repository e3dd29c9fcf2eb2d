"""The machine's frame: QEMU's command line, its control socket, its end; no guest runs here."""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from spine.errors import Exit, SpineError
from spine.ground import accel, picture, powercut, qemu, state
from spine.ground.console import BootError, Silent
from spine.ground.qemu import Machine, Plan
from spine.ground.qmp import QmpError

# The processor does not start: the frame is there within a second, and nothing ever happens in it.
FROZEN = ("-S",)


def plan(**more: object) -> Plan:
    base = Path("/a, b")
    given: dict[str, object] = {
        "disk": base / "disk.img",
        "variables": base / "vars.fd",
        "firmware": Path("/usr/share/OVMF/OVMF_CODE.fd"),
        "serial": base / "serial.log",
        "sockets": base,
        "pidfile": base / "qemu.pid",
        "accel": "tcg",
    }
    return Plan(**{**given, **more})  # type: ignore[arg-type]  # the callers know the fields


def after(words: list[str], option: str) -> list[str]:
    return [words[at + 1] for at, word in enumerate(words) if word == option]


def test_the_guest_has_one_card_one_disk_and_no_way_out() -> None:
    words = qemu.arguments(plan())
    assert after(words, "-netdev") == ["user,id=card,restrict=on"]
    assert "-nic" not in words
    assert "-nodefaults" in words
    devices = after(words, "-device")
    assert [word for word in devices if "net" in word or "blk" in word] == [
        "virtio-blk-pci,drive=disk,bootindex=0,werror=report,rerror=report",
        "virtio-net-pci,netdev=card,mac=52:54:00:12:34:56,romfile=",
    ]
    assert "virtserialport,chardev=port,name=spine.operator" in devices
    assert "i6300esb" in devices
    assert after(words, "-action") == ["watchdog=reset"]
    assert after(words, "-display") == ["none"]


@pytest.mark.parametrize(
    ("hardware", "disk"),
    [
        (qemu.Hardware.NVME, "nvme,drive=disk,serial=spine,bootindex=0"),
        (qemu.Hardware.AHCI, "ide-hd,drive=disk,bus=ide.0,bootindex=0"),
        (qemu.Hardware.USB, "usb-storage,bus=usb.0,drive=disk,bootindex=0"),
    ],
)
def test_a_pc_has_no_device_of_virtual_machines(hardware: qemu.Hardware, disk: str) -> None:
    words = qemu.arguments(plan(hardware=hardware, port=False))
    devices = after(words, "-device")
    assert disk in devices
    assert not [word for word in devices if "virt" in word or "i6300esb" in word]
    assert {"VGA", "qemu-xhci,id=usb", "usb-kbd,bus=usb.0"} <= set(devices)
    assert [word for word in devices if word.startswith("e1000e,netdev=card")]
    ported = after(qemu.arguments(plan(hardware=hardware)), "-device")
    assert [word for word in ported if "virt" in word] == [
        "virtio-serial-pci",
        "virtserialport,chardev=port,name=spine.operator",
        "virtserialport,chardev=tap,name=spine.tap",
    ]


def test_paths_survive_qemus_commas() -> None:
    words = qemu.arguments(plan())
    nodes = [json.loads(text) for text in after(words, "-blockdev")]
    assert [node["node-name"] for node in nodes] == ["code", "variables", "disk"]
    assert nodes[2]["file"]["filename"] == "/a, b/disk.img"
    assert nodes[0]["read-only"] is True
    assert "socket,id=port,path=/a,, b/port.sock,server=on,wait=off" in after(words, "-chardev")


def test_what_a_test_asks_for() -> None:
    words = qemu.arguments(
        plan(no_reboot=True, extra=("-S",), blockdevs=({"node-name": "disk"},), accel="kvm")
    )
    assert after(words, "-action") == ["watchdog=reset", "reboot=shutdown"]
    assert words[-1] == "-S"
    assert len(after(words, "-blockdev")) == 3
    assert after(words, "-accel") == ["kvm"]


def test_a_firmware_with_secure_boot_keeps_its_variables_to_itself() -> None:
    words = qemu.arguments(plan(secure=True))
    assert after(words, "-machine") == ["q35,smm=on,pflash0=code,pflash1=variables"]
    assert "driver=cfi.pflash01,property=secure,value=on" in after(words, "-global")
    assert "smm=off" in after(qemu.arguments(plan()), "-machine")[0]


def test_what_a_test_asks_for_of_the_network() -> None:
    words = qemu.arguments(plan(forward=((8080, 80), (2222, 22)), outside=True))
    assert after(words, "-netdev") == [
        "user,id=card,restrict=off,hostfwd=tcp:127.0.0.1:8080-:80,hostfwd=tcp:127.0.0.1:2222-:22"
    ]


def test_a_picture_keeps_its_colours() -> None:
    pixels = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255, 10, 35, 32])
    made = picture.png(b"P6\n2 2\n255\n" + pixels)
    assert made[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", made[16:24]) == (2, 2)
    length = struct.unpack(">I", made[33:37])[0]
    rows = zlib.decompress(made[41 : 41 + length])
    assert rows == b"\0" + pixels[:6] + b"\0" + pixels[6:]


@pytest.mark.parametrize("bad", [b"", b"P6", b"P5\n2 2\n255\n" + bytes(12), b"P6\n2 2\n255\n" + bytes(11)])
def test_other_pictures_are_refused(bad: bytes) -> None:
    with pytest.raises(ValueError, match="PPM"):
        picture.png(bad)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    # The name is long: its sockets must lie elsewhere, and a comma and a space are in the way.
    made = Machine(tmp_path / ("a, long name " * 8))
    yield made
    made.kill()


@pytest.mark.machine
def test_one_life_of_a_machine(machine: Machine, disk: Path, tmp_path: Path) -> None:
    machine.start(disk, extra=FROZEN)
    sockets = machine.sockets
    assert machine.alive()
    assert is_recorded(machine)
    with machine.qmp() as session:
        assert session.execute("query-status") == {
            "status": "prelaunch",
            "singlestep": False,
            "running": False,
        }
        with pytest.raises(QmpError, match="has not been found"):
            session.execute("no-such-command")
    machine.screendump(tmp_path / "screen.png")
    assert (tmp_path / "screen.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "screen.ppm").exists()
    with pytest.raises(SpineError, match="runs already") as refused:
        machine.start(disk)
    assert refused.value.exit_code == Exit.REFUSED
    with pytest.raises(Silent):
        machine.wait_ready(20, silent_s=0.01)
    with pytest.raises(BootError, match="was not ready within 0 s") as late:
        machine.wait_ready(0.01)
    assert late.value.exit_code == Exit.TIMEOUT
    other = Machine.attach(machine.directory)
    assert other is not None
    assert other.pid == machine.pid
    # Nobody is there to hear the power button.
    assert other.stop(0.01) is False
    machine.wait_exit(10)
    assert machine.exit_code == 0
    assert not sockets.exists()
    assert Machine.attach(machine.directory) is None


@pytest.mark.machine
@pytest.mark.proves("INV-HOST-4")
def test_a_machine_without_a_log_cannot_be_cut(machine: Machine, disk: Path) -> None:
    machine.start(disk, extra=FROZEN)
    with pytest.raises(SpineError) as refused:
        machine.power_cut()
    assert refused.value.exit_code == Exit.REFUSED
    assert "--log-writes" in refused.value.fix
    assert machine.alive()


@pytest.mark.machine
def test_a_cut_leaves_the_disk_as_it_was_before_what_nobody_flushed(machine: Machine, disk: Path) -> None:
    before = disk.read_bytes()
    machine.start(disk, logged=True, extra=FROZEN)
    assert powercut.logged(machine.directory)
    lost = machine.power_cut()
    assert not machine.alive()
    assert not powercut.logged(machine.directory)
    # Nothing boots from an empty disk, so nothing was written.
    assert (lost, disk.read_bytes()) == (powercut.Lost(0, 0, 0), before)


def is_recorded(machine: Machine) -> bool:
    ground = state.read(machine.directory)
    return ground is not None and ground.process.pid == machine.pid and ground.port == machine.port_path


@pytest.mark.machine
def test_a_machine_that_is_killed_is_noticed(machine: Machine, disk: Path) -> None:
    machine.start(disk, extra=FROZEN)
    machine.kill()
    assert machine.exit_code == -9
    with pytest.raises(BootError, match="ended before it was ready"):
        machine.wait_ready(20)
    machine.kill()


@pytest.mark.machine
def test_a_qemu_that_refuses_says_why(machine: Machine, disk: Path) -> None:
    with pytest.raises(BootError, match="at once") as raised:
        machine.start(disk, extra=("-device", "no-such-device"))
    assert "no-such-device" in raised.value.why
    assert not machine.alive()
    with pytest.raises(BootError, match="at once") as raised:
        machine.start(disk.parent / "none.img", extra=FROZEN)
    assert "none.img" in raised.value.why


@pytest.mark.machine
def test_the_proof_of_an_accelerator_bites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert accel.prove("tcg").works
    monkeypatch.setattr(accel, "PROOF_S", 1.0)
    silent = bytearray(accel.rom())
    silent[accel.ROM_BYTES - 16 : accel.ROM_BYTES - 14] = b"\xeb\xfe"  # jumps to itself
    monkeypatch.setattr(accel, "rom", lambda: bytes(silent))
    hangs = accel.prove("tcg")
    assert not hangs.works
    assert "hangs" in hangs.reason
    refused = accel.prove("no-such-accelerator")
    assert not refused.works
    assert "no-such-accelerator" in refused.reason


def test_a_verdict_is_kept_for_this_boot_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kvm = tmp_path / "kvm"
    kvm.touch()
    monkeypatch.setattr(accel, "KVM", kvm)
    accel.remember(accel.Verdict(False, "it was silent"))
    assert accel.kvm() == accel.Verdict(False, "it was silent")
    assert accel.choose("auto") == ("tcg", "it was silent")
    with pytest.raises(SpineError, match="KVM does not work here") as raised:
        accel.choose("kvm")
    assert raised.value.exit_code == Exit.HOST_NOT_READY
    assert accel.choose("tcg") == ("tcg", "")
    monkeypatch.setattr(accel, "_boot_id", lambda: "another boot")
    monkeypatch.setattr(accel, "prove", lambda cpu: accel.Verdict(cpu != accel.CPUS[0], cpu=cpu))
    assert accel.kvm() == accel.Verdict(True, cpu=accel.CPUS[1])
