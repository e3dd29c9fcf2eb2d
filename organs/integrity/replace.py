"""A pair of slot and boot volume is wiped and written anew from a verified slot.

The order is what a power cut cannot hurt: the boot volume is wiped first, its first block before all others,
so that nothing starts a slot that is half written; then the slot, which is written from its second block on,
made durable, given its first block, and read back past the page cache and examined like any slot; then the
boot volume, in the same way. Until the first block of the boot volume is there, the pair is none.

Touches: the descriptors it is given. Holds one step at a time.
Never: writes anything before the source was read from its first byte to its last and verified, and the image
of the boot volume out of it has the signed hash; asks the device to discard, since what a discarded block
reads as is the device's choice.
Fails: with NotReplaced, which says why; whatever the device does is that or an answer, never another end.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from organs.integrity import examine, fat
from organs.integrity.carried import Carried
from organs.integrity.examine import BLOCK, STEP, Read, exactly
from organs.integrity.reading import Raw
from organs.integrity.survey import BOOTS, SLOTS, Checked, look_at_slot
from organs.integrity.verify import Verdict, judge

_ZEROS: Final = bytes(STEP)


class NotReplaced(Exception):
    """The pair was not written, or does not read back; the sentence says why."""


@dataclass(slots=True)
class Progress:
    """How far a writer is, for whoever asks meanwhile. `name` is empty while nothing is written."""

    name: str = ""
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class Target:
    """The descriptors of a pair, both open for writing."""

    letter: str
    slot: int
    boot: int


class Source:
    """A slot that was read whole and verified just now: from a device, or from memory. Raises NotReplaced."""

    def __init__(self, read: Read, size: int, key: bytes) -> None:
        judged = judge(examine.examine(read, size, key))
        if judged.verdict is not Verdict.VERIFIED:  # INV-SLOT-10
            raise NotReplaced(f"the source is {judged.verdict.value}: {judged.detail}")
        try:
            self.carried = Carried(read, size, key)
            self.release = self.carried.release()
        except (examine.Unsigned, examine.Short, fat.BadVolume, OSError) as error:
            raise NotReplaced(f"the source carries no boot volumes: {error}") from None
        self._read = read
        self.key = key

    @property
    def length(self) -> int:
        """The bytes of the slot without the zeros at its end, in whole blocks."""
        return self.carried.length + -self.carried.length % BLOCK

    def pieces(self) -> Iterator[bytes]:
        """The slot's bytes, one step at a time, whole blocks. Raises Short, OSError."""
        for offset in range(0, self.length, STEP):
            length = min(STEP, self.carried.length - offset)
            piece = exactly(self._read, offset, length)
            yield piece + bytes(-length % BLOCK)


def memory(data: bytes, key: bytes) -> Source:
    """A source out of a slot's bytes in memory; zeros at the end may be absent. Raises NotReplaced."""
    return Source(lambda offset, length: data[offset : offset + length], len(data), key)


def device(fd: int, key: bytes) -> Source:
    """A source out of a slot on a device. Raises NotReplaced."""
    try:
        raw = Raw(fd, direct=True)
    except OSError as error:
        raise NotReplaced(f"the source cannot be read: {error}") from None
    return Source(raw.read, raw.size, key)


def pair(target: Target, source: Source, progress: Progress) -> Checked:
    """Write slot and boot volume; what the slot reads back as. Raises NotReplaced."""
    slot = _Device(SLOTS[target.letter], target.slot, progress)
    boot = _Device(BOOTS[target.letter], target.boot, progress)
    _fits(source, target.letter, boot, slot)
    image = source.carried.layouts[target.letter].length
    progress.total = boot.size + slot.size + source.length + image
    boot.wipe()
    slot.wipe()
    slot.fill(source.pieces())
    checked = look_at_slot(target.slot, source.key)  # INV-SLOT-15
    if checked.judged.verdict is not Verdict.VERIFIED:
        raise NotReplaced(
            f"{slot.name} reads back as {checked.judged.verdict.value}: {checked.judged.detail}"
        )
    if checked.release != source.release:
        raise NotReplaced(f"{slot.name} reads back as another release")
    _write_boot(boot, source, target.letter)
    return checked


def boot_volume(letter: str, fd: int, source: Source, progress: Progress) -> None:
    """Write the boot volume alone. Raises NotReplaced."""
    boot = _Device(BOOTS[letter], fd, progress)
    _fits(source, letter, boot)
    progress.total = boot.size + source.carried.layouts[letter].length
    boot.wipe()
    _write_boot(boot, source, letter)


