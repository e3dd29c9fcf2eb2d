"""The seccomp program: from the table of system calls to the instructions of classic BPF.

The program reads the architecture and the number of a call, and at times its arguments, and ends in one
answer. Calls whose arguments matter come first: the kernel remembers the answers to all others, by number,
and runs the program for these alone.
Pure.
Never: allows what the table does not; loops (classic BPF cannot), reads memory (it cannot either).
Fails: ValueError for a program that the kernel would not take (too long, or a jump too far).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from organs.kernel.numbers import NUMBERS
from organs.kernel.syscalls import ABRUPT, ALL_BITS, SELF, Check, Grant, granted, rest

# linux/bpf_common.h: load a word, cut it, jump if equal, jump if greater or equal, return.
LD_ABS, AND_K, JEQ_K, JGE_K, RET_K = 0x20, 0x54, 0x15, 0x35, 0x06
# linux/seccomp.h: the answers, and where things stand in struct seccomp_data (little-endian).
ALLOW, ERRNO, TRAP, KILL_PROCESS = 0x7FFF_0000, 0x0005_0000, 0x0003_0000, 0x8000_0000
AT_NUMBER, AT_ARCHITECTURE, AT_ARGUMENTS = 0, 4, 16
# linux/audit.h: x86-64, 64 bits, little-endian.
ARCHITECTURE: Final = 0xC000_003E
# The bit in the number by which the same kernel offers the x32 calls.
X32_BIT: Final = 0x4000_0000
# linux/bpf_common.h: BPF_MAXINSNS; jumps are one byte wide.
INSTRUCTIONS_MAX, JUMP_MAX = 4096, 255
# linux/filter.h: struct sock_filter, and where its value stands in it.
INSTRUCTION_BYTES, AT_VALUE = 8, 4


class Instruction(NamedTuple):
    """struct sock_filter."""

    code: int
    if_true: int
    if_false: int
    value: int


@dataclass(slots=True)
class _Listing:
    """Instructions whose jumps may lead to a place that is not written yet."""

    lines: list[Instruction] = field(default_factory=list)
    # Index of a jump -> the labels for true and for false; None is the next instruction.
    jumps: dict[int, tuple[str | None, str | None]] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)

    def add(self, code: int, value: int) -> None:
        self.lines.append(Instruction(code, 0, 0, value))

    def jump(self, code: int, value: int, if_true: str | None, if_false: str | None) -> None:
        self.jumps[len(self.lines)] = (if_true, if_false)
        self.add(code, value)

    def place(self, label: str) -> None:
        self.places[label] = len(self.lines)

    def resolved(self) -> list[Instruction]:
        """The program. Raises ValueError."""
        if len(self.lines) > INSTRUCTIONS_MAX:
            raise ValueError(f"{len(self.lines)} instructions, the kernel takes {INSTRUCTIONS_MAX}")
        done = list(self.lines)
        for index, labels in self.jumps.items():
            true, false = (0 if label is None else self.places[label] - index - 1 for label in labels)
            if not (0 <= true <= JUMP_MAX and 0 <= false <= JUMP_MAX):
                raise ValueError(f"instruction {index} jumps too far")
            done[index] = self.lines[index]._replace(if_true=true, if_false=false)
        return done


def program(groups: Iterable[str], own_pid: int) -> list[Instruction]:
    """The program that grants exactly these groups to the process `own_pid`. Raises ValueError, KeyError."""
    groups = tuple(groups)
    grants = granted(groups)
    error = rest(groups)
    listing = _Listing()
    listing.add(LD_ABS, AT_ARCHITECTURE)
    listing.jump(JEQ_K, ARCHITECTURE, "known", None)
    listing.add(RET_K, KILL_PROCESS)
    listing.place("known")
    listing.add(LD_ABS, AT_NUMBER)
    listing.jump(JGE_K, X32_BIT, None, "native")
    listing.add(RET_K, KILL_PROCESS)
    listing.place("native")
    for name, grant in grants.items():
        if not grant.always:
            _look_at_arguments(listing, name, grant, own_pid)
    answers = {NUMBERS[name]: KILL_PROCESS for name in ABRUPT if name not in grants and error is None}
    answers |= {NUMBERS[name]: ALLOW for name, grant in grants.items() if grant.always}
    _answer_by_number(listing, answers, TRAP if error is None else ERRNO | error)
    return listing.resolved()


def _answer_by_number(listing: _Listing, answers: Mapping[int, int], default: int) -> None:
    """The answers that depend on the number alone: one instruction for each stretch of equal ones.

    What the kernel does for each filter, blinding every constant of it above all, grows with the square of
    its length. How long the way through it is does not matter: the kernel remembers these answers.
    """
    stretches = [(0, answers.get(0, default))]
    for number in sorted({beside for known in answers for beside in (known, known + 1)}):
        if (answer := answers.get(number, default)) != stretches[-1][1]:
            stretches.append((number, answer))
    for first, answer in reversed(stretches[1:]):
        listing.jump(JGE_K, first, f"answer {answer}", None)
    listing.add(RET_K, stretches[0][1])
    for answer in (*sorted({answer for _, answer in stretches} - {default}), default):
        listing.place(f"answer {answer}")
        listing.add(RET_K, answer)


def _look_at_arguments(listing: _Listing, name: str, grant: Grant, own_pid: int) -> None:
    """The part for one call: allowed when one alternative holds, else refused."""
    after = f"after {name}"
    listing.jump(JEQ_K, NUMBERS[name], None, after)
    for index, checks in enumerate(grant.alternatives):
        refused = f"{name} not {index}"
        for at, check in enumerate(checks):
            _check(listing, check, f"{name} {index} holds {at}", refused, own_pid)
        listing.add(RET_K, ALLOW)
        listing.place(refused)
    listing.add(RET_K, TRAP if grant.refusal is None else ERRNO | grant.refusal)
    # The number is gone from the accumulator, but no path comes here with an argument in it.
    listing.place(after)


def _check(listing: _Listing, check: Check, holds: str, refused: str, own_pid: int) -> None:
    low = AT_ARGUMENTS + 8 * check.argument
    if check.wide:
        listing.add(LD_ABS, low + 4)
        listing.jump(JEQ_K, 0, None, refused)
    listing.add(LD_ABS, low)
    if check.mask != ALL_BITS:
        listing.add(AND_K, check.mask)
    *others, last = check.values
    if check.other:
        for value in others:
            listing.jump(JEQ_K, _number(value, own_pid), refused, None)
        listing.jump(JEQ_K, _number(last, own_pid), refused, None)
        listing.place(holds)
        return
    for value in others:
        listing.jump(JEQ_K, _number(value, own_pid), holds, None)
    listing.jump(JEQ_K, _number(last, own_pid), None, refused)
    listing.place(holds)


def _number(value: int, own_pid: int) -> int:
    return own_pid if value == SELF else value


class Prepared(NamedTuple):
    """A packed program with a hole for the own process, which is made before there is one."""

    data: bytes
    holes: tuple[int, ...]

    def filled(self, own_pid: int) -> bytes:
        """The program for the process `own_pid`."""
        data = bytearray(self.data)
        for at in self.holes:
            struct.pack_into("<I", data, at, own_pid)
        return bytes(data)


def prepared(groups: Iterable[str]) -> Prepared:
    """The program that grants exactly these groups to a process that is not there yet."""
    instructions = program(groups, SELF)
    # No instruction has a negative value, so the one that stands for the process marks its places.
    holes = tuple(
        index * INSTRUCTION_BYTES + AT_VALUE for index, line in enumerate(instructions) if line.value == SELF
    )
    lines = (line._replace(value=0) if line.value == SELF else line for line in instructions)
    return Prepared(packed(lines), holes)


def packed(instructions: Iterable[Instruction]) -> bytes:
    """The array of struct sock_filter."""
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in instructions)
