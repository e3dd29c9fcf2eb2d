"""The switchboard: listening sockets for each pair of organs that may speak, bound once a boot.

A pair that no schema allows has no socket. One that may pass descriptors has a second, on which nothing else
passes. Who may connect is a file permission that the kernel checks; who is speaking is which socket it came
in on. The sockets outlive every organ: callers wait in the backlog while the callee is started again.
Touches: /run/spine/bus.
Never: accepts, reads or writes: the descriptors are for the callees.
Fails: SwitchboardRefused for a file that is not a switchboard; OSError when a socket cannot be made.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from organs import layout
from organs.manifest import Organ

# Calls of a caller whose callee is starting wait here; each organ has one connection to each callee.
BACKLOG: Final = 64
PAIRS_MAX: Final = 256

Pair = tuple[str, str]


class SwitchboardRefused(ValueError):
    """The switchboard file is not one."""


@dataclass(frozen=True, slots=True)
class Switchboard:
    """The (callee, caller) pairs that may speak; `fds`: those of them that may pass descriptors."""

    pairs: tuple[Pair, ...]
    fds: tuple[Pair, ...]


def decode(text: str) -> Switchboard:
    """Read a switchboard file. Raises SwitchboardRefused."""
    try:
        document: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SwitchboardRefused(f"not JSON: {error}") from None
    if not (isinstance(document, dict) and document.keys() == {"pairs", "fds"}):
        raise SwitchboardRefused('must be {"fds": [...], "pairs": [...]}')
    board = Switchboard(_pairs(document["pairs"]), _pairs(document["fds"]))
    if not set(board.fds) <= set(board.pairs):
        raise SwitchboardRefused("a pair may pass descriptors, but not speak")
    return board


def _pairs(pairs: object) -> tuple[Pair, ...]:
    if not isinstance(pairs, list) or len(pairs) > PAIRS_MAX:
        raise SwitchboardRefused(f"not a list of at most {PAIRS_MAX} pairs")
    found: list[Pair] = []
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(name, str) for name in pair)):
            raise SwitchboardRefused(f"{pair!r} is not a pair of names")
        found.append((pair[0], pair[1]))
    if len(set(found)) != len(found):
        raise SwitchboardRefused("a pair stands twice")
    return tuple(found)


def bind(board: Switchboard, organs: Mapping[str, Organ]) -> dict[str, dict[str, socket.socket]]:
    """Bind the sockets of each pair whose ends are both on the bus here: callee -> label -> listener.

    The label is `listen:CALLER`, or `fds:CALLER` for the socket that descriptors come by.
    """
    os.makedirs(layout.BUS, exist_ok=True)
    os.chmod(layout.BUS, 0o711)
    listeners: dict[str, dict[str, socket.socket]] = {name: {} for name in organs}
    speaking = {name for name, organ in organs.items() if organ.bus}
    for callee, caller in board.pairs:
        if callee in speaking and caller in speaking:  # INV-BUILD-1
            gid = organs[caller].gid
            listeners[callee][f"listen:{caller}"] = _listen(layout.bus_socket(callee, caller), gid)
            if (callee, caller) in board.fds:
                path = layout.descriptor_socket(callee, caller)
                listeners[callee][f"fds:{caller}"] = _listen(path, gid, socket.SOCK_SEQPACKET)
    for tapper in (organ for organ in organs.values() if organ.taps):
        for name in sorted(speaking):
            path = layout.bus_socket(name, layout.TAP)
            listeners[name][f"listen:{layout.TAP}"] = _listen(path, tapper.gid)
    return listeners


def _listen(path: str, caller_gid: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    before = os.umask(0o777)  # nobody can connect between the bind and the chmod
    try:
        listener.bind(path)
    finally:
        os.umask(before)
    os.chown(path, 0, caller_gid)
    os.chmod(path, 0o620)  # INV-BUS-20: owned by root, so that no organ can widen it
    listener.listen(BACKLOG)
    return listener
