"""From the kernel's first instruction to that of a persona, emulated, beside what else could be booted.

All of them boot in the same machine: QEMU by TCG, the same firmware and devices. Times are the guest's own
clock, which begins with its kernel: bay0's stages as it says them on the serial line, and /proc/uptime as the
first shell of a persona, of busybox init on the same kernel with the same command line, and of a service of a
minimal Debian with systemd reads it. `-icount` counts instructions in place of time and is the same each run.

Touches: machines and a container ground that it starts and ends, disks in the scratch directory.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from bus.envelope import Code
from spine import paths
from spine.errors import SpineError
from spine.ground import disk, gpt
from spine.ground.port import PortFailure
from spine.ground.qemu import Machine
from spine.image import parameters, uki
from spine.image.build import build
from spine.progress import Progress
from tests.bench.bench import Absent, Bench
from tests.bench.debian import debian
from tests.bench.figures import Goal, Measured, Missing, Rounds
from tests.bench.ground import Ground, Images
from tests.bench.table import OURS, Row
from tests.builder.household import BUSYBOX

ABOUT = "boots of the whole machine, emulated (TCG), by the guest's own clock since its kernel began"
INIT, DEBIAN = "busybox init, same kernel", "Debian minimal, systemd"
BOOT_S: Final = 300.0
"""Far above what any of them takes on a machine that is merely slow."""
AGAIN_S: Final = 0.1
AGAIN: Final = (Code.NOT_FOUND, Code.BUSY, Code.DEADLINE, Code.PEER_DIED)
"""What is answered while the room is not there yet."""
NAME: Final = "first"
FIRST: Final = "read up rest </proc/uptime; echo began $up"
_BEGAN: Final = re.compile(r"began (\d+\.\d+)")
_STAGE: Final = re.compile(r"spine: stage ([a-z0-9_.-]+) (\d+)")
STAGES: Final = {
    "bay0": "its first process, bay0",
    "zygote": "the zygote, with everything imported",
    "ready": "all organs ready",
}
COUNTED: Final = "tcg,thread=single"
ICOUNT: Final = ("-icount", "shift=2")
"""Four nanoseconds an instruction; while the guest has nothing to do, the time of the host."""


def rows(quick: bool) -> Sequence[Row]:
    """The rows."""
    peers = (INIT, DEBIAN)
    counted = Row(
        "icount",
        "the same in instructions, at four nanoseconds each",
        "s",
        (INIT,),
        {INIT: Goal(at_most=3)},
    )
    return (
        *(Row(name, f"kernel start to {what}", "s") for name, what in STAGES.items()),
        Row(
            "persona",
            "kernel start to a persona's first instruction",
            "s",
            peers,
            {INIT: Goal(at_most=3), DEBIAN: Goal(at_most=0.7)},
            plot="Kernel start to the first program, emulated",
        ),
        *(() if quick else (counted,)),
    )


def measure(bench: Bench, wanted: frozenset[str]) -> Iterator[tuple[str, Mapping[str, Measured]]]:
    """Measure."""
    ours = Ours(bench)
    if {"persona", *STAGES} & wanted:
        theirs = {INIT: _init(bench), DEBIAN: _debian(bench)} if "persona" in wanted else {}
        found = bench.alternate({OURS: ours.boot, **theirs}, bench.count(5, 1), warm=0)
        for name in STAGES:
            if name in wanted:
                own = found[OURS]
                yield name, {OURS: own if isinstance(own, Missing) else _of(ours.stages, name)}
        if "persona" in wanted:
            yield "persona", found
    if "icount" in wanted:
        counted = Ours(bench, counted=True, disk_of=ours)
        yield "icount", bench.alternate({OURS: counted.boot, INIT: _init(bench, counted=True)}, 1, warm=0)


def _of(stages: Sequence[Mapping[str, float]], name: str) -> Measured:
    values = [boot[name] for boot in stages if name in boot]
    return Rounds(tuple((value,) for value in values)) if values else Missing(f"no boot said {name}")


class Ours:
    """The image of the tree, with a persona that starts by itself on its disk."""

    def __init__(self, bench: Bench, *, counted: bool = False, disk_of: Ours | None = None) -> None:
        self._bench, self._counted = bench, counted
        self.stages: list[dict[str, float]] = []
        self._disk: Path = self._made() if disk_of is None else disk_of._disk

    def _made(self) -> Path:
        folder = self._bench.folder("machine")
        build(paths.out(), progress=Progress(io.StringIO()))
        image = folder / "disk.img"
        disk.sparse_copy(paths.out() / "spine.img", image)
        init = ("/bin/sh", "-c", f"{FIRST}; exec sleep 100000")
        persona = Images(folder).of(NAME, init, autostart=True)
        # The container's store of personas is the machine's, to the byte.
        with Ground(self._bench, {NAME: persona}) as ground:
            ground.spine.container.stop()
            place = gpt.read(image)[disk.PERSONAS]
            data = ground.spine.container.personas.read_bytes()
            if len(data) > place.size:
                raise Absent("the store of the container is larger than the machine's")
            with open(image, "r+b") as file:
                file.seek(place.start)
                file.write(data)
        return image

    def boot(self) -> Sequence[float]:
        """One boot; the seconds until the persona began."""
        folder = self._bench.folder("boot")
        image = folder / "disk.img"
        disk.sparse_copy(self._disk, image)
        with _machine(folder) as machine:
            accel, extra = (COUNTED, ICOUNT) if self._counted else ("tcg", ())
            machine.start(image, accel=accel, extra=extra)
            machine.wait_ready(BOOT_S)
            began = _console(machine)
        text = machine.console.text()
        self.stages.append({name: int(ms) / 1000 for name, ms in _STAGE.findall(text)})
        return (began,)


def _console(machine: Machine) -> float:
    """What the persona's shell says of the time, asked for at the port."""
    end = time.monotonic() + BOOT_S
    with machine.port() as port:
        while time.monotonic() < end:
            try:
                answer = port.call("freezer.console", {"persona": NAME, "after": 0, "waitMs": 5000})
            except PortFailure as failure:
                if failure.failure.code not in AGAIN:
                    raise
                time.sleep(AGAIN_S)
                continue
            data = answer["data"]
            assert isinstance(data, bytes)
            if said := _BEGAN.search(data.decode(errors="replace")):
                return float(said[1])
    raise Absent("the persona says nothing")


