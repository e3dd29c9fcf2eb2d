"""One child of bay0: its cgroup, its log, and the descriptors of its present incarnation.

Touches: pipes and sockets of one incarnation; they are made at its start and closed when it is gone, so that
nothing an old incarnation said can be taken for the new one's.
Never: decides; `organs/bay0/children.py` does.
Fails: OSError when a descriptor cannot be made.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from organs.bay0 import restart
from organs.bay0.ground import Ground
from organs.bay0.loop import Loop, now_ms
from organs.bay0.rings import Ring
from organs.bay0.state import ChildFacts
from organs.kernel.cgroups import Cgroup
from organs.manifest import Organ

# Descriptors that one organ may leave here: with what else it is handed they fit one message to the zygote.
KEPT_MAX: Final = 128


def ending(code: int) -> str:
    """An exit code in words; negative codes are signals."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


@dataclass(slots=True)
class Child:
    """The zygote (`organ` is None) or an organ. Descriptors are bay0's ends."""

    name: str
    organ: Organ | None
    cgroup: Cgroup
    ring: Ring
    state: restart.State = field(default_factory=restart.State)
    generation: int = 0
    since_ms: int = 0
    pid: int | None = None
    pidfd: int | None = None
    # Dead, but not yet gone: how it ended, while something it made still lives in its cgroup.
    ended: str | None = None
    # It says that its data are to blame; what it said of them last, in its own words.
    of_data: bool = False
    bad: str = ""
    # The zygote died before it answered for this incarnation.
    lost: bool = False
    status: int | None = None
    stderr: int | None = None
    control: socket.socket | None = None
    # What the organ left for its next incarnations, by label. It outlives every one of them.
    kept: dict[str, int] = field(default_factory=dict)

    def begin(self) -> None:
        """A new incarnation is about to be made."""
        self.generation += 1  # INV-REAP-3
        self.since_ms = now_ms()
        self.ended, self.lost, self.of_data = None, False, False

    def open_pipes(self, loop: Loop) -> dict[str, int]:
        """Make the status and log pipes; the child's ends by name."""
        ours, status = os.pipe2(os.O_CLOEXEC)
        try:
            log, stderr = os.pipe2(os.O_CLOEXEC)
        except OSError:
            os.close(ours)
            os.close(status)
            raise
        self.take_pipes(loop, ours, log)
        return {"status": status, "stderr": stderr}

    def take_pipes(self, loop: Loop, status: int, stderr: int) -> None:
        """Read these pipes from now on."""
        self.status, self.stderr = status, stderr
        os.set_blocking(status, False)
        os.set_blocking(stderr, False)
        loop.add(stderr, lambda: self._pump(loop))

    def open_control(self) -> dict[str, int]:
        """Make the control socket, when the stanza has one; the child's end by name."""
        if self.organ is None or self.organ.control is None:
            return {}
        kind = socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self.control, theirs = socket.socketpair(socket.AF_UNIX, kind)
        return {"control": theirs.detach()}

    def open_devices(self, ground: Ground) -> dict[str, int]:
        """Open what the stanza lists. Raises OSError; what was opened by then is closed again."""
        opened: dict[str, int] = {}
        try:
            for device in self.organ.devices if self.organ else ():
                if device.name not in ground.missing:
                    for label, mode in device.openings().items():
                        opened[label] = ground.open(device.name, mode)
        except OSError:
            close(opened)
            raise
        return opened

    def keep(self, label: str, fds: list[int]) -> str | None:
        """Take the one descriptor that came with the wish; why not, or None. What is not taken is closed."""
        known = label in self.kept
        if len(fds) != 1 or not (known or len(self.kept) < KEPT_MAX):  # INV-REAP-6
            for fd in fds:
                os.close(fd)
            return "no more is kept for one organ" if len(fds) == 1 else "one descriptor must come with it"
        self.drop(label)
        self.kept[label] = fds[0]
        return None

    def drop(self, label: str) -> None:
        """Close what is kept under the label, if anything is."""
        if (fd := self.kept.pop(label, None)) is not None:
            os.close(fd)

    def _pump(self, loop: Loop) -> None:
        if self.stderr is not None and not self.ring.pump(self.stderr):
            loop.remove(self.stderr)
            os.close(self.stderr)
            self.stderr = None

    def close(self, loop: Loop) -> None:
        """The incarnation is gone: keep its last words, close everything of it."""
        if self.stderr is not None:
            self.ring.drain(self.stderr)
        for fd in (self.status, self.stderr):
            if fd is not None:
                _forget(loop, fd)
                os.close(fd)
        if self.control is not None:
            _forget(loop, self.control.fileno())
            self.control.close()
        if self.pidfd is not None:
            os.close(self.pidfd)
        self.status = self.stderr = self.control = self.pidfd = self.pid = None

    def facts(self) -> ChildFacts:
        """What others may know."""
        return ChildFacts(
            state=self.state.phase.value,
            pid=self.pid,
            generation=self.generation,
            deaths=self.state.deaths,
            since_ms=self.since_ms,
            closed=self.state.closed,
        )


def close(fds: Mapping[str, int]) -> None:
    """Close descriptors that are not ours any more."""
    for fd in fds.values():
        os.close(fd)


def _forget(loop: Loop, fd: int) -> None:
    if loop.has(fd):
        loop.remove(fd)
