"""Block devices: which is which, what is said of them on the kernel command line, is one in use.

Touches: /sys/class/block, /sys/dev/block, /sys/class/virtio-ports, /proc/cmdline, device nodes.
Never: writes a block device. Reading and writing is done on descriptors with os.pread and os.pwrite.
Fails: OSError where the kernel's folders are missing.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from typing import Final

from organs.kernel import loops

# `dm-mod.create=` of the verity root: ... sha256 ROOTHASH SALT ...
_ROOT_HASH: Final = re.compile(r"sha256 ([0-9a-f]{64}) ")


@dataclass(frozen=True, slots=True)
class CommandLine:
    """What the kernel command line says of the boot. `root_hash` is None where no verity root was made."""

    slot: str | None
    root_hash: str | None
    verified: bool


def command_line(text: str) -> CommandLine:
    """Read the text of /proc/cmdline. Pure."""
    slot = re.search(r"(?:^|\s)spine\.slot=([ab])(?=\s|$)", text)
    table = re.search(r'dm-mod\.create="?spine,[^"]*', text)
    root_hash = _ROOT_HASH.search(table[0]) if table else None
    return CommandLine(
        slot=slot[1] if slot else None,
        root_hash=root_hash[1] if root_hash else None,
        verified=bool(root_hash) and re.search(r"(?:^|\s)root=/dev/dm-0(?=\s|$)", text) is not None,
    )


def read_command_line() -> CommandLine:
    """The command line this kernel was started with."""
    with open("/proc/cmdline", encoding="utf-8", errors="replace") as file:
        return command_line(file.read())


def by_partition_name() -> dict[str, str]:
    """Partition name -> device node, for every GPT partition. The first of two equals wins."""
    found: dict[str, str] = {}
    for folder in sorted(os.listdir("/sys/class/block")):
        with open(f"/sys/class/block/{folder}/uevent", encoding="utf-8", errors="replace") as file:
            facts = dict(line.split("=", 1) for line in file.read().splitlines() if "=" in line)
        if "PARTNAME" in facts and "DEVNAME" in facts:
            found.setdefault(facts["PARTNAME"], f"/dev/{facts['DEVNAME']}")
    return found


def virtio_port(name: str) -> str | None:
    """The node of the virtio-serial port with this name, or None."""
    root = "/sys/class/virtio-ports"
    if not os.path.isdir(root):
        return None
    for port in sorted(os.listdir(root)):
        try:
            with open(f"{root}/{port}/name", encoding="utf-8", errors="replace") as file:
                if file.read().strip() == name:
                    return f"/dev/{port}"
        except FileNotFoundError:
            continue  # a port without a name
    return None


def in_use(device: str) -> bool:
    """Whether something holds the block device for itself: a mount, a device mapper, an exclusive opener."""
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return True
        raise
    return False


def read_only(device: int) -> bool:
    """Whether the kernel lets nobody write to a block device, by its number. Raises OSError."""
    with open(f"{_folder(device)}/ro", encoding="ascii") as file:
        return file.read().strip() == "1"


def made_as(fd: int, device: int) -> str | None:
    """What the maker of a loop or mapped device called it; None for any other device. Raises OSError.

    `fd` is a descriptor of it, `device` its number.
    """
    if os.major(device) == loops.MAJOR:
        return loops.status(fd).name
    try:
        with open(f"{_folder(device)}/dm/name", encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except FileNotFoundError:
        return None


def _folder(device: int) -> str:
    return f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
