"""What is said of a slot, from what was found in it. Pure.

A slot is VERIFIED when all of it was read, its manifest is signed by the release key, every part has the
signed hash and everything else is zero. Until it was read it is PENDING: asked is not confirmed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """What a slot is."""

    PENDING = "pending"
    VERIFIED = "verified"
    TAMPERED = "tampered"
    UNSIGNED = "unsigned"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict and what it rests on: for TAMPERED the parts that differ, in the order of the slot."""

    verdict: Verdict
    parts: tuple[str, ...] = ()
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What reading a slot gave.

    `unreadable` and `unsigned` are sentences, empty when there is nothing to say; `signed` are the hashes the
    manifest gives, `read` those of the bytes, `stray` the places that should be zero and are not.
    """

    unreadable: str = ""
    unsigned: str = ""
    signed: Mapping[str, str]
    read: Mapping[str, str]
    stray: tuple[str, ...] = ()


def judge(found: Found | None) -> Judged:
    """The verdict; None is a slot that was not read to its end yet."""
    if found is None:
        return Judged(Verdict.PENDING)
    if found.unreadable:
        return Judged(Verdict.UNREADABLE, detail=found.unreadable)
    if found.unsigned:
        return Judged(Verdict.UNSIGNED, detail=found.unsigned)
    if not found.signed:
        return Judged(Verdict.UNSIGNED, detail="the manifest names no part")
    wrong = tuple(name for name, digest in found.signed.items() if found.read.get(name) != digest)
    if wrong or found.stray:
        parts = (*wrong, *found.stray)
        return Judged(Verdict.TAMPERED, parts, f"not what was signed: {', '.join(parts)}")
    return Judged(Verdict.VERIFIED)  # INV-SLOT-5
