"""integrity: knows which slot runs, reads both and their boot volumes whole, keeps the boot counter armed.

At its start it reads both pairs of slot and boot volume (`organs/integrity/survey.py`) and says what they
are. After bay0 says "healthy" it sets the counter of the running slot, on the slot's own volume, back to all
its attempts; what the names mean is decided in `organs/integrity/rearm.py`. `slots` tells all of it. The
installed personas are kept by `organs/integrity/personas.py`.

Touches: the block devices of the slots and the boot volumes by the descriptors it was handed,
/run/spine/organs.json and the release key to read.
Never: mounts anything, writes more than the sector that holds the counter, touches the other slot's name,
repairs what it finds.
Fails: a volume that cannot be read or patched is said on stderr and in the answer of `slots`; the machine
runs on without a re-armed counter, and its attempts run out, which ends in the other slot.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import trio

from organs import layout
from organs.integrity import patch, personas, rearm
from organs.integrity.fat import BadVolume, Entry, entries
from organs.integrity.survey import Survey

ORGANS = Path(layout.ORGANS_JSON)
HEALTHY = "healthy"
# Each slot's boot volume, by the slot's letter.
DEVICES = {"a": f"device:{layout.BOOT_A}", "b": f"device:{layout.BOOT_B}"}

Handler = Callable[..., Awaitable[Any]]


class Spine(Protocol):
    """What this organ uses of the runtime."""

    @property
    def fds(self) -> Mapping[str, int]: ...

    async def serve(self, handlers: Mapping[str, Handler]) -> None: ...

    def told(self) -> AsyncIterator[str]: ...


@dataclass(frozen=True, slots=True)
class Running:
    """What bay0 knows of the boot. `slot` is empty where there are no slots."""

    slot: str
    root_hash: str
    verified: bool


def running() -> Running:
    """The boot as bay0 wrote it down. Raises OSError, ValueError."""
    document = json.loads(ORGANS.read_text(encoding="utf-8"))
    boot = document.get("boot") if isinstance(document, dict) else None
    if not isinstance(boot, dict):
        raise ValueError(f"{ORGANS}: no boot")
    return Running(str(boot.get("slot") or ""), str(boot.get("rootHash") or ""), boot.get("verified") is True)


def names(fd: int) -> tuple[Entry, ...]:
    """The entries of EFI/Linux on the device. Raises BadVolume, OSError."""
    return entries(lambda offset, length: os.pread(fd, length, offset))


def arm(fd: int, slot: str) -> str:
    """Give the slot all its attempts again; a sentence about what was done or why nothing was.

    Raises BadVolume, patch.Unpatchable, patch.NotWritten, OSError.
    """
    found = names(fd)
    decided = rearm.decide([entry.name for entry in found], slot)
    if isinstance(decided, rearm.Nothing):
        return decided.reason
    patch.apply(fd, found, decided)  # INV-SLOT-1
    return ", ".join(
        f"{found[change.index].name} is now {patch.new_name(found[change.index], change)}"
        for change in decided
    )


def say(sentence: str) -> None:
    """One line in the organ's log."""
    print(f"integrity: {sentence}", file=sys.stderr, flush=True)


async def listen(spine: Spine) -> None:
    """Do what bay0 says."""
    async for word in spine.told():
        if word != HEALTHY:
            say(f"unable to follow {word!r}: no such word")
        else:
            try:
                slot = running().slot
                fd = spine.fds.get(DEVICES.get(slot, ""))
                if fd is None:
                    say("healthy; no slot with a boot volume runs here, so no counter to arm")
                else:
                    say(await trio.to_thread.run_sync(arm, fd, slot))  # INV-SLOT-4
            except (BadVolume, patch.Unpatchable, patch.NotWritten, OSError) as error:
                say(f"unable to arm the boot counter: {error}")


async def slots(fds: Mapping[str, int], survey: Survey) -> dict[str, object]:
    """What runs, what the counters on the boot volumes say, and what those and the slots are."""
    now = running()
    counted: list[dict[str, object]] = []
    for device in DEVICES.values():
        if (fd := fds.get(device)) is None:
            continue
        found: tuple[Entry, ...] = ()
        # A volume without names to read is what the verdict about it says.
        with contextlib.suppress(BadVolume, OSError):
            found = await trio.to_thread.run_sync(names, fd)
        for entry in found:
            if (counter := rearm.parse(entry.name)) is not None:
                name = rearm.plain(entry.name, counter)
                counted.append({"name": name, "left": counter.left, "done": counter.done})
    return {
        "active": now.slot,
        "rootHash": now.root_hash,
        "verified": now.verified,
        "entries": counted,
        "checked": survey.rows(),
    }


async def main(spine: Spine) -> None:
    """Serve slots and personas, verify what lies on the disk, arm the counter after a healthy boot."""
    survey = Survey(spine.fds)
    counter = personas.counter(spine.fds)

    async def answer(_call: object, _params: Mapping[str, object]) -> dict[str, object]:
        return await slots(spine.fds, survey)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen, spine)
        nursery.start_soon(survey.run, say)
        await spine.serve({"slots": answer, **counter.handlers()})
