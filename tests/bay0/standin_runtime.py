"""Stand-in for `organs/runtime.py` in the tests of bay0: organs without a bus, with a behaviour by name.

bay0 and the zygote are the real ones. What an organ does here shows what bay0 makes of it: one that beats,
one that floods its log, one that never gets ready, one that does not end when asked.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from typing import NoReturn

from organs import layout
from organs.manifest import load


def preload() -> None:
    """Nothing is shared but the interpreter."""


def run(name: str, generation: int, fds: Mapping[str, int], bad: str = "") -> NoReturn:
    """Live as the organ's name says."""
    if bad:
        print(f"{name} lives without its data: {bad}", file=sys.stderr, flush=True)
    elif name == "rotten":
        print(f"{name}: a file is damaged", file=sys.stderr, flush=True)
        os._exit(layout.EXIT_DATA)
    print(f"{name} generation {generation} with {' '.join(sorted(fds))}", file=sys.stderr, flush=True)
    beat_ms = load(layout.MANIFEST).spine.heartbeat_ms
    status = fds["status"]
    if name == "late":
        select.select([], [], [])
    if name == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if name == "forker" and os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        select.select([], [], [])
    poll = select.poll()
    readers: dict[int, Callable[[], None]] = {}
    if "control" in fds:
        control = socket.socket(fileno=fds["control"])
        readers[control.fileno()] = lambda: print(
            f"{name} was told {control.recv(4096).decode()}", file=sys.stderr, flush=True
        )
        if "device:port" in fds:
            port = socket.socket(fileno=fds["device:port"])
            readers[port.fileno()] = lambda: _carry(port, control)
            del readers[control.fileno()]
    if name == "keeper":
        _keep(fds)
    if name == "hasty":
        _keep_and_die(fds)
    for label, fd in fds.items():
        if label.startswith("pair:"):
            pair = socket.socket(fileno=fd)
            readers[pair.fileno()] = lambda pair=pair: print(  # type: ignore[misc]  # a default is a capture
                f"{name} {generation} hears {pair.recv(4096).decode()}", file=sys.stderr, flush=True
            )
            pair.send(f"{name} {generation}".encode())
    for fd in readers:
        poll.register(fd, select.POLLIN)
    os.write(status, b"R")
    while True:
        os.write(status, b"H")
        if name == "flood":
            for _ in range(64):
                os.write(2, b"x" * 1023 + b"\n")
        for fd, _ in poll.poll(0 if name == "flood" else beat_ms):
            readers[fd]()


def _keep(fds: Mapping[str, int]) -> None:
    """Read on in what the incarnation before left, and leave more than bay0 takes."""
    control = socket.socket(fileno=os.dup(fds["control"]))
    known = sorted(label for label in fds if label.startswith("kept:"))
    if not known:
        reader, writer = os.pipe()
        os.write(writer, b"from the first one")
        for number in range(200):
            wish = f'{{"ask": "keep", "label": "pipe{number:03}"}}'.encode()
            while True:
                try:
                    socket.send_fds(control, [wish], [reader])
                    break
                except BlockingIOError:
                    select.select([], [control], [], 1)
        socket.send_fds(control, [b'{"ask": "keep", "label": "two"}'], [reader, writer])
        control.send(b'{"ask": "keep", "label": "none"}')
        control.send(b'{"ask": "drop", "label": "pipe001"}')
        control.send(b'{"ask": "drop", "label": "nothing"}')
        return
    print(f"keeper has {len(known)}: {known[0]} to {known[-1]}", file=sys.stderr)
    print(f"keeper reads {os.read(fds[known[0]], 64).decode()}", file=sys.stderr, flush=True)


def _keep_and_die(fds: Mapping[str, int]) -> None:
    """The first incarnation leaves a hundred descriptors and dies in the same breath."""
    known = [label for label in fds if label.startswith("kept:")]
    if known:
        print(f"hasty has {len(known)}", file=sys.stderr, flush=True)
        return
    control = socket.socket(fileno=os.dup(fds["control"]))
    for number in range(100):
        wish = f'{{"ask": "keep", "label": "pipe{number:03}"}}'.encode()
        socket.send_fds(control, [wish], [fds["status"]])
    os.kill(os.getpid(), signal.SIGKILL)


def _carry(port: socket.socket, control: socket.socket) -> None:
    """One client of the port: a line of JSON to bay0, its answer back."""
    client, _ = port.accept()
    with client, client.makefile("rwb") as file:
        line = file.readline()
        control.send(line)
        if json.loads(line)["ask"] in ("reboot", "poweroff") and b"quiet" not in line:
            return
        readable, _, _ = select.select([control], [], [], 5)
        file.write(control.recv(4096) if readable else b'{"error": "no answer"}')
        file.flush()
