"""What the tests of the bus share: compiled schemas, sockets made the way bay0 makes them, a callee
process."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import trio

from bus import wire
from bus.compile import compile_schemas

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CALLERS = ("alpha", "beta")
PATIENCE_S = 60
"""How long a test waits for what must come. No test measures it: it only ends a test that would hang."""


@functools.cache
def compiled(name: str = "echo") -> Path:
    """The folder with the compiled schemas of a test's own callee."""
    out = Path(tempfile.mkdtemp(prefix="spine-schemas-"))
    atexit.register(shutil.rmtree, out)
    source = out / "schemas"
    source.mkdir()
    shutil.copy(ROOT / "schemas/spine.capnp", source)
    shutil.copy(HERE / f"good/{name}.capnp", source)
    compile_schemas(source, HERE / "good/manifest.toml", out)
    return out


def schemas(name: str = "echo") -> wire.Schemas:
    """The schemas of a test's own callee."""
    return wire.load(compiled(name) / "schemas.cgr")


@functools.cache
def own_schemas() -> wire.Schemas:
    """The schemas of the spine."""
    with tempfile.TemporaryDirectory() as out:
        manifest = Path(out, "manifest.toml")
        names = [path.stem for path in (ROOT / "schemas").glob("*.capnp") if path.stem != "spine"]
        manifest.write_text("".join(f"[organs.{name}]\n" for name in names))
        compile_schemas(ROOT / "schemas", manifest, Path(out))
        return wire.load(Path(out, "schemas.cgr"))


@contextlib.contextmanager
def listening(
    callers: tuple[str, ...] = CALLERS, name: str = "echo", descriptors: tuple[str, ...] = ()
) -> Iterator[tuple[str, dict[str, socket.socket]]]:
    """A folder of bound and listening sockets, as bay0 makes them once at boot.

    `descriptors`: callers that have a second one, which is `CALLER.fds` among the sockets.
    """
    with tempfile.TemporaryDirectory(prefix="bus-") as directory, contextlib.ExitStack() as stack:
        sockets = {}
        kinds = dict.fromkeys(callers, socket.SOCK_STREAM)
        kinds |= {f"{caller}.fds": socket.SOCK_SEQPACKET for caller in descriptors}
        for label, kind in kinds.items():
            bound = stack.enter_context(socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK))
            bound.bind(f"{directory}/{name}.{label}")
            bound.listen(64)
            sockets[label] = bound
        yield directory, sockets


class Callee:
    """A callee in a process of its own, and the lines that it prints."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._buffer = b""
        self._early: list[list[str]] = []

    async def ready(self) -> None:
        """Until it says so. Callers that waited may have been served by then; their lines are kept."""
        while (line := await self._next()) != ["ready"]:
            self._early.append(line)

    async def line(self) -> list[str]:
        """The words of the next line."""
        return self._early.pop(0) if self._early else await self._next()

    async def _next(self) -> list[str]:
        stdout = self._process.stdout
        assert stdout is not None
        while b"\n" not in self._buffer:
            more = await stdout.receive_some()
            assert more, "the callee ended"
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode().split()

    async def kill(self) -> list[list[str]]:
        """kill -9; the lines that were still to be read."""
        self._process.kill()
        await self._process.wait()
        stdout = self._process.stdout
        assert stdout is not None
        while more := await stdout.receive_some():
            self._buffer += more
        lines = self._early + [line.split() for line in self._buffer.decode().split("\n")[:-1]]
        self._early, self._buffer = [], b""
        return lines


@contextlib.asynccontextmanager
async def callee(
    generation: int, sockets: dict[str, socket.socket], name: str = "echo"
) -> AsyncIterator[Callee]:
    """A callee of that generation on those sockets, ready to answer."""
    program = HERE / {"echo": "callee.py", "courier": "courier.py"}[name]
    fds = {caller: bound.fileno() for caller, bound in sockets.items()}
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            functools.partial(
                trio.run_process,
                [sys.executable, str(program), str(compiled(name)), str(generation), json.dumps(fds)],
                pass_fds=list(fds.values()),
                stdout=subprocess.PIPE,
                cwd=ROOT,
                env={"PYTHONPATH": str(ROOT)},
                check=False,
            )
        )
        running = Callee(process)
        try:
            await running.ready()
            yield running
        finally:
            process.kill()
            if process.stdout is not None:
                await process.stdout.aclose()
            nursery.cancel_scope.cancel()
