"""integrity: reads both slots and both boot volumes whole, keeps them as they should be, keeps the personas.

At its start it reads all four (`organs/integrity/survey.py`) and says what they are. After bay0 says
"healthy" it gives the running slot all its tries again, and writes anew what is not as it should be
(`organs/integrity/pairs.py`). `slots` tells all of it. The installed personas are kept by
`organs/integrity/personas.py`.

Touches: the block devices of slots and boot volumes by the descriptors it was handed, /run/spine/organs.json
and the release key to read.
Never: mounts anything, writes the partition of the slot that runs, writes before the boot is healthy.
Fails: a device that cannot be read or written is said on stderr and in the answer of `slots`; the machine
runs on with what it has.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import trio

from organs import layout
from organs.integrity import personas
from organs.integrity.pairs import Pairs
from organs.integrity.survey import Survey

ORGANS = Path(layout.ORGANS_JSON)
HEALTHY = "healthy"
REBOOT = "reboot"

Handler = Callable[..., Awaitable[Any]]


class Spine(Protocol):
    """What this organ uses of the runtime."""

    @property
    def fds(self) -> Mapping[str, int]: ...

    async def serve(self, handlers: Mapping[str, Handler]) -> None: ...

    def told(self) -> AsyncIterator[str]: ...

    def ask(self, word: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Running:
    """What bay0 knows of the boot. `slot` is empty where there are no slots."""

    slot: str
    root_hash: str
    verified: bool
    healthy: bool


def running() -> Running:
    """The boot as bay0 wrote it down. Raises OSError, ValueError."""
    document = json.loads(ORGANS.read_text(encoding="utf-8"))
    boot = document.get("boot") if isinstance(document, dict) else None
    if not isinstance(boot, dict):
        raise ValueError(f"{ORGANS}: no boot")
    return Running(
        str(boot.get("slot") or ""),
        str(boot.get("rootHash") or ""),
        boot.get("verified") is True,
        boot.get("healthy") is True,
    )


def say(sentence: str) -> None:
    """One line in the organ's log."""
    print(f"integrity: {sentence}", file=sys.stderr, flush=True)


async def listen(spine: Spine, pairs: Pairs) -> None:
    """Do what bay0 says. It says it once a boot: who started later than that finds it written down."""
    if running().healthy:
        pairs.healthy()
    async for word in spine.told():
        if word == HEALTHY:
            pairs.healthy()  # INV-SLOT-4
        else:
            say(f"unable to follow {word!r}: no such word")


def slots(pairs: Pairs) -> dict[str, object]:
    """What runs, what slots and boot volumes are, what the counters say, and where things stand."""
    now = running()
    return {
        "active": now.slot,
        "rootHash": now.root_hash,
        "verified": now.verified,
        "entries": pairs.survey.counters(),
        "checked": pairs.survey.rows(),
        **pairs.answer(),
    }


async def main(spine: Spine) -> None:
    """Serve slots and personas, and keep both pairs."""
    pairs = Pairs(Survey(spine.fds), running().slot, say, lambda: spine.ask(REBOOT))
    counter = personas.counter(spine.fds)

    async def answer(_call: object, _params: Mapping[str, object]) -> dict[str, object]:
        return slots(pairs)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen, spine, pairs)
        nursery.start_soon(pairs.run)
        await spine.serve({"slots": answer, **counter.handlers()})
