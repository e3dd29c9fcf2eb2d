"""The store of personas on a device that forgets what was not synced, tears writes, and fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.envelope import Code, Failure
from organs import persona
from organs.integrity import personas, shelf
from organs.integrity.personas import CHUNK_BYTES_MAX, IDLE_S_MAX, Device, Store
from organs.integrity.shelf import DATA_AT, TABLE_BYTES, Row, Table
from organs.persona import BLOCK, MANIFEST_BYTES, PersonaRefused
from tests.personas import KEY, PUBLIC, image

OTHER = Ed25519PrivateKey.from_private_bytes(bytes(reversed(range(32))))
OTHER_PUBLIC = OTHER.public_key().public_bytes_raw()
SECTOR = 512
SIZE = DATA_AT + 40 * BLOCK


class Medium(Device):
    """A device in memory that keeps a record of what was done to it, and can be told to fail."""

    def __init__(self, content: bytes = bytes(SIZE)) -> None:
        self.size = len(content)
        self.start = content
        self.content = bytearray(content)
        # Offset and bytes of a write; None is a sync.
        self.log: list[tuple[int, bytes] | None] = []
        self.fails: Callable[[str], bool] = lambda _: False

    def _act(self, name: str) -> None:
        if self.fails(name):
            raise OSError(errno.EIO, "the device failed")

    def read(self, offset: int, length: int) -> bytes:
        self._act("read")
        assert 0 <= offset <= offset + length <= self.size
        return bytes(self.content[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        self._act("write")
        assert 0 <= offset <= offset + len(data) <= self.size
        self.content[offset : offset + len(data)] = data
        self.log.append((offset, bytes(data)))

    def sync(self) -> None:
        self._act("sync")
        self.log.append(None)


def store(medium: Device) -> Store:
    return Store(medium, {PUBLIC, OTHER_PUBLIC})


def bring(to: Store, data: bytes, caller: str = "operator", step: int = 3 * BLOCK) -> Row:
    """Install an image, as the bus would."""
    ticket = to.begin(caller, len(data), 0.0)
    for at in range(0, len(data), step):
        to.chunk(caller, ticket, at, data[at : at + step], 0.0)
    return commit(to, ticket, caller)


def commit(to: Store, ticket: int, caller: str = "operator") -> Row:
    closed = to.close(caller, ticket, 0.0)
    try:
        found, same = to.check(closed, to.table())
        return to.finish(closed, found, same)
    finally:
        to.abandon(closed)


@contextmanager
def refused(kind: str, code: Code = Code.REFUSED) -> Iterator[None]:
    with pytest.raises((PersonaRefused, Failure)) as caught:
        yield
    error = caught.value
    if isinstance(error, Failure):
        assert error.code is code
        assert kind in error.message
    else:
        # The handler makes this of it.
        assert (str(error).partition(":")[0], Code.REFUSED) == (kind, code)


def contents(medium: Device) -> dict[tuple[str, int], bytes]:
    """What a new organ finds, every byte of it."""
    return {
        (row.name, row.version): medium.read(row.extent.offset, row.extent.length)
        for row in store(medium).table().installed()
        if row.extent
    }


LINDA, LINDA2, TOM = image("linda", 1), image("linda", 2, data=b"2" * 2 * BLOCK), image("tom", 5)
UMA = image("uma", 1, data=b"u" * 8 * BLOCK)
IMAGES = {("linda", 1): LINDA, ("linda", 2): LINDA2, ("tom", 5): TOM, ("uma", 1): UMA}


def test_installed_listed_opened_removed() -> None:
    medium = Medium()
    here = store(medium)
    assert here.list() == []
    assert medium.log == []
    bring(here, LINDA)
    bring(here, TOM)
    assert contents(medium) == {("linda", 1): LINDA, ("tom", 5): TOM}
    assert [(row.name, text) for row, text in here.list()] == [
        ("linda", persona.split(LINDA[-MANIFEST_BYTES:])[3]),
        ("tom", persona.split(TOM[-MANIFEST_BYTES:])[3]),
    ]
    row, text = store(medium).open("linda")
    assert (row.key, row.version, text) == (PUBLIC, 1, persona.split(LINDA[-MANIFEST_BYTES:])[3])
    here.remove("linda")
    assert contents(medium) == {("tom", 5): TOM}
    for gone in ("linda", "nobody", "", "../x"):
        with refused("no persona", Code.NOT_FOUND):
            here.open(gone)
        with refused("no persona", Code.NOT_FOUND):
            here.remove(gone)


def test_a_new_version_takes_the_place_of_the_old_one() -> None:
    medium = Medium()
    here = store(medium)
    bring(here, LINDA)
    bring(here, LINDA2)
    assert contents(medium) == {("linda", 2): LINDA2}
    # The old one's space is free again.
    assert bring(here, TOM).extent == shelf.Extent(DATA_AT, len(TOM))


def test_the_same_image_again_changes_nothing() -> None:
    medium = Medium()
    here = store(medium)
    first = bring(here, LINDA)
    before = bytes(medium.content[:DATA_AT])
    assert bring(here, LINDA) == first
    assert medium.content[:DATA_AT] == before
    # Unless what is there has rotted: then it is replaced, and never repaired.
    assert first.extent
    medium.content[first.extent.offset + 5] ^= 1
    assert bring(here, LINDA).extent != first.extent
    assert contents(medium) == {("linda", 1): LINDA}


@pytest.mark.proves("INV-PERSONA-2")
@pytest.mark.proves("INV-PERSONA-3")
def test_no_downgrade_and_no_other_identity_even_for_a_new_organ() -> None:
    medium = Medium()
    bring(store(medium), LINDA2)
    other_bytes = image("linda", 2)
    foreign_linda = image("linda", 9, key=OTHER)
    for wrong, kind in ((LINDA, "downgrade"), (other_bytes, "downgrade"), (foreign_linda, "other identity")):
        with refused(kind):
            bring(store(medium), wrong)
        assert contents(medium) == {("linda", 2): LINDA2}
    store(medium).remove("linda")
    for wrong in (LINDA, other_bytes):
        with refused("downgrade"):
            bring(store(medium), wrong)
    bring(store(medium), foreign_linda)
    with refused("other identity"):
        bring(store(medium), LINDA2)
    store(medium).remove("linda")
    assert bring(store(medium), LINDA2).key == PUBLIC
    assert contents(medium) == {("linda", 2): LINDA2}


def hostile() -> list[tuple[str, bytes]]:
    manifest = LINDA[-MANIFEST_BYTES:]
    nobody = LINDA[:-MANIFEST_BYTES] + manifest[:52] + bytes(64) + manifest[116:]
    stranger = Ed25519PrivateKey.from_private_bytes(b"s" * 32)
    return [
        ("unsigned", nobody),
        ("truncated", LINDA[:-BLOCK]),
        ("truncated", LINDA[:-1]),
        ("truncated", LINDA[:BLOCK]),
        ("truncated", LINDA[BLOCK:]),
        ("truncated", b""),
        ("truncated", bytes(len(LINDA))),
        ("altered", LINDA[:100] + b"!" + LINDA[101:]),
        ("altered", LINDA[: -MANIFEST_BYTES - 1] + b"!" + manifest),
        ("altered", LINDA[:-MANIFEST_BYTES] + manifest.replace(b"somebody", b"somebodY")),
        ("foreign key", image("linda", key=stranger)),
        ("malformed", image("Linda")),
        ("malformed", image("linda", also=1)),
        ("full", LINDA + bytes(SIZE)),
    ]


@pytest.mark.proves("INV-PERSONA-1")
@pytest.mark.parametrize(
    ("kind", "data"), hostile(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_refused_image_leaves_nothing_that_can_be_reached(kind: str, data: bytes) -> None:
    medium = Medium()
    here = store(medium)
    bring(here, TOM)
    table = bytes(medium.content[:DATA_AT])
    with refused(kind):
        bring(here, data)
    assert medium.content[:DATA_AT] == table
    assert contents(medium) == {("tom", 5): TOM}
    # Its space is free, its ticket void.
    assert bring(here, LINDA).extent == shelf.Extent(DATA_AT + len(TOM), len(LINDA))


@pytest.mark.proves("INV-PERSONA-1")
def test_what_is_lent_is_what_was_installed() -> None:
    medium = Medium()
    here = store(medium)
    row = bring(here, LINDA)
    assert row.extent
    at = row.extent.end - MANIFEST_BYTES
    # Signed by a trusted key too, and of the same length: but not the one in the table.
    for other in (
        image("linda", 2),
        image("tom", 1),
        image("linda", 1, key=OTHER),
        image("linda", 1, pids=1),
    ):
        medium.content[at : at + MANIFEST_BYTES] = other[-MANIFEST_BYTES:]
        for look in (here, store(medium)):
            with refused("", Code.CORRUPT):
                look.open("linda")
            assert [text for _, text in look.list()] == [b""]
    medium.content[at : at + MANIFEST_BYTES] = LINDA[-MANIFEST_BYTES:]
    assert here.open("linda")[0] == row
    with refused("foreign key"):
        Store(medium, {OTHER_PUBLIC}).open("linda")
    here.remove("linda")
    assert store(medium).list() == []


def test_what_was_lent_is_not_written_over() -> None:
    medium = Medium()
    here = store(medium)
    row, _ = (bring(here, LINDA), here.open("linda"))
    assert row.extent
    bring(here, LINDA2)
    here.remove("linda")
    bring(here, TOM)
    bring(here, UMA)
    assert medium.read(row.extent.offset, row.extent.length) == LINDA
    with refused("full"):
        here.begin("operator", 20 * BLOCK, 0.0)
    # The next organ knows of no room.
    assert store(medium).begin("operator", 7 * BLOCK, 0.0)


def test_a_caller_has_one_install_and_what_it_sends_is_limited() -> None:
    medium = Medium()
    here = store(medium)
    first = here.begin("operator", len(LINDA), 0.0)
    second = here.begin("operator", len(LINDA), 0.0)
    other = here.begin("another", len(LINDA), 0.0)
    with refused("begin again", Code.NOT_FOUND):
        here.chunk("operator", first, 0, LINDA[:BLOCK], 0.0)
    with refused("begin again", Code.NOT_FOUND):
        here.chunk("another", second, 0, LINDA[:BLOCK], 0.0)
    here.chunk("operator", second, 0, LINDA[:BLOCK], 0.0)
    for offset, data, code in (
        (BLOCK + 1, b"x", Code.INVALID),
        (2**64 - 1, b"x", Code.INVALID),
        (0, LINDA + b"x", Code.INVALID),
        (BLOCK, b"", Code.TOO_LARGE),
        (BLOCK, bytes(CHUNK_BYTES_MAX + 1), Code.TOO_LARGE),
    ):
        with refused("", code):
            here.chunk("operator", second, offset, data, 0.0)
    # The same piece again, and one that overlaps it.
    here.chunk("operator", second, 0, LINDA[:BLOCK], 0.0)
    here.chunk("operator", second, 10, LINDA[10:], 0.0)
    here.chunk("another", other, 0, LINDA, 0.0)
    assert commit(here, second).name == "linda"
    here.give_up("another", other, 0.0)
    with refused("begin again", Code.NOT_FOUND):
        here.close("another", other, 0.0)


def test_an_install_that_is_being_checked_is_left_alone() -> None:
    here = store(Medium())
    ticket = here.begin("operator", len(LINDA), 0.0)
    here.chunk("operator", ticket, 0, LINDA, 0.0)
    closed = here.close("operator", ticket, 0.0)
    for act in (
        lambda: here.chunk("operator", ticket, 0, b"x", 0.0),
        lambda: here.close("operator", ticket, 0.0),
        lambda: here.give_up("operator", ticket, 0.0),
        lambda: here.begin("operator", len(LINDA), 10 * IDLE_S_MAX),
    ):
        with refused("checked", Code.BUSY):
            act()
    assert here.finish(closed, *here.check(closed, here.table())).name == "linda"


def test_what_came_in_meanwhile_decides() -> None:
    """Two installs are checked beside one another; the rules hold for the table as it is at the end."""
    here = store(Medium())
    closed = {}
    for caller, data in (("operator", LINDA), ("another", LINDA2)):
        ticket = here.begin(caller, len(data), 0.0)
        here.chunk(caller, ticket, 0, data, 0.0)
        closed[caller] = here.close(caller, ticket, 0.0)
    checked = {caller: here.check(ticket, here.table()) for caller, ticket in closed.items()}
    here.finish(closed["another"], *checked["another"])
    with refused("downgrade"):
        here.finish(closed["operator"], *checked["operator"])


def test_an_abandoned_install_ends_by_itself() -> None:
    medium = Medium(bytes(DATA_AT + len(LINDA)))
    here = store(medium)
    ticket = here.begin("operator", len(LINDA), 0.0)
    with refused("full"):
        here.begin("another", len(LINDA), IDLE_S_MAX)
    assert here.begin("another", len(LINDA), IDLE_S_MAX + 1)
    with refused("begin again", Code.NOT_FOUND):
        here.chunk("operator", ticket, 0, LINDA, IDLE_S_MAX + 1)


# Power cuts


SCRIPT: tuple[tuple[str, bytes | str], ...] = (
    ("install", LINDA),
    ("install", TOM),
    ("install", LINDA2),
    ("remove", "tom"),
    ("install", UMA),
    ("install", TOM),
    ("remove", "linda"),
)


def recorded() -> tuple[Medium, list[tuple[int, dict[tuple[str, int], bytes]]]]:
    """All that the script does to a device; after how many acts of the device each step was acknowledged."""
    medium = Medium()
    here = store(medium)
    steps: list[tuple[int, dict[tuple[str, int], bytes]]] = [(0, {})]
    for act, what in SCRIPT:
        if isinstance(what, bytes):
            bring(here, what)
        else:
            here.remove(what)
        assert act in ("install", "remove")
        steps.append((len(medium.log), contents(medium)))
    return medium, steps


MEDIUM, STEPS = recorded()


def cut(log: Sequence[tuple[int, bytes] | None], keep: Callable[[int], bool], start: bytes) -> bytes:
    """What is on the device when the power goes after these acts: what was synced, and of the rest the
    sectors that `keep` says, by their number in the order of writing."""
    synced = max((at for at, act in enumerate(log) if act is None), default=-1)
    content = bytearray(start)
    number = 0
    for at, act in enumerate(log):
        if act is None:
            continue
        offset, data = act
        for sector in range(0, len(data), SECTOR):
            if at < synced or keep(number):
                piece = data[sector : sector + SECTOR]
                content[offset + sector : offset + sector + len(piece)] = piece
            number += at > synced
    return bytes(content)


def outcome_is_old_or_new(acts: int, image_: bytes) -> None:
    """Old: what was acknowledged by then. New: what the step under way was about to bring."""
    done = max(step for step, (at, _) in enumerate(STEPS) if at <= acts)
    allowed = [state for _, state in STEPS[done : done + 2]]
    medium = Medium(image_)
    found = contents(medium)
    assert found in allowed
    # It is the same for the one that starts after it, whose other copy was renewed.
    assert contents(Medium(bytes(medium.content))) == found
    copies = [bytes(medium.content[at : at + TABLE_BYTES]) for at in shelf.COPIES]
    assert copies[0] == copies[1] or store(medium).table() == shelf.EMPTY
    # And every image of it is all there.
    assert all(IMAGES[key] == data for key, data in found.items())


@pytest.mark.proves("INV-PERSONA-4")
def test_a_power_cut_at_any_write_leaves_the_old_or_the_new() -> None:
    log = MEDIUM.log
    assert len(log) >= 50
    for acts in range(len(log) + 1):
        before = log[:acts]
        for torn in (0, 1, 5, 63, 64, 10_000):
            outcome_is_old_or_new(acts, cut(before, lambda n, torn=torn: n < torn, MEDIUM.start))  # type: ignore[misc]
            outcome_is_old_or_new(acts, cut(before, lambda n, torn=torn: n >= torn, MEDIUM.start))  # type: ignore[misc]


@pytest.mark.proves("INV-PERSONA-4")
@settings(max_examples=300)
@given(acts=st.integers(0, len(MEDIUM.log)), seed=st.integers(0, 2**64))
def test_unsynced_sectors_may_be_there_or_not(acts: int, seed: int) -> None:
    dice = Random(seed)
    outcome_is_old_or_new(acts, cut(MEDIUM.log[:acts], lambda _: dice.random() < 0.5, MEDIUM.start))


def test_the_power_cut_harness_finds_a_store_that_does_not_sync() -> None:
    """The same script on a store that never waits for the device is caught."""
    careless = [act for act in MEDIUM.log if act is not None]
    wrong = 0
    for acts in range(len(careless) + 1):
        written = cut(careless[:acts], lambda n: n >= 64, MEDIUM.start)
        try:
            found = contents(Medium(written))
            wrong += not all(IMAGES[key] == data for key, data in found.items())
        except Failure:
            wrong += 1
    assert wrong


@pytest.mark.proves("INV-PERSONA-4")
def test_anything_else_on_the_partition_is_corrupt_and_never_empty() -> None:
    for start in (b"\xeb\x3c\x90", b"\0" * (TABLE_BYTES - 1) + b"\1", MEDIUM.start[:100] + b"x"):
        medium = Medium(start.ljust(SIZE, b"\0"))
        acts: tuple[Callable[[Store], object], ...] = (
            lambda here: here.list(),
            lambda here: here.open("linda"),
            lambda here: here.begin("operator", len(LINDA), 0.0),
            lambda here: here.remove("linda"),
        )
        for act in acts:
            with refused("", Code.CORRUPT):
                act(store(medium))
        assert medium.log == []


@pytest.mark.parametrize("act", ["read", "write", "sync"])
def test_a_device_that_fails_at_any_moment_leaves_the_old_or_the_new(act: str) -> None:
    failures = 0
    for nth in range(200):
        medium = Medium()
        here = store(medium)
        bring(here, LINDA)
        left = nth

        def fails(name: str) -> bool:
            nonlocal left
            left -= name == act
            return left < 0 and name == act

        medium.fails = fails
        try:
            bring(here, LINDA2)
        except OSError:
            failures += 1
        else:
            assert nth > 0
            break
        medium.fails = lambda _: False
        found = contents(medium)
        assert found in ({("linda", 1): LINDA}, {("linda", 2): LINDA2})
        # The same organ believes the device, not what it meant to write.
        assert {(row.name, row.version) for row, _ in here.list()} == set(found)
        bring(here, LINDA2)
        assert contents(medium) == {("linda", 2): LINDA2}
    else:
        raise AssertionError("it never came through")
    assert failures


def test_a_rotten_copy_of_the_table_is_renewed_or_said() -> None:
    medium = Medium()
    bring(store(medium), LINDA)
    good = bytes(medium.content)
    for at in shelf.COPIES:
        medium.content[at + 20] ^= 1
        assert contents(medium) == {("linda", 1): LINDA}
        assert medium.content == good
    medium.content[shelf.COPIES[0] + 20] ^= 1
    medium.fails = lambda name: name == "write"
    assert contents(medium) == {("linda", 1): LINDA}


# A real file, and the keys


def test_a_file_is_a_device(tmp_path: Path) -> None:
    path = tmp_path / "personas.img"
    path.write_bytes(bytes(SIZE + 100))
    fd = os.open(path, os.O_RDWR)
    try:
        device = Device(fd)
        assert device.size == SIZE
        bring(store(device), LINDA)
        assert contents(Device(fd)) == {("linda", 1): LINDA}
        os.ftruncate(fd, DATA_AT)
        with pytest.raises(OSError, match="ends too early"):
            device.read(DATA_AT - 1, 2)
    finally:
        os.close(fd)


def test_the_trusted_keys_of_the_root(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "persona-keys"
    path.write_text(f"{PUBLIC.hex()}\n{OTHER_PUBLIC.hex()}\n")
    assert personas.keys(str(path)) == {PUBLIC, OTHER_PUBLIC}
    assert capfd.readouterr().err == ""
    for wrong in ("nonsense", PUBLIC.hex() + "\n" + "0" * 10_000, "é"):
        path.write_text(wrong)
        assert personas.keys(str(path)) == frozenset()
        assert "unable to trust a persona" in capfd.readouterr().err
    path.unlink()
    assert personas.keys(str(path)) == frozenset()
    assert KEY.public_key().public_bytes_raw() == PUBLIC
    assert Table(0, ()) == shelf.EMPTY
