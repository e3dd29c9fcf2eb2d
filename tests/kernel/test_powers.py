"""The comparison of powers, shown that it notices: each seeded difference is reported, and a process that is
as its stanza says is not."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from organs.kernel import inspection
from organs.manifest import Organ, load
from tests.powers import differences

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = ROOT / "organs/manifest.toml"
BASE = ("/", "/proc", "/run")

Fields = dict[str, dict[str, str | int]]

GATE: Fields = {
    "status": {
        "Uid": "2001 2001 2001 2001",
        "Gid": "2001 2001 2001 2001",
        "Groups": "",
        "CapInh": "0" * 16,
        "CapPrm": "0" * 16,
        "CapEff": "0" * 16,
        "CapBnd": "0" * 16,
        "CapAmb": "0" * 16,
        "NoNewPrivs": "1",
        "Seccomp": "2",
        "Seccomp_filters": "1",
    },
    "limits": {"Max open files": "1344 1344", "Max core file size": "0 0"},
    "fds": {
        "/dev/null": 1,
        "pipe": 3,
        "anon_inode:[eventpoll]": 3,
        "anon_inode:[eventfd]": 8,
        "unix": 5,
        "unix /run/spine/bus/gate.operator": 1,
        "unix listening /run/spine/bus/gate.operator": 1,
        "/persist/linda.db": 1,
    },
    "mounts": {
        "/": "squashfs ro",
        "/proc": "proc rw",
        "/run": "tmpfs rw",
        "/persist": "ext4 rw,nosuid,nodev,noexec",
    },
    "cgroup": {"memory.max": "100663296", "memory.swap.max": "0", "pids.max": "16", "cpu.weight": "100"},
}


def gate() -> Organ:
    return load(str(MANIFEST)).organs["gate"]


def test_a_gate_as_its_stanza_says() -> None:
    assert differences(gate(), GATE, BASE, {"operator"}) == []


def put(part: str, key: str, value: str | int) -> Callable[[Fields], object]:
    return lambda seen: seen[part].__setitem__(key, value)


def cut(part: str, key: str) -> Callable[[Fields], object]:
    return lambda seen: seen[part].pop(key)


BUGS: list[tuple[str, Callable[[Fields], object], str]] = [
    ("a capability left", put("status", "CapEff", f"{1 << 12:016x}"), "CapEff"),
    ("a capability permitted", put("status", "CapPrm", f"{1 << 21:016x}"), "CapPrm"),
    ("a bounding set left", put("status", "CapBnd", f"{(1 << 41) - 1:016x}"), "SYS_ADMIN"),
    ("an inheritable one", put("status", "CapInh", f"{1:016x}"), "CapInh"),
    ("an ambient one", put("status", "CapAmb", f"{1:016x}"), "CapAmb"),
    ("a saved root id", put("status", "Uid", "2001 2001 0 2001"), "Uid"),
    ("root's group", put("status", "Groups", "0"), "Groups"),
    ("new privileges", put("status", "NoNewPrivs", "0"), "NoNewPrivs"),
    ("no filter", put("status", "Seccomp", "0"), "Seccomp"),
    ("more descriptors", put("limits", "Max open files", "1024 1024"), "Max open files"),
    ("core files", put("limits", "Max core file size", "unlimited unlimited"), "Max core"),
    ("no end of memory", put("cgroup", "memory.max", "max"), "memory.max"),
    ("a larger share of the processor", put("cgroup", "cpu.weight", "1000"), "cpu.weight"),
    ("swap", put("cgroup", "memory.swap.max", "max"), "memory.swap.max"),
    ("no store", cut("mounts", "/persist"), "nothing is mounted at /persist"),
    ("a store with programs", put("mounts", "/persist", "ext4 rw,nosuid,nodev"), "not an inert"),
    ("another mount", put("mounts", "/mnt", "ext4 rw"), "/mnt is mounted"),
    ("a root to write", put("mounts", "/", "squashfs rw"), "not read-only"),
    ("a lost mount", cut("mounts", "/run"), "nothing is mounted at /run"),
    ("a directory of the maker's", put("fds", "/", 1), "1 descriptors of /"),
    ("a device", put("fds", "/dev/vda", 1), "/dev/vda"),
    ("a line to a terminal", put("fds", "/dev/console", 1), "/dev/console"),
    ("a pipe too many", put("fds", "pipe", 4), "4 descriptors of pipe"),
    ("a pidfd", put("fds", "anon_inode:[pidfd]", 1), "pidfd"),
    ("the zygote's line", put("fds", "unix listening /run/spine/zygote", 1), "it listens at"),
    ("another organ's socket", put("fds", "unix listening /run/spine/bus/integrity.operator", 1), "listens"),
    (
        "what came in for another",
        put("fds", "unix /run/spine/bus/integrity.operator", 1),
        "integrity.operator",
    ),
    ("no listener", cut("fds", "unix listening /run/spine/bus/gate.operator"), "it listens at []"),
    ("the network", put("fds", "tcp", 1), "tcp"),
    ("a netlink socket", put("fds", "netlink", 1), "netlink"),
    ("a namespace", put("fds", "net", 1), "descriptors of net"),
    ("a file of the system", put("fds", "/usr/lib/spine/manifest.toml", 1), "manifest.toml"),
    ("a neighbour of the store", put("fds", "/persistent", 1), "/persistent"),
]


@pytest.mark.proves("INV-PRIV-3")
@pytest.mark.parametrize(("bug", "sentence"), [row[1:] for row in BUGS], ids=[row[0] for row in BUGS])
def test_each_difference_is_reported(bug: Callable[[Fields], object], sentence: str) -> None:
    seen = copy.deepcopy(GATE)
    bug(seen)
    found = differences(gate(), seen, BASE, {"operator"})
    assert any(sentence in each for each in found), found


# A process that becomes the gate as the zygote makes it, with one seeded slip, and waits to be looked at.
BECOMES = """
import os, socket, sys
from organs.kernel import privileges, processes, seccomp
from organs.manifest import CAPABILITIES, load
organ = load({manifest!r}).organs["gate"]
null = os.open("/dev/null", os.O_RDWR)
reader, writer = os.pipe()
status = os.dup(writer)
os.dup2(null, 0)
said = os.dup(1)
os.dup2(writer, 2)
keep = {{0, 1, 2, status, said}}
{slip}
privileges.limit(organ.nofile_max)
privileges.close_all_but(keep)
privileges.drop(organ.uid, organ.gid, capabilities)
if confined:
    seccomp.confine(organ.syscalls)
