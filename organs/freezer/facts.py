"""What is known of a room besides whether it runs: which persona is in it, and what that one was promised.

Written to the room's cgroup when the room is complete, so that it lives and dies with what it describes and
a freezer that was restarted reads it there. A cgroup without facts is a room that was not finished.
Pure but for JSON.
Fails: FactsRefused for text that is none of ours; the room is then ended, since nobody knows what it is.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from typing import Final

from organs.persona import OnFocusLoss, Persona, store_name

# Ids of rooms: a range of their own for each, above every id of the system and of organs.
IDS_BASE: Final = 0x10_0000
IDS_PER_ROOM: Final = 0x1_0000
# As many as there may be rooms.
SLOTS: Final = 16
# What the kernel keeps for us at a cgroup may be much longer; the longest of ours is a tenth of it.
BYTES_MAX: Final = 4096


class FactsRefused(ValueError):
    """Not the facts of a room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One room. `inbound`: TCP ports, None where the persona has no network."""

    slot: int
    version: int
    store: str
    inbound: tuple[int, ...] | None
    console: bool
    dies_unfocused: bool
    may_focus: bool
    may_update: bool

    @property
    def uid_base(self) -> int:
        """The first of the room's user ids, which is its root."""
        return IDS_BASE + self.slot * IDS_PER_ROOM  # INV-ROOM-20


def of(image: Persona, key_id: str, slot: int) -> Facts:
    """The facts of a room for a verified persona that was signed with the key of that id."""
    return Facts(
        slot=slot,
        version=image.version,
        store=store_name(image.name, key_id),  # INV-ROOM-21
        inbound=image.network.inbound if image.network.use else None,
        console=image.console,
        dies_unfocused=image.on_focus_loss is OnFocusLoss.KILL,
        may_focus="focus" in image.grants,
        may_update="update" in image.grants,
    )


def free_slot(taken: Collection[int]) -> int | None:
    """The lowest range of ids that no room has; None when all are taken."""
    return next((slot for slot in range(SLOTS) if slot not in taken), None)


def encode(facts: Facts) -> bytes:
    """The text that is kept at the cgroup."""
    return json.dumps(asdict(facts), separators=(",", ":")).encode()


def decode(text: bytes) -> Facts:
    """Read what was kept. Raises FactsRefused."""
    if len(text) > BYTES_MAX:
        raise FactsRefused(f"over {BYTES_MAX} bytes")
    try:
        document: object = json.loads(text)
    except (ValueError, RecursionError):
        raise FactsRefused("not JSON") from None
    if not isinstance(document, dict) or document.keys() != {each.name for each in fields(Facts)}:
        raise FactsRefused("not the facts of a room")
    match document:
        case {
            "slot": int(slot),
            "version": int(version),
            "store": str(store),
            "inbound": None | list() as inbound,
            "console": bool(console),
            "dies_unfocused": bool(dies),
            "may_focus": bool(focus),
            "may_update": bool(update),
        } if type(slot) is int and slot in range(SLOTS) and all(type(port) is int for port in inbound or ()):
            return Facts(
                slot=slot,
                version=version,
                store=store,
                inbound=None if inbound is None else tuple(inbound),
                console=console,
                dies_unfocused=dies,
                may_focus=focus,
                may_update=update,
            )
    raise FactsRefused("a value that no room has")
