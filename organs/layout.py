"""Where things are in the running system: the one list of paths and fixed names.

Decides nothing, touches nothing: each path of the image that two modules must agree on is a constant here.
Kernel interfaces (proc and sys) are not listed: only `organs/kernel/` knows those.
"""

from __future__ import annotations

from typing import Final

NAME: Final = "Alpine-Spine"

# In the verified root, written by the image builder.
BAY0: Final = "/usr/bin/bay0"
PACKAGES: Final = "/usr/lib/python3/dist-packages"
LIBRARY: Final = "/usr/lib/spine"
MANIFEST: Final = f"{LIBRARY}/manifest.toml"
SCHEMAS: Final = f"{LIBRARY}/schemas.cgr"
SWITCHBOARD: Final = f"{LIBRARY}/switchboard.json"
RELEASE_KEY: Final = f"{LIBRARY}/release.pub"
RELEASE: Final = f"{LIBRARY}/release.json"
# The public keys whose personas may be installed, 64 hexadecimal digits a line.
PERSONA_KEYS: Final = f"{LIBRARY}/persona-keys"

# At run time, in memory only.
RUN: Final = "/run/spine"
GROUND: Final = f"{RUN}/ground.json"
ORGANS_JSON: Final = f"{RUN}/organs.json"
PANIC: Final = f"{RUN}/panic"
BUS: Final = f"{RUN}/bus"
LOGS: Final = f"{RUN}/log"

# The only durable place; mounted in one organ's mount namespace and nowhere else.
PERSIST: Final = "/persist"

# GPT partition names, and the name of the virtio-serial port that the host opens.
BOOT_A: Final = "boot-a"
BOOT_B: Final = "boot-b"
SLOT_A: Final = "slot-a"
SLOT_B: Final = "slot-b"
PERSONAS: Final = "personas"
PERSIST_DEVICE: Final = "persist"
PORT: Final = "port"
TAP_PORT: Final = "tap-port"
PORT_NAMES: Final = {PORT: "spine.operator", TAP_PORT: "spine.tap"}

# In the place of a caller: who may watch what an organ sends and receives. No organ has this name.
TAP: Final = "tap"

# The network namespace in which every NIC waits.
PARKING: Final = "parking"

# The part of the cgroup tree that holds the rooms, each under the name of its persona.
ROOMS: Final = "rooms"

# How PID 1 ends in a container. On the machine it ends by reboot(2), or by a kernel panic.
EXIT_POWER_OFF: Final = 0
EXIT_REBOOT: Final = 3
EXIT_PANIC: Final = 70


def bus_socket(callee: str, caller: str) -> str:
    """The path of the listening socket on which `callee` hears `caller` and nobody else."""
    return f"{BUS}/{callee}.{caller}"


def descriptor_socket(callee: str, caller: str) -> str:
    """The path of the socket beside it, where the two pass each other descriptors."""
    return f"{bus_socket(callee, caller)}.fds"
