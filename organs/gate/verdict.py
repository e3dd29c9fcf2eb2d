"""What the gate admits: every limit on a request, decided before anything is touched.

Decides: whether a request has a shape the gate serves, whether it may wait in the queue, whether a write
stays inside its persona's quota.
Never: opens a file, looks at a clock, or changes a name: personas and keys are taken as they are, or refused.
Fails: not at all. Every input has an answer, Admit or Refuse with a code and a sentence.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from bus.envelope import Code

# A persona's name is a label, and it appears in logs: letters, digits and a dash, nothing to escape.
PERSONA_LENGTH_MAX = 64
PERSONA_FIRST = frozenset("abcdefghijklmnopqrstuvwxyz")
PERSONA_REST = PERSONA_FIRST | frozenset("0123456789-@")
# Keys are bytes; 1 KiB keeps four to an index page.
KEY_BYTES_MAX = 1024
# One value with its envelope fits one bus message.
VALUE_BYTES_MAX = 1 << 20
# A page of a listing: 256 keys of 1 KiB are a quarter of the largest message.
LIST_KEYS_MAX = 256

# SQLite's page, and so the unit in which space is charged.
PAGE_BYTES = 4096
# What one persona may occupy. Personas keep settings and small state here, not media.
QUOTA_BYTES = 16 << 20
# What a record has in its row besides key and value: the row's own header, the number, the digest.
RECORD_BYTES = 64
# Pages that two trees, of the records and of their keys, may take to balance for one row. SQLite balances
# each level once, and makes at most five pages out of at least one (NB + 2 of balance_nonroot); a root that
# is full takes one more; a tree deeper than 20 levels (BTCURSOR_MAX_DEPTH) it does not walk. Far more than is
# ever seen, but it costs only that puts in the last 700 KiB of a quota are measured.
TREE_PAGES_MAX = 2 * (20 * 4 + 1)

# Personas with a store. A damaged one keeps its two descriptors until the process ends; all of them damaged
# must stay well inside the gate's limit of descriptors (256 in the manifest).
STORES_MAX = 64

# Requests waiting for the worker and the bytes they hold. More is answered BUSY, so that a flood costs the
# flooder an answer and not the gate its memory.
QUEUE_OPERATIONS_MAX = 256
QUEUE_BYTES_MAX = 8 << 20
# What a waiting request holds besides its key and value.
OPERATION_BYTES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """Store `value` under `key`, replacing what was there."""

    persona: str
    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Get:
    """Read the value of `key`."""

    persona: str
    key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """Remove `key`, if it is there."""

    persona: str
    key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class List:
    """Up to `limit` keys greater than `after`, in byte order. A limit of 0 asks for as many as fit a page."""

    persona: str
    after: bytes
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the persona occupies."""

    persona: str


Operation = Put | Get | Delete | List | Usage


class Admit(Enum):
    """The only kind of yes."""

    ADMIT = "admit"


@dataclass(frozen=True, slots=True)
class Refuse:
    """A no: nothing was done, and this is why."""

    code: Code
    message: str


Verdict = Admit | Refuse
ADMIT = Admit.ADMIT


def admit(operation: Operation) -> Verdict:
    """Whether the request has a shape the gate serves. Nothing is normalised: a name is right or refused."""
    if (verdict := admit_persona(operation.persona)) is not ADMIT:  # INV-GATE-5
        return verdict
    match operation:
        case Put(key=key, value=value):
            return _admit_key(key) if len(value) <= VALUE_BYTES_MAX else _too_long("value", VALUE_BYTES_MAX)
        case Get(key=key) | Delete(key=key):
            return _admit_key(key)
        case List(after=after):
            return ADMIT if len(after) <= KEY_BYTES_MAX else _too_long("after", KEY_BYTES_MAX)
        case Usage():
            return ADMIT


def admit_persona(persona: str) -> Verdict:
    """Whether this is a persona's name."""
    if not persona or persona[0] not in PERSONA_FIRST or not PERSONA_REST.issuperset(persona):
        return Refuse(Code.INVALID, "a store's name is a-z, then a-z, 0-9, - and @")
    if len(persona) > PERSONA_LENGTH_MAX:
        return Refuse(Code.INVALID, f"a persona's name has at most {PERSONA_LENGTH_MAX} characters")
    return ADMIT


def _admit_key(key: bytes) -> Verdict:
    if not key:
        return Refuse(Code.INVALID, "a key has at least one byte")
    return ADMIT if len(key) <= KEY_BYTES_MAX else _too_long("key", KEY_BYTES_MAX)


def _too_long(what: str, limit: int) -> Refuse:
    return Refuse(Code.TOO_LARGE if what == "value" else Code.INVALID, f"{what}: at most {limit} bytes")


def queued_bytes(operation: Operation) -> int:
    """What a request holds while it waits, in bytes."""
    match operation:
        case Put(key=key, value=value):
            return OPERATION_BYTES + len(key) + len(value)
        case Get(key=key) | Delete(key=key):
            return OPERATION_BYTES + len(key)
        case List(after=after):
            return OPERATION_BYTES + len(after)
        case Usage():
            return OPERATION_BYTES


def admit_queued(operation: Operation, waiting: int, waiting_bytes: int) -> Verdict:
    """Whether the request may join `waiting` others that hold `waiting_bytes`."""
    if waiting >= QUEUE_OPERATIONS_MAX or waiting_bytes + queued_bytes(operation) > QUEUE_BYTES_MAX:
        return Refuse(Code.BUSY, "too many requests wait for the store; nothing was done")
    return ADMIT


def page_limit(limit: int) -> int:
    """How many keys a listing answers."""
    return min(limit, LIST_KEYS_MAX) if limit > 0 else LIST_KEYS_MAX


def admit_growth(before_bytes: int, after_bytes: int, quota_bytes: int) -> Verdict:
    """Whether a write may stay, by what the store occupied before it and would occupy after it.

    What does not grow may stay even above the quota: a quota that was lowered must not trap a persona.
    """
    if after_bytes > quota_bytes and after_bytes > before_bytes:  # INV-GATE-4
        return quota_reached(before_bytes, quota_bytes)
    return ADMIT


def growth_bytes_max(key_bytes: int, value_bytes: int) -> int:
    """The most that a store can grow by one put, whatever is in it."""
    row = RECORD_BYTES + key_bytes + value_bytes
    # A page of a chain holds all but four of its bytes. A key's chain in the index is one page at most.
    pages = -(-row // (PAGE_BYTES - 4)) + 1 + TREE_PAGES_MAX
    # With auto_vacuum a page in 820 says whose the others are.
    return (pages + pages // 820 + 1) * PAGE_BYTES


def surely_fits(used_at_most: int, growth_at_most: int, quota_bytes: int) -> bool:
    """Whether a put stays inside the quota without being measured."""
    return used_at_most + growth_at_most <= quota_bytes


def quota_reached(used_bytes: int, quota_bytes: int) -> Refuse:
    """The no of a quota, with the figures a caller needs to act."""
    return Refuse(Code.QUOTA, f"used {used_bytes} of {quota_bytes} bytes; nothing was written")


def admit_store(stores: int) -> Verdict:
    """Whether one more persona may get a store."""
    if stores >= STORES_MAX:
        return Refuse(Code.QUOTA, f"used {stores} of {STORES_MAX} stores; nothing was written")
    return ADMIT
