"""The personas that are installed: takes images in, whole and signed, and lends them out to be run.

Touches: the partition of the personas by the descriptors it was handed, and the trusted keys in the root.
An image is written to space that no table names, made durable, read back past the page cache and checked
from its first byte to its last; then the table that names it is written, one copy after the other.
Never: overwrites an image that is installed, or was lent since this organ started; reads a table's word for a
signature; repairs an image.
Fails: an image that is refused is answered with REFUSED and the kind of refusal first; damage with CORRUPT. A
device that fails ends the call with CORRUPT too, and the table is read anew from the device. Killed at any
moment, it leaves the old table or the new one, and bytes that nobody refers to.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, cast

import trio

from bus.envelope import Code, Failure
from bus.server import Answer
from organs import layout
from organs.integrity import examine_persona, shelf
from organs.integrity.examine_persona import Signed
from organs.integrity.shelf import Extent, Row, Table
from organs.persona import BLOCK, MANIFEST_BYTES, PersonaRefused, Refusal, key_id, trusted_keys

DEVICE: Final = f"device:{layout.PERSONAS}"
LENT: Final = f"{DEVICE}:ro"
KEYS = layout.PERSONA_KEYS
# Half of what one message of the bus may have.
CHUNK_BYTES_MAX: Final = 512 * 1024
# Chunks follow one another at once; whoever was silent for this long has gone.
IDLE_S_MAX: Final = 60.0
# The file of trusted keys has a line for each; a household has one.
KEYS_BYTES_MAX: Final = 4096
# Manifests that were checked already, so that a list costs no signatures: all that can be installed.
CHECKED_MAX: Final = 2 * shelf.INSTALLED_MAX

T = TypeVar("T")
Handler = Callable[..., Awaitable[Any]]


class Caller(Protocol):
    """What this module uses of a call."""

    @property
    def caller(self) -> str: ...


class Device:
    """A block device or a file by a descriptor that is open for writing."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.size = os.lseek(fd, 0, os.SEEK_END) // BLOCK * BLOCK

    def read(self, offset: int, length: int) -> bytes:
        """All bytes there, from the device and not from memory. Raises OSError."""
        os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_DONTNEED)
        data = os.pread(self._fd, length, offset)
        while len(data) < length:
            more = os.pread(self._fd, length - len(data), offset + len(data))
            if not more:
                raise OSError(errno.EIO, "the device ends too early")
            data += more
        return data

    def write(self, offset: int, data: bytes) -> None:
        """Write all of it. Raises OSError."""
        view = memoryview(data)
        while view:
            count = os.pwrite(self._fd, view, offset)
            view, offset = view[count:], offset + count

    def sync(self) -> None:
        """Make durable what was written. Raises OSError."""
        os.fsync(self._fd)


@dataclass(slots=True)
class Ticket:
    """One install under way. `received` bytes are there from the start on, without a gap."""

    number: int
    caller: str
    extent: Extent
    received: int
    touched_s: float
    busy: bool = False


