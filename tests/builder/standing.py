"""A builder in a process of its own, in a mount namespace of its own: `python standing.py GENERATION LINE`.

LINE is the descriptor of the line. What bay0 does besides (powers, filter) is left out.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field

from organs.builder import organ
from organs.kernel import mounts


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
    organ.main(Place(int(sys.argv[1]), {organ.PAIR: int(sys.argv[2])}))
