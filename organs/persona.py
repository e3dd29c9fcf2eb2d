"""The image of a persona: where its parts lie, what its manifest says, and whether a trusted key signed it.

Pure: bytes in, frozen values out. The image is one file: SquashFS ‖ hash tree ‖ manifest block. The block is
magic, length, public key, signature, text, zeros; the signature covers all but itself and the zeros.
Never: believes a word of the text before the signature was checked, fills in what the text does not state,
accepts a second spelling of the same manifest.
Fails: with PersonaRefused, which names the kind of refusal, the key and the rule.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from typing import Final, TypeVar

from organs.fields import Fields
from organs.integrity import ed25519

BLOCK: Final = 4096
MAGIC: Final = b"SPINE-PERSONA-1\0"
# The last bytes of an image: as much text as anyone signs for one persona, and whole blocks.
MANIFEST_BYTES: Final = 4 * BLOCK
HEAD: Final = struct.Struct("<16sI32s64s")
SIGNED: Final = struct.Struct("<16sI32s")
TEXT_BYTES_MAX: Final = MANIFEST_BYTES - HEAD.size
HASH_BYTES: Final = 32
FAN_OUT: Final = BLOCK // HASH_BYTES
KEY_ID_CHARS: Final = 16

FORMAT: Final = 1
# Part of cgroup names, socket paths and store names, like the name of an organ.
NAME: Final = re.compile(r"[a-z][a-z0-9]{0,14}")
DIGEST: Final = re.compile(r"[0-9a-f]{64}")
# dm-verity keeps the salt in its own memory; the builder has the same limit.
SALT: Final = re.compile(r"(?:[0-9a-f]{2}){0,64}")
SUMMARY_CHARS_MAX: Final = 100
VERSION_MAX: Final = 2**31 - 1
# Larger than any partition for personas; a length above it is a slip.
LENGTH_MAX: Final = 64 * 1024**3
# A command line that a person wrote, not one that a program put together.
INIT_WORDS_MAX: Final = 16
INIT_CHARS_MAX: Final = 256
# All words together, in UTF-8: as much as the builder takes of a command.
INIT_BYTES_MAX: Final = 8192
# From a shell with one script to all of a large machine.
MEMORY_BYTES: Final = (16 * 1024**2, 64 * 1024**3)
PIDS: Final = (1, 4096)
WRITABLE_BYTES: Final = (1024**2, 16 * 1024**3)
# As many services as one household appliance offers; each is a rule of the packet filter.
INBOUND_MAX: Final = 32
PORT_MAX: Final = 65535
DEVICES: Final = frozenset({"display", "input"})
GRANTS: Final = frozenset({"focus", "update"})

T = TypeVar("T")


class Refusal(Enum):
    """Why an image is not taken. The value is the first word that a person reads."""

    UNSIGNED = "unsigned"
    TRUNCATED = "truncated"
    ALTERED = "altered"
    FOREIGN_KEY = "foreign key"
    DOWNGRADE = "downgrade"
    MALFORMED = "malformed"
    OTHER_IDENTITY = "other identity"
    FULL = "full"


class PersonaRefused(ValueError):
    """An image or its manifest breaks a rule. `key` is the place in the manifest, or a part of the image."""

    def __init__(self, key: str, rule: str, kind: Refusal = Refusal.MALFORMED) -> None:
        super().__init__(f"{kind.value}: {key}: {rule}")
        self.key = key
        self.rule = rule
        self.kind = kind


class OnFocusLoss(Enum):
    """What becomes of the persona's room when another one gets the focus."""

    FREEZE = "freeze"
    KILL = "kill"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of the image; `offset` and `length` in bytes from its start."""

    offset: int
    length: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verity:
    """What dm-verity is told: root hash and salt in hexadecimal digits, and how many blocks the data has."""

    root_hash: str
    salt: str
    blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a room may take. `writable_bytes` is the size of the layer in memory that its writes go to."""

    memory_bytes: int
    pids: int
    writable_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Whether the room gets a network, and on which TCP ports it may be called."""

    use: bool
    inbound: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Persona:
    """What was signed of a persona."""

    name: str
    version: int
    summary: str
    image: Part
    tree: Part
    verity: Verity
    init: tuple[str, ...]
    console: bool
    limits: Limits
    network: Network
    devices: frozenset[str]
    grants: frozenset[str]
    autostart: bool
    on_focus_loss: OnFocusLoss

    @property
    def length(self) -> int:
        """How long the whole image is, in bytes."""
        return self.tree.offset + self.tree.length + MANIFEST_BYTES


def key_id(key: bytes) -> str:
    """The short name of a public key."""
    return sha256(key).hexdigest()[:KEY_ID_CHARS]


def store_name(name: str, identity: str) -> str:
    """The name of a persona's store at the gate: a persona of another key gets another store."""
    return f"{name}@{identity}"


