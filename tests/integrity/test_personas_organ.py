"""The organ's methods about personas, over a real bus with real listeners, on a partition that is a file."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import trio

from bus import client, server
from bus.descriptors import SUFFIX
from bus.envelope import Code, Failure
from organs.integrity import organ, personas
from organs.integrity.shelf import DATA_AT
from organs.persona import BLOCK, MANIFEST_BYTES, key_id, split
from tests.bus.wiring import own_schemas
from tests.personas import PUBLIC, image

INTEGRITY = own_schemas().interfaces["integrity"]
SIZE = DATA_AT + 64 * BLOCK
LINDA = image("linda", 1)


@dataclass
class Bench:
    """A spine with a bus of its own."""

    fds: Mapping[str, int]
    listeners: Mapping[str, int]
    beside: Mapping[str, int]
    up: trio.Event
    # Not the first of its boot, which begins after a pause.
    generation: int = 2

    async def told(self) -> AsyncIterator[str]:
        await trio.sleep_forever()
        yield ""

    def ask(self, word: str) -> None:
        pytest.fail(f"{word} was asked for")

    async def serve(self, handlers: Mapping[str, organ.Handler]) -> None:
        async with trio.open_nursery() as nursery:
            serve = partial(server.serve, descriptors=self.beside)
            await nursery.start(serve, INTEGRITY, handlers, self.listeners, 1)
            self.up.set()


@dataclass
class Held:
    """The two callers, and the partition."""

    operator: client.Peer
    freezer: client.Peer
    partition: Path

    async def install(self, data: bytes, step: int = 2 * BLOCK) -> dict[str, object]:
        ticket = (await self.operator.call("beginInstall", {"bytes": len(data)}))["ticket"]
        for at in range(0, len(data), step):
            piece = {"ticket": ticket, "offset": at, "data": data[at : at + step]}
            assert await self.operator.call("chunk", piece) == {}
        found = (await self.operator.call("commit", {"ticket": ticket}))["persona"]
        assert isinstance(found, dict)
        return found

    async def manifests(self) -> list[bytes]:
        rows = (await self.operator.call("personas", {}))["personas"]
        assert isinstance(rows, list)
        return [row["manifest"] for row in rows]


@contextlib.asynccontextmanager
async def running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, partition: bool = True
) -> AsyncIterator[Held]:
    """The organ, served to its two callers."""
    keys = tmp_path / "persona-keys"
    keys.write_text(PUBLIC.hex() + "\n")
    monkeypatch.setattr(personas, "KEYS", str(keys))
    organs_json = tmp_path / "organs.json"
    organs_json.write_text('{"boot": {"slot": null, "healthy": false}}')
    monkeypatch.setattr(organ, "ORGANS", organs_json)
    path = tmp_path / "personas.img"
    if not path.exists():
        path.write_bytes(bytes(SIZE))
    with contextlib.ExitStack() as open_here:
        fds: dict[str, int] = {}
        if partition:
            for label, mode in (("device:personas", os.O_RDWR), ("device:personas:ro", os.O_RDONLY)):
                fds[label] = os.open(path, mode)
                open_here.callback(os.close, fds[label])

        def listen(name: str, kind: socket.SocketKind) -> int:
            place = tmp_path / name
            place.unlink(missing_ok=True)
            bound = open_here.enter_context(socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK))
            bound.bind(str(place))
            bound.listen(8)
            return bound.fileno()

        listeners = {
            caller: listen(f"integrity.{caller}", socket.SOCK_STREAM) for caller in ("operator", "freezer")
        }
        beside = {"freezer": listen(f"integrity.freezer{SUFFIX}", socket.SOCK_SEQPACKET)}
        async with trio.open_nursery() as nursery:
            bench = Bench(fds, listeners, beside, trio.Event())
            nursery.start_soon(organ.main, bench)
            await bench.up.wait()
            peers = {name: client.Peer(INTEGRITY, str(tmp_path / f"integrity.{name}")) for name in listeners}
            for peer in peers.values():
                await nursery.start(peer.run)
            yield Held(peers["operator"], peers["freezer"], path)
            nursery.cancel_scope.cancel()


async def code(peer: client.Peer, method: str, **params: object) -> Code:
    ask = peer.call_fds if INTEGRITY.methods[method].gives_fd else peer.call
    with pytest.raises(Failure) as failure:
        await ask(method, params)
    return failure.value.code


async def test_each_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, monkeypatch) as held:
        assert await held.operator.call("personas", {}) == {"personas": []}
        row = await held.install(LINDA)
        assert row == {
            "name": "linda",
            "version": 1,
            "keyId": key_id(PUBLIC),
            "offset": DATA_AT,
            "length": len(LINDA),
            "manifest": split(LINDA[-MANIFEST_BYTES:])[3],
        }
        for peer in (held.operator, held.freezer):
            assert await peer.call("personas", {}) == {"personas": [row]}
        ticket = (await held.operator.call("beginInstall", {"bytes": len(LINDA)}))["ticket"]
        assert await held.operator.call("abandon", {"ticket": ticket}) == {}
        assert await code(held.operator, "commit", ticket=ticket) is Code.NOT_FOUND
        assert await held.operator.call("remove", {"name": "linda"}) == {}
        assert await held.operator.call("personas", {}) == {"personas": []}


async def test_what_is_lent_is_the_partition_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, monkeypatch) as held:
        row = await held.install(LINDA)
        given: list[int] = []
        for _ in range(2):
            results, fds = await held.freezer.call_fds("open", {"name": "linda"})
            assert results == {"persona": row}
            given += fds
        assert len(set(given)) == 2
        for fd in given:
            assert os.pread(fd, len(LINDA), DATA_AT) == LINDA
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.pwrite(fd, b"x", DATA_AT)
            os.close(fd)
        # Its own stays open, whatever a caller does with what it got.
        _, [fd] = await held.freezer.call_fds("open", {"name": "linda"})
        os.close(fd)
        assert await code(held.freezer, "open", name="nobody") is Code.NOT_FOUND


@pytest.mark.proves("INV-PERSONA-1")
async def test_a_refusal_says_its_kind_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, monkeypatch) as held:
        await held.install(image("linda", 2))
        for kind, data in (
            ("downgrade", LINDA),
            ("altered", image("tom")[:9] + b"!" + image("tom")[10:]),
            ("malformed", image("tom", init=["sh"])),
            ("truncated", LINDA[:-BLOCK]),
            ("full", image("tom", data=bytes(60 * BLOCK))),
        ):
            with pytest.raises(Failure) as failure:
                await held.install(data)
            assert failure.value.code is Code.REFUSED
            assert failure.value.message.startswith(f"{kind}: ")
        assert await held.manifests() == [split(image("linda", 2)[-MANIFEST_BYTES:])[3]]


@pytest.mark.proves("INV-PERSONA-5")
async def test_every_byte_is_read_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, monkeypatch) as held:
        await held.install(LINDA)
        found = await held.operator.call("verify", {"name": "linda"})
        assert found == {"version": 1, "bytes": len(LINDA)}
        assert await code(held.operator, "verify", name="nobody") is Code.NOT_FOUND
        with held.partition.open("r+b") as file:
            file.seek(DATA_AT + 5000)
            file.write(bytes([LINDA[5000] ^ 1]))
        # Its manifest is as it was: only who reads all of it can tell.
        assert await code(held.operator, "verify", name="linda") is Code.CORRUPT
        # What was read is free to be removed and overwritten.
        assert await held.operator.call("remove", {"name": "linda"}) == {}
        await held.install(image("linda", 2))
        found = await held.operator.call("verify", {"name": "linda"})
        assert found["version"] == 2


async def test_who_may_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, monkeypatch) as held:
        await held.install(LINDA)
        # Its descriptors have no way to the operator: there is no such socket.
        assert await code(held.operator, "open", name="linda") is Code.BUSY
        for method, params in (
            ("beginInstall", {"bytes": len(LINDA)}),
            ("chunk", {"ticket": 1, "offset": 0, "data": b"x"}),
            ("commit", {"ticket": 1}),
            ("abandon", {"ticket": 1}),
            ("remove", {"name": "linda"}),
            ("verify", {"name": "linda"}),
        ):
            assert await code(held.freezer, method, **params) is Code.FORBIDDEN


async def test_damage_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, monkeypatch) as held:
        await held.install(LINDA)
        with open(held.partition, "r+b") as file:
            file.seek(DATA_AT + len(LINDA) - MANIFEST_BYTES + 200)
            file.write(b"!")
        assert await held.manifests() == [b""]
        assert await code(held.freezer, "open", name="linda") is Code.CORRUPT
        # Once more, from the start: it is replaced.
        await held.install(LINDA)
        assert await held.manifests() == [split(LINDA[-MANIFEST_BYTES:])[3]]
    with open(tmp_path / "personas.img", "r+b") as file:
        file.write(b"no table" * 10_000)
    async with running(tmp_path, monkeypatch) as held:
        assert await code(held.operator, "personas") is Code.CORRUPT
        assert await code(held.operator, "beginInstall", bytes=len(LINDA)) is Code.CORRUPT
        assert await code(held.freezer, "open", name="linda") is Code.CORRUPT


async def test_a_table_that_cannot_be_read_at_the_end_holds_up_no_later_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as held:

        def damaged(_: personas.Store) -> object:
            raise Failure(Code.CORRUPT, "the partition of the personas: neither table is whole")

        ticket = (await held.operator.call("beginInstall", {"bytes": len(LINDA)}))["ticket"]
        await held.operator.call("chunk", {"ticket": ticket, "offset": 0, "data": LINDA})
        with monkeypatch.context() as broken:
            broken.setattr(personas.Store, "table", damaged)
            assert await code(held.operator, "commit", ticket=ticket) is Code.CORRUPT
        assert (await held.install(LINDA))["name"] == "linda"


async def test_a_ground_without_a_partition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, monkeypatch, partition=False) as held:
        assert await code(held.operator, "personas") is Code.NOT_FOUND
        assert await code(held.operator, "beginInstall", bytes=len(LINDA)) is Code.NOT_FOUND


async def test_an_install_whose_time_is_up_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline comes before the check of the image: nothing is installed, and the next one may come."""
    async with running(tmp_path, monkeypatch) as held:
        ticket = (await held.operator.call("beginInstall", {"bytes": len(LINDA)}))["ticket"]
        await held.operator.call("chunk", {"ticket": ticket, "offset": 0, "data": LINDA})
        in_thread = personas.Counter._in_thread
        acts: list[object] = []

        async def slowly(self: personas.Counter, act: Callable[[personas.Store], object]) -> object:
            acts.append(act)
            if len(acts) == 2:
                await trio.sleep_forever()
            return await in_thread(self, act)

        with monkeypatch.context() as slow:
            slow.setattr(personas.Counter, "_in_thread", slowly)
            with pytest.raises(Failure) as failure:
                await held.operator.call("commit", {"ticket": ticket}, 50)
            assert failure.value.code is Code.DEADLINE
        assert len(acts) == 2
        assert await held.operator.call("personas", {}) == {"personas": []}
        assert (await held.install(LINDA))["name"] == "linda"
