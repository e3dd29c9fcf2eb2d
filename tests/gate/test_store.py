"""Real SQLite files: a model of what was stored, and files that rot."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import stat
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from bus.envelope import Code
from organs.gate import store as gate_store
from organs.gate.store import Corrupt, Full, Rotten, Store, Unsafe, file_name
from organs.gate.verdict import (
    KEY_BYTES_MAX,
    LIST_KEYS_MAX,
    PAGE_BYTES,
    QUOTA_BYTES,
    VALUE_BYTES_MAX,
    Put,
    Refuse,
    growth_bytes_max,
)
from organs.gate.worker import Stored
from tests.gate.asking import Asker, Refused

KEYS = st.one_of(
    st.sampled_from([b"a", b"b", b"ab", b"\0", b"\xff", b"k" * KEY_BYTES_MAX, b"'; --", b"../x"]),
    st.binary(min_size=1, max_size=40),
)
VALUES = st.one_of(
    st.binary(max_size=300),
    st.integers(0, 40_000).map(lambda n: random.Random(n).randbytes(n)),
)
PERSONAS = st.sampled_from(["linda", "ben", "a"])
SMALL_QUOTA = 200 << 10


class StoreModel(RuleBasedStateMachine):
    """Any order of requests, reopening in between: the gate agrees with a dictionary."""

    @initialize()
    def begin(self) -> None:
        # In memory where there is such a place: what is tested here is meaning, not the device.
        self.directory = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
        self.asker = Asker(self.directory, quota_bytes=SMALL_QUOTA).__enter__()
        self.model: dict[str, dict[bytes, bytes]] = {}
        self.seqs: dict[str, int] = {}

    @rule(persona=PERSONAS, key=KEYS, value=VALUES)
    def put(self, persona: str, key: bytes, value: bytes) -> None:
        (outcome,) = self.asker.together([Put(persona=persona, key=key, value=value)])
        if isinstance(outcome, Refuse):
            assert outcome.code is Code.QUOTA
            return
        assert isinstance(outcome, Stored)
        seq = outcome.seq
        assert seq > self.seqs.get(persona, 0)
        self.seqs[persona] = seq
        self.model.setdefault(persona, {})[key] = value

    @rule(persona=PERSONAS, key=KEYS)
    def get(self, persona: str, key: bytes) -> None:
        assert self.asker.get(persona, key) == self.model.get(persona, {}).get(key)

    @rule(persona=PERSONAS, key=KEYS)
    def delete(self, persona: str, key: bytes) -> None:
        held = self.model.get(persona, {})
        assert self.asker.delete(persona, key) == (held.pop(key, None) is not None)

    @rule(persona=PERSONAS, limit=st.integers(0, 5))
    def walk(self, persona: str, limit: int) -> None:
        keys: list[bytes] = []
        more = True
        while more:
            page, more = self.asker.list(persona, keys[-1] if keys else b"", limit)
            assert len(page) <= (limit or LIST_KEYS_MAX)
            assert page or not more
            keys.extend(page)
        assert keys == sorted(self.model.get(persona, {}))

    @rule()
    def reopen(self) -> None:
        self.asker.__exit__(None, None, None)
        self.asker = Asker(self.directory, quota_bytes=SMALL_QUOTA).__enter__()

    @invariant()
    def usage(self) -> None:
        for persona, held in self.model.items():
            used = self.asker.usage(persona)
            assert used.keys == len(held)
            assert sum(len(k) + len(v) for k, v in held.items()) <= used.bytes <= SMALL_QUOTA
            assert used.bytes % PAGE_BYTES == 0

    def teardown(self) -> None:
        self.asker.__exit__(None, None, None)
        shutil.rmtree(self.directory)


StoreModel.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestStoreModel = StoreModel.TestCase


@pytest.mark.proves("INV-GATE-1")
@pytest.mark.parametrize("name", [name for name, _, _ in gate_store.PRAGMAS])
def test_a_setting_that_does_not_take_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Each setting, asked for wrongly, is noticed when it is read back."""
    wrong = {
        "locking_mode": "NORMAL",
        "page_size": "8192",
        "auto_vacuum": "NONE",
        "journal_mode": "DELETE",
        "synchronous": "NORMAL",
        "temp_store": "FILE",
        "cell_size_check": "OFF",
        "trusted_schema": "ON",
    }
    pragmas = tuple(
        (n, wrong.get(n, "77") if n == name else value, expected) for n, value, expected in gate_store.PRAGMAS
    )
    monkeypatch.setattr(gate_store, "PRAGMAS", pragmas)
    with pytest.raises((Unsafe, Corrupt), match=name):
        Store.create(tmp_path, "linda")
    gate_store._ABANDONED.pop().close()