def trusted_keys(text: str) -> frozenset[bytes]:
    """The public keys of a file with one of 64 hexadecimal digits a line. Raises PersonaRefused."""
    lines = text.splitlines()
    if bad := next((number for number, line in enumerate(lines, 1) if not DIGEST.fullmatch(line)), None):
        raise PersonaRefused(f"line {bad}", "must be a public key, 64 hexadecimal digits in lower case")
    return frozenset(bytes.fromhex(line) for line in lines)


def canonical(document: object) -> bytes:
    """The one spelling of a manifest. ValueError for what JSON has no spelling for."""
    return json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode("ascii")


def levels(blocks: int) -> tuple[int, ...]:
    """How many blocks each level of the hash tree has, from the one over the data to the top.

    A single block is its own top, and has no tree.
    """
    found = []
    while blocks > 1:
        blocks = -(-blocks // FAN_OUT)
        found.append(blocks)
    return tuple(found)


def split(block: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Take a manifest block apart: key, signature, the signed bytes, text. Raises PersonaRefused.

    Nothing of it is checked but that it is one.
    """
    if len(block) != MANIFEST_BYTES:
        raise PersonaRefused("manifest", f"has {len(block)} bytes, not {MANIFEST_BYTES}", Refusal.TRUNCATED)
    magic, length, key, signature = HEAD.unpack_from(block)
    if magic != MAGIC:
        raise PersonaRefused("manifest", "the image does not end with one", Refusal.TRUNCATED)
    if not 1 <= length <= TEXT_BYTES_MAX:
        raise PersonaRefused("manifest", f"its text must have 1 to {TEXT_BYTES_MAX} bytes")
    text = block[HEAD.size : HEAD.size + length]
    if block[HEAD.size + length :].strip(b"\0"):
        raise PersonaRefused("manifest", "something follows its text")
    return key, signature, SIGNED.pack(magic, length, key) + text, text


def verified(block: bytes, trusted: Collection[bytes]) -> Persona:
    """The persona of a manifest block that one of the `trusted` public keys signed. Raises PersonaRefused."""
    key, signature, signed, text = split(block)
    if not signature.strip(b"\0"):
        raise PersonaRefused("manifest", "nobody signed it", Refusal.UNSIGNED)
    if key not in trusted:
        raise PersonaRefused("manifest", f"the key {key_id(key)} is not trusted here", Refusal.FOREIGN_KEY)
    if not ed25519.right(key, signature, signed):
        raise PersonaRefused("manifest", "is not what was signed", Refusal.ALTERED)
    return decode(text)


def decode(text: bytes) -> Persona:
    """Read the text of a manifest. Raises PersonaRefused."""
    try:
        document = json.loads(text.decode("ascii"))
        spelled = canonical(document)
    except (ValueError, RecursionError):
        raise PersonaRefused("manifest", "is not JSON in ASCII") from None
    root = _Object("", document)
    persona = _persona(root)
    root.end()
    if spelled != text:
        raise PersonaRefused("manifest", "is not in the canonical spelling")
    return persona


class _Object(Fields):
    """One JSON object being read; what nobody asked for is refused at its end."""

    def __init__(self, path: str, document: object) -> None:
        if not isinstance(document, dict):
            raise PersonaRefused(path or "manifest", "must be an object")
        super().__init__(document)
        self._path = path

    def refuse(self, key: str, rule: str) -> PersonaRefused:
        """The refusal of one key of this object."""
        return PersonaRefused(f"{self._path}.{key}" if self._path else key, rule)

    def text(self, key: str, pattern: re.Pattern[str], rule: str) -> str:
        """A text of one form."""
        value = self.take(key, str)
        if not pattern.fullmatch(value):
            raise self.refuse(key, rule)
        return value

    def object(self, key: str) -> _Object:
        """An object within this one."""
        return _Object(f"{self._path}.{key}" if self._path else key, self.take(key, dict))

    def end(self) -> None:
        """Refuse what nobody asked for. Names of foreign keys are not repeated: they may be anything."""
        if self.unread:
            raise PersonaRefused(self._path or "manifest", f"has {len(self.unread)} unknown keys")


def _persona(root: _Object) -> Persona:
    root.number("format", FORMAT, FORMAT)
    summary = root.take("summary", str)
    if not summary.isprintable() or len(summary) > SUMMARY_CHARS_MAX:
        raise root.refuse("summary", f"must be one line of at most {SUMMARY_CHARS_MAX} characters")
    image, tree = _part(root, "image"), _part(root, "tree")
    return Persona(
        name=root.text("name", NAME, "must be 1 to 15 lower case letters and digits, a letter first"),
        version=root.number("version", 1, VERSION_MAX),
        summary=summary,
        image=image,
        tree=tree,
        verity=_verity(root, image, tree),
        init=_init(root),
        console=root.take("console", bool),
        limits=_limits(root),
        network=_network(root),
        devices=root.words("devices", DEVICES),
        grants=root.words("grants", GRANTS),
        autostart=root.take("autostart", bool),
        on_focus_loss=_on_focus_loss(root),
    )


def _part(root: _Object, key: str) -> Part:
    match root.take(key, list):
        case [offset, length, str(digest)] if type(offset) is type(length) is int:
            if 0 <= offset <= LENGTH_MAX and 0 <= length <= LENGTH_MAX and DIGEST.fullmatch(digest):
                return Part(offset=offset, length=length, sha256=digest)
    raise root.refuse(key, "must be an offset, a length, and a SHA-256 in lower case digits")


def _verity(root: _Object, image: Part, tree: Part) -> Verity:
    """The verity object, and that image and tree lie as it says, one behind the other without a gap."""
    row = root.object("verity")
    verity = Verity(
        root_hash=row.text("rootHash", DIGEST, "must be 64 hexadecimal digits in lower case"),
        salt=row.text("salt", SALT, "must be at most 128 hexadecimal digits in lower case, of whole bytes"),
        blocks=row.number("blocks", 1, LENGTH_MAX // BLOCK),
    )
    row.end()
    if image.offset or image.length != verity.blocks * BLOCK:
        raise root.refuse("image", f"must begin the file and have {verity.blocks} blocks of {BLOCK}")
    if tree.offset != image.length or tree.length != sum(levels(verity.blocks)) * BLOCK:
        raise root.refuse("tree", "must follow the image, and have the blocks that such an image takes")
    return verity


def _init(root: _Object) -> tuple[str, ...]:
    words = root.take("init", list)
    if not 1 <= len(words) <= INIT_WORDS_MAX:
        raise root.refuse("init", f"must have 1 to {INIT_WORDS_MAX} words")
    for word in words:
        if not isinstance(word, str) or not 1 <= len(word) <= INIT_CHARS_MAX:
            raise root.refuse("init", f"each word must have 1 to {INIT_CHARS_MAX} characters")
        # A half of a pair has no bytes; a zero would end the word early.
        if "\0" in word or any("\ud800" <= character <= "\udfff" for character in word):
            raise root.refuse("init", "a word has a character that no argument of a program can have")
    if not words[0].startswith("/"):
        raise root.refuse("init", "the program must be named by its whole path")
    if sum(len(word.encode()) for word in words) > INIT_BYTES_MAX:
        raise root.refuse("init", f"all words together must have at most {INIT_BYTES_MAX} bytes")
    return tuple(words)


def _limits(root: _Object) -> Limits:
    row = root.object("limits")
    limits = Limits(
        memory_bytes=row.number("memoryBytes", *MEMORY_BYTES),
        pids=row.number("pids", *PIDS),
        writable_bytes=row.number("writableBytes", *WRITABLE_BYTES),
    )
    row.end()
    return limits


def _network(root: _Object) -> Network:
    row = root.object("network")
    use, ports = row.take("use", bool), row.take("inbound", list)
    row.end()
    if len(ports) > INBOUND_MAX or not all(type(port) is int and 1 <= port <= PORT_MAX for port in ports):
        raise row.refuse("inbound", f"must be at most {INBOUND_MAX} ports from 1 to {PORT_MAX}")
    if len(set(ports)) != len(ports):
        raise row.refuse("inbound", "names a port twice")
    if ports and not use:
        raise row.refuse("inbound", "without a network there is nothing to be called on")
    return Network(use=use, inbound=tuple(ports))


def _on_focus_loss(root: _Object) -> OnFocusLoss:
    word = root.take("onFocusLoss", str)
    if word not in {each.value for each in OnFocusLoss}:
        raise root.refuse("onFocusLoss", "must be freeze or kill")
    return OnFocusLoss(word)
