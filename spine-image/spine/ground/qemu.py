"""The machine: the real image in QEMU, under UEFI.

`Machine` is one QEMU process with its files in one directory; the one that `./spine boot` starts lives in
the state directory, tests have their own elsewhere, side by side. Touches that directory, a socket directory
and the processes it starts. The guest has one network card, behind which QEMU plays a small network with a
DHCP server; nothing leads from there to the host or further, unless it was asked for. Else QEMU offers it
nothing of the host but the disk, the port and random bytes. Its devices are the ones that virtual machines
have, or those of a PC (`Hardware`). Every wait has a deadline; what fails says how
far the boot came and shows the last lines.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from spine import paths
from spine.errors import Exit, SpineError
from spine.ground import accel as acceleration
from spine.ground import picture, powercut, state
from spine.ground.console import LOOK_S, BootError, Console, OnStage, nobody
from spine.ground.disk import DISK_NODE
from spine.ground.port import Port
from spine.ground.qmp import ANSWER_S, Qmp, QmpError
from spine.ground.stages import Stage, last_lines

if TYPE_CHECKING:
    from spine.image.enrolment import Variable

# The machine's size. The spine itself needs a tenth of the memory; the rest is for what it will carry.
MEMORY_MIB = 512
CPUS = 2
# From power-on to ready. Tried: about 20 s emulated on two cores; hosts differ, and other work runs beside.
READY_S = {"kvm": 90.0, "tcg": 300.0}
# A kernel under KVM speaks within a second or two; one that is silent this long is not running.
SILENT_S = 20.0
# bay0 gives its organs 5 s to stop, widened up to eightfold on slow grounds; then QEMU is ended.
STOP_S = 60.0
KILL_S = 10.0

# Code and variables of one build belong together; the 4M build is the one newer systems still carry.
FIRMWARE = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
)

# The same with Secure Boot: it keeps its variables to itself, in a mode of the CPU that no system sees (SMM).
SECURE_FIRMWARE = (
    ("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.secboot.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
)

# Of QEMU's own range, and the same each time, so that a test knows the card.
CARD_MAC = "52:54:00:12:34:56"


class Hardware(Enum):
    """What the guest finds. The names of real ones say where its disk is; the rest is then a PC's as well."""

    VIRTIO = "virtio"
    NVME = "nvme"
    AHCI = "ahci"
    USB = "usb"


Blockdev = Mapping[str, object]


@dataclass(frozen=True)
class Plan:
    """All that decides QEMU's command line."""

    disk: Path
    variables: Path
    firmware: Path
    serial: Path
    sockets: Path
    pidfile: Path
    accel: str
    cpu: str = acceleration.EMULATED
    memory_mib: int = MEMORY_MIB
    cpus: int = CPUS
    hardware: Hardware = Hardware.VIRTIO
    # The operator's port is a device of virtual machines, and the only one of them that a PC here may have.
    port: bool = True
    no_reboot: bool = False
    display: bool = False
    # Whether the firmware may keep secrets from the system, as one with Secure Boot must.
    secure: bool = False
    # TCP ports of the host's loopback and the guest's ports that they lead to. The guest's address is the one
    # that QEMU's DHCP server gives out first.
    forward: tuple[tuple[int, int], ...] = ()
    # Whether the guest reaches what the host reaches, the host's own services among it.
    outside: bool = False
    # What stands in for the plain disk; the node named `DISK_NODE` is what the guest sees.
    blockdevs: tuple[Blockdev, ...] = ()
    extra: tuple[str, ...] = ()


