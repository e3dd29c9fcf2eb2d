"""What outlives every incarnation: the line between two stanzas, the network namespaces of the manifest.

Made once at boot and kept by PID 1, which hands each incarnation its end again. So a process that is started
anew finds its partner where it was, and a network namespace lives although nobody is in it: were it to end,
its interfaces would fall back to the spine.
Touches: socketpair(2); unshare(2) and setns(2) for a moment, while PID 1 has one thread.
Never: reads or writes a line. What one incarnation left unread in it the next one finds, so the messages on
it carry generations.
Fails: OSError, which ends the boot.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping

from organs.kernel import network
from organs.manifest import Organ


def make(organs: Mapping[str, Organ]) -> dict[str, dict[str, int]]:
    """Name -> what is handed to each incarnation of it: `pair:PARTNER` and `netns:NAME` descriptors."""
    kept: dict[str, dict[str, int]] = {name: {} for name in organs}
    for organ in organs.values():
        if organ.pair is not None:
            one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
            kept[organ.name][f"pair:{organ.pair}"] = one.detach()
            kept[organ.pair][f"pair:{organ.name}"] = other.detach()
        for name in sorted(organ.networks):
            kept[organ.name][f"netns:{name}"] = network.new_namespace()  # INV-NET-2
    return kept
