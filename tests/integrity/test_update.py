"""What may come as an update, what is kept of it on its way in, and the methods over a real bus."""

from __future__ import annotations

import contextlib
import functools
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bus import client, server
from bus.envelope import Code, Failure
from organs.integrity import examine, update
from organs.integrity.update import CHUNK_BYTES_MAX, IDLE_S_MAX, Desk, Here, Offer, Refusal, Staged, Updates
from spine.image import slot
from tests.bus.wiring import own_schemas
from tests.integrity import disks

INTEGRITY = own_schemas().interfaces["integrity"]
HERE = Here(key=disks.PUBLIC, version="1", image="production", slot_bytes=disks.SIZE, not_now="")
HEAD = struct.Struct("<16sI64s")


@functools.cache
def new(version: str = "2") -> tuple[bytes, bytes]:
    """The manifest block and the slot of that version, without the zeros at its end."""
    data, _esp, parts = disks.made(version)
    end = max(part.offset + part.length for part in parts)
    whole = data[: end + -end % slot.BLOCK]
    at = slot.manifest_offset(whole)
    return whole[at : at + slot.MANIFEST_SIZE], whole


def resigned(change: Callable[[dict[str, object]], None], key: Ed25519PrivateKey = disks.KEY) -> bytes:
    """The block of version 2 with other things in it, signed again."""
    block, _ = new()
    _magic, length, _signature = HEAD.unpack_from(block)
    document = json.loads(block[HEAD.size : HEAD.size + length])
    change(document)
    text = json.dumps(document).encode()
    head = struct.pack("<16sI", examine.MAGIC, len(text))
    return (head + key.sign(head + text) + text).ljust(slot.MANIFEST_SIZE, b"\0")


def kind(act: Callable[[], object]) -> Refusal:
    """How it was refused."""
    with pytest.raises(update.UpdateRefused) as caught:
        act()
    assert str(caught.value).startswith(f"{caught.value.kind.value}: ")
    return caught.value.kind


# ---- what a manifest alone decides -------------------------------------------------------------------------

numbers = st.lists(st.integers(0, 999_999_999), min_size=1, max_size=4)


@given(st.text(max_size=12) | st.text("0123456789.", max_size=12))
def test_any_text_is_a_version_or_malformed(text: str) -> None:
    shaped = all(part.isascii() and part.isdigit() and str(int(part)) == part for part in text.split("."))
    if shaped and text.count(".") < 4 and all(len(part) < 10 for part in text.split(".")):
        assert len(update.order(text)) == 4
    else:
        assert kind(lambda: update.order(text)) is Refusal.MALFORMED


@given(numbers, numbers)
def test_versions_are_compared_number_by_number(one: list[int], other: list[int]) -> None:
    ordered = [update.order(".".join(map(str, version))) for version in (one, other)]
    longest = max(len(one), len(other))
    padded = [version + [0] * (longest - len(version)) for version in (one, other)]
    assert (ordered[0] < ordered[1]) == (padded[0] < padded[1])
    assert (ordered[0] == ordered[1]) == (padded[0] == padded[1])


@pytest.mark.parametrize(
    "text",
    ["", ".", "1.", ".1", "1..2", "v1", "1.2.3.4.5", "01", "1.00", "-1", "1 ", "1\n", "1a", "²", "1" * 10],
)
def test_what_is_no_version(text: str) -> None:
    assert kind(lambda: update.order(text)) is Refusal.MALFORMED


@pytest.mark.proves("INV-UPDATE-1")
def test_only_what_the_release_key_signed_is_offered() -> None:
    block, whole = new()
    offer = update.offered(block, len(whole), HERE)
    assert (offer.version, offer.length) == ("2", len(whole))
    foreign = resigned(lambda _document: None, Ed25519PrivateKey.from_private_bytes(bytes(32)))
    for wrong in (foreign, bytes(len(block)), block[:16] + bytes(len(block) - 16)):
        assert kind(partial(update.offered, wrong, len(whole), HERE)) is Refusal.UNSIGNED
    changed = bytearray(block)
    changed[HEAD.size + 20] ^= 1
    assert kind(lambda: update.offered(bytes(changed), len(whole), HERE)) is Refusal.UNSIGNED