os.write(said, b"ready")
sys.stdin = None
os.read(held, 1)
"""
GOOD = "capabilities, confined = set(), True; held = os.dup(reader); keep.add(held)"


@pytest.mark.container
@pytest.mark.proves("INV-PRIV-3")
@pytest.mark.parametrize(
    ("slip", "sentences"),
    [
        (GOOD, []),
        (GOOD.replace("set()", "{12}"), ["CapPrm", "CapEff", "CapBnd"]),
        (GOOD.replace("True", "False"), ["Seccomp", "Seccomp_filters"]),
        (GOOD + "; keep.add(os.open('/usr', os.O_RDONLY))", ["/usr"]),
        (GOOD + "; other = socket.socket(); keep.add(other.fileno())", ["tcp"]),
        (GOOD + "; organ = __import__('dataclasses').replace(organ, uid=2999)", ["Uid"]),
        (GOOD + "; organ = __import__('dataclasses').replace(organ, nofile_max=512)", ["Max open files"]),
    ],
)
def test_a_real_process_with_a_slip_is_reported(slip: str, sentences: list[str]) -> None:
    source = BECOMES.format(slip=slip, manifest=str(MANIFEST))
    process = subprocess.Popen([sys.executable, "-c", source], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.read(5) == b"ready"
        seen = inspection.inspect(process.pid)
    finally:
        process.kill()
        process.wait()
    # Of this process only what the drop decides is like an organ's: it has no mounts and sockets of its own.
    ours = ("mount", "root is", "listens", "is mounted", "/persist", "memory.", "pids.", "pipe")
    found = [each for each in differences(gate(), seen, (), ()) if not any(o in each for o in ours)]
    assert len(found) == len(sentences), found
    for sentence, each in zip(sentences, found, strict=True):
        assert sentence in each