def fill(directory: Path, persona: str, count: int = 40) -> dict[bytes, bytes]:
    held = {b"key-%03d" % i: random.Random(i).randbytes(50 + 97 * i) for i in range(count)}
    with Asker(directory) as asker:
        for key, value in held.items():
            asker.put(persona, key, value)
    return held


def test_values_of_every_size(tmp_path: Path) -> None:
    sizes = [0, 1, PAGE_BYTES - 1, PAGE_BYTES, PAGE_BYTES + 1, 65_536, VALUE_BYTES_MAX]
    with Asker(tmp_path) as asker:
        for size in sizes:
            asker.put("linda", b"%d" % size, bytes([size % 251]) * size)
    with Asker(tmp_path) as asker:
        for size in sizes:
            assert asker.get("linda", b"%d" % size) == bytes([size % 251]) * size


def test_only_a_put_makes_a_file(tmp_path: Path) -> None:
    with Asker(tmp_path) as asker:
        assert asker.get("linda", b"k") is None
        assert asker.delete("linda", b"k") is False
        assert asker.list("linda") == ((), False)
        assert asker.usage("linda").bytes == 0
        assert set(os.listdir(tmp_path)) == {"ballast"}
        asker.put("linda", b"k", b"v")
    assert set(os.listdir(tmp_path)) == {"ballast", file_name("linda")}


@pytest.mark.proves("INV-GATE-4")
def test_quota(tmp_path: Path) -> None:
    """At the limit: puts are refused with the figures, what does not grow is served, deletes make room."""
    with Asker(tmp_path, quota_bytes=1 << 20) as asker:
        stored = 0
        put = Put(persona="linda", key=b"0", value=b"v" * 100_000)
        while isinstance(outcome := asker.together([replace(put, key=b"%d" % stored)])[0], Stored):
            stored += 1
        assert isinstance(outcome, Refuse)
        assert outcome.code is Code.QUOTA
        used = asker.usage("linda")
        assert f"used {used.bytes} of {1 << 20}" in outcome.message
        assert stored == used.keys >= 9
        asker.put("linda", b"0", b"w" * 100_000)
        asker.put("ben", b"0", b"v" * 100_000)
        assert asker.delete("linda", b"1")
        asker.put("linda", b"1", b"v" * 100_000)
        for key in range(stored):
            assert asker.delete("linda", b"%d" % key)
        assert asker.usage("linda").bytes <= 8 * PAGE_BYTES
    assert (tmp_path / file_name("linda")).stat().st_size < 2 << 20


@pytest.mark.proves("INV-GATE-4")
@given(st.integers(0), st.sampled_from([9, 40, KEY_BYTES_MAX]), st.sampled_from([60, 5_000, 300_000]))
@settings(max_examples=9, deadline=None)
def test_no_put_grows_a_store_by_more_than_is_said(seed: int, keys: int, values: int) -> None:
    """Whatever is in it, with keys and values that make deep trees, long chains and pages that split, and
    whether or not a put was measured: the store occupies no more than it counts, and no more than its quota.
    What is refused would not have fitted."""
    dice = random.Random(seed)
    quota = 3 << 20
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as home:
        store = Store.create(Path(home), "linda", quota_bytes=quota)
        held: list[bytes] = []
        counts = {"sure": 0, "measured": 0, "refused": 0}
        store.begin(writes=True)
        for _ in range(1_000):
            before = store.used_bytes()
            if held and dice.random() < 0.2:
                store.delete(held.pop(dice.randrange(len(held))))
                assert store._used_at_most is None
                continue
            size = dice.choice((0, 1, dice.randrange(values), values, PAGE_BYTES - 100))
            if held and dice.random() < 0.3:
                key = dice.choice(held)
            else:
                # Alike at their beginning, so that they meet in one page of the index.
                key = (b"k" * keys + dice.randbytes(8))[-dice.choice((keys, keys, 9)) :]
            try:
                store.put(key, dice.randbytes(size))
            except gate_store.OverQuota:
                counts["refused"] += 1
                assert store.used_bytes() == before
                assert before + growth_bytes_max(len(key), size) > quota
                continue
            after = store.used_bytes()
            if key not in held:
                held.append(key)
            counts["measured" if store._used_at_most == after else "sure"] += 1
            assert store._used_at_most is not None
            assert after - before <= growth_bytes_max(len(key), size)
            assert after <= store._used_at_most <= quota
        store.commit()
        store.close()
    assert counts["sure"] > 0, counts
    assert values < 300_000 or min(counts.values()) > 0, counts


