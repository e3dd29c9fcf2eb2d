"""What a room consists of: the tables agree with each other, and the sums are bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from organs.builder import furnishing
from organs.builder.verdict import WRITABLE_MAX, WRITABLE_MIN
from organs.kernel.deviceaccess import PLAIN
from organs.manifest import CAPABILITIES

# Each of these leads out of a room, or into the network's or another process' business.
NEVER = {
    "SYS_ADMIN",
    "NET_ADMIN",
    "NET_RAW",
    "MKNOD",
    "SYS_PTRACE",
    "SYS_CHROOT",
    "SETFCAP",
    "DAC_READ_SEARCH",
}


def test_the_capabilities_exist_and_none_leads_out() -> None:
    assert set(CAPABILITIES) >= furnishing.CAPABILITIES
    assert not furnishing.CAPABILITIES & NEVER


@pytest.mark.proves("INV-ROOM-9")
def test_each_node_of_dev_is_in_the_table_of_the_cgroup_and_the_other_way_round() -> None:
    covered = set()
    for major, minor in furnishing.NODES.values():
        found = [d for d in PLAIN if d.major == major and d.first <= minor <= d.last]
        assert found, (major, minor)
        covered |= {(major, minor)}
    small = {(d.major, minor) for d in PLAIN if d.last < 64 for minor in range(d.first, d.last + 1)}
    # The multiplexer's node is devpts' own; the majors of its terminals are Unix98's.
    assert small - covered == {(5, 2)}
    assert {d.major for d in PLAIN if d.last >= 64} == set(range(136, 144))


@given(st.integers(WRITABLE_MIN, WRITABLE_MAX))
def test_a_layer_is_bounded_in_bytes_and_in_files(writable: int) -> None:
    for options in (furnishing.layer(writable), furnishing.scratch(writable)):
        assert int(options["size"]) == writable
        # A kilobyte of the kernel's for each file: a quarter more than what was asked for, at the most.
        assert int(options["nr_inodes"]) * 1024 <= max(writable // 4, furnishing.INODES_MIN * 1024)


@given(st.integers(0, 512), st.integers(0, 2**33))
def test_the_standins_are_at_rest(processors: int, booted_s: int) -> None:
    made = dict(furnishing.standins(processors, booted_s))
    counters = [line for line in made["stat"].splitlines() if line.startswith("cpu")]
    assert len(counters) == processors + 1
    assert all(set(line.split()[1:]) == {"0"} for line in counters)
    assert f"btime {booted_s}\n" in made["stat"]
    assert made["loadavg"].startswith("0.00 0.00 0.00 ")


def test_an_environment_is_constant_but_for_what_is_asked() -> None:
    assert furnishing.environment((), terminal=False) == dict(furnishing.ENVIRONMENT)
    own = furnishing.environment(("A=b=c", "HOME=/x"), terminal=True)
    assert own == {**furnishing.ENVIRONMENT, "TERM": "linux", "A": "b=c", "HOME": "/x"}
