"""integrity: reads both slots and both boot volumes whole, keeps them as they should be, keeps the personas.

At its start, the first of a boot two seconds later, it reads all four (`organs/integrity/survey.py`) and says
what they are. After bay0 says "healthy" it gives the running slot all its tries again, and writes anew what
is not as it should be (`organs/integrity/pairs.py`). `slots` tells all of it. The installed personas are
kept by `organs/integrity/personas.py`, a new version of the system comes in through
`organs/integrity/update.py`.

Touches: the block devices of slots and boot volumes by the descriptors it was handed; /run/spine/organs.json,
the release file and the release key to read.
Never: mounts anything, writes the partition of the slot that runs, writes before the boot is healthy.
Fails: a device that cannot be read or written is said on stderr and in the answer of `slots`; the machine
runs on with what it has.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import trio

from bus.envelope import Code, Failure
from organs import layout
from organs.integrity import personas
from organs.integrity.pairs import Pairs
from organs.integrity.replace import NotReplaced, Source
from organs.integrity.slots import may_install
from organs.integrity.survey import SLOTS, Survey
from organs.integrity.update import Here, Refusal, Staged, UpdateRefused, Updates

ORGANS = Path(layout.ORGANS_JSON)
RELEASE = Path(layout.RELEASE)
HEALTHY = "healthy"
# What is read at the start of the system waits until the first persona had its turn: nobody acts on it before
# the boot is healthy, which is later than this, and hashing takes a processor that the persona can use.
PAUSE_S = 2.0
REBOOT = "reboot"

Handler = Callable[..., Awaitable[Any]]


class Spine(Protocol):
    """What this organ uses of the runtime."""

    @property
    def generation(self) -> int: ...

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


def here(pairs: Pairs) -> Here | None:
    """What an update is held against; None where there are no slots. Raises OSError, ValueError, KeyError."""
    fds = [fd for name in SLOTS.values() if (fd := pairs.survey.fd(name)) is not None]
    if not fds:
        return None
    release = json.loads(RELEASE.read_text(encoding="utf-8"))
    unhealthy = "" if running().healthy else "this boot is not confirmed healthy yet"
    return Here(
        key=pairs.key,
        # A container runs no slot: there it is the version of the slot that is trusted.
        version=pairs.running_version() or str(release["version"]),
        image=str(release["image"]),
        slot_bytes=min(os.lseek(fd, 0, os.SEEK_END) for fd in fds),
        not_now=may_install(pairs.facts()) or unhealthy,
    )


async def install(pairs: Pairs, staged: Staged) -> str:
    """Write an update that was examined; the letter of its slot. Raises UpdateRefused, Failure."""
    try:
        source = await trio.to_thread.run_sync(Source, staged.read, staged.length, pairs.key)
    except NotReplaced as error:
        raise UpdateRefused(Refusal.MALFORMED, str(error)) from None
    try:
        return await pairs.install(source)
    except NotReplaced as error:
        raise Failure(Code.CORRUPT, str(error)) from None


async def keep(pairs: Pairs, pause_s: float) -> None:
    """Keep both pairs, after a pause. Never returns."""
    await trio.sleep(pause_s)
    await pairs.run()


async def main(spine: Spine) -> None:
    """Serve slots, personas and updates, and keep both pairs."""
    pairs = Pairs(Survey(spine.fds), running().slot, say, lambda: spine.ask(REBOOT))
    counter = personas.counter(spine.fds)
    updates = Updates(partial(here, pairs), partial(install, pairs), lambda: spine.ask(REBOOT))

    async def answer(_call: object, _params: Mapping[str, object]) -> dict[str, object]:
        return slots(pairs)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen, spine, pairs)
        # Only the system's start is hurried; who comes later has a predecessor's work to finish.
        nursery.start_soon(keep, pairs, PAUSE_S if spine.generation == 1 else 0)
        nursery.start_soon(updates.run)
        await spine.serve({"slots": answer, **counter.handlers(), **updates.handlers()})
