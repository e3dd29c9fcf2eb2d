"""Hearing the news of one callee: `async for item in peer.events()`.

First comes a `Snapshot`: the events that describe the callee's present state. Then `News`, one for each
event, in order. A Snapshot comes again after the callee's restart, after a reconnection, and when news were
lost because this hearer or the way to it was too slow; whoever takes each Snapshot for all that is true
misses nothing.

Pure but for waking its one reader: envelopes come in from `bus.client`, items go out. Never holds more than
`HEARD_MAX` items; a reader that falls behind loses them all and is given a Snapshot, once it reads again.
Fails: PeerError for what is no event; `trio.ClosedResourceError` to the reader when the peer runs no more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

import trio

from bus.envelope import SNAPSHOT_MAX, Envelope, PeerError, Phase
from bus.wire import Interface

HEARD_MAX: Final = 256
"""Items that wait for the reader."""
HEARD_BYTES_MAX: Final = 4 * 1024 * 1024
"""Bytes of their bodies, and of one Snapshot."""


@dataclass(frozen=True, slots=True)
class News:
    """One event."""

    event: str
    values: dict[str, object]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The present state of the callee of that generation, as events."""

    generation: int
    events: tuple[News, ...]


class Hearing:
    """What one peer's reader has not read yet."""

    __slots__ = ("_ask", "_behind", "_bytes", "_closed", "_gathered", "_id", "_interface", "_items", "_wake")

    def __init__(self, interface: Interface, ask: Callable[[], None]) -> None:
        """`ask` asks the callee for a snapshot and calls `asked`, if the callee is there."""
        self._interface = interface
        self._ask = ask
        self._id: int | None = None
        self._gathered: tuple[list[News], int] | None = None
        """The part of a snapshot that has come, and its bytes."""
        self._items: deque[tuple[Snapshot | News, int]] = deque()
        self._bytes = 0
        self._behind = False
        self._closed = False
        self._wake: trio.Event | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Snapshot | News:
        """The next item. For one task."""
        await trio.lowlevel.checkpoint()
        while not self._items:
            if self._closed:
                raise trio.ClosedResourceError
            if self._behind:
                self._ask()
            self._wake = trio.Event()
            await self._wake.wait()
        item, size = self._items.popleft()
        self._bytes -= size
        return item

    def asked(self, id_: int) -> None:
        """The callee was asked for a snapshot; what it answers to an earlier question is not for us."""
        self._id = id_
        self._gathered = None
        self._behind = False

    def take(self, envelope: Envelope) -> None:
        """An EVENT of the callee. PeerError when it is none."""
        if envelope.id != self._id or self._behind:
            return
        if envelope.attempt == Phase.END:
            events, size = self._gathered or ([], 0)
            self._gathered = None
            self._add(Snapshot(envelope.generation, tuple(events)), size)
            return
        event = self._interface.event(envelope.ordinal)
        if envelope.interface != self._interface.id or event is None:
            raise PeerError("an event that is not known")
        news, size = News(event.name, event.decode_params(envelope.body)), len(envelope.body)
        if envelope.attempt == Phase.PART:
            events, before = self._gathered or ([], 0)
            if len(events) >= SNAPSHOT_MAX or before + size > HEARD_BYTES_MAX:
                self._fall_behind()
                raise PeerError("a snapshot without an end")
            events.append(news)
            self._gathered = events, before + size
        elif envelope.attempt == Phase.NEWS and self._gathered is None:
            self._add(news, size)
        else:
            raise PeerError("an event out of its order")

    def close(self) -> None:
        """Nothing will come any more."""
        self._closed = True
        self._notify()

    def _add(self, item: Snapshot | News, size: int) -> None:
        if len(self._items) >= HEARD_MAX or self._bytes + size > HEARD_BYTES_MAX:  # INV-BUS-9
            self._fall_behind()
            return
        self._items.append((item, size))
        self._bytes += size
        self._notify()

    def _fall_behind(self) -> None:
        self._items.clear()
        self._bytes = 0
        self._gathered = None
        self._behind = True
        self._notify()

    def _notify(self) -> None:
        if self._wake is not None:
            self._wake.set()