@pytest.mark.proves("INV-UPDATE-2")
@pytest.mark.parametrize("runs", ["2", "2.0", "2.0.0.0", "3", "2.0.0.1", "10"])
def test_what_is_not_newer_is_not_offered(runs: str) -> None:
    block, whole = new()
    assert kind(lambda: update.offered(block, len(whole), replace(HERE, version=runs))) is Refusal.DOWNGRADE


@pytest.mark.parametrize("runs", ["1", "0.9", "1.999999999.999999999.999999999"])
def test_what_is_newer_is_offered(runs: str) -> None:
    block, whole = new()
    assert update.offered(block, len(whole), replace(HERE, version=runs)).version == "2"


def test_each_way_in_which_an_offer_cannot_be() -> None:
    block, whole = new()
    length = len(whole)

    def offered(block: bytes = block, length: int = length, here: Here = HERE) -> Refusal:
        return kind(lambda: update.offered(block, length, here))

    assert offered(length=disks.SIZE + 1) is Refusal.TOO_LARGE
    assert offered(length=2**64 - 1) is Refusal.TOO_LARGE
    assert offered(here=replace(HERE, slot_bytes=length - 4096)) is Refusal.TOO_LARGE
    for short in (0, 1, length - 4096, length - 1):
        assert offered(length=short) is Refusal.TRUNCATED
    assert offered(length=length + 4096) is Refusal.MALFORMED
    assert offered(block[:-1]) is Refusal.MALFORMED
    assert offered(b"") is Refusal.MALFORMED
    assert offered(here=replace(HERE, image="development")) is Refusal.OTHER_IMAGE
    for change in (
        lambda document: document.pop("version"),
        lambda document: document.pop("image"),
        lambda document: document.pop("parts"),
        lambda document: document.update(version=2),
        lambda document: document.update(version="2-beta"),
        lambda document: document.update(parts={}),
        lambda document: document.update(parts={"root": [0, 2**60, "0" * 64]}),
    ):
        assert offered(resigned(change)) is Refusal.MALFORMED


@given(st.data())
def test_a_changed_block_is_refused_and_never_an_error(data: st.DataObject) -> None:
    block, whole = new()
    changed = bytearray(block)
    [_, length, _] = HEAD.unpack_from(block)
    at = data.draw(st.integers(0, HEAD.size + length - 1))
    changed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(update.UpdateRefused):
        update.offered(bytes(changed), len(whole), HERE)


words = st.sampled_from(["", "1", "2.1", "root", "uki-a", "0" * 64])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=10,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["version", "image", "parts", "boot", "format"]), json_values))
def test_whatever_was_signed_is_offered_or_refused(strange: dict[str, object]) -> None:
    """Also a slip of who holds the key must not end the organ."""
    _, whole = new()
    block = resigned(lambda document: document.update(strange))
    with contextlib.suppress(update.UpdateRefused):
        update.offered(block, len(whole), HERE)


# ---- what its bytes decide ---------------------------------------------------------------------------------


def test_the_whole_of_it_is_examined() -> None:
    block, whole = new()
    update.examined(disks.reader(whole), update.offered(block, len(whole), HERE), disks.PUBLIC)


