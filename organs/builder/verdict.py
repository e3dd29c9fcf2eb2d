"""What the builder does for a request, checked on its own side, whoever has checked it before.

Pure. The asker decides what should be; this decides whether it can be meant: lengths, alignment, hashes,
limits, and that the request was for this incarnation.
Never: changes a request into one that would pass.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

# Four times the rooms that there are personas for on a household's machine; each costs kernel memory.
DEVICES_MAX: Final = 64
# The unit of verity and of SquashFS's direct reads. Regions begin and end at whole blocks.
BLOCK: Final = 4096
# Larger than any persona partition we build; a length above it is a slip.
LENGTH_MAX: Final = 64 * 1024**3
DIGEST_CHARS: Final = 64
# dm-verity keeps the salt in its own memory.
SALT_CHARS_MAX: Final = 128
HASHES_PER_BLOCK: Final = BLOCK // 32
_HEXADECIMAL: Final = frozenset("0123456789abcdef")

_LETTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyz")
_DIGITS: Final = frozenset("0123456789")
# A persona's name is a part of paths and of names, as an organ's; a host name is one label of RFC 1123.
NAME_CHARS_MAX: Final = 15
HOSTNAME_CHARS_MAX: Final = 63
# Each room has one of so many ranges of ids, above everything that the spine itself uses. Ranges do not
# overlap; which of them is free, the freezer knows.
IDS: Final = 0x1_0000
UID_BASE: Final = 0x10_0000
RANGES: Final = 16
# What a room may write into memory: less holds nothing, more is more than a household's machine has.
WRITABLE_MIN, WRITABLE_MAX = 1024**2, 16 * 1024**3
# A persona's manifest has as many words; a person at a prompt may type more.
INIT_WORDS_MAX: Final = 16
INIT_CHARS_MAX: Final = 256
# Errands of the builder (a room in the making, a command being started) at a time, and commands that run:
# each costs a process, or two descriptors.
ERRANDS_MAX: Final = 8
COMMANDS_MAX: Final = 64
# How the devices are called that the builder makes for rooms.
PREFIX: Final = "room-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backing:
    """The descriptor that came with a request, as the kernel describes it. `size` is in bytes."""

    readable: bool
    suitable: bool  # a regular file or a block device
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """The cgroup that came with a request, as the kernel describes it.

    `named`: it is the directory of this name directly below the rooms'. `asked`: it was told to freeze.
    """

    cgroup: bool
    named: bool
    asked: bool
    populated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The device that came with a request. `name` is what its maker called it; None: no such device."""

    block: bool
    written: bool  # it can be written to, by this descriptor or at all
    size: int
    name: str | None


def room(name: str, hostname: str, uid_base: int, init: Sequence[str], writable_bytes: int) -> str | None:
    """What is wrong with a room that is asked for, or None."""
    if not named(name):
        return "a room's name is 1 to 15 lower case letters and digits"
    if (
        not 1 <= len(hostname) <= HOSTNAME_CHARS_MAX
        or not (_LETTERS | _DIGITS | {"-"}).issuperset(hostname)
        or "-" in (hostname[0], hostname[-1])
    ):
        return "a host name is 1 to 63 lower case letters, digits and inner hyphens"
    number, beside = divmod(uid_base - UID_BASE, IDS)
    if beside or not 0 <= number < RANGES:  # INV-ROOM-7
        return f"the ids must begin at {UID_BASE:#x} plus 0 to {RANGES - 1} times {IDS:#x}"
    if not WRITABLE_MIN <= writable_bytes <= WRITABLE_MAX:
        return f"what it may write must be from {WRITABLE_MIN} to {WRITABLE_MAX} bytes"
    if not 1 <= len(init) <= INIT_WORDS_MAX or max(map(len, init)) > INIT_CHARS_MAX:
        return f"its first program must be 1 to {INIT_WORDS_MAX} words of at most {INIT_CHARS_MAX} characters"
    if not init[0].startswith("/"):
        return "its first program must be named from the root on"
    return _texts(init)


def named(name: str) -> bool:
    """Whether this can be the name of a room."""
    return 1 <= len(name) <= NAME_CHARS_MAX and name[0] in _LETTERS and (_LETTERS | _DIGITS).issuperset(name)


