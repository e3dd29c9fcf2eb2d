"""The filter of system calls: the program says what the table says, for every call there is; and the kernel
does what the program says.

The programs are run by an interpreter of classic BPF that knows nothing of the table.
"""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from organs.kernel import bpf
from organs.kernel.numbers import NAMES, NUMBERS
from organs.kernel.roomcalls import ALLOWED, LOOKED_AT, NOT_THERE
from organs.kernel.syscalls import (
    ABRUPT,
    ENOSYS,
    GROUPS,
    NOT_ON_THE_BUS,
    ROOM,
    ROOM_NETWORK,
    SELF,
    Check,
    granted,
)
from organs.manifest import load

ROOT = Path(__file__).resolve().parents[2]
PID = 4711
AARCH64, I386, RISCV = 0xC000_00B7, 0x4000_0003, 0xC000_00F3
# Each group alone, each stanza's list, and all at once.
SETS = [
    (),
    *((group,) for group in GROUPS),
    ("base", "memory", "threads", "clock", "wait", "descriptors", "bus", "files-read"),
    (ROOM, ROOM_NETWORK),
    tuple(sorted(load(str(ROOT / "organs/manifest.toml")).organs["builder"].syscalls)),
    tuple(sorted(GROUPS)),
]


def run(program: list[bpf.Instruction], number: int, architecture: int, arguments: Iterable[int]) -> int:
    """The answer of a program of classic BPF, as linux/filter.rst describes the machine."""
    data = struct.pack("<iIQ6Q", number, architecture, 0x7F00_0000_1000, *arguments)
    accumulator, at = 0, 0
    while True:
        code, if_true, if_false, value = program[at]
        at += 1
        match code:
            case 0x20:
                assert value % 4 == 0
                (accumulator,) = struct.unpack_from("<I", data, value)
            case 0x54:
                accumulator &= value
            case 0x15:
                at += if_true if accumulator == value else if_false
            case 0x35:
                at += if_true if accumulator >= value else if_false
            case 0x06:
                return value
            case _:
                raise AssertionError(f"no such instruction: {code:#x}")


def holds(check: Check, arguments: tuple[int, ...]) -> bool:
    value = arguments[check.argument]
    if check.wide and value >> 32:
        return False
    allowed = {PID if allowed == SELF else allowed for allowed in check.values}
    return (value & 0xFFFF_FFFF & check.mask in allowed) != check.other


def wanted(groups: tuple[str, ...], number: int, arguments: tuple[int, ...]) -> int:
    """What the table says, read without the generator."""
    name = NAMES.get(number)
    errors = [error for group in groups if (error := GROUPS[group].rest) is not None]
    default = bpf.ERRNO | errors[0] if errors else bpf.TRAP
    if name is None:
        return bpf.KILL_PROCESS if not 0 <= number < 0x4000_0000 else default
    rules = [rule for group in groups for rule in GROUPS[group].rules if rule.name == name]
    for rule in rules:
        if rule.checks is not None and all(holds(check, arguments) for check in rule.checks):
            return bpf.ALLOW
    if rules:
        return bpf.TRAP if rules[0].refusal is None else bpf.ERRNO | rules[0].refusal
    return bpf.KILL_PROCESS if name in ABRUPT and not errors else default


@cache
def program(groups: tuple[str, ...]) -> list[bpf.Instruction]:
    return bpf.program(groups, PID)


def telling(groups: tuple[str, ...], name: str) -> list[tuple[int, ...]]:
    """Arguments on both sides of each check of one call, in every combination."""
    checks = [c for group in groups for r in GROUPS[group].rules if r.name == name for c in r.checks or ()]
    columns: list[set[int]] = [{0, 2**64 - 1} for _ in range(6)]
    for check in checks:
        for value in check.values:
            value = PID if value == SELF else value
            columns[check.argument] |= {value, value ^ 1, value | ~check.mask & 0xFFFF_FFFF, value | 1 << 32}
            columns[check.argument] |= {value | 1 << bit for bit in range(32) if check.mask >> bit & 1}
    used = {check.argument for check in checks}
    return list(product(*(sorted(c) if i in used else (0,) for i, c in enumerate(columns))))


EVERY_NUMBER = [*range(-2, 600), 2**31 - 1, -(2**31), *(0x4000_0000 | n for n in range(600))]


@pytest.mark.proves("INV-PRIV-2")
@pytest.mark.parametrize("groups", SETS, ids=lambda groups: "+".join(groups)[:40] or "none")
def test_the_program_says_what_the_table_says(groups: tuple[str, ...]) -> None:
    for number in EVERY_NUMBER:
        for arguments in telling(groups, NAMES.get(number, "")):
            answer = run(program(groups), number, bpf.ARCHITECTURE, arguments)
            assert answer == wanted(groups, number, arguments), (NAMES.get(number), arguments)
        for architecture in (AARCH64, I386, RISCV, 0, 2**32 - 1):
            assert run(program(groups), number, architecture, (0,) * 6) == bpf.KILL_PROCESS


