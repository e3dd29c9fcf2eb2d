"""Reads both slots and their boot volumes once, side by side, and keeps what is said of each.

Each is read in a thread of its own while the organ beats and answers; `rows` gives what is known so far. What
is found is judged by `organs/integrity/verify.py` and `organs/integrity/esp.py`.

Touches: the descriptors of the four devices, to read; the release key in the root.
Never: writes, waits for one device before it reads another, repairs. A thread that hangs in a device holds up
nothing but its own verdict.
Fails: it does not; a device that is not there or cannot be read, and a key that is not there, are verdicts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

import trio

from organs import layout
from organs.integrity import carried, ed25519, esp, examine, fat
from organs.integrity.reading import Raw
from organs.integrity.verify import Judged, Verdict, judge

KEY = Path(layout.RELEASE_KEY)
# The letter by which a slot's program on its boot volume is named.
SLOTS: Final = {layout.SLOT_A: "a", layout.SLOT_B: "b"}
BOOTS: Final = {layout.BOOT_A: "a", layout.BOOT_B: "b"}
NAMES: Final = (*SLOTS, *BOOTS)
# An answer names this many places; what differs everywhere is not made clearer by more.
DIFFERS_MAX: Final = 16
DETAIL_CHARACTERS_MAX: Final = 400

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What is said of a slot or a boot volume. `how` it was read is empty until it was; `files` are those
    that a verified slot carries for the boot volume of each letter."""

    judged: Judged
    how: str = ""
    files: Mapping[str, tuple[esp.File, ...]] | None = None


PENDING: Final = Checked(judged=Judged(Verdict.PENDING))


def release_key() -> bytes:
    """The key that slots are signed with, as the root has it. Raises OSError, ValueError."""
    key = bytes.fromhex(KEY.read_text(encoding="ascii"))
    if len(key) != ed25519.KEY_BYTES:
        raise ValueError(f"{KEY} has {len(key)} bytes")
    return key


def look_at_slot(fd: int, key: bytes) -> Checked:
    """Read a slot to its end and judge it."""
    try:
        raw = Raw(fd, direct=True)
        judged = judge(examine.examine(raw.read, raw.size, key))
        files = None
        if judged.verdict is Verdict.VERIFIED:
            files = carried.files(raw.read, raw.size, key, tuple(BOOTS.values()))
    except (examine.Unsigned, examine.Short, fat.BadVolume) as error:
        # Every part is as it was signed, and does not fit together.
        judged = Judged(Verdict.UNSIGNED, detail=f"what it carries for the boot volumes: {error}")
    except OSError as error:  # INV-SLOT-9
        return Checked(judged=Judged(Verdict.UNREADABLE, detail=str(error)))
    return Checked(judged=judged, how=raw.how, files=files)


def look_at_boot(fd: int) -> tuple[esp.Seen, str]:
    """Read every file of a boot volume; what is there, and how it was read.

    Not with O_DIRECT: that is a flag of the open file, which the patch of the boot counter uses as well, with
    memory that is not aligned.
    """
    try:
        raw = Raw(fd, direct=False)
        try:
            volume, nodes = fat.tree(raw.read)
            files = tuple(esp.File(node.path, _digest(raw, volume, node)) for node in nodes)
        except fat.BadVolume as error:
            return esp.Seen(no_volume=str(error)), raw.how
        return esp.Seen(files=files), raw.how
    except OSError as error:  # INV-SLOT-9
        return esp.Seen(unreadable=str(error)), ""


def _digest(raw: Raw, volume: fat.Volume, node: fat.Node) -> str:
    if node.directory:
        return esp.DIRECTORY
    total = sha256()
    try:
        for at, length in fat.stretches(raw.read, volume, node):
            total.update(examine.exactly(raw.read, at, length))
    except (fat.BadVolume, examine.Short):
        return esp.BROKEN
    return total.hexdigest()


class Survey:
    """The four devices by name, and what is said of each."""

    def __init__(self, fds: Mapping[str, int]) -> None:
        self._fds = {name: fd for name in NAMES if (fd := fds.get(f"device:{name}")) is not None}
        self._found = dict.fromkeys(NAMES, PENDING)

    def rows(self) -> list[dict[str, object]]:
        """What is said so far, as `integrity.slots` answers it: the slots, then the boot volumes."""
        return [
            {
                "name": name,
                "verdict": checked.judged.verdict.value,
                "detail": checked.judged.detail[:DETAIL_CHARACTERS_MAX],
                "differs": checked.judged.parts[:DIFFERS_MAX],
                "how": checked.how,
            }
            for name, checked in self._found.items()
        ]

    async def run(self, say: Say) -> None:
        """Read all there is and say each verdict once."""
        try:
            key: bytes | str = release_key()
        except (OSError, ValueError) as error:
            key = f"there is no release key: {error}"
        seen: dict[str, tuple[esp.Seen, str]] = {}

        async def slot(name: str) -> None:
            if name not in self._fds:
                checked = _absent(name)
            elif isinstance(key, str):
                checked = Checked(judged=Judged(Verdict.UNSIGNED, detail=key))
            else:
                checked = await trio.to_thread.run_sync(
                    look_at_slot, self._fds[name], key, abandon_on_cancel=True
                )
            self._settle(name, checked, say)

        async def volume(name: str) -> None:
            if name in self._fds:
                seen[name] = await trio.to_thread.run_sync(
                    look_at_boot, self._fds[name], abandon_on_cancel=True
                )

        async with trio.open_nursery() as nursery:
            for name in SLOTS:
                nursery.start_soon(slot, name)
            for name in BOOTS:
                nursery.start_soon(volume, name)
        for name, letter in BOOTS.items():
            if name not in seen:
                self._settle(name, _absent(name), say)
                continue
            listing, how = seen[name]
            known = {slot: files[letter] for row, slot in SLOTS.items() if (files := self._found[row].files)}
            self._settle(name, Checked(judged=esp.judge(listing, known), how=how), say)

    def _settle(self, name: str, checked: Checked, say: Say) -> None:
        self._found[name] = checked
        judged = checked.judged
        why = f": {judged.detail[:DETAIL_CHARACTERS_MAX]}" if judged.detail else ""
        how = f" (read {checked.how})" if checked.how else ""
        say(f"{name} is {judged.verdict.value}{why}{how}")


def _absent(name: str) -> Checked:
    return Checked(judged=Judged(Verdict.UNREADABLE, detail=f"there is no device {name} here"))