@pytest.mark.proves("INV-GATE-4")
@pytest.mark.parametrize("after", ["put", "delete", "both"])
def test_what_was_rolled_back_is_counted_again(tmp_path: Path, after: str) -> None:
    """A transaction made the store smaller and was undone: the next puts know how large it is again."""
    quota = 4 << 20
    store = Store.create(tmp_path, "linda", quota_bytes=quota)

    def fill(name: bytes) -> int:
        """How many were stored before one was refused."""
        for number in range(100):
            try:
                store.put(name + b"%d" % number, bytes(100_000))
            except gate_store.OverQuota:
                return number
            assert store.used_bytes() <= quota
        raise AssertionError("nothing was refused")

    store.begin(writes=True)
    for number in range(3):
        store.put(b"%d" % number, bytes(VALUE_BYTES_MAX))
    assert fill(b"to the brim ") > 0
    store.commit()
    store.begin(writes=True)
    for number in range(3):
        if after != "put":
            store.delete(b"%d" % number)
        if after != "delete":
            store.put(b"%d" % number, b"small")
    store.rollback()
    store.begin(writes=True)
    assert fill(b"more ") == 0
    store.commit()
    store.close()


def test_one_over_the_quota_does_not_take_the_batch_with_it(tmp_path: Path) -> None:
    with Asker(tmp_path, quota_bytes=1 << 20) as asker:
        asker.put("linda", b"first", b"v")
        outcomes = asker.together(
            [
                Put(persona="linda", key=b"small", value=b"s"),
                Put(persona="linda", key=b"large", value=b"v" * VALUE_BYTES_MAX),
                Put(persona="linda", key=b"after", value=b"a"),
            ]
        )
        assert isinstance(outcomes[0], Stored)
        assert isinstance(outcomes[1], Refuse)
        assert isinstance(outcomes[2], Stored)
        assert asker.get("linda", b"large") is None
        assert asker.get("linda", b"after") == b"a"