@settings(max_examples=300)
@given(
    st.sets(st.sampled_from(sorted(GROUPS))).map(lambda found: tuple(sorted(found))),
    st.one_of(st.sampled_from(sorted(NAMES)), st.integers(-(2**31), 2**31 - 1)),
    st.tuples(*(st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 64)) for _ in range(6))),
)
def test_any_call_with_any_arguments(
    groups: tuple[str, ...], number: int, arguments: tuple[int, ...]
) -> None:
    assert run(program(groups), number, bpf.ARCHITECTURE, arguments) == wanted(groups, number, arguments)


def test_a_program_only_jumps_forward_and_always_ends() -> None:
    for groups in SETS:
        lines = program(groups)
        assert len(lines) <= bpf.INSTRUCTIONS_MAX
        last = bpf.TRAP if ROOM not in groups else bpf.ERRNO | ENOSYS
        assert lines[-1] == bpf.Instruction(bpf.RET_K, 0, 0, last)
        for at, line in enumerate(lines):
            if line.code in (bpf.JEQ_K, bpf.JGE_K):
                assert at + 1 + max(line.if_true, line.if_false) < len(lines)
        assert len(bpf.packed(lines)) == 8 * len(lines)


def test_a_program_prepared_for_a_process_is_the_one_that_it_would_make_itself() -> None:
    for groups in SETS:
        prepared = bpf.prepared(groups)
        for pid in (PID, 1, 4_194_303):
            assert prepared.filled(pid) == bpf.packed(bpf.program(groups, pid))
    assert any(bpf.prepared(groups).holes for groups in SETS)


def test_a_jump_too_far_is_refused() -> None:
    listing = bpf._Listing()
    listing.jump(bpf.JEQ_K, 0, "far", None)
    for _ in range(300):
        listing.add(bpf.RET_K, bpf.ALLOW)
    listing.place("far")
    listing.add(bpf.RET_K, bpf.TRAP)
    with pytest.raises(ValueError, match="too far"):
        listing.resolved()


def test_the_table_names_calls_that_exist_and_says_why() -> None:
    for name, group in GROUPS.items():
        assert group.purpose, name
        assert {rule.name for rule in group.rules} <= NUMBERS.keys(), name
    assert set(ABRUPT) <= NUMBERS.keys()
    assert len(set(ABRUPT)) == len(ABRUPT)
    assert len(NUMBERS) == len(NAMES) == 336 + 39


def test_no_group_of_the_bus_grants_what_only_an_intruder_would_try() -> None:
    assert not granted(GROUPS.keys() - NOT_ON_THE_BUS).keys() & set(ABRUPT)
    assert GROUPS.keys() > NOT_ON_THE_BUS


def test_groups_agree_on_how_a_call_is_refused() -> None:
    refusals: dict[str, set[int | None]] = {}
    # A room's programs are answered; who makes rooms has their group and no group of the bus.
    for group in (GROUPS[name] for name in GROUPS.keys() - NOT_ON_THE_BUS):
        for rule in group.rules:
            if rule.checks != ():
                refusals.setdefault(rule.name, set()).add(rule.refusal)
    assert {name: found for name, found in refusals.items() if len(found) > 1} == {}


def test_every_group_of_the_bus_is_used() -> None:
    manifest = load(str(ROOT / "organs/manifest.toml"))
    used = {group for organ in manifest.organs.values() for group in organ.syscalls}
    assert used >= GROUPS.keys() - NOT_ON_THE_BUS


HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")


@pytest.mark.skipif(not HEADER.exists(), reason="the kernel's headers are not installed")
def test_the_numbers_are_the_kernels() -> None:
    found = re.findall(r"#define __NR_(\w+) (\d+)", HEADER.read_text())
    assert len(found) > 350
    assert {name: int(number) for name, number in found if name in NUMBERS} == {
        name: NUMBERS[name] for name, _ in found if name in NUMBERS
    }


CONFINED = """
import ctypes, os, socket, sys, threading
from organs.kernel import privileges, seccomp
libc = ctypes.CDLL(None, use_errno=True)
privileges.drop(2001, 2001, set())
seccomp.confine({groups!r})
def act():
    {act}
    print("went on", flush=True)
thread = threading.Thread(target=act)
thread.start()
thread.join()
"""
RUNTIME = ("base", "memory", "threads", "clock", "wait", "descriptors", "bus", "files-read")


def confined(act: str, *groups: str) -> subprocess.CompletedProcess[str]:
    """What becomes of a process with this filter whose thread does this."""
    source = CONFINED.format(groups=groups or RUNTIME, act=act)
    command = [sys.executable, "-c", source]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.container
