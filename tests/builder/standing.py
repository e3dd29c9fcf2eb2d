"""A builder in a process of its own, in a mount namespace of its own, with its stanza's powers and filter:
`python standing.py GENERATION LINE [HOMES]`.

LINE is the descriptor of the line, HOMES the directory of the rooms' cgroups.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from organs.builder import organ
from organs.kernel import mounts, privileges, seccomp
from organs.manifest import CAPABILITIES, load

MANIFEST = Path(__file__).resolve().parents[2] / "organs/manifest.toml"


@dataclass
class Place:
    """The runtime as the builder sees it."""

    generation: int
    fds: dict[str, int]
    heartbeat_ms: int = 100
    beats: int = field(default=0)

    def ready(self) -> None:
        """Nobody listens."""

    def beat(self) -> None:
        """End with the test that started us."""
        if os.getppid() == 1:
            os._exit(0)


if __name__ == "__main__":
    mounts.own_namespace()
    stanza = load(str(MANIFEST)).organs["builder"]
    privileges.limit(stanza.nofile_max)
    privileges.drop(0, 0, {CAPABILITIES.index(name) for name in stanza.capabilities})
    seccomp.confine(stanza.syscalls)
    place = Place(int(sys.argv[1]), {organ.PAIR: int(sys.argv[2])})
    if len(sys.argv) > 3:
        organ.main(place, sys.argv[3])
    organ.main(place)
