"""News: a hearer that takes each snapshot for all that is true, and each event as it comes, knows the
callee's state, however slow or unlucky it is; and nobody grows for its sake.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bus import hearing
from bus.client import Bus, Peer
from bus.envelope import (
    MESSAGE_MAX,
    SNAPSHOT_MAX,
    Code,
    Envelope,
    Kind,
    PeerError,
    Phase,
    pack,
)
from bus.hearing import HEARD_MAX, Hearing, News, Snapshot
from bus.server import EVENT_FRAMES_MAX, HEARERS_MAX, Call, Events, Handler, Told, serve
from bus.sockets import OUT_BYTES_MAX, SEND_QUEUE_FRAMES, Listener
from bus.tap import Side, Tap, unpack_record
from tests.bus.test_calls import until
from tests.bus.test_hostile import Hostile, readable
from tests.bus.test_tap import Outlet
from tests.bus.wiring import PATIENCE_S, listening, schemas

HERALD = schemas("herald").interfaces["herald"]
GENERATION = 3


class Herald:
    """A callee with a table of which every change is told."""

    def __init__(self) -> None:
        self.table: dict[int, str] = {}
        self.snapshots = 0
        self.events = Events(HERALD, self._present)

    def _present(self) -> Iterator[Told]:
        self.snapshots += 1
        for key, value in self.table.items():
            yield "changed", {"key": key, "value": value, "password": b"canary"}
        yield "privy", {"key": len(self.table)}

    def set(self, key: int, value: str) -> None:
        self.table[key] = value
        self.events.emit("changed", key=key, value=value, password=b"canary")

    def handlers(self) -> dict[str, Handler]:
        async def poke(_: Call, params: dict[str, object]) -> dict[str, object]:
            self.set(int(str(params["key"])), str(params["value"]))
            return {}

        return {"poke": poke}


class Hearer:
    """Knows what it was told."""

    def __init__(self, peer: Peer) -> None:
        self.news = peer.events()
        self.table: dict[int, str] = {}
        self.generations: list[int] = []
        self.others: list[News] = []

    def learn(self, news: News) -> None:
        if news.event == "changed":
            self.table[int(str(news.values["key"]))] = str(news.values["value"])
        else:
            self.others.append(news)

    async def hear(self) -> Snapshot | News:
        item = await anext(self.news)
        if isinstance(item, Snapshot):
            self.generations.append(item.generation)
            self.table.clear()
            for news in item.events:
                self.learn(news)
        else:
            self.learn(item)
        return item

    async def run(self) -> None:
        while True:
            await self.hear()


@asynccontextmanager
async def telling(
    herald: Herald | None = None, tap: Tap | None = None
) -> AsyncIterator[tuple[Herald, dict[str, Peer], str]]:
    """A herald in this process, and a peer to it for alpha and for beta."""
    told = herald or Herald()
    with listening(name="herald") as (directory, bound), trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            listeners = {caller: one.fileno() for caller, one in bound.items()}
            start = partial(serve, events=told.events, tap=tap)
            await nursery.start(start, HERALD, told.handlers(), listeners, GENERATION)
            peers = {}
            for caller in bound:
                bus = Bus(schemas("herald"), caller, directory, tap)
                await nursery.start(bus.run)
                peers[caller] = bus.peers["herald"]
            yield told, peers, directory
            nursery.cancel_scope.cancel()


async def test_first_the_state_and_then_what_changes() -> None:
    async with telling() as (herald, peers, _):
        herald.set(1, "before")
        hearers = {caller: Hearer(peer) for caller, peer in peers.items()}
        for hearer in hearers.values():
            item = await hearer.hear()
            assert isinstance(item, Snapshot)
            assert item.generation == GENERATION
            assert hearer.table == {1: "before"}
        await peers["alpha"].call("poke", {"key": 2, "value": "after"})
        herald.events.emit("privy", key=7)
        herald.set(1, "changed")
        for hearer in hearers.values():
            while hearer.table.get(1) != "changed":
                await hearer.hear()
            assert hearer.table == herald.table == {1: "changed", 2: "after"}
        # Only beta is told of `privy`, in the snapshot as afterwards.
        assert hearers["alpha"].others == []
        assert [news.values["key"] for news in hearers["beta"].others] == [1, 7]


async def test_who_hears_nothing_is_sent_nothing() -> None:
    async with telling() as (herald, peers, _):
        await peers["alpha"].call("poke", {"key": 1, "value": "x"})
        assert herald.snapshots == 0
        assert peers["alpha"].nonsense == 0


async def test_who_may_only_hear_has_a_peer_and_may_call_nothing() -> None:
    bus = Bus(schemas("herald"), "beta", "/nowhere")
    with pytest.raises(AttributeError, match="herald has no method poke for this organ"):
        _ = bus.herald.poke
    with pytest.raises(AttributeError, match="herald has no method changed for this organ"):
        _ = bus.herald.changed


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.text(max_size=3))
        | st.sampled_from(["turn", "hear", "again", "flood"]),
        max_size=30,
    )
)
def test_a_hearer_knows_the_state_in_the_end(moves: list[tuple[int, str] | str]) -> None:
    async def main() -> None:
        async with telling() as (herald, peers, _):
            hearer = Hearer(peers["alpha"])
            for move in moves:
                match move:
                    case "turn":
                        await trio.sleep(0)
                    case "hear":
                        await hearer.hear() if not hearer.generations else None
                    case "again":
                        known = hearer.table
                        hearer = Hearer(peers["alpha"])
                        hearer.table = known
                    case "flood":
                        for number in range(HEARD_MAX + SEND_QUEUE_FRAMES):
                            herald.set(6, str(number))
                    case (key, value):
                        herald.set(int(key), value)
            herald.set(99, "the end")
            while hearer.table.get(99) != "the end":
                await hearer.hear()
            assert hearer.table == herald.table
            assert peers["alpha"].nonsense == 0

    trio.run(main)


@pytest.mark.proves("INV-BUS-9")
async def test_a_reader_that_sleeps_holds_a_bounded_number_and_is_told_the_state() -> None:
    async with telling() as (herald, peers, _):
        peer = peers["alpha"]
        hearer = Hearer(peer)
        await hearer.hear()
        for number in range(3 * HEARD_MAX):
            herald.set(number % 10, str(number))
            # One after the other, so that nothing waits on the way.
            await peer.call("poke", {"key": 11, "value": str(number)})
            assert len(hearer.news._items) <= HEARD_MAX
        assert hearer.news._behind
        item = await hearer.hear()
        assert isinstance(item, Snapshot)
        assert hearer.table == herald.table
        herald.set(1, "and on")
        assert await hearer.hear() == News("changed", {"key": 1, "value": "and on", "password": b"canary"})


async def test_the_state_comes_again_from_the_next_incarnation() -> None:
    with listening(name="herald") as (directory, bound), trio.fail_after(PATIENCE_S):
        listeners = {caller: one.fileno() for caller, one in bound.items()}
        peer = Peer(HERALD, f"{directory}/herald.beta")
        async with trio.open_nursery() as outer:
            await outer.start(peer.run)
            # Nobody is there yet.
            hearer = Hearer(peer)
            outer.start_soon(hearer.run)
            for generation in range(1, 5):
                herald = Herald()
                herald.set(generation, "mine")
                async with trio.open_nursery() as life:
                    start = partial(serve, events=herald.events)
                    await life.start(start, HERALD, herald.handlers(), listeners, generation)
                    await until(lambda: hearer.generations[-1:] == [generation])  # noqa: B023
                    assert hearer.table == {generation: "mine"}
                    herald.set(0, "news")
                    await until(lambda: hearer.table.get(0) == "news")
                    life.cancel_scope.cancel()
                # What is told after the end reaches nobody and hurts nobody.
                herald.set(0, "unheard")
            outer.cancel_scope.cancel()
        assert hearer.generations == [1, 2, 3, 4]


async def test_a_reader_is_closed_by_the_next_one_and_by_the_end() -> None:
    async with telling() as (_, peers, _):
        peer = peers["alpha"]
        first = peer.events()
        await anext(first)
        second = peer.events()
        with pytest.raises(trio.ClosedResourceError):
            await anext(first)
        assert isinstance(await anext(second), Snapshot)
    with pytest.raises(trio.ClosedResourceError):
        await anext(second)
    with pytest.raises(trio.ClosedResourceError):
        peer.events()


# What a program can do wrong


async def test_an_event_that_does_not_fit_is_our_own_mistake() -> None:
    events = Herald().events
    with pytest.raises(AttributeError, match="herald has no event poke"):
        events.emit("poke", key=1, value="")
    with pytest.raises(ValueError, match="value is missing"):
        events.emit("changed", key=1)
    with pytest.raises(TypeError, match="key"):
        events.emit("privy", key="one")
    with pytest.raises(ValueError, match="an event of"):
        events.emit("changed", key=1, value="", password=bytes(MESSAGE_MAX))
    with pytest.raises(ValueError, match="at most 256 events"):
        Events(HERALD, lambda: [("privy", {"key": 1})] * (SNAPSHOT_MAX + 1)).present()


async def test_events_go_with_an_interface_that_has_some() -> None:
    with pytest.raises(ValueError, match="herald: events go with"):
        await serve(HERALD, Herald().handlers(), {}, 1)
    with pytest.raises(ValueError, match="echo: events go with"):
        await serve(schemas().interfaces["echo"], {}, {}, 1, events=Herald().events)


# Hostile callers


def ask(id_: int = 1, **changes: int | bytes | bool) -> bytes:
    """A caller's wish to hear."""
    asked = Envelope(kind=Kind.EVENT, id=id_, generation=GENERATION, interface=HERALD.id, attempt=Phase.ASK)
    return pack(replace(asked, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"attempt": Phase.NEWS}, Code.BAD_MESSAGE),
        ({"attempt": Phase.END}, Code.BAD_MESSAGE),
        ({"attempt": 9}, Code.BAD_MESSAGE),
        ({"body": b"x"}, Code.BAD_MESSAGE),
        ({"more": True}, Code.BAD_MESSAGE),
        ({"part": 1}, Code.BAD_MESSAGE),
        ({"generation": GENERATION - 1}, Code.STALE),
        ({"generation": GENERATION + 1}, Code.STALE),
    ],
)
async def test_news_from_a_caller_are_refused(changes: dict[str, int], code: Code) -> None:
    async with telling() as (herald, peers, directory):
        crook = Hostile(f"{directory}/herald.alpha")
        assert await crook.code(ask(**changes)) is code
        assert herald.snapshots == 0
        assert await peers["alpha"].call("poke", {"key": 1, "value": "x"}) == {}
        crook.socket.close()


