"""The attacks on a room, one a row: what is tried, and which rows of docs/threats.md it stands for.

Pure: nothing here runs anything. A row's words are for `attack` (attack.c); what stands in braces is filled
in by the place it is tried in: `controls.py` for the unprotected one, tests/integration/test_attacks.py for a
room. `control` holds other words for the unprotected place, where something must be put in the way first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# What a kernel answers that was built without what is attacked. Nothing else excuses a control.
NOT_BUILT = frozenset({"ENOSYS", "EAFNOSUPPORT", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT", "ENODEV"})
NO_FILE = frozenset({"ENOENT"})
NO_DEVICE = frozenset({"ENXIO", "ENOENT"})


@dataclass(frozen=True)
class Attack:
    """One attack. `escapes` are numbers in the table of docs/threats.md.

    `absent`: the refusals that mean that this kernel has nothing there to be attacked. `needs`: what a ground
    must not be missing for the room to be protected from it. `conceded`: it is reached in a room as well, and
    where a document says so.
    """

    name: str
    words: str
    escapes: tuple[int, ...]
    control: str = ""
    absent: frozenset[str] = frozenset()
    needs: str = ""
    conceded: str = ""


def _processes() -> Iterator[Attack]:
    acts = "seen signal ptrace read memory environ fd root descriptor compare limits"
    for act in acts.split():
        absent = NOT_BUILT if act in ("compare", "read") else frozenset()
        yield Attack(f"process-{act}", f"process-{act} {{victim}}", (18,), absent=absent)
    for kind in ["mnt", "pid", "net", "ipc", "uts", "cgroup"]:
        yield Attack(f"process-setns-{kind}", f"process-setns {{mark}} {kind} {{pids}}", (18,))
        yield Attack(f"own-setns-{kind}", f"own-setns {kind}", (18,))


def _things() -> Iterator[Attack]:
    yield Attack("unix-abstract", "unix-abstract {mark}", (15,))
    yield Attack("unix-path", "unix-path {folder}/{mark}.socket", (15,))
    yield Attack("tcp-loopback", "tcp-loopback {port}", (15,))
    yield Attack("sysv-memory", "sysv-memory {key}", (1,))
    yield Attack("sysv-queue", "sysv-queue {key}", (1,))
    yield Attack("sysv-semaphore", "sysv-semaphore {key}", (1,))
    yield Attack("posix-queue", "posix-queue /{mark}", (1,))
    yield Attack("secret-of-another", "file-read {folder}/{mark}.secret", (1,))
    yield Attack("spine-files", "file {spine}", (1,))


def _namespaces() -> Iterator[Attack]:
    for kind in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time"]:
        yield Attack(f"unshare-{kind}", f"unshare {kind}", (19,), absent=NOT_BUILT)
        if kind != "time":
            yield Attack(f"clone-{kind}", f"clone {kind}", (7, 19))
        yield Attack(f"clone3-{kind}", f"clone3 {kind}", (7,))


def _mounts() -> Iterator[Attack]:
    for kind in ["proc", "tmpfs", "sysfs", "cgroup2", "devpts"]:
        yield Attack(f"mount-{kind}", f"mount {kind}", (13, 19))
    yield Attack("mount-cgroup", "mount cgroup pids", (13,), absent=NOT_BUILT)
    yield Attack("mount-overlay", "mount-overlay", (19,), absent=NOT_BUILT)
    yield Attack("mount-bind", "mount-bind", (19,))
    yield Attack("remount-proc-sys", "remount {covered}", (24,))
    yield Attack("unmount-a-cover", "unmount {covered}", (24,))
    for act in ["pivot-root", "open-tree", "move-mount", "fspick", "mount-setattr"]:
        yield Attack(act, act, (7, 19))
    yield Attack("fsopen", "fsopen tmpfs", (7, 19))
    yield Attack("foreign-mount", "foreign-mount", (1, 14))


def _devices() -> Iterator[Attack]:
    yield Attack("node-of-a-disk", "node b {disks}", (3,), absent=NO_DEVICE)
    yield Attack("node-of-memory", "node c 1:1", (3,), absent=NO_DEVICE)
    yield Attack("node-of-the-log", "node c 1:11", (25,))
    yield Attack("node-of-loop-control", "node c 10:237", (3,), absent=NO_DEVICE)
    for device in ["loop-control", "kmsg", "mem", "kvm", "fuse", "net/tun", "mapper/control"]:
        yield Attack(
            f"device-{device.replace('/', '-')}", f"file-write /dev/{device}", (3,), absent=NO_DEVICE
        )
    yield Attack("foreign-device", "foreign-device", (3,))
    for act in ("cgroup-thaw", "cgroup-leave"):
        yield Attack(act, act, (13, 14), control=f"joined {{cgroup}} {act}")


FAMILIES = {
    "alg": (38, 5, 0),
    "vsock": (40, 1, 0),
    "packet": (17, 3, 0),
    "key": (15, 3, 2),
    "rds": (21, 5, 0),
    "tipc": (30, 5, 0),
    "xdp": (44, 3, 0),
    "smc": (43, 1, 0),
    "kcm": (41, 5, 0),
    "raw": (2, 3, 1),
    "sctp": (2, 1, 132),
    "udplite": (2, 2, 136),
    "l2tp": (2, 2, 115),
    "mptcp": (2, 1, 262),
    "netlink-xfrm": (16, 3, 6),
    "netlink-audit": (16, 3, 9),
    "netlink-netfilter": (16, 3, 12),
    "netlink-uevent": (16, 3, 15),
}


def _networks() -> Iterator[Attack]:
    for name, (family, kind, protocol) in FAMILIES.items():
        row = (16,) if name == "vsock" else (9, 21)
        yield Attack(f"socket-{name}", f"socket {family} {kind} {protocol}", row, absent=NOT_BUILT)
    yield Attack("link-up", "link-up", (19,))
    yield Attack("link-add", "link-add", (19,), absent=frozenset({"EOPNOTSUPP"}))
    yield Attack("filter-change", "filter-change", (19,), absent=NOT_BUILT)
    for layer in ("tls", "espintcp"):
        yield Attack(f"tcp-layer-{layer}", f"tcp-layer {layer}", (21,), absent=NO_FILE)
    yield Attack("udp-layer", "udp-layer", (21,), absent=frozenset({"ENOPROTOOPT"}))
    yield Attack("out-of-band", "out-of-band", (22,), absent=frozenset({"EOPNOTSUPP"}))


def _kernel() -> Iterator[Attack]:
    for act in ["key-add", "key-control", "key-request"]:
        yield Attack(act, act, (17,), absent=NOT_BUILT)
    for act in ["bpf", "perf", "userfaultfd", "handle", "kexec", "kexec-file"]:
        yield Attack(act, act, (25,), absent=NOT_BUILT)
    for act in ["module-load", "module-file", "module-unload"]:
        yield Attack(act, act, (25,), absent=NOT_BUILT)
    yield Attack("io-uring", "io-uring", (20,), absent=NOT_BUILT)
    for act in ["ioperm", "iopl", "clock-set", "time-set", "name-set"]:
        yield Attack(act, act, (25,), absent=NOT_BUILT)
    for act in ["reboot", "swapon", "acct", "fanotify", "modify-ldt"]:
        yield Attack(act, act, (25,), absent=NOT_BUILT)
    yield Attack("kernel-log", "kernel-log", (25,))
    yield Attack("kernel-pointers", "kernel-pointers", (24,), absent=NO_FILE)
    for act in ("type-in", "console-call"):
        yield Attack(act, act, (6,))
        yield Attack(f"{act}-high", f"{act} 1", (6,))
    for line in (13, 21):
        yield Attack(f"line-discipline-{line}", f"line-discipline {line}", (6,), absent=frozenset({"EINVAL"}))
    for act in ("i386", "x32"):
        yield Attack(act, act, (8,), absent=NOT_BUILT | {"SIGSEGV"})


WRITES = {
    "core-pattern": "/proc/sys/kernel/core_pattern",
    "modprobe": "/proc/sys/kernel/modprobe",
    "overcommit": "/proc/sys/vm/overcommit_memory",
    "forwarding": "/proc/sys/net/ipv4/ip_forward",
    "user-namespaces": "/proc/sys/user/max_user_namespaces",
    "binfmt": "/proc/sys/fs/binfmt_misc/register",
    "sysrq": "/proc/sysrq-trigger",
    "irq": "/proc/irq/default_smp_affinity",
    "sys-kernel": "/sys/kernel/rcu_expedited /sys/kernel/uevent_helper",
    "sys-block": "/sys/block/loop0/queue/read_ahead_kb /sys/block/dm-0/queue/read_ahead_kb",
}
READS = {
    "kcore": "/proc/kcore",
    "keys": "/proc/keys",
    "timers": "/proc/timer_list",
    "interrupts": "/proc/interrupts",
    "iomem": "/proc/iomem",
    "slabs": "/proc/slabinfo /sys/kernel/slab/kmalloc-64/objects",
    "allocations": "/proc/vmallocinfo /proc/pagetypeinfo /proc/buddyinfo",
    "partitions": "/proc/partitions /proc/diskstats",
    "modules": "/proc/modules",
    "config": "/proc/config.gz",
    "command-line": "/proc/cmdline",
    "pressure": "/proc/pressure/cpu /proc/pressure/memory",
    "sys-kernel": "/sys/kernel/notes /sys/kernel/vmcoreinfo",
    "sys-block": "/sys/block/loop0/dev /sys/block/vda/dev /sys/block/dm-0/dev",
}


def _files() -> Iterator[Attack]:
    for name, path in WRITES.items():
        # The limits on namespaces are for those with SYS_RESOURCE, which not every host's root has.
        absent = NO_FILE | {"EACCES"} if name == "user-namespaces" else NO_FILE
        yield Attack(f"write-{name}", f"file-write {path}", (24,), absent=absent)
    for name, path in READS.items():
        row = (28,) if name == "pressure" else (24,)
        yield Attack(f"read-{name}", f"file-read {path}", row, absent=NO_FILE | {"EOPNOTSUPP"})
    for counter in ("stat", "loadavg"):
        yield Attack(f"counters-{counter}", f"counters-{counter}", (28,))
    yield Attack("counters-call", "counters-call", (28,), conceded="sysinfo(2)")
    yield Attack("read-kmsg", "kernel-file /proc/kmsg", (24,))


def _own() -> Iterator[Attack]:
    for act in ["capability-raise", "capability-inherit", "capability-bounds"]:
        yield Attack(act, act, (10,))
    for act in ["privileges-new", "unfiltered"]:
        yield Attack(act, act, (10,))
    for act in ["real-time", "priority"]:
        yield Attack(act, act, (27,))
    yield Attack("locked-memory", "locked-memory 33554432", (27,))
    yield Attack("setuid-program", "setuid-program {setuid}", (10,))
    yield Attack("foreign-exe", "foreign-exe", (1,), control="chrooted {jail} foreign-exe")
    yield Attack("foreign-descriptor", "foreign-descriptor", (2,), control="holding / foreign-descriptor")
    yield Attack("outside-here", "outside-here", (2,), control="chrooted {jail} outside-here")
    yield Attack(
        "chroot-escape", "chroot-escape {outside}", (2,), control="chrooted {jail} chroot-escape {outside}"
    )
    yield Attack("many-processes", "many-processes 200", (27,), needs="cgroup.pids")
    yield Attack("many-files", "many-files 10000", (27,))
    yield Attack("much-memory", "much-memory 100663296", (27,), needs="cgroup.memory")
    yield Attack("much-disk", "much-disk 33554432", (27,))


ATTACKS: tuple[Attack, ...] = (
    *_processes(),
    *_things(),
    *_namespaces(),
    *_mounts(),
    *_devices(),
    *_networks(),
    *_kernel(),
    *_files(),
    *_own(),
)


@dataclass(frozen=True)
class Answer:
    """How an attack ended: whether it reached what it was after, and what it or the kernel said."""

    reached: bool
    said: str

    @property
    def error(self) -> str:
        """The error or signal by which it was refused; NOTHING where there was nothing to reach."""
        return "" if self.reached else self.said.split(" ", 1)[0]


class Misused(ValueError):
    """The attack was not made: the test is wrong, not the room."""


def answers(text: str, wanted: int) -> list[Answer]:
    """What `attack each` printed for this many attacks. Raises Misused: each must have been made."""
    found: dict[int, Answer] = {}
    for line in text.splitlines():
        at, _, rest = line.partition(" ")
        kind, _, said = rest.partition(": ")
        if kind not in ("reached", "refused") or not at.isdigit():
            raise Misused(line)
        found[int(at)] = Answer(kind == "reached", said)
    if sorted(found) != list(range(1, wanted + 1)):
        raise Misused(f"{len(found)} answers to {wanted} attacks")
    return [found[at] for at in sorted(found)]