@pytest.mark.proves("INV-PRIV-2")
@pytest.mark.parametrize(
    ("act", "name"),
    [
        ("os.mkdir('/tmp/x')", "mkdir"),
        ("os.kill(1, 0)", "kill"),
        ("libc.syscall(234, 1, 1, 0)", "tgkill"),
        ("libc.syscall(56, 17, 0, 0, 0, 0)", "clone"),
        ("socket.socket(socket.AF_INET)", "socket"),
        ("libc.prctl(4, 1, 0, 0, 0)", "prctl"),
        ("libc.syscall(999)", "a call without a name"),
    ],
)
def test_a_refused_call_is_named_and_ends_the_process(act: str, name: str) -> None:
    done = confined(act)
    assert done.returncode == -31
    assert f"refused by seccomp: {name} (" in done.stderr
    assert "in act" in done.stderr, "the line that made the call"
    assert "went on" not in done.stdout


@pytest.mark.container
@pytest.mark.parametrize(
    "act",
    [
        "os.execv('/bin/true', ['true'])",
        "libc.ptrace(0, 0, 0, 0)",
        "libc.unshare(0x10000000)",
        "libc.syscall(0x40000000 | 39)",
        "libc.mount(0, 0, 0, 0, 0)",
        "libc.syscall(425, 1, 0)",
    ],
)
def test_what_only_an_intruder_tries_ends_the_process_at_once(act: str) -> None:
    done = confined(act)
    assert (done.returncode, done.stdout) == (-31, "")
    assert "refused by seccomp" not in done.stderr


@pytest.mark.container
@pytest.mark.parametrize(
    "act",
    [
        # What libraries do and take an answer for: each is answered as a kernel without it would.
        "assert libc.syscall(435, 0, 0) == -1 and ctypes.get_errno() == 38",
        "assert libc.mmap(0, 4096, 5, 0x22, -1, 0) == -1 and ctypes.get_errno() == 13",
        "assert not os.isatty(1)",
        "assert libc.ioctl(1, 0x5413, 0) == -1 and ctypes.get_errno() == 25",
        # What an organ does.
        "open('/dev/null').read()",
        "other = threading.Thread(target=print); other.start(); other.join()",
        "libc.malloc_trim(0)",
        "one, two = socket.socketpair(); one.send(b'x'); assert two.recv(1) == b'x'",
    ],
)
def test_what_is_granted_or_answered_goes_on(act: str) -> None:
    done = confined(act)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("went on\n")


@pytest.mark.container
def test_a_filter_the_kernel_refuses_is_an_error() -> None:
    """Neither no_new_privs nor root: the kernel takes no filter."""
    source = (
        "import os; from organs.kernel import seccomp; os.setresuid(2001, 2001, 2001);"
        " seccomp.confine(['base'])"
    )
    command = [sys.executable, "-c", source]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "put on the seccomp filter" in done.stderr


@pytest.mark.proves("INV-ROOM-8")
@pytest.mark.parametrize("room", [(ROOM,), (ROOM, ROOM_NETWORK)], ids=["alone", "network"])
def test_who_makes_rooms_punishes_nothing_that_a_room_is_answered(room: tuple[str, ...]) -> None:
    """Filters add up and the strictest answer counts: the builder's must let pass what a room's decides."""
    builder = tuple(sorted(load(str(ROOT / "organs/manifest.toml")).organs["builder"].syscalls))
    for number in (*range(600), 2**31 - 1):
        for arguments in telling(room, NAMES.get(number, "")):
            inner = run(program(room), number, bpf.ARCHITECTURE, arguments)
            outer = run(program(builder), number, bpf.ARCHITECTURE, arguments)
            assert outer in (bpf.ALLOW, inner), (NAMES.get(number), arguments)


def test_the_table_of_rooms_names_each_call_once() -> None:
    parts = [names.split() for names in (ALLOWED, NOT_THERE, LOOKED_AT)]
    named = [name for part in parts for name in part]
    assert len(named) == len(set(named))
    assert set(named) <= NUMBERS.keys()
    # What needs no capability and yet leads to other processes, other namespaces or the kernel's machinery.
    assert not set(parts[0]) & (set(ABRUPT) - KEPT)
    for rule in GROUPS[ROOM].rules:
        assert rule.checks is not None or rule.refusal is not None, f"{rule.name} would be a death"


# What an organ has no use for and a program in a room has: other programs, other users of the room, memory
# files, protection keys.
KEPT = {
    *("execve", "execveat", "fork", "vfork", "memfd_create", "pkey_mprotect", "mknod", "mknodat", "setuid"),
    *(
        "setgid",
        "setreuid",
        "setregid",
        "setresuid",
        "setresgid",
        "setgroups",
        "setfsuid",
        "setfsgid",
        "capset",
    ),
}
