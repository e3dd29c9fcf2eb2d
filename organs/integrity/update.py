"""Updates: takes a new version of the system in, whole and signed, and hands it over to be written.

An update is a slot's bytes and, shown first, the signed manifest that is in them. `offered` decides from the
manifest alone whether it may come at all; `Desk` holds what has come of it; `examined` reads all of it before
anybody may write it. `Updates` is where the calls come in.

Touches: memory. Who writes to the slots is what it is given to call.
Never: keeps more than one update, or more of it than a slot holds; believes a word of the manifest before
its signature was checked; lets anything be written before the whole was examined; takes a version that is
not newer than what runs.
Fails: a refusal is answered with REFUSED and its kind first; an update in the way with FULL; a boot that is
not confirmed healthy with BUSY, since the slot that an update would take is then what the machine falls back
to. What the device did not take is CORRUPT. Killed at any moment before the writing, it leaves nothing.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Protocol, TypeVar, cast

import trio

from bus.envelope import Code, Failure
from organs.integrity import examine
from organs.integrity.examine import BLOCK, MANIFEST_BYTES
from organs.integrity.verify import Verdict, judge

# Half of what one message of the bus may have.
CHUNK_BYTES_MAX: Final = 512 * 1024
# Chunks follow one another at once, through an emulated serial line in seconds; a room may lose the focus for
# a while. Whoever was silent for longer has gone, and the memory is free again.
IDLE_S_MAX: Final = 120.0
# The answer to who asked for a restart is on its way before the machine goes down.
REBOOT_AFTER_S: Final = 0.5
# Dotted numbers. One spelling: systemd-boot orders 1.0 before 1.0.0, so here they are the same and neither
# is newer. As many digits as anyone counts releases with.
VERSION: Final = re.compile(r"(?:0|[1-9][0-9]{0,8})(?:\.(?:0|[1-9][0-9]{0,8})){0,3}")
VERSION_NUMBERS: Final = 4

T = TypeVar("T")
Handler = Callable[..., Awaitable[Any]]


class Refusal(Enum):
    """Why an update is not taken. The value is the first word that a person reads."""

    UNSIGNED = "unsigned"
    MALFORMED = "malformed"
    TOO_LARGE = "too large"
    TRUNCATED = "truncated"
    ALTERED = "altered"
    OTHER_IMAGE = "other image"
    DOWNGRADE = "downgrade"


class UpdateRefused(ValueError):
    """An update breaks a rule."""

    def __init__(self, kind: Refusal, why: str) -> None:
        super().__init__(f"{kind.value}: {why}")
        self.kind = kind
        self.why = why


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """What an update is held against: the release key, what runs, how large a slot is; and why none may come
    just now, empty when one may."""

    key: bytes
    version: str
    image: str
    slot_bytes: int
    not_now: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a signed manifest promises."""

    version: str
    length: int
    text: bytes


def order(text: str) -> tuple[int, ...]:
    """A version as it is compared. Raises UpdateRefused."""
    if not VERSION.fullmatch(text):
        raise UpdateRefused(Refusal.MALFORMED, "a version is one to four numbers with dots between")
    numbers = [int(number) for number in text.split(".")]
    return (*numbers, *[0] * (VERSION_NUMBERS - len(numbers)))


def offered(block: bytes, length: int, here: Here) -> Offer:
    """Whether an update with this manifest block and of this length may come. Raises UpdateRefused."""
    if length > here.slot_bytes:
        raise UpdateRefused(
            Refusal.TOO_LARGE, f"it has {length} bytes, a slot of this machine has {here.slot_bytes}"
        )
    if len(block) != MANIFEST_BYTES:
        raise UpdateRefused(Refusal.MALFORMED, f"its manifest has {len(block)} bytes, not {MANIFEST_BYTES}")
    try:
        text = examine.opened(block, here.key)  # INV-UPDATE-1
    except examine.Unsigned as error:
        raise UpdateRefused(Refusal.UNSIGNED, str(error)) from None
    try:
        parts = examine.parse(text, here.slot_bytes)
    except examine.Unsigned as error:
        raise UpdateRefused(Refusal.MALFORMED, str(error)) from None
    document = json.loads(text)
    version, image = document.get("version"), document.get("image")
    if not isinstance(version, str) or not isinstance(image, str):
        raise UpdateRefused(Refusal.MALFORMED, "its manifest names no version, or no kind of image")
    if image != here.image:
        # A development image has ports that a production one has not: it is no newer version of it.
        raise UpdateRefused(Refusal.OTHER_IMAGE, f"this is a {here.image} image, that is another kind")
    if order(version) <= order(here.version):  # INV-UPDATE-2
        raise UpdateRefused(Refusal.DOWNGRADE, f"{version} is not newer than {here.version}, which runs")
    end = max(part.offset + part.length for part in parts)
    whole = end + -end % BLOCK
    if length < whole:
        raise UpdateRefused(Refusal.TRUNCATED, f"it has {length} bytes, its manifest names {whole}")
    if length > whole:
        raise UpdateRefused(Refusal.MALFORMED, f"{length - whole} bytes lie behind what its manifest names")
    return Offer(version=version, length=length, text=text)