def wipe_boot_volume(name: str, fd: int, progress: Progress) -> None:
    """Leave a boot volume from which nothing can be started. Raises NotReplaced."""
    boot = _Device(name, fd, progress)
    progress.total = boot.size
    boot.wipe()
    if boot.read_back(0) != sha256().hexdigest():
        raise NotReplaced(f"{boot.name} does not read back as zeros")


def _fits(source: Source, letter: str, boot: _Device, slot: _Device | None = None) -> None:
    """Return when all that will be written is known to be right and to have room. Raises NotReplaced."""
    layout = source.carried.layouts[letter]
    if slot is not None and source.length > slot.size:
        raise NotReplaced(f"{slot.name} has {slot.size} bytes, the source {source.length}")
    if layout.length > boot.size:
        raise NotReplaced(f"{boot.name} has {boot.size} bytes, its image {layout.length}")
    total = sha256()
    try:
        for piece in source.carried.pieces(letter):
            total.update(piece)
    except (examine.Short, OSError) as error:
        raise NotReplaced(f"the source cannot be read: {error}") from None
    if total.hexdigest() != layout.sha256:
        raise NotReplaced(f"the image of {boot.name} in the source is not the one that was signed")


def _write_boot(boot: _Device, source: Source, letter: str) -> None:
    layout = source.carried.layouts[letter]
    boot.fill(source.carried.pieces(letter))
    if boot.read_back(layout.length) != layout.sha256:  # INV-SLOT-15
        raise NotReplaced(f"{boot.name} reads back differently")


class _Device:
    """A device that is written. Every way in which it refuses is NotReplaced."""

    def __init__(self, name: str, fd: int, progress: Progress) -> None:
        self.name = name
        self._fd = fd
        self._progress = progress
        progress.name = name
        # Memory of whole pages, so that a descriptor that was set to read past the page cache can write too.
        self._buffer = memoryview(mmap.mmap(-1, STEP, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        try:
            self.size = os.lseek(fd, 0, os.SEEK_END)
        except OSError as error:
            raise self._refused(error) from None

    def wipe(self) -> None:
        """Zeros from the first block to the last; the first is durable before the second is touched."""
        self._progress.name = self.name
        self._buffer[:] = _ZEROS
        self._write(0, min(BLOCK, self.size))
        self._sync()
        for offset in range(BLOCK, self.size, STEP):
            self._write(offset, min(STEP, self.size - offset))
        self._sync()

    def fill(self, pieces: Iterator[bytes]) -> None:
        """Write pieces of STEP bytes, all but the first block, and that when the others are durable."""
        self._progress.name = self.name
        first, offset = b"", 0
        try:
            for piece in pieces:
                skip = 0
                if not first:
                    first, skip = piece[:BLOCK], min(BLOCK, len(piece))
                    piece = piece[skip:]
                self._buffer[: len(piece)] = piece
                self._write(offset + skip, len(piece))
                offset += skip + len(piece)
        except (examine.Short, OSError) as error:
            raise NotReplaced(f"the source cannot be read: {error}") from None
        self._sync()
        self._buffer[: len(first)] = first
        self._write(0, len(first))  # INV-SLOT-16
        self._sync()

    def read_back(self, length: int) -> str:
        """The hash of the first `length` bytes as the device has them; the rest must be zeros."""
        total = sha256()
        try:
            raw = Raw(self._fd, direct=False)
            for offset in range(0, self.size, STEP):
                piece = exactly(raw.read, offset, min(STEP, self.size - offset))
                inside = max(0, min(len(piece), length - offset))
                total.update(memoryview(piece)[:inside])
                if piece[inside:] != _ZEROS[: len(piece) - inside]:
                    return ""
        except (examine.Short, OSError) as error:
            raise self._refused(error) from None
        return total.hexdigest()

    def _write(self, offset: int, length: int) -> None:
        """Write the start of the buffer."""
        done = 0
        while done < length:
            try:
                count = os.pwritev(self._fd, [self._buffer[done:length]], offset + done)
            except OSError as error:
                if error.errno == errno.EINVAL and self._undirect():
                    continue
                raise self._refused(error) from None
            if count == 0:
                raise NotReplaced(f"{self.name}: the device takes nothing at byte {offset + done}")
            done += count
        self._progress.done += length

    def _undirect(self) -> bool:
        """Clear O_DIRECT, which some files take and then refuse to be written with; False if it was clear."""
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        return bool(flags & os.O_DIRECT)

    def _sync(self) -> None:
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise self._refused(error) from None

    def _refused(self, error: Exception) -> NotReplaced:
        return NotReplaced(f"{self.name}: {error}")
