"""What lies in a slot: everything one release needs, sealed by one signed manifest.

    root | hash tree | manifest | uki-a | uki-b | boot | zeros to the end

Pure: bytes in, bytes out. Each part begins at a multiple of 4096. The manifest follows the tree, because the
length of a SquashFS stands in its own superblock and the length of the tree follows from it: so it is found
without any table, in a partition of any size. It names offset, length and SHA-256 of every part and how the
image of each slot's boot volume comes out of them, and carries an Ed25519 signature over all of that. The
same bytes go to slot A and slot B; each UKI differs only in which partition it trusts. So either slot has all
that it takes to write both pairs of slot and boot volume anew.
"""

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

BLOCK = 4096
MAGIC = b"SPINE-SLOT-1\n\0\0\0"
# magic, length of the JSON text, signature over magic + length + text; then the text, then zeros.
_HEAD = struct.Struct("<16sI64s")
_SIGNED = struct.Struct("<16sI")
# Room for the manifest; two boot volumes in a few hundred runs fit.
MANIFEST_SIZE = 4 * BLOCK


class SlotError(ValueError):
    """A slot that is not what it says."""


@dataclass(frozen=True)
class Part:
    """One part: `offset` and `length` in bytes, from the start of the slot."""

    name: str
    offset: int
    length: int
    sha256: str


@dataclass(frozen=True)
class Run:
    """Bytes of a boot volume: `length` of them at `at`, found at `offset` in the part `part`."""

    at: int
    length: int
    part: str
    offset: int


def _blocks(length: int) -> int:
    return length + -length % BLOCK


def compose(
    root: bytes,
    tree: bytes,
    ukis: Mapping[str, bytes],
    boots: Mapping[str, bytes],
    facts: Mapping[str, str],
    sign: Callable[[bytes], bytes],
) -> tuple[bytes, list[Part]]:
    """The slot's bytes, without the zeros at the end, and its parts; `facts` go into the manifest as is.

    `boots` has the image of each slot's boot volume.
    """
    boot, runs = boot_runs(boots, {f"uki-{slot}": data for slot, data in ukis.items()})
    named = [("root", root), ("tree", tree), *((f"uki-{slot}", data) for slot, data in ukis.items())]
    named.append(("boot", boot))
    parts: list[Part] = []
    out = bytearray()
    for name, data in named:
        if name == "uki-a":
            manifest_at = len(out)
            out += bytes(MANIFEST_SIZE)
        parts.append(Part(name, len(out), len(data), sha256(data).hexdigest()))
        out += data + bytes(_blocks(len(data)) - len(data))
    text = json.dumps(
        {
            **facts,
            "format": 2,
            "parts": {part.name: [part.offset, part.length, part.sha256] for part in parts},
            "boot": {
                slot: {
                    "length": len(image),
                    "sha256": sha256(image).hexdigest(),
                    "runs": [[run.at, run.length, run.part, run.offset] for run in runs[slot]],
                }
                for slot, image in boots.items()
            },
        },
        sort_keys=True,
        separators=(",", ":"),
    ).encode()
    if _HEAD.size + len(text) > MANIFEST_SIZE:
        raise SlotError(f"the manifest has {len(text)} bytes, there is room for {MANIFEST_SIZE - _HEAD.size}")
    head = _HEAD.pack(MAGIC, len(text), sign(_SIGNED.pack(MAGIC, len(text)) + text))
    out[manifest_at : manifest_at + _HEAD.size + len(text)] = head + text
    return bytes(out), parts


