"""What a slot carries for the boot volumes: which files, with which hashes, and the volumes' bytes.

The manifest says how the image of each boot volume comes out of the slot (spine-image/spine/image/slot.py):
the programs lie in it whole, all other bytes that are not zero are in `boot`. So a volume is walked as one
that was read from a device, and no second list of files has to agree with it.

Bytes come through a callable. Holds at most BOOT_BYTES_MAX.
Never: believes a byte of the slot that no hash of the signed manifest covers: `boot` is hashed when it is
read, a program's hash is the manifest's, since a file that holds a whole part holds nothing else, and who
writes an image holds it against the hash of the whole.
Fails: with `Unsigned` or `Short` of `organs/integrity/examine.py`, with BadVolume, and with what `read`
raises.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from typing import Final

from organs.integrity import fat
from organs.integrity.examine import STEP, Manifest, Part, Read, Unsigned, exactly, manifest
from organs.integrity.slots import LETTERS
from organs.integrity.volume import DIRECTORY, File, marked, rest

FORMAT: Final = 2
BOOT: Final = "boot"
# Tables, directories, the boot loader and the rescue program: 190 KB of ours.
BOOT_BYTES_MAX: Final = 4 * 1024 * 1024
# More than a manifest of 16 KiB can name.
RUNS_MAX: Final = 2048
VOLUME_BYTES_MAX: Final = 1024**3
VERSION_CHARACTERS_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class Run:
    """Bytes of a boot volume: `length` of them at `at`, found at `offset` in the part `part`."""

    at: int
    length: int
    part: str
    offset: int


@dataclass(frozen=True, slots=True)
class Layout:
    """How the image of a boot volume is made, and the hash of all of it."""

    length: int
    sha256: str
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Release:
    """What a verified slot is, once it was read: its version, what stands for all its bytes, and the files of
    both boot volumes, by letter."""

    version: str
    digest: bytes
    files: Mapping[str, tuple[File, ...]]


def layouts(text: bytes, parts: Sequence[Part]) -> tuple[str, dict[str, Layout]]:
    """The version, and the layouts of the boot volumes by letter. Raises Unsigned."""
    document = json.loads(text)
    if document.get("format") != FORMAT:
        raise Unsigned(f"the manifest is not of format {FORMAT}")
    version, boots = document.get("version"), document.get("boot")
    if not isinstance(version, str) or len(version) > VERSION_CHARACTERS_MAX:
        raise Unsigned("the manifest says no version")
    if not isinstance(boots, dict) or set(boots) != set(LETTERS):
        raise Unsigned("the manifest does not say what the boot volumes hold")
    return version, {letter: _layout(boots[letter], parts) for letter in LETTERS}


def _layout(boot: object, parts: Sequence[Part]) -> Layout:
    """A piece of `boot` may lie over the ends of a program, which do not fill their blocks."""
    match boot:
        case {"length": int(length), "sha256": str(digest), "runs": list(rows)} if (
            0 < length <= VOLUME_BYTES_MAX and len(digest) == 64
        ):
            pass
        case _:
            raise Unsigned("the manifest does not say what the boot volumes hold")
    if len(rows) > RUNS_MAX:
        raise Unsigned(f"the manifest describes a boot volume in {len(rows)} pieces")
    sizes = {part.name: part.length for part in parts}
    found = tuple(_run(row, sizes) for row in rows)
    if any(run.at + run.length > length for run in found):
        raise Unsigned("the manifest describes bytes behind the end of a boot volume")
    return Layout(length, digest, found)


def _run(row: object, sizes: dict[str, int]) -> Run:
    match row:
        case [int(at), int(length), str(part), int(offset)] if (
            at >= 0 and length > 0 and offset >= 0 and offset + length <= sizes.get(part, 0)
        ):
            return Run(at, length, part, offset)
    raise Unsigned("the manifest describes a piece of a boot volume that cannot be")


class Carried:
    """A slot whose manifest was checked, as the origin of boot volumes. Raises as the module says."""

    def __init__(self, read: Read, size: int, key: bytes) -> None:
        self._read = read
        self.signed: Manifest = manifest(read, size, key)
        self._parts = {part.name: part for part in self.signed.parts}
        self.version, self.layouts = layouts(self.signed.text, self.signed.parts)
        self._boot = self._part_boot()

    @property
    def digest(self) -> bytes:
        """Stands for all bytes of the slot, once it was verified: the text has the hashes of its parts."""
        return sha256(self.signed.text).digest()

    @property
    def length(self) -> int:
        """The bytes of the slot without the zeros at its end."""
        last = self.signed.parts[-1]
        return max(last.offset + last.length, self.signed.at + self.signed.used)

    def release(self) -> Release:
        """All there is to know for comparing."""
        return Release(self.version, self.digest, {letter: self.files(letter) for letter in LETTERS})

    def files(self, letter: str) -> tuple[File, ...]:
        """The files, the directories and the rest of the boot volume when it comes from this slot."""
        layout = self.layouts[letter]
        image = _Image(layout, self._boot)
        whole = {
            (run.at, run.length): self._parts[run.part].sha256
            for run in layout.runs
            if run.part != BOOT and run.offset == 0 and run.length == self._parts[run.part].length
        }
        volume, nodes = fat.tree(image.read)
        files = [File(node.path, _digest(image, volume, node, whole)) for node in nodes]
        return (*files, rest(self.pieces(letter), fat.directories(image.read, volume, nodes)))

    def pieces(self, letter: str) -> Iterator[bytes]:
        """The image of the boot volume from its first byte to its last, one step at a time."""
        layout = self.layouts[letter]
        for offset in range(0, layout.length, STEP):
            data = bytearray(min(STEP, layout.length - offset))
            for run in layout.runs:
                low, high = max(offset, run.at), min(offset + len(data), run.at + run.length)
                if low < high:
                    data[low - offset : high - offset] = self._bytes(run, low - run.at, high - low)
            yield bytes(data)

    def _bytes(self, run: Run, skip: int, length: int) -> bytes:
        start = run.offset + skip
        if run.part == BOOT:
            return self._boot[start : start + length]
        return exactly(self._read, self._parts[run.part].offset + start, length)

    def _part_boot(self) -> bytes:
        part = self._parts.get(BOOT)
        if part is None:
            raise Unsigned(f"the manifest names no part {BOOT}")
        if part.length > BOOT_BYTES_MAX:
            raise Unsigned(f"the part {BOOT} has {part.length} bytes")
        data = exactly(self._read, part.offset, part.length)
        if sha256(data).hexdigest() != part.sha256:
            raise Unsigned(f"the part {BOOT} is not the one that was signed")
        return data


class _Image:
    """A boot volume as it comes out of the slot, without the programs, whose bytes nobody reads here."""

    def __init__(self, layout: Layout, boot: bytes) -> None:
        self._length, self._boot = layout.length, boot
        self._runs = sorted(layout.runs, key=lambda run: run.part == BOOT)

    def read(self, offset: int, length: int) -> bytes:
        """These bytes, fewer at the end. Raises Unsigned where only a program has them."""
        end = min(offset + length, self._length)
        data, absent = bytearray(max(0, end - offset)), bytearray(max(0, end - offset))
        for run in self._runs:
            low, high = max(offset, run.at), min(end, run.at + run.length)
            if low >= high:
                continue
            here = slice(low - offset, high - offset)
            if run.part == BOOT:
                start = run.offset + low - run.at
                data[here], absent[here] = self._boot[start : start + high - low], bytes(high - low)
            else:
                absent[here] = b"\1" * (high - low)
        if (at := absent.find(1)) >= 0:
            raise Unsigned(f"byte {offset + at} of the volume is a program's, and something else as well")
        return bytes(data)


def _digest(image: _Image, volume: fat.Volume, node: fat.Node, whole: dict[tuple[int, int], str]) -> str:
    if node.directory:
        return marked(DIRECTORY, node.odd)
    spans = list(fat.stretches(image.read, volume, node))
    joined = all(at + length == then for (at, length), (then, _) in pairwise(spans))
    if spans and joined and (spans[0][0], node.size) in whole:
        return marked(whole[spans[0][0], node.size], node.odd)
    total = sha256()
    for at, length in spans:
        total.update(exactly(image.read, at, length))
    return marked(total.hexdigest(), node.odd)
