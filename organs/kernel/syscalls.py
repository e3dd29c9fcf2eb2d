"""Which system calls an organ may make: the table behind `syscalls = [...]` in the manifest.

Calls are grouped by purpose. What no group of a stanza grants is refused, in one of three ways: the dangerous
ones end the process at once, without a chance to look at the refusal (ABRUPT); a few are answered as the
kernel itself would answer, because a library then goes another way that is as good; all others end the
process after it has said which call it was (`organs/kernel/seccomp.py`). An odd answer in a place that nobody
tried is worse than a death, since a death loses nothing that was acknowledged.

Pure: values, and what they mean together. `organs/kernel/bpf.py` makes the kernel's program of them.
Never: looks behind a pointer; what lies in memory may change between the look and the call.
Fails: KeyError for the name of a group that is not there; the manifest's decoder has refused it before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from organs.kernel.numbers import NUMBERS
from organs.kernel.roomcalls import ALLOWED, LOOKED_AT, NOT_THERE

# Stands for the id of the process that the program is made for.
SELF: Final = -1
ALL_BITS: Final = 0xFFFF_FFFF

# asm-generic/errno-base.h, errno.h
EPERM, EACCES, EINVAL, ENOTTY, ENOSYS = 1, 13, 22, 25, 38
ENOPROTOOPT, EOPNOTSUPP, EAFNOSUPPORT = 92, 95, 97
# asm-generic/mman-common.h
PROT_EXEC: Final = 0x4
# linux/sched.h: VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, SETTLS, PARENT_SETTID, CHILD_CLEARTID: a thread and
# nothing else. DETACHED has had no meaning for twenty years; some C libraries still set it.
THREAD_FLAGS: Final = 0x003D_0F00
CLONE_DETACHED: Final = 0x0040_0000
# asm-generic/fcntl.h: the two bits of the access mode, and what makes or empties a file.
O_ACCMODE, O_CREAT, O_TRUNC, O_TMPFILE = 0x3, 0x40, 0x200, 0x40_0000
F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL = 0, 1, 2, 3, 4
F_GETLK, F_SETLK, F_SETLKW, F_SETOWN, F_GETOWN = 5, 6, 7, 8, 9
F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW, F_DUPFD_CLOEXEC = 36, 37, 38, 1030
# asm-generic/ioctls.h; TCGETS is how a library asks whether a descriptor is a terminal.
TCGETS, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX = 0x5401, 0x541B, 0x5421, 0x5450, 0x5451
# linux/pidfd.h: which cgroup a peer is in.
PIDFD_GET_INFO: Final = 0xC040_FF0B
# linux/prctl.h
PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME, PR_SET_VMA = 3, 15, 16, 0x5356_4D41
# linux/socket.h, linux/netlink.h
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
MSG_OOB: Final = 0x1
_FLAGS_THIRD: Final = "sendmsg recvmsg"
_FLAGS_FOURTH: Final = "sendto recvfrom sendmmsg recvmmsg"
# linux/in.h: the protocols of the internet that programs speak: whatever fits, ICMP, TCP, UDP, ICMPv6. Not
# SCTP, DCCP, MPTCP, UDP-Lite, L2TP: each a door into code that nothing here needs.
IPPROTOS: Final = (0, 1, 6, 17, 58)
# linux/tcp.h, linux/udp.h: another protocol inside TCP or UDP, by which page cache was written (ESP).
SOL_TCP, TCP_ULP, SOL_UDP, UDP_ENCAP = 6, 31, 17, 100
# asm-generic/ioctls.h: putting input into a terminal, selecting on a screen, loading a line discipline.
TIOCSTI, TIOCLINUX, TIOCSETD = 0x5412, 0x541C, 0x5423
# linux/sched.h: every CLONE_NEW flag; for clone less NEWTIME, whose bit is there a part of the exit signal.
NEW_NAMESPACES: Final = 0x7E02_0000
NEW_TIME: Final = 0x80
# linux/personality.h: to ask, and the ordinary one.
PERSONALITIES: Final = (0, 0xFFFF_FFFF)
# linux/keyctl.h
KEYCTL_JOIN_SESSION_KEYRING: Final = 1


@dataclass(frozen=True, slots=True)
class Check:
    """The low half of an argument, cut with `mask`, is one of `values`; `wide`: and the high half is zero.

    The low half is enough where the kernel takes an int, or looks at those bits only. `other`: it is none of
    `values`.
    """

    argument: int
    values: tuple[int, ...]
    mask: int = ALL_BITS
    wide: bool = False
    other: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """One call: granted when all `checks` hold (None: never).

    Else it is refused: with an error number, or (None) by death.
    """

    name: str
    checks: tuple[Check, ...] | None = ()
    refusal: int | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Calls that serve one purpose.

    `rest`: with this group, a call that no group names is not a death but this error.
    """

    purpose: str
    rules: tuple[Rule, ...]
    rest: int | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """What several groups say of one call together: granted when all checks of one alternative hold."""

    alternatives: tuple[tuple[Check, ...], ...]
    refusal: int | None

    @property
    def always(self) -> bool:
        """Whether no argument matters."""
        return () in self.alternatives


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _calls(names: str) -> tuple[Rule, ...]:
    return tuple(Rule(name) for name in _names(names))