def arguments(plan: Plan) -> list[str]:
    """QEMU's command line. Pure."""
    words = [acceleration.QEMU, "-name", "alpine-spine", "-nodefaults", "-no-user-config"]
    # A PC's keyboard hangs on USB; the old controller would take its keys.
    keys = "" if plan.hardware is Hardware.VIRTIO else ",i8042=off"
    words += ["-machine", f"q35,smm={'on' if plan.secure else 'off'}{keys},pflash0=code,pflash1=variables"]
    if plan.secure:
        # Only SMM writes the variables; and none of it is left open while the machine sleeps.
        words += ["-global", "driver=cfi.pflash01,property=secure,value=on"]
        words += ["-global", "ICH9-LPC.disable_s3=1"]
    words += ["-accel", "tcg,thread=multi" if plan.accel == "tcg" else plan.accel]
    words += ["-cpu", plan.cpu, "-smp", str(plan.cpus), "-m", str(plan.memory_mib)]
    nodes: list[Blockdev] = [
        _file_node("code", plan.firmware, read_only=True),
        _file_node("variables", plan.variables),
        *(plan.blockdevs or (_file_node(DISK_NODE, plan.disk, discard="unmap"),)),
    ]
    for node in nodes:
        words += ["-blockdev", json.dumps(node)]
    words += _virtual(plan) if plan.hardware is Hardware.VIRTIO else _real(plan)
    words += ["-display", "gtk" if plan.display else "none"]
    if plan.port:
        words += _socket_chardev("port", plan.sockets / "port.sock")
        words += _socket_chardev("tap", plan.sockets / "tap.sock")
        words += [
            "-device",
            "virtio-serial-pci",
            "-device",
            "virtserialport,chardev=port,name=spine.operator",
        ]
        words += ["-device", "virtserialport,chardev=tap,name=spine.tap"]
    words += _socket_chardev("qmp", plan.sockets / "qmp.sock")
    words += ["-mon", "chardev=qmp,mode=control"]
    words += ["-chardev", f"file,id=serial,path={_comma(plan.serial)}", "-serial", "chardev:serial"]
    words += ["-action", "watchdog=reset"]
    words += ["-netdev", _network(plan)]
    words += ["-pidfile", str(plan.pidfile)]
    if plan.no_reboot:
        words += ["-action", "reboot=shutdown"]
    return [*words, *plan.extra]


def _virtual(plan: Plan) -> list[str]:
    """The devices of a virtual machine."""
    # A full host disk is an I/O error that the guest can meet; by itself QEMU would pause without a word.
    # A kernel that QEMU is told comes first, and has that index to itself.
    first = "" if "-kernel" in plan.extra else ",bootindex=0"
    words = ["-device", f"virtio-blk-pci,drive={DISK_NODE}{first},werror=report,rerror=report"]
    words += ["-device", "virtio-gpu-pci", "-device", "i6300esb"]
    words += ["-object", "rng-random,id=random,filename=/dev/urandom"]
    words += ["-device", "virtio-rng-pci,rng=random"]
    # Without a ROM: nothing is to be booted from the network.
    words += ["-device", f"virtio-net-pci,netdev=card,mac={CARD_MAC},romfile="]
    if plan.display:
        words += ["-device", "virtio-keyboard-pci", "-device", "virtio-tablet-pci"]
    return words


def _real(plan: Plan) -> list[str]:
    """The devices of a PC: a disk, a keyboard, a card, the firmware's picture, Intel's watchdog."""
    words = ["-device", "VGA", "-device", "qemu-xhci,id=usb", "-device", "usb-kbd,bus=usb.0"]
    if plan.hardware is Hardware.NVME:
        words += ["-device", f"nvme,drive={DISK_NODE},serial=spine,bootindex=0"]
    elif plan.hardware is Hardware.AHCI:
        # The board has a controller of its own.
        words += ["-device", f"ide-hd,drive={DISK_NODE},bus=ide.0,bootindex=0"]
    else:
        words += ["-device", f"usb-storage,bus=usb.0,drive={DISK_NODE},bootindex=0"]
    words += ["-device", f"e1000e,netdev=card,mac={CARD_MAC},romfile="]
    # The board's watchdog may restart it: a strap that boards set and QEMU does not.
    return [*words, "-global", "ICH9-LPC.noreboot=false"]


