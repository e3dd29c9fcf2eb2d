"""The file of an update: one word that says what it is, the slot's manifest block, the slot's bytes.

    SPINE-UPDATE-1 | manifest block, a copy | slot without the zeros at its end

Pure: bytes in, bytes out. The block comes first so that who takes the file in can refuse it before it has the
rest. There is no signature but that of the manifest, which covers every byte of the slot.
Never: believes a number before the signature over it was checked.
Fails: with NoUpdate, whose kind is the word by which the spine would refuse the same file.
"""

from collections.abc import Callable
from dataclasses import dataclass

from spine.image import disk, slot

MAGIC = b"SPINE-UPDATE-1\0\0"
HEAD_BYTES = len(MAGIC) + slot.MANIFEST_SIZE
# A slot of ours, and what comes before it.
FILE_BYTES_MAX = HEAD_BYTES + disk.partition("slot-a").size
SUFFIX = ".update"

Verify = Callable[[bytes, bytes], None]


class NoUpdate(ValueError):
    """Bytes that are no update of ours."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(f"{kind}: {why}")
        self.kind = kind
        self.why = why


@dataclass(frozen=True)
class Update:
    """An update that was checked whole. `block` is the manifest's, `slot` all that goes into a slot."""

    block: bytes
    slot: bytes
    version: str
    image: str


def pack(partition: bytes, verify: Verify) -> bytes:
    """The file for a slot; the zeros at its end are left out. SlotError when it is none."""
    _manifest, parts = slot.read(partition, verify)
    at = slot.manifest_offset(partition[:96])
    return MAGIC + partition[at : at + slot.MANIFEST_SIZE] + partition[: _end(parts)]


def unpack(data: bytes, verify: Verify) -> Update:
    """The update in a file, every byte of it checked. NoUpdate.

    `verify(signature, message)` raises SlotError for a signature that is not right.
    """
    if len(data) > FILE_BYTES_MAX:
        raise NoUpdate("too large", f"a slot holds no more than {FILE_BYTES_MAX} bytes of file")
    if data[: len(MAGIC)] != MAGIC:
        raise NoUpdate("malformed", "it does not begin like an update")
    if len(data) < HEAD_BYTES:
        raise NoUpdate("truncated", "it ends before its manifest does")
    block, whole = data[len(MAGIC) : HEAD_BYTES], data[HEAD_BYTES:]
    try:
        manifest, parts = slot.opened(block, _unsigned(verify))
    except slot.SlotError as error:
        raise NoUpdate("malformed", str(error)) from None
    end = _end(parts)
    if len(whole) < end:
        raise NoUpdate("truncated", f"it has {len(whole)} bytes of a slot, its manifest names {end}")
    if len(whole) > end:
        raise NoUpdate("malformed", f"{len(whole) - end} bytes lie behind what its manifest names")
    try:
        inside, _parts = slot.read(whole, verify)
    except slot.SlotError as error:
        raise NoUpdate("altered", str(error)) from None
    if inside != manifest:
        raise NoUpdate("altered", "the manifest in the slot is not the one before it")
    return Update(block, whole, str(manifest["version"]), str(manifest["image"]))


def _end(parts: list[slot.Part]) -> int:
    end = max(part.offset + part.length for part in parts)
    return end + -end % slot.BLOCK


def _unsigned(verify: Verify) -> Verify:
    """The same check, with a kind of its own for a signature that is not right."""

    def check(signature: bytes, message: bytes) -> None:
        try:
            verify(signature, message)
        except slot.SlotError as error:
            raise NoUpdate("unsigned", str(error)) from None

    return check