def _refused(names: Iterable[str], error: int) -> tuple[Rule, ...]:
    return tuple(Rule(name, None, error) for name in names)


def _room_refuses() -> tuple[Rule, ...]:
    """What the table of a room does not grant, each with its answer."""
    granted = {*_names(ALLOWED), *_names(LOOKED_AT)}
    absent = _names(NOT_THERE)
    forbidden = [name for name in NUMBERS if name not in granted and name not in absent]
    return (*_refused(absent, ENOSYS), *_refused(forbidden, EPERM))


GROUPS: Final[Mapping[str, Group]] = {
    "base": Group(
        "to live and to end: signals of its own, its own ids and limits, randomness",
        (
            *_calls("exit exit_group restart_syscall rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack"),
            *_calls("rt_sigpending rt_sigtimedwait getpid getppid gettid getuid geteuid getgid getegid"),
            *_calls("getresuid getresgid getgroups getpgrp getpgid getsid uname getrandom getcpu sysinfo"),
            *_calls("getrusage times getrlimit"),
            # abort() and raise() end here. No signal to any other process.
            Rule("tgkill", (Check(0, (SELF,)),)),
            # Limits can be read. Setting one is refused as the kernel refuses it.
            Rule("prlimit64", (Check(0, (0, SELF)), Check(2, (0,), wide=True)), EPERM),
            Rule("prctl", (Check(0, (PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME, PR_SET_VMA)),)),
        ),
    ),
    "memory": Group(
        "memory to work with, none of it with new code: a late import of a library fails",
        (
            *_calls("brk munmap mremap madvise mincore membarrier mlock munlock msync"),
            Rule("mmap", (Check(2, (0,), PROT_EXEC),), EACCES),
            Rule("mprotect", (Check(2, (0,), PROT_EXEC),), EACCES),
        ),
    ),
    "threads": Group(
        "threads of this process; no process is made",
        (
            Rule("clone", (Check(0, (THREAD_FLAGS,), ALL_BITS & ~CLONE_DETACHED, wide=True),)),
            # Its flags lie in memory. glibc takes clone when it is not there.
            Rule("clone3", None, ENOSYS),
            *_calls("futex futex_waitv set_robust_list get_robust_list set_tid_address rseq"),
            # libzmq states the scheduling of its threads, which changes nothing without a capability.
            *_calls("sched_yield sched_getaffinity sched_getparam sched_getscheduler sched_setscheduler"),
            *_calls("sched_get_priority_max sched_get_priority_min"),
        ),
    ),
    "clock": Group(
        "to tell the time and to sleep, where the kernel is asked for it",
        _calls("clock_gettime clock_getres clock_nanosleep gettimeofday time nanosleep"),
    ),
    "wait": Group(
        "to wait for descriptors, and to wake a thread that does",
        (
            *_calls("poll ppoll select pselect6 epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2"),
            *_calls("eventfd2 pipe2 timerfd_create timerfd_settime timerfd_gettime"),
        ),
    ),
    "descriptors": Group(
        "to use a descriptor, whatever it leads to",
        (
            *_calls("read write readv writev close close_range dup dup2 dup3 fstat lseek"),
            Rule("fcntl", (Check(1, (F_DUPFD, F_DUPFD_CLOEXEC, F_GETFD, F_SETFD, F_GETFL, F_SETFL)),)),
            # Any other request is answered as by a file that is no such device.
            Rule("ioctl", (Check(1, (TCGETS, FIONREAD, FIONBIO, FIOCLEX, FIONCLEX)),), ENOTTY),
        ),
    ),
    "bus": Group(
        "Unix sockets: handed over, or connected where the file's mode allows; who is at the other end",
        (
            Rule("socket", (Check(0, (AF_UNIX,)),)),
            Rule("socketpair", (Check(0, (AF_UNIX,)),)),
            *_calls("connect accept accept4 getsockname getpeername getsockopt setsockopt shutdown"),
            *_calls("sendto sendmsg sendmmsg recvfrom recvmsg recvmmsg"),
            Rule("ioctl", (Check(1, (PIDFD_GET_INFO,)),), ENOTTY),
        ),
    ),
    "files-read": Group(
        "to read files by path: the state of the spine, modules, time zones",
        (
            # Opening for writing is refused as by the mode of the file.
            Rule("open", (Check(1, (0,), O_ACCMODE | O_CREAT | O_TRUNC | O_TMPFILE),), EACCES),
            Rule("openat", (Check(2, (0,), O_ACCMODE | O_CREAT | O_TRUNC | O_TMPFILE),), EACCES),
            *_calls("stat lstat newfstatat statx access faccessat faccessat2 readlink readlinkat getcwd"),
            *_calls("getdents64 pread64 preadv preadv2 readahead fadvise64 statfs fstatfs"),
        ),
    ),
    "files-write": Group(
        "to make, change and remove files, durably and under locks",
        (
            *_calls(
                "open openat pwrite64 pwritev pwritev2 ftruncate fallocate fsync fdatasync sync_file_range"
            ),
            *_calls("rename renameat renameat2 unlink unlinkat mkdir mkdirat rmdir link linkat"),
            *_calls("chmod fchmod fchmodat fchown utimensat umask flock"),
            Rule("fcntl", (Check(1, (F_GETLK, F_SETLK, F_SETLKW, F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW)),)),
        ),
    ),
    "cgroups": Group(
        "to make and remove cgroups, to write to the files that the kernel puts there, to note things there;"
        " no file is made",
        (
            Rule("openat", (Check(2, (0,), O_CREAT | O_TRUNC | O_TMPFILE),), EACCES),
            *_calls("mkdir rmdir setxattr getxattr listxattr"),
        ),
    ),
    "handed-files": Group(
        "to shorten a file that was handed over open; writing to it is a use of its descriptor",
        _calls("ftruncate"),
    ),
    "device-write": Group(
        "to write durably to a device that was handed over open",
        _calls("pwrite64 pwritev pwritev2 fsync fdatasync"),
    ),
    "device-signals": Group(
        "to be sent a signal when the far end of a port comes or goes",
        (Rule("fcntl", (Check(1, (F_SETOWN, F_GETOWN)),)),),
    ),
    "netlink": Group(
        "to ask which network interfaces there are; to change one needs a capability besides",
        (
            Rule("socket", (Check(0, (AF_NETLINK,)), Check(2, (NETLINK_ROUTE,)))),
            *_calls("bind"),
        ),
    ),
    "children": Group(
        "to make processes and run programs in them; not for what speaks on the bus",
        (
            *_calls("clone clone3 vfork execve execveat wait4 waitid kill tgkill setsid setpgid"),
            *_calls("pidfd_open pidfd_send_signal pidfd_getfd memfd_create"),
        ),
    ),
    "rooms": Group(
        "to make namespaces, mounts, devices and owners for a room; not for what speaks on the bus",
        (
            *_calls("unshare setns mount umount2 pivot_root chroot chdir fchdir sethostname mknod mknodat"),
            *_calls("fsopen fsconfig fsmount fspick move_mount open_tree mount_setattr openat2"),
            *_calls("chown lchown fchownat symlink symlinkat setuid setgid setgroups setresuid setresgid"),
            *_calls("capset prctl prlimit64 seccomp ioctl bpf"),
            *_calls("landlock_create_ruleset landlock_add_rule landlock_restrict_self"),
            # A room's filter is loaded by another, through a socket that was made inside the room.
            Rule("socket", (Check(0, (AF_NETLINK,)), Check(2, (NETLINK_NETFILTER,))), EAFNOSUPPORT),
            Rule("keyctl", (Check(0, (KEYCTL_JOIN_SESSION_KEYRING,)),), ENOSYS),
        ),
    ),
    "persona": Group(
        "what programs in a room may do; whoever makes rooms needs it, since a filter is inherited",
        (
            *_calls(ALLOWED),
            # A byte out of band: a queue of its own in Unix sockets, with a history. The flags are a number.
            *(Rule(name, (Check(3, (0,), MSG_OOB),), EOPNOTSUPP) for name in _names(_FLAGS_FOURTH)),
            *(Rule(name, (Check(2, (0,), MSG_OOB),), EOPNOTSUPP) for name in _names(_FLAGS_THIRD)),
            Rule("socket", (Check(0, (AF_UNIX,)),), EAFNOSUPPORT),
            Rule("socket", (Check(0, (AF_NETLINK,)), Check(2, (NETLINK_ROUTE,))), EAFNOSUPPORT),
            Rule("socketpair", (Check(0, (AF_UNIX,)),), EAFNOSUPPORT),
            # Allowed unless level and option are both those of one of the two: three ways to be none of them.
            Rule("setsockopt", (Check(1, (SOL_TCP, SOL_UDP), other=True),), ENOPROTOOPT),
            Rule("setsockopt", (Check(1, (SOL_TCP,)), Check(2, (TCP_ULP,), other=True)), ENOPROTOOPT),
            Rule("setsockopt", (Check(1, (SOL_UDP,)), Check(2, (UDP_ENCAP,), other=True)), ENOPROTOOPT),
            Rule("ioctl", (Check(1, (TIOCSTI, TIOCLINUX, TIOCSETD), other=True),), EPERM),
            Rule("clone", (Check(0, (0,), NEW_NAMESPACES),), EPERM),
            Rule("unshare", (Check(0, (0,), NEW_NAMESPACES | NEW_TIME),), EPERM),
            Rule("personality", (Check(0, PERSONALITIES),), EINVAL),
            *_room_refuses(),
        ),
        rest=ENOSYS,
    ),
    "persona-network": Group(
        "besides, for programs in a room with a network: sockets of the internet",
        (Rule("socket", (Check(0, (AF_INET, AF_INET6)), Check(2, IPPROTOS)), EAFNOSUPPORT),),
    ),
}
# Who holds the bus holds none of these: they make what the other groups say an organ cannot have.
NOT_ON_THE_BUS: Final = frozenset({"children", "rooms", "persona", "persona-network"})
# The filter of a room, and what a room with a network has besides.
ROOM, ROOM_NETWORK = "persona", "persona-network"

