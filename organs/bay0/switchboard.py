"""The switchboard: one listening socket for each pair of organs that may speak, bound once a boot.

A pair that no schema allows has no socket. Who may connect is a file permission that the kernel checks; who
is speaking is which socket it came in on. The sockets outlive every organ: callers wait in the backlog while
the callee is started again.
Touches: /run/spine/bus.
Never: accepts, reads or writes: the descriptors are for the callees.
Fails: SwitchboardRefused for a file that is not a switchboard; OSError when a socket cannot be made.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from typing import Final

from organs import layout
from organs.manifest import Organ

# Calls of a caller whose callee is starting wait here; each organ has one connection to each callee.
BACKLOG: Final = 64
PAIRS_MAX: Final = 256


class SwitchboardRefused(ValueError):
    """The switchboard file is not one."""


def decode(text: str) -> list[tuple[str, str]]:
    """The (callee, caller) pairs of a switchboard file. Raises SwitchboardRefused."""
    try:
        document: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SwitchboardRefused(f"not JSON: {error}") from None
    pairs = document.get("pairs") if isinstance(document, dict) and document.keys() == {"pairs"} else None
    if not isinstance(pairs, list) or len(pairs) > PAIRS_MAX:
        raise SwitchboardRefused(f'must be {{"pairs": [...]}} with at most {PAIRS_MAX} pairs')
    found: list[tuple[str, str]] = []
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(name, str) for name in pair)):
            raise SwitchboardRefused(f"{pair!r} is not a pair of names")
        found.append((pair[0], pair[1]))
    if len(set(found)) != len(found):
        raise SwitchboardRefused("a pair stands twice")
    return found


def bind(pairs: list[tuple[str, str]], organs: Mapping[str, Organ]) -> dict[str, dict[str, socket.socket]]:
    """Bind a socket for each pair whose ends are both on the bus here: callee -> caller -> listener."""
    os.makedirs(layout.BUS, exist_ok=True)
    os.chmod(layout.BUS, 0o711)
    listeners: dict[str, dict[str, socket.socket]] = {name: {} for name in organs}
    speaking = {name for name, organ in organs.items() if organ.bus}
    for callee, caller in pairs:
        if callee in speaking and caller in speaking:  # INV-BUILD-1
            listeners[callee][caller] = _listen(layout.bus_socket(callee, caller), organs[caller].gid)
    for tapper in (organ for organ in organs.values() if organ.taps):
        for name in sorted(speaking):
            listeners[name][layout.TAP] = _listen(layout.bus_socket(name, layout.TAP), tapper.gid)
    return listeners


def _listen(path: str, caller_gid: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    before = os.umask(0o777)  # nobody can connect between the bind and the chmod
    try:
        listener.bind(path)
    finally:
        os.umask(before)
    os.chown(path, 0, caller_gid)
    os.chmod(path, 0o620)  # INV-BUS-20: owned by root, so that no organ can widen it
    listener.listen(BACKLOG)
    return listener
