"""Seccomp: putting the filter on, and saying which call was refused.

Touches: the calling process: its filter, for ever, and its action for SIGSYS.
Never: lets a refused call's caller go on. The kernel gives such a call no useful result.
Fails: KernelError when the kernel refuses the filter; the caller must end the process.
"""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import os
from collections.abc import Iterable
from typing import Final

from organs.kernel import _libc
from organs.kernel.bpf import INSTRUCTION_BYTES, Prepared
from organs.kernel.bpf import prepared as prepare
from organs.kernel.numbers import NAMES

PR_SET_SECCOMP: Final = 22
SECCOMP_MODE_FILTER: Final = 2
SIGSYS: Final = 31
# asm-generic/signal-defs.h: full information; not blocked while handled; the default again from the first on.
SA_SIGINFO, SA_NODEFER, SA_RESETHAND = 0x4, 0x4000_0000, 0x8000_0000
STDERR: Final = 2


def confine(groups: Iterable[str]) -> None:
    """From here on this process makes only the calls that these groups grant. Raises KernelError.

    Needs no_new_privs. Comes last and before the first thread: a filter is its thread's and its heirs'.
    """
    data = prepared(frozenset(groups)).filled(os.getpid())
    _report_refusals()
    _put_on(data)


@functools.cache
def prepared(groups: frozenset[str]) -> Prepared:
    """The filter for a process that is still to be made.

    Making it takes longer than all else that such a process does before it becomes what it is to be; so it is
    made once, by its maker.
    """
    return prepare(sorted(groups))


def confine_program(filter_: Prepared) -> None:
    """Put a filter without a check about the own process on one that is about to become another program.

    Raises KernelError.
    """
    assert not filter_.holes
    _put_on(filter_.data)


def _put_on(data: bytes) -> None:
    text = ctypes.create_string_buffer(data, len(data))
    filter_program = _libc.FilterProgram(len(data) // INSTRUCTION_BYTES, ctypes.addressof(text))
    # Safe: the kernel copies the program before the call returns; both buffers live until then.
    result = _libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(filter_program), 0, 0)
    _libc.check(result, "put on the seccomp filter")


def _report_refusals() -> None:
    action = _libc.SignalAction(_REPORT, flags=SA_SIGINFO | SA_NODEFER | SA_RESETHAND)
    _libc.check(_libc.sigaction(SIGSYS, action, None), "handle SIGSYS")


def _report(_number: int, information: int, _context: int) -> None:
    """Name the refused call and the lines that made it, then die of the same signal.

    Runs in place of the call, in the thread that made it. That thread may hold any lock of its own; one that
    is needed here would leave the process silent, and bay0 ends it for that.
    """
    # Safe: the kernel passes a siginfo_t, and for SIGSYS this is its shape.
    refused = _libc.RefusedCall.from_address(information)
    call = NAMES.get(refused.number, "a call without a name")
    try:
        os.write(STDERR, f"refused by seccomp: {call} ({refused.number})\n".encode())
        faulthandler.dump_traceback(STDERR, all_threads=False)
    finally:
        # The action is the default one again since this began.
        _libc.raise_signal(SIGSYS)
        os._exit(128 + SIGSYS)


# Made once and kept: the kernel holds its address for as long as the process lives.
_REPORT: Final = _libc.SignalHandler(_report)