# What only an intruder would try unless a group grants it: other programs, other processes, other namespaces,
# the kernel's own machinery. Refused by the end of the process before the call returns, so that nothing can
# be learnt from it.
ABRUPT: Final = _names(
    """
    execve execveat fork vfork ptrace process_vm_readv process_vm_writev process_madvise kcmp pidfd_getfd
    mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick move_mount open_tree mount_setattr
    unshare setns open_by_handle_at name_to_handle_at mknod mknodat
    init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff iopl ioperm
    modify_ldt bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register
    add_key request_key keyctl memfd_create memfd_secret pkey_mprotect personality uselib
    setuid setgid setreuid setregid setresuid setresgid setgroups setfsuid setfsgid capset
    fanotify_init quotactl quotactl_fd acct syslog settimeofday clock_settime adjtimex clock_adjtime
    sethostname setdomainname vhangup lookup_dcookie migrate_pages move_pages
    """
)


def rest(groups: Iterable[str]) -> int | None:
    """How these groups together refuse a call that none of them names: by an error, or (None) by death."""
    return next((error for group in groups if (error := GROUPS[group].rest) is not None), None)


def granted(groups: Iterable[str]) -> dict[str, Grant]:
    """What these groups grant together, by the name of the call. Raises KeyError."""
    together: dict[str, Grant] = {}
    for group in groups:
        for rule in GROUPS[group].rules:
            before = together.get(rule.name, Grant((), rule.refusal))
            more = () if rule.checks is None else (rule.checks,)
            together[rule.name] = Grant((*before.alternatives, *more), before.refusal)
    return together