@pytest.mark.proves("INV-UPDATE-1")
@settings(deadline=None)
@given(st.data())
def test_one_changed_byte_anywhere_is_altered(data: st.DataObject) -> None:
    block, whole = new()
    offer = update.offered(block, len(whole), HERE)
    changed = bytearray(whole)
    changed[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    assert kind(lambda: update.examined(disks.reader(changed), offer, disks.PUBLIC)) is Refusal.ALTERED


@pytest.mark.proves("INV-UPDATE-3")
def test_an_older_signed_slot_behind_a_newer_manifest_is_altered() -> None:
    """Each of the two is genuine."""
    offer = update.offered(new("2")[0], len(new("2")[1]), HERE)
    older = new("0")[1]
    assert len(older) == offer.length
    assert kind(lambda: update.examined(disks.reader(older), offer, disks.PUBLIC)) is Refusal.ALTERED


# ---- on its way in -----------------------------------------------------------------------------------------

SMALL = Offer(version="2", length=5000, text=b"")


def code(act: Callable[[], object]) -> Code:
    with pytest.raises(Failure) as caught:
        act()
    return caught.value.code


def test_one_at_a_time() -> None:
    desk = Desk()
    first = desk.begin("operator", SMALL, 0.0)
    assert code(lambda: desk.begin("umbilical", SMALL, 1.0)) is Code.FULL
    second = desk.begin("operator", SMALL, 2.0)
    assert code(lambda: desk.chunk("operator", first, 0, b"x", 3.0)) is Code.NOT_FOUND
    assert code(lambda: desk.chunk("umbilical", second, 0, b"x", 3.0)) is Code.NOT_FOUND
    desk.chunk("operator", second, 0, bytes(5000), 4.0)
    staged = desk.close("operator", second, 5.0)
    for caller in ("operator", "umbilical"):
        assert code(partial(desk.begin, caller, SMALL, 1000.0)) is Code.FULL
    for late in (
        lambda: desk.chunk("operator", second, 0, b"x", 6.0),
        lambda: desk.close("operator", second, 6.0),
        lambda: desk.abandon("operator", second, 6.0),
    ):
        assert code(late) is Code.BUSY
    desk.over(staged)
    assert desk.begin("umbilical", SMALL, 7.0)


@pytest.mark.proves("INV-UPDATE-4")
def test_who_goes_away_leaves_nothing() -> None:
    desk = Desk()
    number = desk.begin("umbilical", SMALL, 0.0)
    desk.chunk("umbilical", number, 0, b"x", 10.0)
    assert desk.expire(10.0 + IDLE_S_MAX) == 10.0 + IDLE_S_MAX
    assert desk.expire(10.1 + IDLE_S_MAX) is None
    assert code(lambda: desk.chunk("umbilical", number, 1, b"x", 11.0 + IDLE_S_MAX)) is Code.NOT_FOUND
    assert desk.begin("operator", SMALL, 12.0 + IDLE_S_MAX)


def outcome(act: Callable[[], object]) -> Code | None:
    """How it failed; None: it did not."""
    try:
        act()
    except Failure as failure:
        return failure.code
    return None


class Sequence(RuleBasedStateMachine):
    """Any calls in any order, against a model that is a bytearray."""

    def __init__(self) -> None:
        super().__init__()
        self.desk, self.now_s = Desk(), 0.0
        self.caller, self.number, self.touched_s, self.length = "", 0, 0.0, 0
        self.model: bytearray | None = None
        self.staged: Staged | None = None

    def lapse(self) -> None:
        if self.staged is None and self.now_s - self.touched_s > IDLE_S_MAX:
            self.model = None

    callers = st.sampled_from(["operator", "umbilical"])

    @rule(caller=callers, length=st.sampled_from([1, 4096, 10_000]))
    def begin(self, caller: str, length: int) -> None:
        self.lapse()
        taken = self.model is not None and (self.staged is not None or caller != self.caller)
        numbers: list[int] = []
        offer = replace(SMALL, length=length)
        found = outcome(lambda: numbers.append(self.desk.begin(caller, offer, self.now_s)))
        assert found is (Code.FULL if taken else None)
        if not taken:
            self.caller, self.length, self.touched_s, self.model = caller, length, self.now_s, bytearray()
            self.number = numbers[0]

    @rule(
        caller=callers,
        mine=st.booleans(),
        offset=st.integers(0, 12_000) | st.just(2**63),
        data=st.binary(max_size=6000) | st.just(bytes(CHUNK_BYTES_MAX + 1)),
        behind=st.booleans(),
    )
    def chunk(self, caller: str, mine: bool, offset: int, data: bytes, behind: bool) -> None:
        self.lapse()
        if behind and self.model is not None:
            offset = len(self.model)
        number = self.number if mine else self.number ^ 1
        found = outcome(lambda: self.desk.chunk(caller, number, offset, data, self.now_s))
        if self.model is None or not mine or caller != self.caller:
            assert found is Code.NOT_FOUND
        elif self.staged is not None:
            assert found is Code.BUSY
        elif not 1 <= len(data) <= CHUNK_BYTES_MAX:
            assert found is Code.TOO_LARGE
        elif offset > len(self.model) or offset + len(data) > self.length:
            assert found is Code.INVALID
        else:
            assert found is None
            self.model[offset : offset + len(data)] = data
            self.touched_s = self.now_s

    @rule()
    def commit(self) -> None:
        self.lapse()
        closed: list[Staged] = []
        found = outcome(lambda: closed.append(self.desk.close(self.caller, self.number, self.now_s)))
        if self.model is None:
            assert found is Code.NOT_FOUND
        elif self.staged is not None:
            assert found is Code.BUSY, "a second commit"
        elif len(self.model) < self.length:
            assert found is Code.REFUSED
            self.model = None
        else:
            assert found is None
            self.staged = closed[0]

    @precondition(lambda self: self.staged is not None)
    @rule()
    def written(self) -> None:
        assert self.staged is not None
        assert self.model is not None
        assert self.staged.read(0, self.length + 1) == bytes(self.model), "what came is what is examined"
        self.desk.over(self.staged)
        self.model = self.staged = None

    @rule()
    def abandon(self) -> None:
        self.lapse()
        found = outcome(lambda: self.desk.abandon(self.caller, self.number, self.now_s))
        if self.staged is not None:
            assert found is Code.BUSY
        else:
            assert found is (Code.NOT_FOUND if self.model is None else None)
            self.model = None

    @rule(seconds=st.sampled_from([1.0, 60.0, 121.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @invariant()
    def nobody_is_forgotten(self) -> None:
        again_s = self.desk.expire(self.now_s)
        self.lapse()
        assert (again_s is None) == (self.model is None)


Sequence.TestCase.settings = settings(deadline=None, stateful_step_count=40, max_examples=60)
TestSequence = pytest.mark.proves("INV-UPDATE-4")(Sequence.TestCase)


# ---- over the bus ------------------------------------------------------------------------------------------


@dataclass
class Held:
    """Two callers, and what was written."""

    operator: client.Peer
    umbilical: client.Peer
    here: Here | None
    written: list[bytes]
    reboots: list[bool]
    hold: trio.Event
    entered: trio.Event

    async def send(self, data: bytes, block: bytes, *, reboot: bool = False) -> dict[str, object]:
        ticket = (await self.operator.call("beginUpdate", {"manifest": block, "bytes": len(data)}))["ticket"]
        for at in range(0, len(data), CHUNK_BYTES_MAX):
            piece = {"ticket": ticket, "offset": at, "data": data[at : at + CHUNK_BYTES_MAX]}
            assert await self.operator.call("updateChunk", piece) == {}
        return await self.operator.call("commitUpdate", {"ticket": ticket, "reboot": reboot})


@contextlib.asynccontextmanager
async def running(tmp_path: Path) -> AsyncIterator[Held]:
    """The methods, served to both callers; who writes is a list."""
    (tmp_path / "bus").mkdir()
    hold = trio.Event()
    hold.set()

    async def install(staged: Staged) -> str:
        held.entered.set()
        await held.hold.wait()
        held.written.append(staged.read(0, staged.length))
        return "b"

    async def never(_call: object, _params: object) -> dict[str, object]:
        raise Failure(Code.REFUSED, "not in this test")

    async with trio.open_nursery() as nursery:
        with contextlib.ExitStack() as bound:
            listeners = {}
            for caller in ("operator", "umbilical"):
                listening = bound.enter_context(socket.socket(socket.AF_UNIX))
                listening.bind(str(tmp_path / f"bus/integrity.{caller}"))
                listening.listen(16)
                listeners[caller] = listening.fileno()
            updates = Updates(lambda: held.here, install, lambda: held.reboots.append(True))
            handlers = {**dict.fromkeys(INTEGRITY.methods, never), **updates.handlers()}
            peers: list[client.Peer] = []
            for caller in ("operator", "umbilical"):
                bus = client.Bus(own_schemas(), caller, str(tmp_path / "bus"))
                await nursery.start(bus.run)
                peers.append(bus.peers["integrity"])
            operator, umbilical = peers
            held = Held(operator, umbilical, HERE, [], [], hold, trio.Event())
            await nursery.start(partial(server.serve, descriptors={}), INTEGRITY, handlers, listeners, 1)
            nursery.start_soon(updates.run)
            yield held
            nursery.cancel_scope.cancel()


async def refusal(act: Callable[[], object]) -> tuple[Code, str]:
    with pytest.raises(Failure) as caught:
        await act()  # type: ignore[misc]
    return caught.value.code, caught.value.message.partition(":")[0]


async def test_an_update_comes_in_whole(tmp_path: Path) -> None:
    block, whole = new()
    async with running(tmp_path) as held:
        assert await held.send(whole, block) == {"slot": "b", "version": "2"}
        assert held.written == [whole]
        assert await held.send(whole, block, reboot=True) == {"slot": "b", "version": "2"}
        with trio.fail_after(30):
            while not held.reboots:
                await trio.sleep(0.01)
        assert held.reboots == [True]


@pytest.mark.proves("INV-UPDATE-1")
async def test_what_is_refused_is_never_written(tmp_path: Path) -> None:
    block, whole = new()
    altered = bytearray(whole)
    altered[100] ^= 1
    foreign = resigned(lambda _document: None, Ed25519PrivateKey.from_private_bytes(bytes(32)))
    cases = {
        "altered": (bytes(altered), block),
        "unsigned": (whole, foreign),
        "downgrade": (new("0")[1], new("0")[0]),
        "truncated": (whole[:-4096], block),
        "too large": (whole + bytes(disks.SIZE), block),
        "malformed": (whole + bytes(4096), block),
    }
    async with running(tmp_path) as held:
        for expected, (data, shown) in cases.items():
            found = await refusal(partial(held.send, data, shown))
            assert found == (Code.REFUSED, expected)
        begun = {"manifest": block, "bytes": len(whole)}
        ticket = (await held.operator.call("beginUpdate", begun))["ticket"]
        assert await refusal(
            partial(held.operator.call, "commitUpdate", {"ticket": ticket, "reboot": True})
        ) == (Code.REFUSED, "truncated")
        assert held.written == []
        assert held.reboots == []
        assert await held.send(whole, block) == {"slot": "b", "version": "2"}, "and nothing is left of them"


@pytest.mark.proves("INV-UPDATE-5")
async def test_before_the_boot_is_healthy_nothing_comes(tmp_path: Path) -> None:
    block, whole = new()
    async with running(tmp_path) as held:
        begun = {"manifest": block, "bytes": len(whole)}
        held.here = replace(HERE, not_now="not healthy yet")
        assert (await refusal(partial(held.operator.call, "beginUpdate", begun)))[0] is Code.BUSY
        held.here = None
        assert (await refusal(partial(held.operator.call, "beginUpdate", begun)))[0] is Code.NOT_FOUND
        held.here = HERE
        assert "ticket" in await held.operator.call("beginUpdate", begun)


async def test_two_callers_and_a_second_commit(tmp_path: Path) -> None:
    block, whole = new()
    async with running(tmp_path) as held:
        begun = {"manifest": block, "bytes": len(whole)}
        ticket = (await held.operator.call("beginUpdate", begun))["ticket"]
        assert (await refusal(partial(held.umbilical.call, "beginUpdate", begun)))[0] is Code.FULL
        piece = {"ticket": ticket, "offset": 0, "data": b"x"}
        assert (await refusal(partial(held.umbilical.call, "updateChunk", piece)))[0] is Code.NOT_FOUND
        assert await held.operator.call("abandonUpdate", {"ticket": ticket}) == {}
        ticket = (await held.umbilical.call("beginUpdate", begun))["ticket"]
        for at in range(0, len(whole), CHUNK_BYTES_MAX):
            piece = {"ticket": ticket, "offset": at, "data": whole[at : at + CHUNK_BYTES_MAX]}
            await held.umbilical.call("updateChunk", piece)
        held.hold = trio.Event()
        commit = partial(held.umbilical.call, "commitUpdate", {"ticket": ticket, "reboot": False})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(commit)
            with trio.fail_after(30):
                await held.entered.wait()
            assert (await refusal(commit))[0] in {Code.BUSY, Code.NOT_FOUND}
            assert (await refusal(partial(held.operator.call, "beginUpdate", begun)))[0] is Code.FULL
            held.hold.set()
        assert held.written == [whole], "and written once"
