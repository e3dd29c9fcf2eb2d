"""What an organ may hold, told from its stanza, beside what the kernel says that it holds.

`differences` is the whole comparison; it reads the content of `organs/kernel/inspection.py` and nothing else,
so that the same function judges a container from outside and the machine through its probe.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from organs import layout
from organs.manifest import CAPABILITIES, Organ

Seen = Mapping[str, Mapping[str, object]]

# What the runtime opens for itself: its loop, libzmq's, and their wake-ups.
RUNTIME = ("anon_inode:[eventpoll]", "anon_inode:[eventfd]", "unix")
# Standard input; the log (standard output and error are one pipe) and the status pipe.
STANDARD = {"/dev/null": 1, "pipe": 3}
INERT = {"nosuid", "nodev", "noexec"}


def mask(organ: Organ) -> int:
    """The capabilities of a stanza as the kernel writes a set."""
    return sum(1 << CAPABILITIES.index(name) for name in organ.capabilities)


def differences(
    organ: Organ, seen: Seen, base_mounts: Collection[str], callers: Collection[str]
) -> list[str]:
    """How the process differs from its stanza. `callers`: those that have a socket to it."""
    return [
        *_identity(organ, seen["status"]),
        *_limits(organ, seen["limits"], seen["cgroup"]),
        *_mounts(organ, {at: str(text) for at, text in seen["mounts"].items()}, base_mounts),
        *_descriptors(organ, {kind: int(str(n)) for kind, n in seen["fds"].items()}, callers),
    ]


def _identity(organ: Organ, status: Mapping[str, object]) -> Iterator[str]:
    wanted = {
        "Uid": " ".join([str(organ.uid)] * 4),
        "Gid": " ".join([str(organ.gid)] * 4),
        "Groups": "",
        "CapInh": f"{0:016x}",
        "CapPrm": f"{mask(organ):016x}",
        "CapEff": f"{mask(organ):016x}",
        "CapBnd": f"{mask(organ):016x}",
        "CapAmb": f"{0:016x}",
        "NoNewPrivs": "1",
        "Seccomp": "2",
        "Seccomp_filters": "1",
    }
    for key, value in wanted.items():
        if status[key] != value:
            yield f"{key} is {status[key]!r}, not {value!r}"
    if organ.bus and int(str(status["CapBnd"]), 16) >> CAPABILITIES.index("SYS_ADMIN") & 1:
        yield "SYS_ADMIN in a process that speaks on the bus"


def _limits(organ: Organ, limits: Mapping[str, object], cgroup: Mapping[str, object]) -> Iterator[str]:
    nofile = f"{organ.nofile_max} {organ.nofile_max}"
    for key, value in {"Max open files": nofile, "Max core file size": "0 0"}.items():
        if limits[key] != value:
            yield f"{key} is {limits[key]!r}, not {value!r}"
    # A ground whose kernel lacks a controller says so in organs.json; there is no file then.
    wanted = {
        "memory.max": organ.memory_max,
        "memory.swap.max": 0,
        "pids.max": organ.pids_max,
        "cpu.weight": organ.cpu_weight,
    }
    for key, found in cgroup.items():
        if found != str(wanted[key]):
            yield f"{key} is {found}, not {wanted[key]}"


def _mounts(organ: Organ, mounts: Mapping[str, str], base: Collection[str]) -> Iterator[str]:
    own = {mount.at: mount.type for mount in organ.mounts}
    for at in sorted({*base, *own} - mounts.keys()):
        yield f"nothing is mounted at {at}"
    for at in sorted(mounts.keys() - {*base, *own}):
        yield f"{at} is mounted ({mounts[at]})"
    for at, kind in own.items():
        if at in mounts:
            found, _, options = mounts[at].partition(" ")
            if found != kind or not set(options.split(",")) >= INERT:
                yield f"{at} is {mounts[at]}, not an inert {kind}"
    if not {"ro"} <= set(mounts.get("/", "").partition(" ")[2].split(",")):
        yield f"the root is {mounts.get('/')}, not read-only"


def _descriptors(organ: Organ, fds: Mapping[str, int], callers: Collection[str]) -> Iterator[str]:
    for kind, number in STANDARD.items():
        if fds.get(kind, 0) != number:
            yield f"{fds.get(kind, 0)} descriptors of {kind}, not {number}"
    sockets = {layout.bus_socket(organ.name, caller) for caller in callers}
    listening = {kind.split()[-1] for kind in fds if kind.startswith("unix listening /run/")}
    if listening != sockets:
        yield f"it listens at {sorted(listening)}, not {sorted(sockets)}"
    for kind, number in fds.items():
        if kind not in STANDARD and not _explained(organ, kind, number, sockets):
            yield f"{number} descriptors of {kind}"


def _explained(organ: Organ, kind: str, number: int, sockets: Collection[str]) -> bool:
    openings = [device.name for device in organ.devices for _ in device.openings()]
    ports = [name for name in openings if name in layout.PORT_NAMES]
    blocks = [name for name in openings if name not in layout.PORT_NAMES]
    words = kind.split()
    if words[0] == "unix" and len(words) > 1:
        # A listener of its own and what came in on it; in a container the port is a socket too.
        return words[-1] in sockets or (bool(ports) and not words[-1].startswith(layout.RUN))
    if kind.startswith("/dev/"):
        # One open node for each device of its kind, two where it has it in two modes.
        return number <= (len(ports) if kind.startswith("/dev/vport") else len(blocks))
    return (
        kind in RUNTIME
        or (kind == "netlink" and "netlink" in organ.syscalls)
        or (kind == "net" and number == len(organ.networks))
        or any(kind == m.at or kind.startswith(m.at + "/") for m in organ.mounts)
    )
