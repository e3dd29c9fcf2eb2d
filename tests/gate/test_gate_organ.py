"""The organ: requests from the bus become requests to the worker, outcomes become results or failures."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import pytest
import trio
import trio.testing

from bus.envelope import Code, Failure
from organs import layout
from organs.gate import organ, store
from organs.runtime import EXIT_DEFECT, exit_code

Session = Callable[["Caller"], Awaitable[None]]


class Caller:
    """What the bus would do with the handlers."""

    def __init__(self, handlers: Mapping[str, organ.Handler]) -> None:
        self._handlers = handlers

    async def __call__(self, method: str, **params: object) -> dict[str, object]:
        return await self._handlers[method](None, params)

    async def code(self, method: str, **params: object) -> Code:
        with pytest.raises(Failure) as failure:
            await self(method, **params)
        return failure.value.code


class Bench:
    """A spine whose serve runs a session instead of listening."""

    def __init__(self, session: Session, bad: str = "") -> None:
        self._session = session
        self.bad = bad

    async def serve(self, handlers: Mapping[str, organ.Handler]) -> None:
        await self._session(Caller(handlers))
        raise Served


class Served(Exception):
    """The session ended well."""


@pytest.fixture
def persist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(organ, "PERSIST", tmp_path)
    return tmp_path


async def during(session: Session, bad: str = "") -> None:
    """Run the organ around a session."""
    try:
        await organ.main(Bench(session, bad))
    except BaseExceptionGroup as group:
        if group.subgroup(Served) is None:
            raise
    except Served:
        pass


@pytest.mark.usefixtures("persist")
async def test_each_method() -> None:
    async def session(gate: Caller) -> None:
        assert await gate("put", persona="linda", key=b"k", value=b"v") == {"seq": 1}
        assert await gate("get", persona="linda", key=b"k") == {"value": b"v", "seq": 1}
        assert await gate("list", persona="linda", after=b"", limit=10) == {"keys": [b"k"], "more": False}
        usage = await gate("usage", persona="linda")
        assert usage["keys"] == 1
        assert usage["quotaBytes"] == 16 << 20
        assert await gate("delete", persona="linda", key=b"k") == {"existed": True}
        assert await gate.code("get", persona="linda", key=b"k") is Code.NOT_FOUND
        assert await gate.code("put", persona="linda", key=b"k", value=bytes(1 << 21)) is Code.TOO_LARGE

    await during(session)


@pytest.mark.proves("INV-GATE-5")
@pytest.mark.parametrize("persona", ["../../etc/passwd", "", "Linda", "a/b", "a" * 65, "l\0"])
async def test_a_hostile_name_reaches_no_file(persist: Path, persona: str) -> None:
    async def session(gate: Caller) -> None:
        for method, params in (
            ("put", {"key": b"k", "value": b"v"}),
            ("get", {"key": b"k"}),
            ("delete", {"key": b"k"}),
            ("list", {"after": b"", "limit": 0}),
            ("usage", {}),
        ):
            assert await gate.code(method, persona=persona, **params) is Code.INVALID

    await during(session)
    assert set(os.listdir(persist)) == {"ballast"}


@pytest.mark.usefixtures("persist")
async def test_callers_at_once_share_commits() -> None:
    async def session(gate: Caller) -> None:
        async def client(number: int) -> None:
            for step in range(10):
                await gate("put", persona="linda", key=b"%d" % number, value=b"%d" % step)

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(client, number)
        listed = await gate("list", persona="linda", after=b"", limit=0)
        assert len(listed["keys"]) == 20  # type: ignore[arg-type] # a list of the schema

    await during(session)


async def test_a_stop_in_the_middle_leaves_whole_files(persist: Path) -> None:
    async def session(gate: Caller) -> None:
        async def client(number: int) -> None:
            while True:
                await gate("put", persona="linda", key=b"%d" % number, value=bytes(5000))

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(client, number)
            await gate("put", persona="linda", key=b"last", value=b"v")
            nursery.cancel_scope.cancel()

    await during(session)
    assert set(os.listdir(persist)) == {"ballast", store.file_name("linda")}


@pytest.mark.usefixtures("persist")
async def test_a_caller_that_gave_up_is_not_waited_for() -> None:
    async def session(gate: Caller) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await gate("put", persona="linda", key=b"k", value=b"v")
        assert scope.cancelled_caught
        await gate("put", persona="linda", key=b"l", value=b"v")

    await during(session)


@pytest.mark.proves("INV-GATE-9")
async def test_a_dead_worker_ends_the_organ_and_answers_nobody(
    persist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[object] = []

    def broken(_: store.Store) -> None:
        raise OSError(5, "Input/output error")

    async def session(gate: Caller) -> None:
        await gate("put", persona="linda", key=b"k", value=b"v")
        monkeypatch.setattr(store.Store, "commit", broken)
        answered.append(await gate("put", persona="linda", key=b"k", value=b"w"))

    with pytest.raises(BaseException) as caught:  # noqa: PT011 # a group or what is in it
        await during(session)
    assert not answered
    # The device failed, which is not the slot's fault, and the last line says what was seen.
    assert exit_code(caught.value) == layout.EXIT_DATA
    assert "unable to go on with /persist: [Errno 5] Input/output error" in describe(caught.value)
    monkeypatch.undo()
    assert store.Store.open(persist, "ben", examine=True) is None


@pytest.mark.usefixtures("persist")
async def test_a_defect_is_not_taken_for_bad_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: store.Store) -> None:
        raise ValueError("ours")

    monkeypatch.setattr(store.Store, "commit", broken)

    async def session(gate: Caller) -> None:
        await gate("put", persona="linda", key=b"k", value=b"w")

    with pytest.raises(BaseException) as caught:  # noqa: PT011 # a group or what is in it
        await during(session)
    assert "thread died" in describe(caught.value)
    assert exit_code(caught.value) == EXIT_DEFECT


@pytest.mark.parametrize("name", ["ballast", "incoming"])
async def test_a_persist_that_cannot_be_opened_is_bad_data(persist: Path, name: str) -> None:
    (persist / name).mkdir()

    async def session(gate: Caller) -> None:
        await gate("usage", persona="linda")

    with pytest.raises(BaseException) as caught:  # noqa: PT011 # a group or what is in it
        await during(session)
    assert exit_code(caught.value) == layout.EXIT_DATA


@pytest.mark.proves("INV-STATE-4")
async def test_a_closed_gate_answers_every_call_and_touches_nothing(persist: Path) -> None:
    async def session(gate: Caller) -> None:
        assert await gate("data") == {"closed": "unable to mount", "damaged": []}
        for method in organ.STORE_METHODS:
            with pytest.raises(Failure, match="nothing is read or written: unable to mount") as refused:
                await gate(method, persona="linda", key=b"k", value=b"v", after=b"", limit=0)
            assert refused.value.code is Code.CORRUPT

    await during(session, bad="unable to mount")
    assert not os.listdir(persist)


def describe(error: BaseException) -> str:
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return " ".join([str(error), *map(describe, inner)])


async def test_damage_is_said_and_does_not_end_the_organ(persist: Path) -> None:
    (persist / store.file_name("linda")).write_bytes(b"")

    async def session(gate: Caller) -> None:
        assert await gate("data") == {"closed": "", "damaged": []}
        assert await gate.code("get", persona="linda", key=b"k") is Code.CORRUPT
        assert await gate("put", persona="ben", key=b"k", value=b"v") == {"seq": 1}
        told = [{"store": "linda", "why": "the file has 0 bytes"}]
        assert await gate("data") == {"closed": "", "damaged": told}

    await during(session)
