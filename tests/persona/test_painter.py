"""The painter on a real screen: its image is the root of our kernel, in a machine that takes a picture."""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from spine import paths
from spine.ground import accel
from spine.ground.qmp import Qmp, QmpError
from spine.image import inputs, kernel
from spine.image.cache import Cache
from spine.persona import build as building
from spine.persona import programs, recipe
from spine.progress import Progress

# Emulated, on a host that does other things.
PATIENCE_S = 240
WIDTH, HEIGHT = 640, 480


def our_kernel() -> Path:
    """The kernel of the image. It is compiled for this only where the machine ground is promised."""
    cache = Cache(paths.cache(), lambda _text: None)
    locked = inputs.decode((paths.ROOT / inputs.LOCK).read_text())
    fragment = (paths.ROOT / kernel.FRAGMENT).read_text()
    [source] = locked.of("kernel")
    key = kernel.key(source.sha256, fragment, locked.epoch)
    if not cache.has("kernel", key) and "machine" not in os.environ.get("SPINE_GROUNDS", "").split():
        pytest.skip("the kernel is not built   (./spine build)")

    def fetch() -> Path:
        return inputs.fetch_package(cache, source)

    return kernel.build(cache, fetch, key, fragment, locked.epoch, Progress()) / "bzImage"


@contextmanager
def machine(directory: Path, image: Path, init: str, *words: str) -> Iterator[tuple[Qmp, IO[bytes]]]:
    """Our kernel with this root and this first process, and a screen; what it says on its serial line."""
    control = directory / "qmp"
    root = "root=/dev/vda rootfstype=squashfs ro rootwait"
    line = f"console=ttyS0 panic=-1 {root} init={init} -- {' '.join(words)}"
    command = [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-machine", "q35", "-no-reboot"),
        *(
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            accel.EMULATED,
            "-m",
            "512",
            "-display",
            "none",
            "-vga",
            "none",
        ),
        *("-device", f"virtio-gpu-pci,xres={WIDTH},yres={HEIGHT}"),
        *("-drive", f"file={image},format=raw,if=virtio,readonly=on"),
        *("-serial", "stdio", "-qmp", f"unix:{control},server=on,wait=off"),
        *("-kernel", str(our_kernel()), "-append", line),
    ]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0) as child:
        assert child.stdout is not None
        try:
            yield _connected(control, child), child.stdout
        finally:
            child.kill()


def _connected(control: Path, child: subprocess.Popen[bytes]) -> Qmp:
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return Qmp(control)
        except QmpError:
            assert child.poll() is None, "QEMU ended"
            assert time.monotonic() < end, "QEMU says nothing"
            time.sleep(0.1)


def hear(serial: IO[bytes], word: bytes, end: float) -> None:
    """Wait until the machine has said this."""
    said = b""
    with selectors.DefaultSelector() as selector:
        selector.register(serial, selectors.EVENT_READ)
        while word not in said:
            assert selector.select(max(0.0, end - time.monotonic())), said[-2000:]
            more = serial.read(4096)
            assert more, said[-2000:]
            said += more


def pixels(control: Qmp, directory: Path) -> bytes:
    """What the screen shows, three bytes a pixel."""
    picture = directory / "picture.ppm"
    control.execute("screendump", {"filename": str(picture)})
    return picture.read_bytes()[-WIDTH * HEIGHT * 3 :]


@pytest.mark.machine
def test_the_screen_is_of_one_colour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    built = building.build("painter", Progress(), out=tmp_path)
    program, colour = recipe.load("painter").init
    with machine(tmp_path, built.path, program, colour) as (control, serial):
        wanted = bytes.fromhex(colour) * (WIDTH * HEIGHT)
        end = time.monotonic() + PATIENCE_S
        hear(serial, b"painter: painted", end)
        # The kernel brings what was painted to the screen a moment later, and tells nobody.
        while pixels(control, tmp_path) != wanted:
            assert time.monotonic() < end, "the screen is of another colour"
            time.sleep(0.2)


@pytest.mark.parametrize("given", [(), ("red",), ("2E7D32",), ("2e7d3",), ("2e7d321",), ("2e7d32", "a", "b")])
def test_wrong_words_are_usage(tmp_path: Path, given: tuple[str, ...]) -> None:
    program = tmp_path / "painter"
    (tmp_path / "compile").mkdir()
    made = programs.compile_program("painter", programs.source("painter"), tmp_path / "compile")
    program.write_bytes(made)
    program.chmod(0o755)
    done = subprocess.run([program, *given], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("painter: usage: painter RRGGBB")


def test_without_a_device_it_waits_and_says_so_once(tmp_path: Path) -> None:
    program = tmp_path / "painter"
    (tmp_path / "compile").mkdir()
    program.write_bytes(programs.compile_program("painter", programs.source("painter"), tmp_path / "compile"))
    program.chmod(0o755)
    with subprocess.Popen([program, "2e7d32", str(tmp_path / "none")], stderr=subprocess.PIPE) as child:
        assert child.stderr is not None
        assert child.stderr.readline() == b"painter: there is no display device (yet)\n"
        # Not a display: another reason, said once as well.
        (tmp_path / "none").touch()
        assert child.stderr.readline() == b"painter: there is no screen (yet)\n"
        assert child.poll() is None
        child.kill()
