"""One organ misbehaves, the others go on: short rounds of each offence, the harness proved on seeded bugs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from organs.manifest import load
from spine import paths
from spine.ground.port import schemas
from tests.fire.offenders import BUGS, EVIDENCE, OFFENCES, Bug, Offence, lacking, notices, round_of

SECONDS = 2.0
# What an organ opens for itself: its own sockets and pipes, libzmq's, files in work.
OWN_DESCRIPTORS = 64
# What libzmq keeps of one connection that has shaken hands and said hello, measured (29 KiB), and of an organ
# without any.
CONNECTION_BYTES = 32 * 1024
ORGAN_BYTES = 16 << 20


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A directory, and an XDG_STATE_HOME in it so that nobody else's spine is touched."""
    before = os.environ.get("XDG_STATE_HOME")
    os.environ["XDG_STATE_HOME"] = str(tmp_path / "state")
    yield tmp_path
    if before is None:
        del os.environ["XDG_STATE_HOME"]
    else:
        os.environ["XDG_STATE_HOME"] = before
    shutil.rmtree(tmp_path, ignore_errors=True)


def named(of: Offence | Bug) -> str:
    return of.name.replace(" ", "-").replace(",", "")


@pytest.mark.container
@pytest.mark.timeout(300)
@pytest.mark.proves("INV-BUS-2")
@pytest.mark.parametrize("offence", OFFENCES, ids=named)
def test_the_offender_alone_suffers(home: Path, offence: Offence) -> None:
    if absent := lacking(offence):
        pytest.skip(f"no cgroup controller for {', '.join(absent)}, of version 2 or 1")
    found = round_of(home, offence, SECONDS, "suite")
    assert not found.violations
    assert found.result.acknowledged > 0


@pytest.mark.container
@pytest.mark.timeout(300)
@pytest.mark.parametrize("bug", BUGS, ids=named)
def test_the_harness_notices(home: Path, bug: Bug) -> None:
    assert notices(home, bug, "bugs")


def callers_of(name: str) -> set[str]:
    """The organs that may connect to a bus socket of this one, the tap's among them."""
    stanzas = load(str(paths.ROOT / "organs/manifest.toml")).organs
    methods = schemas().interfaces[name].methods.values() if name in schemas().interfaces else ()
    allowed = {caller for method in methods for caller in method.callers}
    return (allowed | {n for n, organ in stanzas.items() if organ.taps}) & stanzas.keys() - {name}


@pytest.mark.parametrize(
    "name", [n for n, organ in load(str(paths.ROOT / "organs/manifest.toml")).organs.items() if organ.bus]
)
def test_no_caller_can_exhaust_the_descriptors_or_the_memory_of_its_callee(name: str) -> None:
    """libzmq ends a process that cannot accept. A caller has what is open, and as much again in flight."""
    stanzas = load(str(paths.ROOT / "organs/manifest.toml")).organs
    connections = [2 * stanzas[caller].nofile_max for caller in callers_of(name)]
    # Of all callers at once for the descriptors, which nobody gives back; of one that offends for the memory.
    assert stanzas[name].nofile_max >= OWN_DESCRIPTORS + sum(connections)
    assert stanzas[name].memory_max >= ORGAN_BYTES + CONNECTION_BYTES * max(connections, default=0)


def test_the_evidence_adds_up() -> None:
    found = json.loads(EVIDENCE.read_text())
    assert [row["offence"] for row in found["rounds"]] == [offence.name for offence in OFFENCES]
    assert found["seededBugsNoticed"].keys() == {bug.name for bug in BUGS}
    for row, offence in zip(found["rounds"], OFFENCES, strict=True):
        assert row["offended"] > 0
        assert row["restarts"].keys() <= offence.may_die | {"umbilical"}
        assert row["ends"].keys() <= offence.outcomes
    assert not found["commit"].endswith("-dirty")
