"""Which files a slot carries for each boot volume, and their hashes: from its manifest and its part `boot`.

The manifest says how the image of each volume comes out of the slot (spine-image/spine/image/slot.py): the
programs lie in it whole, all other bytes that are not zero are in `boot`. So a volume is walked as one that
was read from a device, and no second list of files has to agree with it.

Bytes come through a callable. Holds at most BOOT_BYTES_MAX.
Never: believes a byte of the slot that no hash of the signed manifest covers: `boot` is hashed when it is
read, and a program's hash is the manifest's, since a file that holds a whole part holds nothing else.
Fails: with `Unsigned` or `Short` of `organs/integrity/examine.py`, with BadVolume, and with what `read`
raises.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from typing import Final

from organs.integrity import fat
from organs.integrity.esp import DIRECTORY, File
from organs.integrity.examine import Part, Read, Unsigned, exactly, manifest

BOOT: Final = "boot"
# Tables, directories and the boot loader: 200 KB of our two volumes.
BOOT_BYTES_MAX: Final = 4 * 1024 * 1024
# More than a manifest of 16 KiB can name.
RUNS_MAX: Final = 2048
VOLUME_BYTES_MAX: Final = 1024**3


@dataclass(frozen=True, slots=True)
class Run:
    """Bytes of a boot volume: `length` of them at `at`, found at `offset` in the part `part`."""

    at: int
    length: int
    part: str
    offset: int


def files(read: Read, size: int, key: bytes, letters: Sequence[str]) -> dict[str, tuple[File, ...]]:
    """The files and directories that the boot volume of each letter has when it comes from this slot."""
    signed = manifest(read, size, key)
    boot = _boot(read, signed.parts)
    volumes = {}
    for letter in letters:
        length, found = runs(signed.text, signed.parts, letter)
        image = _Image(length, found, boot)
        whole = {
            (run.at, run.length): part.sha256
            for run in found
            for part in signed.parts
            if part.name == run.part and run.offset == 0 and run.length == part.length
        }
        volume, nodes = fat.tree(image.read)
        volumes[letter] = tuple(File(node.path, _digest(image, volume, node, whole)) for node in nodes)
    return volumes


def runs(text: bytes, parts: Sequence[Part], letter: str) -> tuple[int, tuple[Run, ...]]:
    """The length of the image of a boot volume and where its bytes are. Raises Unsigned.

    A piece of `boot` may lie over the ends of a program, which do not fill their blocks.
    """
    document = json.loads(text)
    boots = document.get("boot")
    boot = boots.get(letter) if isinstance(boots, dict) else None
    rows = boot.get("runs") if isinstance(boot, dict) else None
    length = boot.get("length") if isinstance(boot, dict) else None
    if not isinstance(rows, list) or not isinstance(length, int) or not 0 < length <= VOLUME_BYTES_MAX:
        raise Unsigned(f"the manifest does not say what the boot volume {letter} holds")
    if len(rows) > RUNS_MAX:
        raise Unsigned(f"the manifest describes a boot volume in {len(rows)} pieces")
    sizes = {part.name: part.length for part in parts}
    found = tuple(_run(row, sizes) for row in rows)
    if any(run.at + run.length > length for run in found):
        raise Unsigned("the manifest describes bytes behind the end of a boot volume")
    return length, found


def _run(row: object, sizes: dict[str, int]) -> Run:
    match row:
        case [int(at), int(length), str(part), int(offset)] if (
            at >= 0 and length > 0 and offset >= 0 and offset + length <= sizes.get(part, 0)
        ):
            return Run(at, length, part, offset)
    raise Unsigned("the manifest describes a piece of a boot volume that cannot be")


def _boot(read: Read, parts: Sequence[Part]) -> bytes:
    for part in parts:
        if part.name == BOOT:
            if part.length > BOOT_BYTES_MAX:
                raise Unsigned(f"the part {BOOT} has {part.length} bytes")
            data = exactly(read, part.offset, part.length)
            if sha256(data).hexdigest() != part.sha256:
                raise Unsigned(f"the part {BOOT} is not the one that was signed")
            return data
    raise Unsigned(f"the manifest names no part {BOOT}")


class _Image:
    """A boot volume as it comes out of the slot, without the programs, whose bytes nobody reads here."""

    def __init__(self, length: int, found: Sequence[Run], boot: bytes) -> None:
        self._length, self._runs, self._boot = length, found, boot

    def read(self, offset: int, length: int) -> bytes:
        """These bytes, fewer at the end. Raises Unsigned where only a program has them."""
        end = min(offset + length, self._length)
        data, absent = bytearray(max(0, end - offset)), bytearray(max(0, end - offset))
        for run in sorted(self._runs, key=lambda run: run.part == BOOT):
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
            raise Unsigned(
                f"byte {offset + at} of the boot volume is a program's, and something else as well"
            )
        return bytes(data)


def _digest(image: _Image, volume: fat.Volume, node: fat.Node, whole: dict[tuple[int, int], str]) -> str:
    if node.directory:
        return DIRECTORY
    spans = list(fat.stretches(image.read, volume, node))
    joined = all(at + length == then for (at, length), (then, _) in pairwise(spans))
    if spans and joined and (spans[0][0], node.size) in whole:
        return whole[spans[0][0], node.size]
    total = sha256()
    for at, length in spans:
        total.update(exactly(image.read, at, length))
    return total.hexdigest()