def test_the_hard_wall_stands_behind_the_quota(tmp_path: Path) -> None:
    """With the accounting out of order the file still cannot grow past its wall."""
    store = Store.create(tmp_path, "linda", quota_bytes=1 << 40)

    def write(key: bytes) -> None:
        store.begin(writes=True)
        store.put(key, b"v" * VALUE_BYTES_MAX)
        store.commit()

    for number in range(QUOTA_BYTES // VALUE_BYTES_MAX):
        write(b"%d" % number)
    write(b"over the quota")
    write(b"and again")
    with pytest.raises(Full):
        write(b"into the wall")
    store.rollback()
    store.close()
    assert (tmp_path / file_name("linda")).stat().st_size <= gate_store.HARD_WALL_PAGES * PAGE_BYTES


@pytest.mark.proves("INV-GATE-6")
@pytest.mark.parametrize(
    "damage",
    ["empty", "short", "zero page", "zeros", "noise", "text", "half", "foreign", "no table", "other column"],
)
def test_a_damaged_file_is_never_an_empty_store(tmp_path: Path, damage: str) -> None:
    held = fill(tmp_path, "linda")
    fill(tmp_path, "ben")
    path = tmp_path / file_name("linda")
    good = path.read_bytes()
    foreign = tmp_path / "foreign"
    sqlite3.connect(foreign).execute("CREATE TABLE head (x)").connection.commit()
    bad = {
        "empty": b"",
        "short": good[:100],
        "zero page": bytes(PAGE_BYTES) + good[PAGE_BYTES:],
        "zeros": bytes(len(good)),
        "noise": random.Random(1).randbytes(len(good)),
        "text": b"not a database\n" * 1000,
        "half": good[: len(good) // 2 // PAGE_BYTES * PAGE_BYTES],
        "foreign": foreign.read_bytes(),
        "other column": good.replace(b"head (persona TEXT", b"head (personx TEXT"),
        "no table": good.replace(b"CREATE TABLE record", b"CREATE TABLE rec\xf0rd"),
    }[damage]
    path.write_bytes(bad)
    with Asker(tmp_path) as asker:
        for _ in range(2):
            for act in (
                lambda: asker.get("linda", b"key-000"),
                lambda: asker.list("linda"),
                lambda: asker.usage("linda"),
                lambda: asker.put("linda", b"new", b"v"),
                lambda: asker.delete("linda", b"key-000"),
            ):
                with pytest.raises(Refused) as refused:
                    act()
                assert refused.value.code is Code.CORRUPT
        # The others are served.
        assert asker.get("ben", b"key-001") == held[b"key-001"]
        asker.put("ben", b"new", b"v")
    assert path.read_bytes() == bad, "a damaged file is left as it is"


@pytest.mark.proves("INV-GATE-6")
@pytest.mark.parametrize("at", range(0, 100, 10))
def test_no_header_ends_the_gate(tmp_path: Path, at: int) -> None:
    """SQLite believes its header. Some bytes make it say that it is too old, or that it may not write."""
    fill(tmp_path, "linda")
    good = (tmp_path / file_name("linda")).read_bytes()
    for place in range(at, at + 10):
        for byte in {0, 1, 2, 3, 5, 255, good[place] ^ 1, good[place] ^ 128} - {good[place]}:
            # A directory of its own: a damaged store is never closed, so it keeps its lock.
            home = tmp_path / f"{place}-{byte}"
            home.mkdir()
            (home / file_name("linda")).write_bytes(good[:place] + bytes([byte]) + good[place + 1 :])
            # Leaving the asker raises what the worker died of.
            with Asker(home) as asker:
                for act in (
                    lambda: asker.get("linda", b"key-000"),
                    lambda: asker.put("linda", b"new", b"v"),
                    lambda: asker.delete("linda", b"key-001"),
                ):
                    with suppress(Refused):
                        act()


@pytest.mark.proves("INV-GATE-6")
@pytest.mark.parametrize("kind", ["directory", "pipe", "link", "socket"])
def test_what_is_no_file_is_damage_of_one_store(tmp_path: Path, kind: str) -> None:
    for suffix in ("", "-wal"):
        home = tmp_path / f"home{suffix}"
        home.mkdir()
        fill(home, "linda")
        fill(home, "ben")
        path = home / (file_name("linda") + suffix)
        path.unlink(missing_ok=True)
        if kind == "directory":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "link":
            path.symlink_to(home / file_name("ben"))
        else:
            os.mknod(path, 0o600 | stat.S_IFSOCK)
        with Asker(home) as asker:
            for _ in range(2):
                with pytest.raises(Refused) as refused:
                    asker.put("linda", b"key", b"v")
                assert refused.value.code is Code.CORRUPT
            asker.put("ben", b"key", b"v")
            assert asker.worker.damaged().keys() == {"linda"}


@pytest.mark.proves("INV-GATE-6")
def test_the_file_of_another_persona_is_damage(tmp_path: Path) -> None:
    fill(tmp_path, "ben")
    shutil.copy(tmp_path / file_name("ben"), tmp_path / file_name("linda"))
    with pytest.raises(Corrupt, match="another persona"):
        Store.open(tmp_path, "linda", examine=True)


def test_a_missing_record_is_damage(tmp_path: Path) -> None:
    fill(tmp_path, "linda")
    with sqlite3.connect(tmp_path / file_name("linda"), isolation_level=None) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("DELETE FROM record WHERE key = ?", (b"key-007",))
    connection.close()
    with pytest.raises(Corrupt, match="39 records where the head counts 40"):
        Store.open(tmp_path, "linda", examine=True)


@pytest.mark.proves("INV-GATE-8")
def test_rot_is_never_a_wrong_value(tmp_path: Path) -> None:
    """One flipped bit anywhere in the file: the right value, or an error that says so. SQLite alone gives
    back the wrong value for most of them."""
    held = fill(tmp_path, "linda", 12)
    path = tmp_path / file_name("linda")
    good = path.read_bytes()
    dice = random.Random(5)
    counts = {"refused": 0, "rotten": 0, "harmless": 0}
    for number in range(400):
        at, bit = dice.randrange(len(good)), 1 << dice.randrange(8)
        # A directory of its own: a damaged store is never closed, so it keeps its lock.
        home = tmp_path / str(number)
        home.mkdir()
        (home / path.name).write_bytes(good[:at] + bytes([good[at] ^ bit]) + good[at + 1 :])
        try:
            store = Store.open(home, "linda", examine=True)
            assert store is not None
        except Corrupt:
            counts["refused"] += 1
            continue
        store.begin(writes=False)
        keys, more = store.list(b"", 0)
        assert not more
        assert keys == sorted(held)
        damaged = 0
        for key, value in held.items():
            try:
                found = store.get(key)
            except (Rotten, Corrupt):
                damaged += 1
            else:
                assert found is not None
                assert found[0] == value, f"bit {bit:#x} of byte {at}"
        counts["rotten" if damaged else "harmless"] += 1
        store.rollback()
        store.close()
    assert min(counts.values()) > 0, counts


def test_a_rotten_record_can_be_replaced(tmp_path: Path) -> None:
    held = fill(tmp_path, "linda", 3)
    path = tmp_path / file_name("linda")
    data = path.read_bytes()
    at = data.index(held[b"key-001"])
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with Asker(tmp_path) as asker:
        with pytest.raises(Refused) as refused:
            asker.get("linda", b"key-001")
        assert refused.value.code is Code.CORRUPT
        assert asker.get("linda", b"key-002") == held[b"key-002"]
        asker.put("linda", b"key-001", b"again")
        assert asker.get("linda", b"key-001") == b"again"


def test_a_creation_that_was_cut_short_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / gate_store.INCOMING).write_bytes(gate_store._new_file("linda")[:5000])
    with Asker(tmp_path) as asker:
        assert asker.get("linda", b"k") is None
        assert set(os.listdir(tmp_path)) == {"ballast"}
        assert asker.put("linda", b"k", b"v") == 1
