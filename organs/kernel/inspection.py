"""Inspection: which powers a process has, how the kernel is set. For tests; production does not carry this.

Touches: /proc/PID and the process' cgroup, /proc/sys, to read.
Never: believes what a process says of itself.
Fails: FileNotFoundError or ProcessLookupError when the process is gone.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Final

from organs.kernel import cgroups

STATUS: Final = (
    *("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"),
    *("NoNewPrivs", "Seccomp", "Seccomp_filters"),
)
LIMITS: Final = ("Max open files", "Max core file size")
CGROUP_LIMITS: Final = ("memory.max", "memory.swap.max", "pids.max", "cpu.weight")
# __SO_ACCEPTCON of linux/net.h, as /proc/net/unix shows it.
LISTENING: Final = 0x10000
# What a kernel is asked for: the settings that are recommended and that this one may have.
SETTINGS: Final = (
    *("dev.tty.ldisc_autoload", "dev.tty.legacy_tiocsti"),
    *(
        "fs.protected_fifos",
        "fs.protected_hardlinks",
        "fs.protected_regular",
        "fs.protected_symlinks",
        "fs.suid_dumpable",
    ),
    *(
        "kernel.dmesg_restrict",
        "kernel.kptr_restrict",
        "kernel.panic_on_oops",
        "kernel.perf_event_paranoid",
        "kernel.randomize_va_space",
        "kernel.unprivileged_bpf_disabled",
        "kernel.warn_limit",
        "kernel.yama.ptrace_scope",
    ),
    *(
        "net.core.bpf_jit_harden",
        "net.ipv4.conf.all.accept_redirects",
        "net.ipv4.conf.all.accept_source_route",
        "net.ipv4.conf.default.accept_redirects",
        "net.ipv4.conf.default.accept_source_route",
        "net.ipv4.icmp_echo_ignore_broadcasts",
        "net.ipv4.icmp_ignore_bogus_error_responses",
        "net.ipv4.tcp_syncookies",
    ),
    *("vm.mmap_min_addr", "vm.mmap_rnd_bits"),
)


def inspect(pid: int, cgroup_root: str = cgroups.ROOT) -> dict[str, dict[str, str | int]]:
    """Ids, capabilities, limits, descriptors by kind (with their number), mounts. Raises OSError."""
    folder = f"/proc/{pid}"
    status = dict(_fields(_read(f"{folder}/status")))
    limits = _read(f"{folder}/limits").splitlines()
    return {
        "status": {key: " ".join(status.get(key, "").split()) for key in STATUS},
        "limits": {
            key: " ".join(line.removeprefix(key).split()[:2])
            for key in LIMITS
            for line in limits
            if line.startswith(key)
        },
        "fds": dict(Counter(_kinds(pid))),
        "mounts": dict(_mounts(_read(f"{folder}/mountinfo"))),
        "cgroup": dict(_cgroup(_read(f"{folder}/cgroup"), cgroup_root)),
    }


def settings() -> dict[str, str | None]:
    """Each setting of this kernel; None for one that it does not have or does not tell. Raises nothing."""
    found: dict[str, str | None] = {}
    for name in SETTINGS:
        try:
            found[name] = _read(f"/proc/sys/{name.replace('.', '/')}").strip()
        except OSError:
            found[name] = None
    return found


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _fields(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        key, _, value = line.partition(":")
        yield key, value


def _mounts(text: str) -> Iterator[tuple[str, str]]:
    """Mount point -> type and options of the mount."""
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        yield fields[4], f"{after.split()[0]} {fields[5]}"


def _cgroup(text: str, root: str) -> Iterator[tuple[str, str]]:
    """The limits of the process' cgroup, those that there are."""
    for line in text.splitlines():
        if line.startswith("0::"):
            for name in CGROUP_LIMITS:
                path = f"{root}{line[3:]}/{name}"
                if os.path.exists(path):
                    yield name, _read(path).strip()


def _kinds(pid: int) -> Iterator[str]:
    """One word for each open descriptor: where it leads."""
    sockets = dict(_unix_sockets(_read(f"/proc/{pid}/net/unix")))
    for fd in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{fd}"
        try:
            link = os.readlink(path)
            kind, _, number = link.partition(":[")
            if kind == "socket":
                # The kernel's name of the protocol; "UNIX" and "UNIX-STREAM" are one family.
                name = os.getxattr(path, "system.sockprotoname").rstrip(b"\0").decode()
                yield sockets.get(number.rstrip("]"), "unix") if name.startswith("UNIX") else name.lower()
            else:
                yield link if kind == "anon_inode" or not number else kind
        except FileNotFoundError:
            continue  # closed since it was listed


def _unix_sockets(text: str) -> Iterator[tuple[str, str]]:
    """Inode -> what kind of Unix socket it is, and the path it is bound to."""
    for line in text.splitlines()[1:]:
        fields = line.split()
        kind = "unix listening" if int(fields[3], 16) & LISTENING else "unix"
        yield fields[6], " ".join([kind, *fields[7:8]])