@contextlib.contextmanager
def _machine(folder: Path) -> Iterator[Machine]:
    machine = Machine(folder)
    try:
        yield machine
    except SpineError as error:
        raise Absent(f"{error.what}: {error.why}") from None
    finally:
        machine.kill()


def _direct(bench: Bench, image: Path, extra: Sequence[str], *, counted: bool = False) -> Sequence[float]:
    """A boot of a kernel that QEMU is told; the seconds until a shell began."""
    folder = bench.folder("boot")
    with _machine(folder) as machine:
        accel, more = (COUNTED, ICOUNT) if counted else ("tcg", ())
        machine.start(image, accel=accel, extra=(*extra, *more))
        machine.console.wait_text("began ", BOOT_S)
        # The line may be half there.
        machine.console.wait_text("\n", BOOT_S, since=machine.console.mark() - len("began "))
        said = _BEGAN.search(machine.console.text())
    if said is None:
        raise Absent("it does not say when it began")
    return (float(said[1]),)


def _init(bench: Bench, *, counted: bool = False) -> Callable[[], Sequence[float]] | Missing:
    """busybox init on our kernel, from a SquashFS that is packed as ours."""
    if not BUSYBOX.exists():
        return Missing("busybox-static is not installed")
    folder = bench.folder("init")
    root = folder / "root"
    for name in ("bin", "sbin", "dev", "proc", "etc"):
        (root / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin/busybox")
    for name in ("bin/sh", "bin/mount", "bin/sleep", "sbin/init"):
        (root / name).symlink_to("/bin/busybox")
    script = f"#!/bin/sh\nmount -t proc proc /proc\n{FIRST} >/dev/ttyS0\n"
    (root / "etc/first").write_text(script)
    (root / "etc/first").chmod(0o755)
    (root / "etc/inittab").write_text("::sysinit:/etc/first\n::respawn:/bin/sleep 100000\n")
    image, kernel = folder / "root.squashfs", folder / "bzImage"
    words = ["mksquashfs", str(root), str(image), "-quiet", "-no-progress", "-comp", "lz4", "-all-root"]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    os.truncate(image, -(-image.stat().st_size // SECTOR) * SECTOR)
    build(paths.out(), progress=Progress(io.StringIO()))
    program = (paths.out() / "spine.efi").read_bytes()
    kernel.write_bytes(next(part.data for part in uki.sections(program) if part.name == ".linux"))
    line = ["root=/dev/vda rootfstype=squashfs ro rootwait=10", *parameters.words()]
    line += ["init=/sbin/init quiet console=tty0 console=ttyS0"]
    extra = ("-kernel", str(kernel), "-append", " ".join(line))
    return lambda: _direct(bench, image, extra, counted=counted)


SECTOR: Final = 512


def _debian(bench: Bench) -> Callable[[], Sequence[float]] | Missing:
    try:
        made = debian()
    except Absent as absent:
        return Missing(str(absent))
    line = "root=/dev/vda rootfstype=ext4 rw quiet console=tty0 console=ttyS0"
    extra = ("-kernel", str(made.kernel), "-initrd", str(made.initrd), "-append", line)

    def one() -> Sequence[float]:
        image = bench.folder("debian") / "disk"
        disk.sparse_copy(made.disk, image)
        try:
            return _direct(bench, image, extra)
        finally:
            image.unlink()

    return one