class Store:
    """The partition. All methods but `check` are called one at a time; times are in seconds of one clock."""

    def __init__(self, device: Device, trusted: Collection[bytes]) -> None:
        self._device = device
        self._trusted = trusted
        self._table: Table | None = None
        self._tickets: dict[str, Ticket] = {}
        self._lent: set[Extent] = set()
        self._checked: dict[bytes, Signed] = {}

    def table(self) -> Table:
        """The table in force; read where that is needed, and a copy that differs renewed.

        Raises Failure, OSError.
        """
        if self._table is None:
            copies = [self._device.read(at, shelf.TABLE_BYTES) for at in shelf.COPIES]
            try:
                table = shelf.read(copies[1], copies[0], self._device.size)
            except shelf.Unreadable as error:  # INV-STATE-6
                raise Failure(Code.CORRUPT, f"the partition of the personas: {error}") from None
            if table != shelf.EMPTY:
                try:
                    self._write(table, only_where=copies)
                except OSError as error:
                    say(f"unable to renew a copy of the table of personas: {error}")
            self._table = table
        return self._table

    def _write(self, table: Table, only_where: list[bytes] | None = None) -> None:
        """Write both copies, one durable before the other is touched. Raises OSError."""
        encoded = shelf.encode(table)
        for number, at in enumerate(shelf.COPIES):
            if only_where is None or only_where[number] != encoded:
                self._device.write(at, encoded)
                self._device.sync()  # INV-PERSONA-4
                if self._device.read(at, shelf.TABLE_BYTES) != encoded:
                    raise OSError(errno.EIO, "the table reads back differently")

    def _replace(self, table: Table) -> None:
        self._table = None  # what is in force while the device fails is what it says afterwards
        self._write(table)
        self._table = table

    def list(self) -> list[tuple[Row, bytes]]:
        """All that is installed, with the manifest's text; empty where that is not what was installed."""
        return [(row, self._text(row)) for row in self.table().installed()]

    def _text(self, row: Row) -> bytes:
        try:
            return self._manifest(row).text
        except (PersonaRefused, OSError):
            return b""

    def open(self, name: str) -> tuple[Row, bytes]:
        """An installed persona and its manifest's text. It stays as it is until this organ ends.

        Raises Failure, OSError.
        """
        row = self._row(name)
        try:
            found = self._manifest(row)
        except PersonaRefused as error:
            code = Code.REFUSED if error.kind is Refusal.FOREIGN_KEY else Code.CORRUPT
            raise Failure(code, str(error)) from None
        self._lent.add(_extent(row))
        return row, found.text

    def _row(self, name: str) -> Row:
        row = self.table().find(name)
        if row is None:
            raise Failure(Code.NOT_FOUND, "no persona of that name is installed")
        return row

    def _manifest(self, row: Row) -> Signed:
        """The manifest of an installed persona as it is on the device. Raises PersonaRefused, OSError."""
        extent = _extent(row)
        at = extent.end - MANIFEST_BYTES
        block = self._device.read(at, MANIFEST_BYTES)
        found = self._checked.get(block)
        if found is None:
            found = examine_persona.signed(self._device.read, extent, self._trusted)
            if len(self._checked) >= CHECKED_MAX:
                self._checked.clear()
            self._checked[block] = found
        signed = found.persona
        if (signed.name, found.key, signed.version, found.digest, signed.length) != (
            *(row.name, row.key, row.version, row.digest, extent.length),
        ):
            raise PersonaRefused("manifest", "is not the one that was installed", Refusal.ALTERED)
        return found  # INV-PERSONA-1

    def begin(self, caller: str, length: int, now_s: float) -> int:
        """Set space aside; the number of the ticket. An earlier install of that caller ends.

        Raises Failure, OSError.
        """
        table = self.table()
        self._expire(now_s)
        before = self._tickets.get(caller)
        if before is not None and before.busy:
            raise Failure(Code.BUSY, "an install is being checked")
        self._tickets.pop(caller, None)
        if length % BLOCK or length < BLOCK + MANIFEST_BYTES:
            raise _refused(Refusal.TRUNCATED, f"no image has {length} bytes")
        taken = {_extent(row) for row in table.installed()} | self._lent
        taken |= {ticket.extent for ticket in list(self._tickets.values())}
        extent = shelf.allocate(self._device.size, taken, length)
        if extent is None:
            why = "; what ran since the machine started keeps its space until it starts again"
            raise _refused(Refusal.FULL, f"no {length} free bytes in one piece{why if self._lent else ''}")
        number = int.from_bytes(os.urandom(8), "little")
        self._tickets[caller] = Ticket(number, caller, extent, 0, now_s)
        return number

    def chunk(self, caller: str, number: int, offset: int, data: bytes, now_s: float) -> None:
        """Write a piece of the image; behind what is there already, or over it. Raises Failure, OSError."""
        ticket = self._ticket(caller, number, now_s)
        if not 1 <= len(data) <= CHUNK_BYTES_MAX:
            raise Failure(Code.TOO_LARGE, f"a chunk has 1 to {CHUNK_BYTES_MAX} bytes")
        if offset > ticket.received or offset + len(data) > ticket.extent.length:
            raise Failure(
                Code.INVALID,
                f"{ticket.received} of {ticket.extent.length} bytes are there; go on behind them",
            )
        self._device.write(ticket.extent.offset + offset, data)
        ticket.received = max(ticket.received, offset + len(data))
        ticket.touched_s = now_s

    def close(self, caller: str, number: int, now_s: float) -> Ticket:
        """All bytes have come: from now on nothing is written to them. Raises Failure."""
        ticket = self._ticket(caller, number, now_s)
        if ticket.received < ticket.extent.length:
            self.abandon(ticket)
            there = f"{ticket.received} of {ticket.extent.length} bytes came"
            raise _refused(Refusal.TRUNCATED, there)
        ticket.busy = True
        return ticket

    def check(self, ticket: Ticket, table: Table) -> tuple[Signed, Row | None]:
        """Read the image back and check all of it; with the row that holds the same image already.

        May run beside the other methods: nobody writes to a closed ticket's space. Raises PersonaRefused,
        OSError.
        """
        self._device.sync()
        found = examine_persona.signed(self._device.read, ticket.extent, self._trusted)
        persona = found.persona
        shelf.admit(table, persona.name, found.key, persona.version, found.digest)
        examine_persona.whole(self._device.read, ticket.extent, persona)
        here = table.find(persona.name)
        if here is None or here.digest != found.digest:
            return found, None
        try:
            old = _extent(here)
            again = examine_persona.signed(self._device.read, old, self._trusted)
            examine_persona.whole(self._device.read, old, again.persona)
        except (PersonaRefused, OSError):
            return found, None  # it rotted; the one that just came replaces it
        return found, here if again.digest == here.digest else None

    def finish(self, ticket: Ticket, found: Signed, same: Row | None) -> Row:
        """Name a checked image in the table. Raises PersonaRefused, Failure, OSError."""
        table, persona = self.table(), found.persona
        if same is not None and same in table.rows:
            return same
        shelf.admit(table, persona.name, found.key, persona.version, found.digest)
        row = Row(
            name=persona.name,
            key=found.key,
            version=persona.version,
            digest=found.digest,
            extent=ticket.extent,
        )
        self._replace(shelf.installed(table, row))  # INV-PERSONA-1
        return row

    def abandon(self, ticket: Ticket) -> None:
        """The space of a ticket is free again."""
        if self._tickets.get(ticket.caller) is ticket:
            del self._tickets[ticket.caller]

    def give_up(self, caller: str, number: int, now_s: float) -> None:
        """End an install. Raises Failure."""
        self.abandon(self._ticket(caller, number, now_s))

    def remove(self, name: str) -> None:
        """Take a persona off the shelf. Raises Failure, OSError."""
        row = self._row(name)
        self._replace(shelf.removed(self.table(), row))

    def _ticket(self, caller: str, number: int, now_s: float) -> Ticket:
        self._expire(now_s)
        ticket = self._tickets.get(caller)
        if ticket is None or ticket.number != number:
            raise Failure(Code.NOT_FOUND, "no such install is under way; begin again")
        if ticket.busy:
            raise Failure(Code.BUSY, "that install is being checked")
        return ticket

    def _expire(self, now_s: float) -> None:
        for ticket in list(self._tickets.values()):
            if not ticket.busy and now_s - ticket.touched_s > IDLE_S_MAX:
                self.abandon(ticket)


