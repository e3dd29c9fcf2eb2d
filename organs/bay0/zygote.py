"""The zygote: a warm interpreter that becomes the organs.

It imports what all organs share once, then forks for each start: milliseconds instead of a fresh interpreter,
and one copy of the libraries' memory. Each child is bay0's child, born in its own cgroup; it takes its mounts
and its sockets in other namespaces, and gives up its powers before it runs a line of its organ.
Touches: clone3, and in the child: mounts, limits, ids, capabilities, descriptors.
Never: opens a socket, starts a thread, decides; it makes what bay0 asks for, with the powers of the manifest.
Fails: a clone that the kernel refuses is answered. Anything else ends the process; bay0 starts a new one and
the organs live on. A child that cannot drop its powers ends with 111 before it is an organ; one whose file
system cannot be what was written there ends with EXIT_DATA, which is no fault of the slot.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import sys
import time
from collections.abc import Mapping
from typing import Final, NoReturn

from organs import faults, layout, runtime
from organs.bay0.request import (
    CGROUP,
    DATAGRAM_BYTES_MAX,
    DESCRIPTORS_MAX,
    STDERR,
    Made,
    Request,
    decode_request,
)
from organs.kernel import mounts, network, privileges, processes, rights, seccomp
from organs.manifest import CAPABILITIES, Organ, load
from organs.pulse import until_beat_ms

# The descriptors bay0 starts us with, besides the standard three.
SOCKET_FD: Final = 3
STATUS_FD: Final = 4
EXIT_KERNEL: Final = 111
# The file system says itself what the kernel does when it finds damage, and one of its answers is a panic,
# which would burn a try of a slot for each boot. What it says is overruled.
ON_DAMAGE: Final = "errors=remount-ro"
# What making an organ takes: its mounts and namespaces, the owner of its store, its ids and sets.
OWN_CAPABILITIES: Final = frozenset({"SYS_ADMIN", "CHOWN", "FOWNER", "SETUID", "SETGID", "SETPCAP"})


def main() -> NoReturn:
    """Warm up, say so, then make organs until bay0 closes its end.

    The first one starts before bay0 (`organs/bay0/ahead.py`): it finds nothing mounted but the root until it
    is asked for an organ, and nobody has set its mask.
    """
    os.umask(0o022)
    manifest = load(layout.MANIFEST)
    processes.rename("zygote")
    privileges.allow_descriptors(max(organ.nofile_max for organ in manifest.organs.values()))
    granted = OWN_CAPABILITIES.union(*(organ.capabilities for organ in manifest.organs.values()))
    privileges.narrow({CAPABILITIES.index(name) for name in granted})  # INV-PRIV-4
    runtime.preload()
    for organ in manifest.organs.values():
        # For each incarnation it would be a tenth of all that it does until it answers.
        seccomp.prepared(organ.syscalls)
    processes.keep_freed()
    # What is imported now is never garbage: without this, a collection in a child would touch, and so copy,
    # every page that is shared with it. Nor is it looked through for garbage first: that takes a tenth of all
    # that is done here, and what it would free is less than what the holes cost later.
    gc.freeze()
    # Of nothing: it ends the time of imports, when nobody looks (spine-image/root/sitecustomize.py).
    # A full one would give back the spare parts that the interpreter keeps, and leave holes again.
    gc.collect(0)
    bay0 = socket.socket(fileno=SOCKET_FD)
    readable = select.poll()
    readable.register(SOCKET_FD, select.POLLIN)
    os.write(STATUS_FD, b"R")
    while True:
        if readable.poll(until_beat_ms(time.monotonic_ns(), manifest.spine.heartbeat_ms)):
            datagram, fds, _ = rights.receive(bay0, DATAGRAM_BYTES_MAX, DESCRIPTORS_MAX)
            if not datagram:
                os._exit(0)
            request = decode_request(datagram)
            made, pidfds = _make(request, manifest.organs[request.organ], fds)
            socket.send_fds(bay0, [made.encode()], pidfds)
            for fd in (*fds, *pidfds):
                os.close(fd)
        os.write(STATUS_FD, b"H")


def _make(request: Request, organ: Organ, fds: list[int]) -> tuple[Made, list[int]]:
    """Fork the incarnation; in the child this does not return."""
    named = dict(zip(request.fds, fds, strict=True))
    try:
        pid, pidfd = processes.clone(named.pop(CGROUP), sibling=True)
    except OSError as error:
        return Made(pid=None, error=str(error)), []
    if pid == 0:
        _become(request, organ, named)
    return Made(pid=pid, error=""), [pidfd]


def _become(request: Request, organ: Organ, fds: dict[str, int]) -> NoReturn:
    """The child: from root with the zygote's descriptors to an organ with its stanza's powers."""
    stderr = fds.pop(STDERR)
    os.dup2(stderr, 1)
    os.dup2(stderr, 2)
    try:
        try:
            _take_mounts(request, organ)
        except OSError as error:
            if not faults.of_mount(error):
                raise
            print(f"{organ.name}: {error}", file=sys.stderr, flush=True)
            os._exit(layout.EXIT_DATA)  # INV-STATE-3
        for name in organ.networks:
            fds[f"netlink:{name}"] = network.netlink_in(fds[f"netns:{name}"])
        _give_up(organ, fds)
    except OSError as error:
        print(f"{organ.name}: {error}", file=sys.stderr, flush=True)
        os._exit(EXIT_KERNEL)
    runtime.run(organ.name, request.generation, fds, request.bad)


def _take_mounts(request: Request, organ: Organ) -> None:
    """A mount namespace of its own, with what the manifest mounts there: no other organ sees it."""
    mounts.own_namespace()  # INV-STATE-1
    for mounting in request.mounts:
        flags = mounts.INERT | mounts.MS_NOATIME
        mounts.mount(mounting.source, mounting.at, mounting.type, flags, ON_DAMAGE)  # INV-STATE-5
        os.chown(mounting.at, organ.uid, organ.gid)
        os.chmod(mounting.at, 0o700)


def _give_up(organ: Organ, fds: Mapping[str, int]) -> None:
    """Every power that is not in the stanza. Nothing of the organ has run yet, and there is one thread."""
    os.setsid()
    os.chdir("/")
    processes.rename(organ.name)
    privileges.limit(organ.nofile_max)
    privileges.close_all_but({0, 1, 2, *fds.values()})
    privileges.drop(organ.uid, organ.gid, {CAPABILITIES.index(name) for name in organ.capabilities})
    # Last, because each step above needs a call that it refuses.
    seccomp.confine(organ.syscalls)  # INV-PRIV-2


if __name__ == "__main__":
    main()
