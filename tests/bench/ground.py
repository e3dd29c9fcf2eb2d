"""A container ground for the families that look at the whole spine, and the personas that they put into it.

Touches: a container ground of its own in the scratch directory (needs root), the kernel's files about it.
Every persona is of linda's image with another first program: busybox's shell and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from spine.ground import state
from spine.ground.port import Port
from spine.image import keys
from spine.verbs.persona import send
from tests.bench.bench import Absent, Bench
from tests.fire.rig import Spine
from tests.rooms.house import Kernel, Source

BODY_OF: Final = "linda"
MIB: Final = 1024**2
PIDS: Final = 256
CALL_S: Final = 60.0
PATIENCE_S: Final = 30.0
POLL_S: Final = 0.002
SAID: Final = b"begun"
"""What the first program of every persona says first."""
SLEEPS: Final = ("/bin/sh", "-c", "echo begun; exec sleep 100000")


def crowd(processes: int) -> tuple[str, ...]:
    """A first program that is so many processes, itself among them, and then says that it is."""
    loop = f"n=1; while [ $n -lt {processes} ]; do sleep 100000 & n=$((n+1)); done"
    return ("/bin/sh", "-c", f"{loop}; echo begun; {'wait' if processes > 1 else 'exec sleep 100000'}")


class Images:
    """Makes personas of one body."""

    def __init__(self, folder: Path) -> None:
        self._source, self._secret = Source.of(BODY_OF, folder), keys.persona_key()

    def of(self, name: str, init: Sequence[str], *, network: bool = False, autostart: bool = False) -> bytes:
        """The image of a persona."""
        return self._source.sealed(
            self._secret,
            name=name,
            init=list(init),
            console=True,
            autostart=autostart,
            network={"use": network, "inbound": []},
            limits={"memoryBytes": 64 * MIB, "pids": PIDS, "writableBytes": 4 * MIB},
        )


class Ground:
    """The tree as it is, in a container."""

    def __init__(self, bench: Bench, personas: Mapping[str, bytes]) -> None:
        if os.geteuid() != 0:
            raise Absent("the container ground needs root")
        self.spine = Spine(bench.folder("ground"), {})
        try:
            self.kernel = Kernel.of(self.spine.container.pid)
            if personas:
                with self.port() as port:
                    for name, image in personas.items():
                        send(port, image, name)
        except BaseException:
            self.spine.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.spine.close()

    def port(self) -> Port:
        """A connection to the operator."""
        return self.spine.container.port(CALL_S)

    def began(self, port: Port, name: str) -> None:
        """Wait until the first program of a room has said that it is there."""
        end = time.monotonic() + PATIENCE_S
        heard, after = b"", 0
        while SAID not in heard:
            if time.monotonic() > end:
                raise Absent(f"the room {name} says nothing")
            answer = port.call("freezer.console", {"persona": name, "after": after, "waitMs": 1000})
            heard, after = heard + _data(answer["data"]), _number(answer["next"])

    @property
    def group(self) -> Path:
        """The cgroup of all of it, rooms too."""
        return self.kernel.root.parent

    def processes(self) -> dict[str, list[int]]:
        """The spine's own processes, rooms left out: for each cgroup its numbers on the host."""
        found: dict[str, list[int]] = {}
        for file in self.group.rglob("cgroup.procs"):
            if self.kernel.root in file.parents:
                continue
            with contextlib.suppress(OSError):
                if pids := [int(line) for line in file.read_text().split()]:
                    found[file.parent.name] = pids
        return found

    def in_rooms(self) -> list[int]:
        """The processes in all rooms."""
        found: list[int] = []
        for file in self.kernel.root.rglob("cgroup.procs"):
            with contextlib.suppress(OSError):
                found += [int(line) for line in file.read_text().split()]
        return found

    def cpu_usec(self, group: Path | None = None) -> int:
        """Processor time of the whole cgroup."""
        lines = ((group or self.group) / "cpu.stat").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("usage_usec "))

    def process(self) -> state.Process:
        """bay0."""
        assert self.spine.bay0 is not None
        return self.spine.bay0


@contextlib.contextmanager
def asserted() -> Iterator[None]:
    """The harnesses of the tests say by an assertion that something did not come about."""
    try:
        yield
    except AssertionError as error:
        raise Absent(str(error) or "it did not do what it must") from None


def _data(value: object) -> bytes:
    assert isinstance(value, bytes)
    return value


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value
