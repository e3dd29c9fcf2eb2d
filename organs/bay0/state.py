"""The state file: what bay0 knows of itself and its children, for every organ to read.

Touches: /run/spine/organs.json, replaced whole, so that a reader sees the old one or the new one.
Never: is read by bay0. It writes only when something in it changed.
Fails: OSError, which ends PID 1: without it nobody can know what runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

from organs.bay0.ground import Ground


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildFacts:
    """One child, as others may know it. `since_ms` is CLOCK_MONOTONIC of its last start; `closed`: it lives
    without its data, which are bad."""

    state: str
    pid: int | None
    generation: int
    deaths: int
    since_ms: int
    closed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Which image this is. `built_ms`: what it was made of is from then, in milliseconds since 1970."""

    name: str
    version: str
    image: str
    built_ms: int

    @property
    def development(self) -> bool:
        """Whether the image carries what only developers need."""
        return self.image == "development"


def document(
    release: Release,
    ground: Ground,
    missing: tuple[str, ...],
    healthy: bool,
    zygote: ChildFacts,
    organs: Mapping[str, ChildFacts],
) -> dict[str, object]:
    """The content of the state file."""
    return {
        "boot": {
            "ground": ground.kind,
            "slot": ground.slot,
            "rootHash": ground.root_hash,
            "verified": ground.verified,
            "secureBoot": ground.secure_boot,
            "healthy": healthy,
            "missing": list(missing),
            "version": release.version,
            "image": release.image,
        },
        "zygote": _child(zygote),
        "organs": {name: _child(facts) for name, facts in organs.items()},
    }


def _child(facts: ChildFacts) -> dict[str, object]:
    return {
        "state": facts.state,
        "pid": facts.pid,
        "generation": facts.generation,
        "deaths": facts.deaths,
        "sinceMs": facts.since_ms,
        "closed": facts.closed,
    }


class StateFile:
    """Writes the document where it stands, when it changed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._last = ""

    def write(self, content: Mapping[str, object]) -> bool:
        """Replace the file; whether it had to be."""
        text = json.dumps(content, indent=1) + "\n"
        if text == self._last:
            return False
        fd = os.open(self._path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.fchmod(fd, 0o644)
            os.write(fd, text.encode())
        finally:
            os.close(fd)
        os.replace(self._path + ".new", self._path)
        self._last = text
        return True


def read_release(path: str) -> Release:
    """The release file of the image. Raises OSError, ValueError, KeyError."""
    with open(path, encoding="utf-8") as file:
        facts = json.load(file)
    return Release(
        name=str(facts["name"]),
        version=str(facts["version"]),
        image=str(facts["image"]),
        built_ms=int(facts["built"]) * 1000,
    )