def say(sentence: str) -> None:
    """One line in the organ's log."""
    print(f"integrity: {sentence}", file=sys.stderr, flush=True)


def _extent(row: Row) -> Extent:
    assert row.extent is not None
    return row.extent


def _refused(kind: Refusal, why: str) -> Failure:
    return Failure(Code.REFUSED, str(PersonaRefused("image", why, kind)))


def described(row: Row, text: bytes) -> dict[str, object]:
    """A persona as the schema has it."""
    extent = _extent(row)
    return {
        "name": row.name,
        "version": row.version,
        "keyId": key_id(row.key),
        "offset": extent.offset,
        "length": extent.length,
        "manifest": text,
    }


def keys(path: str) -> frozenset[bytes]:
    """The trusted keys of this image; none, and a line on stderr, where they cannot be read."""
    try:
        text = Path(path).read_bytes()[: KEYS_BYTES_MAX + 1]
        if len(text) > KEYS_BYTES_MAX:
            raise PersonaRefused("keys", f"the file has more than {KEYS_BYTES_MAX} bytes")
        return trusted_keys(text.decode("ascii", "replace"))
    except (OSError, PersonaRefused) as error:
        say(f"unable to trust a persona: {path}: {error}")
        return frozenset()


class Counter:
    """Where the calls come in: one at a time to the store, the long check of an image beside them."""

    def __init__(self, store: Store | None, lent: int | None) -> None:
        self._store = store
        self._lent = lent
        self._lock = trio.Lock()

    def handlers(self) -> dict[str, Handler]:
        """The methods of the schema that are about personas."""
        return {
            "personas": self._personas,
            "open": self._open,
            "beginInstall": self._begin,
            "chunk": self._chunk,
            "commit": self._commit,
            "abandon": self._abandon,
            "remove": self._remove,
        }

    async def _do(self, act: Callable[[Store], T]) -> T:
        """Let the store do something, in a thread, alone. Raises Failure."""
        async with self._lock:
            return await self._in_thread(act)

    async def _in_thread(self, act: Callable[[Store], T]) -> T:
        store = self._store
        if store is None:
            raise Failure(Code.NOT_FOUND, "there is no partition for personas here")
        try:
            return await trio.to_thread.run_sync(act, store)
        except PersonaRefused as error:
            raise Failure(Code.REFUSED, str(error)) from None
        except OSError as error:
            raise Failure(Code.CORRUPT, f"the partition of the personas: {error.strerror}") from None

    async def _personas(self, _call: Caller, _params: Mapping[str, object]) -> dict[str, object]:
        rows = await self._do(lambda store: store.list())
        return {"personas": [described(row, text) for row, text in rows]}

    async def _open(self, _call: Caller, params: Mapping[str, object]) -> Answer:
        row, text = await self._do(lambda store: store.open(cast(str, params["name"])))
        assert self._lent is not None, "who has the partition to write has it to lend"
        return Answer({"persona": described(row, text)}, (os.dup(self._lent),))

    async def _begin(self, call: Caller, params: Mapping[str, object]) -> dict[str, object]:
        length, now_s = cast(int, params["bytes"]), trio.current_time()
        return {"ticket": await self._do(lambda store: store.begin(call.caller, length, now_s))}

    async def _chunk(self, call: Caller, params: Mapping[str, object]) -> dict[str, object]:
        ticket, offset = cast(int, params["ticket"]), cast(int, params["offset"])
        data, now_s = cast(bytes, params["data"]), trio.current_time()
        await self._do(lambda store: store.chunk(call.caller, ticket, offset, data, now_s))
        return {}

    async def _commit(self, call: Caller, params: Mapping[str, object]) -> dict[str, object]:
        number, now_s = cast(int, params["ticket"]), trio.current_time()
        # In this order: a ticket that is closed is ended below, whatever happens.
        table, ticket = await self._do(lambda store: (store.table(), store.close(call.caller, number, now_s)))
        try:
            found, same = await self._in_thread(partial(_check, ticket, table))
            row = await self._do(lambda store: store.finish(ticket, found, same))
        finally:
            if self._store is not None:
                self._store.abandon(ticket)
        return {"persona": described(row, found.text)}

    async def _abandon(self, call: Caller, params: Mapping[str, object]) -> dict[str, object]:
        ticket, now_s = cast(int, params["ticket"]), trio.current_time()
        await self._do(lambda store: store.give_up(call.caller, ticket, now_s))
        return {}

    async def _remove(self, _call: Caller, params: Mapping[str, object]) -> dict[str, object]:
        await self._do(lambda store: store.remove(cast(str, params["name"])))
        return {}


def _check(ticket: Ticket, table: Table, store: Store) -> tuple[Signed, Row | None]:
    return store.check(ticket, table)


def counter(fds: Mapping[str, int]) -> Counter:
    """The counter over the partition among the descriptors that an organ was handed."""
    fd = fds.get(DEVICE)
    return Counter(None if fd is None else Store(Device(fd), keys(KEYS)), fds.get(LENT))
