"""What bay0 asks of the zygote and what it answers: one datagram each, descriptors beside it.

Decides nothing; both processes read these two messages with the same code.
Never: carries a power. What an organ may have, the zygote reads in the manifest itself.
Fails: RequestRefused for a datagram that is not one of ours, which only a defect can cause.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

DATAGRAM_BYTES_MAX: Final = 16 * 1024
# Listeners, devices and pipes of one organ, and what it left with bay0; the kernel passes 253 at most.
DESCRIPTORS_MAX: Final = 200
# The descriptor names that are used up before the organ's own code runs.
CGROUP, STDERR = "cgroup", "stderr"


class RequestRefused(ValueError):
    """Not a message of this protocol."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mounting:
    """A filesystem to mount in the organ's namespace."""

    source: str
    at: str
    type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Make one incarnation. `fds` names the descriptors that travel with it, in their order. `bad`: what its
    data are said to be, where it is to live without them; empty otherwise."""

    organ: str
    generation: int
    mounts: tuple[Mounting, ...]
    fds: tuple[str, ...]
    bad: str = ""

    def encode(self) -> bytes:
        """The datagram."""
        mounts = [{"source": m.source, "at": m.at, "type": m.type} for m in self.mounts]
        message = {"organ": self.organ, "generation": self.generation, "mounts": mounts, "fds": self.fds}
        return json.dumps({**message, "bad": self.bad}).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """The zygote's answer: a child of bay0 with this pid (its pidfd beside it), or why there is none."""

    pid: int | None
    error: str

    def encode(self) -> bytes:
        """The datagram."""
        return json.dumps({"pid": self.pid, "error": self.error}).encode()


def decode_request(datagram: bytes) -> Request:
    """Read a request. Raises RequestRefused."""
    try:
        message = json.loads(datagram)
        return Request(
            organ=str(message["organ"]),
            generation=int(message["generation"]),
            mounts=tuple(Mounting(**mount) for mount in message["mounts"]),
            fds=tuple(str(name) for name in message["fds"]),
            bad=str(message["bad"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise RequestRefused(f"not a request: {error!r}") from None


def decode_made(datagram: bytes) -> Made:
    """Read an answer. Raises RequestRefused."""
    try:
        message = json.loads(datagram)
        pid = message["pid"]
        return Made(pid=None if pid is None else int(pid), error=str(message["error"]))
    except (ValueError, KeyError, TypeError) as error:
        raise RequestRefused(f"not an answer: {error!r}") from None
