"""The ground: a machine, or a container on another system's kernel; and what stands on it.

Touches: /run/spine/ground.json, which only a container has; block devices and the operator's port by name.
Never: opens a device that the manifest does not list.
Fails: GroundRefused for a file or a device that is not what it must be.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from organs import layout
from organs.kernel import blocks

# The kernel finds partitions before it mounts the root; names of virtio ports may come a little later.
DEVICES_DEADLINE_MS: Final = 5000
DEVICES_POLL_MS: Final = 10

MACHINE, CONTAINER = "machine", "container"
KEYS: Final = {"kind", "devices", "portFd", "missing", "slot", "rootHash"}


class GroundRefused(ValueError):
    """What we stand on is not what it should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """Where we run. `devices` maps a manifest's names to nodes; `port_fd` replaces the ports' nodes."""

    kind: str
    devices: Mapping[str, str]
    port_fd: int | None
    missing: tuple[str, ...]
    slot: str | None
    root_hash: str | None
    verified: bool
    # What the firmware says of Secure Boot: on, off, unknown. None: there is no firmware of ours.
    secure_boot: str | None = None

    def open(self, name: str, mode: str) -> int:
        """A descriptor of a device for one incarnation of an organ. Raises OSError."""
        if name in layout.PORT_NAMES and self.port_fd is not None:
            return os.dup(self.port_fd)
        flags = os.O_RDWR if mode == "rw" else os.O_RDONLY
        return os.open(self.devices[name], flags | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)


def find(wanted: Iterable[str]) -> Ground:
    """The ground, once all wanted devices are there. Waits a little for late ones. Raises GroundRefused.

    A container may lack a device if it says so in `missing`; its organ then starts without that descriptor.
    """
    wanted = set(wanted)
    try:
        with open(layout.GROUND, encoding="utf-8") as file:
            ground = decode(file.read())
    except FileNotFoundError:
        ground = _machine(wanted)
    if ground.port_fd is not None:
        os.set_inheritable(ground.port_fd, False)
    present = set(ground.devices) | (set(layout.PORT_NAMES) if ground.port_fd is not None else set())
    if absent := wanted - present - set(ground.missing):
        raise GroundRefused(f"there is no device {', '.join(sorted(absent))}")
    return ground


def _machine(wanted: set[str]) -> Ground:
    line = blocks.read_command_line()
    deadline_ns = time.monotonic_ns() + DEVICES_DEADLINE_MS * 1_000_000
    while True:
        devices = blocks.by_partition_name()
        for name, port_name in layout.PORT_NAMES.items():
            if port := blocks.virtio_port(port_name):
                devices[name] = port
        if wanted <= devices.keys() or time.monotonic_ns() > deadline_ns:
            break
        time.sleep(DEVICES_POLL_MS / 1000)
    return Ground(
        kind=MACHINE,
        devices=devices,
        port_fd=None,
        missing=(),
        slot=line.slot,
        root_hash=line.root_hash,
        verified=line.verified,
    )


def decode(text: str) -> Ground:
    """Read a container's ground. Raises GroundRefused."""
    try:
        document: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GroundRefused(f"ground.json is not JSON: {error}") from None
    if not isinstance(document, dict) or document.keys() != KEYS or document["kind"] != CONTAINER:
        raise GroundRefused(f"ground.json must be a container's, with the keys {', '.join(sorted(KEYS))}")
    devices, missing, port_fd = document["devices"], document["missing"], document["portFd"]
    if not isinstance(devices, dict) or not all(_is_node(path) for path in devices.values()):
        raise GroundRefused("ground.json: devices must map names to paths below /dev")
    if not isinstance(missing, list) or not all(isinstance(name, str) for name in missing):
        raise GroundRefused("ground.json: missing must be a list of names")
    if port_fd is not None and (type(port_fd) is not int or port_fd < 3):
        raise GroundRefused("ground.json: portFd must be a descriptor above the standard three, or null")
    slot, root_hash = document["slot"], document["rootHash"]
    return Ground(
        kind=CONTAINER,
        devices={str(name): str(path) for name, path in devices.items()},
        port_fd=port_fd,
        missing=tuple(missing),
        slot=slot if isinstance(slot, str) else None,
        root_hash=root_hash if isinstance(root_hash, str) else None,
        verified=False,  # another kernel's loop device: nobody checks its blocks
    )


def _is_node(path: object) -> bool:
    return isinstance(path, str) and path.startswith("/dev/") and ".." not in path