class Machine:
    """One QEMU machine. Its files are `serial.log`, `qemu.log`, `vars.fd` and `state.json` in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.console = Console(directory / "serial.log", "machine", self.alive, self._epitaph)
        self.log_path = directory / "qemu.log"
        self.accel = ""
        self.disk: Path | None = None
        self.exit_code: int | None = None
        self._sockets: Path | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._process: state.Process | None = None

    @classmethod
    def attach(cls, directory: Path) -> "Machine | None":
        """The machine that runs out of this directory, whoever started it; None when none does."""
        ground = state.read(directory)
        if ground is None or ground.kind != "machine":
            return None
        machine = cls(directory)
        machine.accel, machine.disk = ground.accel, ground.disk
        machine._sockets, machine._process = ground.port.parent, ground.process
        return machine

    @property
    def pid(self) -> int:
        """QEMU's process number. SpineError (4) when it was never started."""
        if self._process is None:
            raise SpineError(
                "no machine runs", f"{self.directory} has none", "./spine boot", Exit.NO_SUCH_THING
            )
        return self._process.pid

    @property
    def sockets(self) -> Path:
        """The directory of `port.sock` and `qmp.sock`; made when it is not there."""
        if self._sockets is None:
            self._sockets = paths.sockets(self.directory)
        return self._sockets

    @property
    def port_path(self) -> Path:
        """The unix socket of the operator's port."""
        return self.sockets / "port.sock"

    def start(
        self,
        disk: Path,
        *,
        accel: str = "tcg",
        variables: Path | None = None,
        blockdevs: Sequence[Blockdev] = (),
        hardware: Hardware = Hardware.VIRTIO,
        port: bool = True,
        logged: bool = False,
        no_reboot: bool = False,
        display: bool = False,
        memory_mib: int = MEMORY_MIB,
        forward: Sequence[tuple[int, int]] = (),
        outside: bool = False,
        enroll: "Sequence[Variable]" = (),
        extra: Sequence[str] = (),
    ) -> None:
        """Power on; returns when QEMU answers, long before the guest does.

        `disk` is written to. `variables` are the firmware's (a new copy of its own when not given).
        `blockdevs` replace the plain disk: nodes in the order of their making, the guest's named `DISK_NODE`.
        `hardware` is what the guest finds; `port=False` leaves out the operator's.
        `logged` logs what is written to the disk, for `power_cut`, in place of `blockdevs`. `no_reboot` makes
        a reset end QEMU. `forward` leads ports of the host's loopback to the guest's, `outside` lets the
        guest out. `enroll` are the keys of a firmware with Secure Boot (none: one without). SpineError: QEMU
        or its firmware is missing, or it ended at once.
        """
        if self.alive():
            raise SpineError(
                "the machine runs already", f"QEMU is process {self.pid}", "./spine stop", Exit.REFUSED
            )
        code, empty = firmware(secure=bool(enroll))
        paths.private(self.directory)
        powercut.forget(self.directory)
        if logged:
            blockdevs = powercut.begin(disk, self.directory)
        if variables is None:
            variables = self.directory / "vars.fd"
            variables.write_bytes(_enrolled(empty.read_bytes(), enroll) if enroll else empty.read_bytes())
        for name in ("port.sock", "tap.sock", "qmp.sock"):
            (self.sockets / name).unlink(missing_ok=True)
        plan = Plan(
            disk=disk,
            variables=variables,
            firmware=code,
            serial=self.console.path,
            sockets=self.sockets,
            pidfile=self.directory / "qemu.pid",
            accel=accel,
            cpu=acceleration.kvm().cpu if accel == "kvm" else acceleration.EMULATED,
            memory_mib=memory_mib,
            hardware=hardware,
            port=port,
            no_reboot=no_reboot,
            display=display,
            secure=bool(enroll),
            forward=tuple(forward),
            outside=outside,
            blockdevs=tuple(blockdevs),
            extra=tuple(extra),
        )
        self.console.path.write_bytes(b"")
        with open(self.log_path, "wb") as log:
            try:
                # A session of its own: ctrl-C at the terminal is for ./spine and not for the machine.
                self._child = subprocess.Popen(
                    arguments(plan), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
            except FileNotFoundError as error:
                raise _no_qemu() from error
        self.exit_code, self.accel, self.disk = None, accel, disk
        self._process = state.Process.of(self._child.pid)
        self._wait_for_qmp()
        if self._process is None:
            raise self._ended("at once")
        state.write(
            self.directory,
            state.Ground(
                kind="machine",
                process=self._process,
                disk=disk,
                port=self.port_path,
                console=self.console.path,
                accel=accel,
            ),
        )

    def alive(self) -> bool:
        """Whether QEMU runs."""
        if self._process is None or self.exit_code is not None:
            return False
        if self._process.alive():
            return True
        if self._child is not None:
            self.exit_code = self._child.wait()
        return False

    def wait_ready(
        self,
        deadline_s: float | None = None,
        *,
        since: int = 0,
        silent_s: float | None = None,
        on_stage: OnStage = nobody,
    ) -> None:
        """Wait until bay0 says ready and the operator answers a hello.

        BootError: the time is up (124), or QEMU ended (1). `since` is a `console.mark()`: only what comes
        after it counts. `silent_s` gives up sooner (`Silent`) when not even the kernel spoke.
        """
        limit_s = READY_S[self.accel] if deadline_s is None else deadline_s
        end = time.monotonic() + limit_s
        self.console.follow("ready", limit_s, since=since, silent_s=silent_s, on_stage=on_stage)
        with self.port(max(1.0, end - time.monotonic())):
            on_stage(Stage("port"))

    @property
    def tap_path(self) -> Path:
        """The unix socket of the operator's second port, so that a tap holds up no call."""
        return self.sockets / "tap.sock"

    def port(self, deadline_s: float | None = None) -> Port:
        """A connection to the operator's port."""
        return Port(self.port_path) if deadline_s is None else Port(self.port_path, deadline_s=deadline_s)

    @contextlib.contextmanager
    def qmp(self, deadline_s: float = ANSWER_S) -> Iterator[Qmp]:
        """A session with QEMU. QmpError."""
        with Qmp(self.sockets / "qmp.sock", deadline_s) as session:
            yield session

    def screendump(self, target: Path) -> None:
        """Save a picture of the screen, as PNG when the name ends so, else as PPM. QmpError."""
        ppm = target if target.suffix != ".png" else target.with_suffix(".ppm")
        with self.qmp() as session:
            session.execute("screendump", {"filename": str(ppm.absolute())})
        if ppm != target:
            target.write_bytes(picture.png(ppm.read_bytes()))
            ppm.unlink()

    def reset(self) -> None:
        """Press the reset button. QmpError."""
        with self.qmp() as session:
            session.execute("system_reset")

    def power_button(self) -> None:
        """Press the power button; bay0 shuts down in order. QmpError."""
        with self.qmp() as session:
            session.execute("system_powerdown")

    def kill(self) -> None:
        """End QEMU at once (SIGKILL). Not a power cut: what it wrote stays. Harmless when it is dead."""
        if self._process is not None and self._process.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
            self.wait_exit(KILL_S)
        self.forget()

    def power_cut(self) -> powercut.Lost:
        """The power goes: end QEMU at once, and leave on the disk what was sure to be durable, nothing else.

        SpineError (5): the machine was not started with its writes logged. LogError.
        """
        if self.disk is None or not powercut.logged(self.directory):  # INV-HOST-4
            raise SpineError(
                "the power cannot be cut honestly",
                "what this machine wrote and did not flush is in no log, so killing QEMU would lose nothing",
                "./spine stop; ./spine boot --log-writes; then ./spine powercut",
                Exit.REFUSED,
            )
        disk = self.disk
        self.kill()
        return powercut.finish(disk, self.directory)

    def stop(self, deadline_s: float = STOP_S) -> bool:
        """Power button, then the plug after the deadline; True when the shutdown was orderly."""
        orderly = False
        if self.alive():
            with contextlib.suppress(QmpError):
                self.power_button()
                orderly = self._wait_end(deadline_s)
            if not orderly:
                with contextlib.suppress(QmpError), self.qmp() as session:
                    session.execute("quit")
                self._wait_end(KILL_S)
        self.kill()
        powercut.forget(self.directory)
        return orderly

    def wait_exit(self, deadline_s: float) -> int | None:
        """Wait until QEMU has ended; its exit code, None when it is not our child. SpineError (124)."""
        if not self._wait_end(deadline_s):
            raise self._late(f"QEMU did not end within {deadline_s:.0f} s")
        return self.exit_code

    def forget(self) -> None:
        """Remove what only a running machine needs: record, sockets."""
        state.forget(self.directory)
        (self.directory / "qemu.pid").unlink(missing_ok=True)
        for name in ("port.sock", "port.lock", "tap.sock", "tap.lock", "qmp.sock"):
            (self.sockets / name).unlink(missing_ok=True)
        if self.sockets != self.directory:
            with contextlib.suppress(OSError):
                self.sockets.rmdir()
            self._sockets = None

    def _wait_for_qmp(self) -> None:
        end = time.monotonic() + ANSWER_S
        while True:
            try:
                with self.qmp():
                    return
            except QmpError as error:
                if not self.alive():
                    raise self._ended("at once") from error
                if time.monotonic() > end:
                    self.kill()
                    raise self._late(f"QEMU was not there after {ANSWER_S:.0f} s") from error
                time.sleep(LOOK_S)

    def _wait_end(self, deadline_s: float) -> bool:
        end = time.monotonic() + deadline_s
        while self.alive():
            if time.monotonic() > end:
                return False
            time.sleep(LOOK_S)
        return True

    def _epitaph(self) -> str:
        log = last_lines(self.log_path.read_bytes() if self.log_path.exists() else b"", 1)
        return f"QEMU ended with {self.exit_code}{': ' + log[0] if log else ''}"

    def _late(self, what: str) -> BootError:
        return BootError(what, "it is alive and does nothing", "./spine stop", exit_code=Exit.TIMEOUT)

    def _ended(self, when: str) -> BootError:
        return BootError(f"QEMU ended {when}", self._epitaph(), f"less '{self.log_path}'")


def _enrolled(empty: bytes, keys: "Sequence[Variable]") -> bytes:
    # Imported only here: certificates take a third of the start of every verb that reaches a ground.
    from spine.ground.variables import SWITCHES, enrolled

    return enrolled(empty, (*keys, *SWITCHES))


def firmware(*, secure: bool = False) -> tuple[Path, Path]:
    """The UEFI firmware and its empty variables. SpineError (3)."""
    wanted = SECURE_FIRMWARE if secure else FIRMWARE
    for code, variables in wanted:
        if os.path.exists(code) and os.path.exists(variables):
            return Path(code), Path(variables)
    raise SpineError(
        "there is no UEFI firmware for QEMU",
        f"{wanted[0][0]} is not there",
        "apt-get install --no-install-recommends ovmf",
        Exit.HOST_NOT_READY,
    )


def _no_qemu() -> SpineError:
    return SpineError(
        "there is no QEMU",
        f"{acceleration.QEMU} is not installed",
        "apt-get install --no-install-recommends qemu-system-x86",
        Exit.HOST_NOT_READY,
    )


def _file_node(name: str, path: Path, *, read_only: bool = False, discard: str = "ignore") -> Blockdev:
    return {
        "driver": "raw",
        "node-name": name,
        "read-only": read_only,
        "discard": discard,
        "file": {"driver": "file", "filename": str(path), "read-only": read_only, "discard": discard},
    }


def _network(plan: Plan) -> str:
    """QEMU's network behind the card. `restrict` closes it towards the host and all beyond."""
    words = ["user", "id=card", f"restrict={'off' if plan.outside else 'on'}"]
    return ",".join([*words, *(f"hostfwd=tcp:127.0.0.1:{here}-:{there}" for here, there in plan.forward)])


def _socket_chardev(name: str, path: Path) -> list[str]:
    return ["-chardev", f"socket,id={name},path={_comma(path)},server=on,wait=off"]


def _comma(path: Path) -> str:
    """QEMU splits these options at commas; a doubled one stands for itself."""
    return str(path).replace(",", ",,")
