"""What an earlier freezer left with bay0 of rooms that are no more is let go of; what rooms need is not."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from bus.hearing import News, Snapshot
from organs.freezer import facts
from organs.freezer.facts import Facts
from organs.freezer.line import Line
from organs.freezer.rooms import Rooms
from organs.kernel.cgroups import Subtree
from tests.freezer.test_freezer_organ import unified

pytestmark = pytest.mark.container
PATIENCE_S = 30
KINDS = ("listener", "netns", "route")


@dataclass
class Store:
    """bay0, as the freezer has it."""

    kept: dict[str, int]
    dropped: list[str] = field(default_factory=list)

    async def keep(self, label: str, fd: int) -> None:
        """Another one."""
        self.kept[label] = fd

    async def drop(self, label: str) -> None:
        """Not needed any more."""
        self.dropped.append(label)


class Silent:
    """Another organ, of which nothing is asked and which says nothing."""

    async def call(
        self, method: str, params: Mapping[str, object], *, fds: Sequence[int] = ()
    ) -> dict[str, object]:
        """Nobody asks."""
        raise AssertionError((method, params, fds))

    async def call_fds(
        self, method: str, params: Mapping[str, object]
    ) -> tuple[dict[str, object], tuple[int, ...]]:
        """Nobody asks."""
        raise AssertionError((method, params))

    async def events(self) -> AsyncIterator[Snapshot | News]:
        """No news."""
        await trio.sleep_forever()
        yield Snapshot(0, ())


@pytest.fixture(name="root")
def _root() -> Iterator[Path]:
    """Cgroups of three rooms: a whole one, one that was not finished, one whose descriptors are gone."""
    path = unified() / f"left-over-{os.getpid()}"
    path.mkdir()
    for name in ("whole", "unfinished", "robbed"):
        (path / name).mkdir()
    yield path
    for name in ("whole", "unfinished", "robbed"):
        (path / name).rmdir()
    path.rmdir()


def pipe_end() -> int:
    """A descriptor of our own."""
    reading, writing = os.pipe()
    os.close(writing)
    return reading


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


async def test_descriptors_of_rooms_that_are_no_more_are_let_go_of(root: Path) -> None:
    known = Facts(
        slot=0,
        version=1,
        store="s@1",
        inbound=None,
        console=False,
        dies_unfocused=False,
        may_focus=True,
        may_update=False,
    )
    groups = Subtree(str(root))
    for name in ("whole", "robbed"):
        groups.set_facts(name, facts.encode(known))
    labels = [f"room.{name}.{kind}" for name in ("whole", "unfinished", "gone") for kind in KINDS]
    store = Store({label: pipe_end() for label in [*labels, "room.robbed.netns", "other"]})
    mine = dict(store.kept)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        rooms = Rooms(groups, Silent(), Silent(), Line(ours.fileno(), 2), store, verity=False)
        assert sorted(rooms.take_over(groups.names())) == ["robbed", "unfinished"]
        stale = {label for label in mine if label.startswith("room.") and ".whole." not in label}
        async with trio.open_nursery() as nursery:
            await nursery.start(rooms.run)
            with trio.fail_after(PATIENCE_S):
                while not stale <= set(store.dropped):
                    await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
    assert set(store.dropped) == stale
    assert {label for label, fd in mine.items() if not is_open(fd)} == stale
    assert rooms.find("whole") is not None
    groups.close()
    for label in mine.keys() - stale:
        os.close(mine[label])
