"""Errands that cannot even begin."""

from __future__ import annotations

import os
import resource

import pytest

from organs.builder.errands import Errands
from organs.builder.protocol import Exec

ASKED = Exec(id=1, asker=1, generation=1, name="linda", argv=("a",), environment=(), terminal=False)


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_an_errand_that_cannot_begin_leaves_no_descriptor() -> None:
    errands = Errands(1)
    before = open_fds()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reader, status = os.pipe()
    # There is room for the status alone, then for one end of the line, then for both and no pidfd.
    for free in range(3):
        given = os.dup(status)
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        holes = [os.open(os.devnull, os.O_RDONLY) for _ in range(highest)]
        for fd in [fd for fd in holes if fd > highest]:
            os.close(fd)
        holes = [fd for fd in holes if fd <= highest]
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + free, hard))
        try:
            with pytest.raises(OSError, match="open files"):
                errands.start(ASKED, (), lambda _line, _fds: None, status=given, sibling=False)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in holes:
            os.close(fd)
        assert errands.under_way == 0
    os.close(reader)
    os.close(status)
    assert open_fds() == before