@asynccontextmanager
async def watched(
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[tuple[Herald, dict[str, Peer], Hostile, Listener]]:
    """A herald, and a crook that hears it and does not read; where the crook's news wait."""
    listeners: list[Listener] = []
    remembered = Listener.__enter__

    def remember(self: Listener) -> Listener:
        listeners.append(self)
        return remembered(self)

    monkeypatch.setattr(Listener, "__enter__", remember)
    async with telling() as (herald, peers, directory):
        crook = Hostile(f"{directory}/herald.alpha", RCVHWM=1)
        await crook.send(ask())
        await until(lambda: readable(crook.socket))
        # The first that was bound is alpha's.
        yield herald, peers, crook, listeners[0]
        crook.socket.close()


async def last_words(crook: Hostile) -> tuple[dict[int, str], int]:
    """What a crook knows that reads at last, up to the snapshot that has key 77; and its id."""
    seen: dict[int, str] = {}
    while True:
        last = await crook.answer()
        if last.attempt == Phase.END and 77 in seen:
            return seen, last.id
        if last.attempt != Phase.END:
            values = HERALD.events["changed"].decode_params(last.body)
            seen[int(str(values["key"]))] = str(values["value"])


@pytest.mark.proves("INV-BUS-9")
@pytest.mark.parametrize(("size", "number"), [(2_000, 2_000), (60_000, 400)])
async def test_a_hearer_that_never_reads_costs_a_bounded_number_of_frames_and_bytes(
    monkeypatch: pytest.MonkeyPatch, size: int, number: int
) -> None:
    async with watched(monkeypatch) as (herald, peers, crook, listener):
        honest = Hearer(peers["beta"])
        most_frames = most_bytes = 0
        for index in range(number):
            herald.set(index % 4, "x" * size)
            most_frames = max(most_frames, *(len(waiting) for waiting in listener._out.values()), 0)
            most_bytes = max(most_bytes, listener.out_bytes)
            await trio.sleep(0)
        assert most_frames <= EVENT_FRAMES_MAX
        assert most_bytes <= OUT_BYTES_MAX + size
        # One of the two limits was reached, and the state was not asked for while nobody read.
        assert most_frames == EVENT_FRAMES_MAX or most_bytes > OUT_BYTES_MAX - 2 * size
        assert herald.snapshots < 10
        herald.set(77, "last")
        seen, _ = await last_words(crook)
        assert seen == herald.table
        while honest.table.get(77) != "last":
            await honest.hear()


async def test_a_hearer_that_asks_again_and_again_is_answered_when_it_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with watched(monkeypatch) as (herald, peers, crook, listener):
        for key in range(4):
            herald.set(key, "x" * 20_000)
        for number in range(400):
            await crook.send(ask(number + 2))
            await peers["beta"].events().__anext__()
            assert all(len(waiting) <= 10 for waiting in listener._out.values())
        herald.set(77, "last")
        seen, id_ = await last_words(crook)
        assert (seen, id_) == (herald.table, 401)


async def test_more_hearers_than_a_caller_has_connections_push_out_the_oldest() -> None:
    async with telling() as (herald, _, directory):
        crooks = [Hostile(f"{directory}/herald.alpha") for _ in range(HEARERS_MAX + 2)]
        for crook in crooks:
            await crook.send(ask())
            assert (await crook.answer()).attempt == Phase.END
        herald.set(1, "x")
        for crook in crooks[2:]:
            assert (await crook.answer()).attempt == Phase.NEWS
        assert not any(readable(crook.socket) for crook in crooks[:2])
        for crook in crooks:
            crook.socket.close()


# Dishonest callees


def envelope(event: str = "changed", **changes: int | bytes) -> Envelope:
    found = HERALD.events[event]
    values: dict[str, object] = {"key": 1, "value": "v", "password": b""}
    body = found.encode_params({field.name: values[field.name] for field in found.params})
    made = Envelope(
        kind=Kind.EVENT,
        id=1,
        generation=GENERATION,
        interface=HERALD.id,
        ordinal=found.ordinal,
        body=body,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def asked() -> Hearing:
    hearer = Hearing(HERALD, lambda: None)
    hearer.asked(1)
    return hearer


LIES: dict[str, list[Envelope]] = {
    "an event that is not known": [envelope(ordinal=9)],
    "a method": [envelope(ordinal=0)],
    "another interface's": [envelope(interface=1)],
    "a body that is none": [envelope(body=b"\xff" * 16)],
    "another phase": [envelope(attempt=Phase.ASK)],
    "news within a snapshot": [envelope(attempt=Phase.PART), envelope()],
    "a snapshot without an end": [envelope(attempt=Phase.PART)] * (SNAPSHOT_MAX + 1),
}


@pytest.mark.parametrize("lie", LIES)
async def test_what_is_no_event_is_refused(lie: str) -> None:
    hearer = asked()
    *before, last = LIES[lie]
    for one in before:
        hearer.take(one)
    with pytest.raises(PeerError):
        hearer.take(last)
    hearer.asked(1)
    hearer.take(envelope(attempt=Phase.END, ordinal=0, body=b""))
    assert await anext(hearer) == Snapshot(GENERATION, ())


@given(
    st.lists(
        st.builds(
            Envelope,
            kind=st.just(Kind.EVENT),
            id=st.integers(0, 2),
            generation=st.integers(0, 3),
            interface=st.sampled_from([HERALD.id, 0]),
            ordinal=st.integers(0, 3),
            attempt=st.integers(0, 4),
            body=st.binary(max_size=40) | st.sampled_from([envelope("privy").body, envelope().body]),
        ),
        max_size=40,
    )
)
def test_any_events_are_items_or_a_peer_error(envelopes: list[Envelope]) -> None:
    hearer = asked()
    for one in envelopes:
        with suppress(PeerError):
            hearer.take(one)
    assert len(hearer._items) <= len(envelopes) <= HEARD_MAX


async def test_bytes_are_limited_as_items_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing, "HEARD_BYTES_MAX", 4 * len(envelope().body))
    again = []

    def ask_again() -> None:
        again.append(1)
        hearer.asked(1)

    hearer = Hearing(HERALD, ask_again)
    hearer.asked(1)
    for _ in range(4):
        hearer.take(envelope())
    assert len(hearer._items) == 4
    hearer.take(envelope())
    assert not hearer._items
    hearer.take(envelope())
    assert not hearer._items
    with trio.move_on_after(0.01):
        await anext(hearer)
    assert again == [1]
    hearer.take(envelope(attempt=Phase.END, ordinal=0, body=b""))
    assert isinstance(await anext(hearer), Snapshot)


async def test_news_that_nobody_asked_for_are_nonsense() -> None:
    peer = Peer(HERALD, "/nowhere")
    peer.generation = GENERATION
    peer._take(pack(envelope()))
    assert peer.nonsense == 1


# The tap


@pytest.mark.proves("INV-TAP-1")
async def test_the_tap_shows_events_at_both_ends_without_their_secrets() -> None:
    outlet = Outlet(wanted=True)
    async with telling(tap=Tap("herald", schemas("herald"), outlet)) as (herald, peers, _):
        hearer = Hearer(peers["alpha"])
        herald.set(1, "one")
        while hearer.table != {1: "one"}:
            await hearer.hear()
        herald.set(2, "two")
        await hearer.hear()
    assert not any(b"canary" in record for record in outlet.records)
    records = [unpack_record(record) for record in outlet.records]
    assert all(record.whole for record in records)
    shown = [record.envelope for record in records if record.envelope.kind is Kind.EVENT]
    for phase in (Phase.ASK, Phase.END, Phase.NEWS):
        assert len([one for one in shown if one.attempt == phase]) % 2 == 0
        assert any(one.attempt == phase for one in shown)
    values = HERALD.events["changed"].decode_params(shown[-1].body)
    assert values == {"key": 2, "value": "two", "password": b""}


def test_what_the_tap_cannot_read_of_an_event_it_does_not_show() -> None:
    outlet = Outlet(wanted=True)
    tap = Tap("herald", schemas("herald"), outlet)
    for one in (
        envelope(body=b"canary and more"),
        envelope(ordinal=9, body=b"canary"),
        envelope(attempt=Phase.END, body=b"canary"),
    ):
        tap.show(Side.SENT, "alpha", one)
    for packed in outlet.records:
        record = unpack_record(packed)
        assert (record.envelope.body, record.whole) == (b"", False)
