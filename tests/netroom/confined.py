"""netroom with the powers of its stanza and no others: `python -m tests.netroom.confined FDS...`

Run in the namespace that is the spine's, with descriptors of the parking, of a rtnetlink socket in it, and of
a room as connect takes them. Drops and confines itself as the manifest says, then runs the organ's own
`main`, connects the room, cuts it, connects it again, and prints one JSON line for each. With `--powerless`
in front it drops all capabilities; with `--time` it goes on until it has proposed what time it is, and prints
that.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import trio

from bus.envelope import Failure
from bus.server import Events
from bus.wire import Schemas
from organs.kernel import privileges, seccomp
from organs.manifest import CAPABILITIES, load
from organs.netroom import organ
from tests.bus.wiring import own_schemas

ROOT = Path(__file__).resolve().parents[2]
STANZA = load(str(ROOT / "organs/manifest.toml")).organs["netroom"]


class Given:
    """A call with descriptors."""

    def __init__(self, fds: list[int]) -> None:
        self.fds = tuple(fds)


class Standing:
    """The runtime, with somebody who calls."""

    def __init__(self, schemas: Schemas, parking: int, route: int, room: list[int], *, timed: bool) -> None:
        self.schemas, self._timed = schemas, timed
        self._proposed = trio.Event()
        self.fds = {"netns:parking": parking, "netlink:parking": route}
        self._room = room

    async def serve(self, handlers: Mapping[str, organ.Handler], _events: Events) -> None:
        """Call, say what was answered, and end."""
        for method, fds in (("connect", self._room), ("cut", self._room[:2]), ("connect", self._room)):
            try:
                asked: dict[str, object] = {"room": "linda", "inbound": [80]}
                answer: object = await handlers[method](Given(fds), asked)
            except Failure as failure:
                answer = failure.code.name
            print(json.dumps(answer), flush=True)
        if self._timed:
            await self._proposed.wait()
        os._exit(0)

    async def request(self, message: Mapping[str, object]) -> dict[str, object]:
        """As bay0 answers where it has no clock."""
        print(json.dumps(message), flush=True)
        self._proposed.set()
        return {"error": organ.NO_CLOCK}


def main(words: list[str]) -> None:
    """Drop, confine, serve."""
    powerless, timed = words[0] == "--powerless", words[0] == "--time"
    parking, route, *room = map(int, words[powerless or timed :])
    # What the zygote has loaded and imported before it forks.
    schemas = own_schemas()
    trio.run(trio.sleep, 0)
    held = () if powerless else STANZA.capabilities
    privileges.limit(STANZA.nofile_max)
    privileges.drop(STANZA.uid, STANZA.gid, {CAPABILITIES.index(name) for name in held})
    seccomp.confine(STANZA.syscalls)
    trio.run(organ.main, Standing(schemas, parking, route, room, timed=timed))


if __name__ == "__main__":
    main(sys.argv[1:])
