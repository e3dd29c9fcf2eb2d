"""A process that keeps the pairs in a folder of files, as the organ does, until they are as they should be.

    python -m tests.integrity.keeping FOLDER KEY

It is there to be killed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from organs.integrity import survey
from organs.integrity.pairs import Pairs
from tests.integrity import disks

DONE = "done"


async def keep(folder: Path) -> None:
    """Keep them until they are blessed."""

    def say(sentence: str) -> None:
        print(sentence, flush=True)

    with disks.opened({name: folder / name for name in disks.NAMES}) as fds:
        pairs = Pairs(survey.Survey(fds), "a", say, lambda: say("reboot"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pairs.run)
            pairs.healthy()
            while not pairs.answer()["blessed"]:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    say(DONE)


if __name__ == "__main__":
    survey.KEY = Path(sys.argv[2])
    trio.run(keep, Path(sys.argv[1]))