def home(found: Home | None) -> str | None:
    """What is wrong with a cgroup that anything is to happen in, or None."""
    if found is None:
        return "there must be a descriptor of the room's cgroup"
    if not found.cgroup or not found.named:
        return "the first descriptor must be of the room's own cgroup, directly below the rooms"
    return None


def birthplace(found: Home | None) -> str | None:
    """What is wrong with a cgroup that a room is to be born in, or None."""
    if (wrong := home(found)) is not None or found is None:
        return wrong
    if found.populated:
        return "something lives in the cgroup already"
    if not found.asked:  # INV-ROOM-1
        return "the cgroup was not told to freeze"
    return None


def source(found: Source | None) -> str | None:
    """What is wrong with a device that a room is to be made of, or None."""
    if found is None:
        return "there must be a descriptor of the device"
    if not found.block or found.name is None or not found.name.startswith(PREFIX):
        return "the second descriptor must be of a device that a builder made"
    if found.written:
        return "the device can be written to"
    if found.size < BLOCK:
        return "the device is empty"
    return None


def command(argv: Sequence[str], environment: Sequence[str]) -> str | None:
    """What is wrong with a command, or None."""
    if not argv or not argv[0]:
        return "there is no command"
    for entry in environment:
        name, equals, _ = entry.partition("=")
        if not name or not equals:
            return "an environment is a list of NAME=VALUE"
    return _texts([*argv, *environment])


def _texts(words: Sequence[str]) -> str | None:
    return "a word has a zero in it" if any("\0" in word for word in words) else None


def errands(under_way: int) -> str | None:
    """Why there may be no further errand now, or None."""
    return f"{under_way} things are in the making already" if under_way >= ERRANDS_MAX else None


def commands(running: int) -> str | None:
    """Why there may be no further command, or None."""
    return f"{running} commands run already" if running >= COMMANDS_MAX else None


def region(offset: int, length: int, backing: Backing | None) -> str | None:
    """What is wrong with a region of a descriptor, or None."""
    if backing is None:
        return "there must be exactly one descriptor"
    if not backing.suitable:
        return "the descriptor must be of a regular file or a block device"
    if not backing.readable:
        return "the descriptor cannot be read from"
    if offset % BLOCK or length % BLOCK:
        return f"offset and length must be multiples of {BLOCK}"
    if not BLOCK <= length <= LENGTH_MAX:
        return f"the length must be from {BLOCK} to {LENGTH_MAX}"
    if offset + length > backing.size:
        return f"the region ends at {offset + length}, the descriptor at {backing.size}"
    return None


def tree(root_hash: str, salt: str, blocks: int, hash_offset: int, length: int) -> str | None:
    """What is wrong with a hash tree inside a region of `length` bytes, or None."""
    if len(root_hash) != DIGEST_CHARS or not _HEXADECIMAL.issuperset(root_hash):
        return f"the root hash must be {DIGEST_CHARS} hexadecimal digits in lower case"
    if len(salt) > SALT_CHARS_MAX or len(salt) % 2 or not _HEXADECIMAL.issuperset(salt):
        return f"the salt must be at most {SALT_CHARS_MAX} hexadecimal digits in lower case, of whole bytes"
    if blocks < 1:
        return "there must be at least one block"
    if hash_offset % BLOCK:
        return f"the tree must begin at a multiple of {BLOCK}"
    if blocks * BLOCK > hash_offset:
        return "the tree must begin behind the data"
    if hash_offset + tree_blocks(blocks) * BLOCK > length:
        return "the tree must end within the region"
    return None


def tree_blocks(blocks: int) -> int:
    """How many blocks the hash tree over `blocks` blocks has: one for each 128 below it, up to a single one.

    A single block of data is its own top.
    """
    total = 0
    while blocks > 1:
        blocks = -(-blocks // HASHES_PER_BLOCK)
        total += blocks
    return total


def room_for(held: Collection[str]) -> str | None:
    """Why there may be no further device, or None."""
    return f"there are {len(held)} devices already" if len(held) >= DEVICES_MAX else None


def addressed(generation: int, own: int) -> str | None:
    """Why a request is not for this incarnation, or None."""
    if generation == own:
        return None
    return f"it was for incarnation {generation}, this is {own}"
