"""What lies in a slot: everything one release needs, sealed by one signed manifest.

    root | hash tree | manifest | uki-a | uki-b | boot | zeros to the end

Pure: bytes in, bytes out. Each part begins at a multiple of 4096. The manifest follows the tree, because the
length of a SquashFS stands in its own superblock and the length of the tree follows from it: so it is found
without any table, in a partition of any size. It names offset, length and SHA-256 of every part and how the
whole ESP image comes out of them, and carries an Ed25519 signature over all of that. The same bytes go to
slot A and slot B; each UKI differs only in which partition it trusts.
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
# Room for the manifest; an ESP in a few hundred runs fits.
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
    """Bytes of the ESP image: `length` of them at `at`, found at `offset` in the part `part`."""

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
    esp: bytes,
    facts: Mapping[str, str],
    sign: Callable[[bytes], bytes],
) -> tuple[bytes, list[Part]]:
    """The slot's bytes, without the zeros at the end, and its parts; `facts` go into the manifest as is."""
    boot, runs = esp_runs(esp, {f"uki-{slot}": data for slot, data in ukis.items()})
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
            "format": 1,
            "parts": {part.name: [part.offset, part.length, part.sha256] for part in parts},
            "esp": {
                "length": len(esp),
                "sha256": sha256(esp).hexdigest(),
                "runs": [[run.at, run.length, run.part, run.offset] for run in runs],
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


def esp_runs(esp: bytes, programs: Mapping[str, bytes]) -> tuple[bytes, list[Run]]:
    """How an ESP image comes out of the programs it carries and of `boot`, the rest that is not zero."""
    runs: list[Run] = []
    covered: list[tuple[int, int]] = []
    for name, data in programs.items():
        at = esp.find(data)
        if at >= 0 and at % 512 == 0:
            runs.append(Run(at, len(data), name, 0))
            covered.append((at, at + len(data)))
    boot = bytearray()
    start: int | None = None
    for at in range(0, len(esp) + BLOCK, BLOCK):
        piece = esp[at : at + BLOCK]
        inside = any(low <= at and at + BLOCK <= high for low, high in covered)
        literal = bool(piece) and not inside and any(piece)
        if literal and start is None:
            start = at
        if not literal and start is not None:
            end = min(at, len(esp))
            runs.append(Run(start, end - start, "boot", len(boot)))
            boot += esp[start:end]
            start = None
    return bytes(boot), sorted(runs, key=lambda run: run.at)


def esp_image(slot: bytes, manifest: Mapping[str, object], parts: Sequence[Part]) -> bytes:
    """The ESP image again, from a slot and its manifest; SlotError when it does not come out the same."""
    where = {part.name: part for part in parts}
    esp = manifest["esp"]
    if not isinstance(esp, dict):
        raise SlotError("the manifest does not describe the ESP")
    out = bytearray(esp["length"])
    for at, length, name, offset in esp["runs"]:
        start = where[name].offset + offset
        out[at : at + length] = slot[start : start + length]
    if sha256(out).hexdigest() != esp["sha256"]:
        raise SlotError("the ESP image is not the one that was signed")
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


def read(slot: bytes, verify: Callable[[bytes, bytes], None]) -> tuple[dict[str, object], list[Part]]:
    """The manifest and parts of a slot, signature and every hash checked; SlotError when one is wrong.

    `verify(signature, message)` raises SlotError for a signature that is not right.
    """
    at = manifest_offset(slot[:96])
    block = slot[at : at + MANIFEST_SIZE]
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
    parts = [Part(name, *row) for name, row in sorted(manifest["parts"].items(), key=lambda item: item[1][0])]
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