def boot_runs(
    images: Mapping[str, bytes], programs: Mapping[str, bytes]
) -> tuple[bytes, dict[str, list[Run]]]:
    """How boot volumes come out of the programs they carry and of `boot`, the rest that is not zero.

    Each block of the rest is in `boot` once: what the volumes have in common, the boot loader above all, and
    the two copies of a FAT.
    """
    boot = bytearray()
    known: dict[bytes, int] = {}
    found: dict[str, list[Run]] = {}
    for slot, image in images.items():
        runs: list[Run] = []
        covered: list[tuple[int, int]] = []
        for name, data in programs.items():
            at = image.find(data)
            if at >= 0 and at % 512 == 0:
                runs.append(Run(at, len(data), name, 0))
                covered.append((at, at + len(data)))
        last: Run | None = None
        for at in range(0, len(image), BLOCK):
            piece = image[at : at + BLOCK]
            if not any(piece) or any(low <= at and at + BLOCK <= high for low, high in covered):
                continue
            # What goes on where the run before it ends needs no run of its own.
            joins = last is not None and last.at + last.length == at
            after = last.offset + last.length if joins and last is not None else -1
            if after >= 0 and boot[after : after + len(piece)] == piece:
                offset = after
            elif piece in known:
                offset = known[piece]
            else:
                offset = known[piece] = len(boot)
                boot += piece
            if last is not None and offset == after:
                last = runs[-1] = Run(last.at, last.length + len(piece), "boot", last.offset)
            else:
                last = Run(at, len(piece), "boot", offset)
                runs.append(last)
        found[slot] = sorted(runs, key=lambda run: run.at)
    return bytes(boot), found


def boot_image(slot: bytes, manifest: Mapping[str, object], parts: Sequence[Part], letter: str) -> bytes:
    """The boot volume of that letter again, from a slot; SlotError when it does not come out the same."""
    where = {part.name: part for part in parts}
    boots = manifest["boot"]
    if not isinstance(boots, dict) or letter not in boots:
        raise SlotError(f"the manifest does not describe the boot volume {letter}")
    boot = boots[letter]
    out = bytearray(boot["length"])
    for at, length, name, offset in boot["runs"]:
        start = where[name].offset + offset
        out[at : at + length] = slot[start : start + length]
    if sha256(out).hexdigest() != boot["sha256"]:
        raise SlotError(f"the boot volume {letter} is not the one that was signed")
    return bytes(out)


def manifest_offset(superblock: bytes) -> int:
    """Where the manifest is, from the first 96 bytes of the slot; SlotError when no SquashFS begins there."""
    if len(superblock) < 96 or superblock[:4] != b"hsqs":
        raise SlotError("no SquashFS at the start of the slot")
    [used] = struct.unpack_from("<Q", superblock, 40)
    root = _blocks(used)
    tree = 0
    level = root // BLOCK
    while level > 1:
        # One tree block holds 128 hashes of 32 bytes.
        level = -(-level // 128)
        tree += level * BLOCK
    return root + tree


def opened(block: bytes, verify: Callable[[bytes, bytes], None]) -> tuple[dict[str, object], list[Part]]:
    """The manifest in its block and the parts that it names, the signature checked; SlotError.

    `verify(signature, message)` raises SlotError for a signature that is not right.
    """
    if len(block) < MANIFEST_SIZE:
        raise SlotError("the slot ends before its manifest")
    magic, length, signature = _HEAD.unpack_from(block)
    if magic != MAGIC or _HEAD.size + length > MANIFEST_SIZE:
        raise SlotError("no manifest behind the tree")
    text = block[_HEAD.size : _HEAD.size + length]
    # INV-IMAGE-4
    verify(signature, _SIGNED.pack(magic, length) + text)
    if any(block[_HEAD.size + length :]):
        raise SlotError("something lies behind the manifest's text")
    manifest = json.loads(text)
    rows = sorted(manifest["parts"].items(), key=lambda item: item[1][0])
    return manifest, [Part(name, *row) for name, row in rows]


def read(slot: bytes, verify: Callable[[bytes, bytes], None]) -> tuple[dict[str, object], list[Part]]:
    """The manifest and parts of a slot, signature and every hash checked; SlotError when one is wrong.

    `verify(signature, message)` raises SlotError for a signature that is not right.
    """
    at = manifest_offset(slot[:96])
    manifest, parts = opened(slot[at : at + MANIFEST_SIZE], verify)
    end = 0
    for part in parts:
        data = slot[part.offset : part.offset + part.length]
        if len(data) != part.length or sha256(data).hexdigest() != part.sha256:
            raise SlotError(f"the part {part.name} is not the one that was signed")
        between = slot[end : part.offset] if part.name != "uki-a" else b""
        if any(between):
            raise SlotError(f"something lies before the part {part.name}")
        end = part.offset + part.length
    if any(slot[end:]):
        raise SlotError("something lies behind the last part")
    return manifest, parts