def examined(read: examine.Read, offer: Offer, key: bytes) -> None:
    """Return when all bytes of an update are what was offered. Raises UpdateRefused."""
    try:
        inside = examine.manifest(read, offer.length, key)
    except (examine.Unsigned, examine.Short) as error:
        raise UpdateRefused(Refusal.ALTERED, str(error)) from None
    if inside.text != offer.text:  # INV-UPDATE-3
        raise UpdateRefused(Refusal.ALTERED, "the manifest in it is not the one that was shown")
    judged = judge(examine.examine(read, offer.length, key))
    if judged.verdict is not Verdict.VERIFIED:
        raise UpdateRefused(Refusal.ALTERED, judged.detail)


class Staged:
    """An update on its way in. `received` bytes are there from the start on, without a gap."""

    def __init__(self, caller: str, offer: Offer, now_s: float) -> None:
        self.number = int.from_bytes(os.urandom(8), "little")
        self.caller, self.offer = caller, offer
        self.length = offer.length
        self.received = 0
        self.touched_s = now_s
        self.busy = False
        # A mapping of its own: what comes in here goes back to the kernel when it is let go.
        self._bytes = mmap.mmap(-1, offer.length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def read(self, offset: int, length: int) -> bytes:
        """These bytes, fewer at the end."""
        return self._bytes[offset : offset + length]

    def write(self, offset: int, data: bytes) -> None:
        """Take a piece in."""
        self._bytes[offset : offset + len(data)] = data
        self.received = max(self.received, offset + len(data))

    def close(self) -> None:
        """Give the memory back."""
        self._bytes.close()


class Desk:
    """The one update that is on its way in. Called one at a time; times are in seconds of one clock."""

    def __init__(self) -> None:
        self._staged: Staged | None = None

    def begin(self, caller: str, offer: Offer, now_s: float) -> int:
        """Make room for an update; the number of the ticket. Raises Failure."""
        self.expire(now_s)
        before = self._staged
        if before is not None and (before.busy or before.caller != caller):  # INV-UPDATE-4
            raise Failure(Code.FULL, "another update is under way")
        self._drop()
        self._staged = Staged(caller, offer, now_s)
        return self._staged.number

    def chunk(self, caller: str, number: int, offset: int, data: bytes, now_s: float) -> None:
        """Take a piece in; behind what is there already, or over it. Raises Failure."""
        staged = self._ticket(caller, number, now_s)
        if not 1 <= len(data) <= CHUNK_BYTES_MAX:
            raise Failure(Code.TOO_LARGE, f"a chunk has 1 to {CHUNK_BYTES_MAX} bytes")
        if offset > staged.received or offset + len(data) > staged.length:  # INV-UPDATE-4
            there = f"{staged.received} of {staged.length} bytes are there; go on behind them"
            raise Failure(Code.INVALID, there)
        staged.write(offset, data)
        staged.touched_s = now_s

    def close(self, caller: str, number: int, now_s: float) -> Staged:
        """All pieces have come: from now on it changes no more. Raises Failure."""
        staged = self._ticket(caller, number, now_s)
        if staged.received < staged.length:
            self._drop()
            there = f"{staged.received} of {staged.length} bytes came"
            raise refused(UpdateRefused(Refusal.TRUNCATED, there))
        staged.busy = True
        return staged

    def abandon(self, caller: str, number: int, now_s: float) -> None:
        """End an update that was begun. Raises Failure."""
        self._ticket(caller, number, now_s)
        self._drop()

    def over(self, staged: Staged) -> None:
        """An update that was closed has come to its end."""
        if self._staged is staged:
            self._drop()

    def expire(self, now_s: float) -> float | None:
        """Let go what nobody goes on with; when to look again, None: nothing is there."""
        staged = self._staged
        if staged is None:
            return None
        if staged.busy or now_s - staged.touched_s <= IDLE_S_MAX:
            return (now_s if staged.busy else staged.touched_s) + IDLE_S_MAX
        self._drop()  # INV-UPDATE-4
        return None

    def _ticket(self, caller: str, number: int, now_s: float) -> Staged:
        self.expire(now_s)
        staged = self._staged
        if staged is None or (staged.caller, staged.number) != (caller, number):
            raise Failure(Code.NOT_FOUND, "no such update is under way; begin again")
        if staged.busy:
            raise Failure(Code.BUSY, "that update is being written")
        return staged

    def _drop(self) -> None:
        staged, self._staged = self._staged, None
        if staged is not None:
            staged.close()


def refused(error: UpdateRefused) -> Failure:
    """A refusal as it is answered."""
    return Failure(Code.REFUSED, str(error))


def say(sentence: str) -> None:
    """One line in the organ's log."""
    print(f"integrity: {sentence}", file=sys.stderr, flush=True)


class Caller(Protocol):
    """What this module uses of a call."""

    @property
    def caller(self) -> str: ...


class Updates:
    """Where the calls come in.

    `here` says what runs (None: this ground has no slots); `install` writes an examined update and answers
    with the slot's letter, or raises Failure; `reboot` asks bay0.
    """

    def __init__(
        self,
        here: Callable[[], Here | None],
        install: Callable[[Staged], Awaitable[str]],
        reboot: Callable[[], None],
    ) -> None:
        self._here, self._install, self._reboot = here, install, reboot
        self._desk = Desk()
        self._lock = trio.Lock()
        self._begun = trio.Event()
        self._restart = trio.Event()

    def handlers(self) -> dict[str, Handler]:
        """The methods of the schema that are about updates."""
        return {
            "beginUpdate": self._begin,
            "updateChunk": self._chunk,
            "commitUpdate": self._commit,
            "abandonUpdate": self._abandon,
        }

    async def run(self) -> None:
        """Let go what nobody goes on with, start anew when that was asked for. Never returns."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._forget)
            await self._restart.wait()
            await trio.sleep(REBOOT_AFTER_S)
            self._reboot()

    async def _forget(self) -> None:
        while True:
            await self._begun.wait()
            async with self._lock:
                again_s = self._desk.expire(trio.current_time())
                if again_s is None:
                    self._begun = trio.Event()
            if again_s is not None:
                await trio.sleep_until(again_s)

    def _known(self) -> Here:
        """What runs, when an update may come now. Raises Failure."""
        here = self._here()
        if here is None:
            raise Failure(Code.NOT_FOUND, "there are no slots here")
        if here.not_now:  # INV-UPDATE-5
            raise Failure(Code.BUSY, here.not_now)
        return here

    async def _begin(self, call: Caller, params: Mapping[str, object]) -> dict[str, object]:
        block, length, here = cast(bytes, params["manifest"]), cast(int, params["bytes"]), self._known()
        async with self._lock:
            try:
                offer = await trio.to_thread.run_sync(offered, block, length, here)
            except UpdateRefused as error:
                say(f"an update of {call.caller} is refused: {error}")
                raise refused(error) from None
            number = self._desk.begin(call.caller, offer, trio.current_time())
            self._begun.set()
        return {"ticket": number}

    async def _chunk(self, call: Caller, params: Mapping[str, object]) -> dict[str, object]:
        ticket, offset = cast(int, params["ticket"]), cast(int, params["offset"])
        async with self._lock:
            self._desk.chunk(call.caller, ticket, offset, cast(bytes, params["data"]), trio.current_time())
        return {}

    async def _commit(self, call: Caller, params: Mapping[str, object]) -> dict[str, object]:
        here = self._known()
        async with self._lock:
            staged = self._desk.close(call.caller, cast(int, params["ticket"]), trio.current_time())
        # Whoever asked may have gone meanwhile; what is half written must be brought to its end.
        with trio.CancelScope(shield=True):
            try:
                await trio.to_thread.run_sync(examined, staged.read, staged.offer, here.key)
                letter = await self._install(staged)  # INV-UPDATE-1
            except UpdateRefused as error:
                say(f"an update of {call.caller} is refused: {error}")
                raise refused(error) from None
            finally:
                self._desk.over(staged)
        say(f"slot {letter} has {staged.offer.version} now, which {call.caller} brought")
        if params["reboot"]:
            self._restart.set()
        return {"slot": letter, "version": staged.offer.version}

    async def _abandon(self, call: Caller, params: Mapping[str, object]) -> dict[str, object]:
        async with self._lock:
            self._desk.abandon(call.caller, cast(int, params["ticket"]), trio.current_time())
        return {}
