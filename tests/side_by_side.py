"""Which tests run one after another in one worker, and which of them begin first.

Pure: `tests/conftest.py` tells of each test and does what is decided here. A wrong rank costs time and never
a result. A wrong group may boot a spine twice, or have two workers wait for one build.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

# Fixtures that boot a spine for all who ask; the groups have their names.
GROUNDS = ("container", "machine")
# One group builds the kernel and all that is made of it: the tests behind it find both in the cache.
BUILDS = "builds"
BUILDERS = (
    "tests/image/test_difference.py",
    "tests/image/test_image.py",
    "tests/image/test_hardening.py",
    "tests/image/test_verify.py",
    "tests/persona/test_painter.py",
)
# A machine of the test's own: the test stands alone.
OWN = "own "
# How a group is written behind the name of a test, so that who hands out the tests can read it there.
BEHIND = "@"
ALONE = "alone"
# What takes long, by the beginning of its group's name, as it is to begin; whoever is free takes the next.
# First what builds, and beside it what mostly waits and needs no kernel. Then the second kernel, beside
# machines, each of which keeps a processor busy. All else is short and fills the end.
FIRST = (
    BUILDS,
    "tests/fire/",
    "tests/rooms/",
    "tests/integration/test_data.py",
    "tests/integration/test_update.py",
    "tests/integration/test_slots.py",
    "tests/integration/",
    "tests/bay0/",
    "tests/bus/",
    "tests/gate/",
    "tests/integrity/",
    "tests/test_lint.py",
    "tests/integration/test_pc.py",
    *GROUNDS,
    f"{OWN}tests/integration/test_demo.py",
    f"{OWN}tests/integration/test_update.py",
    f"{OWN}tests/integration/test_writes.py",
    "tests/faults/test_faults.py",
    f"{OWN}tests/integration/test_repair.py",
    f"{OWN}tests/integration/test_machine.py",
    OWN,
)


@dataclass(frozen=True)
class Test:
    """A test as it was collected."""

    __test__ = False  # for pytest, which takes what is called so for one of its own

    # Relative to the root of the tree, as pytest names it.
    file: str
    name: str
    # Marked `machine`.
    machine: bool
    # Fixtures of more than one test, by name, and what its parameters are.
    shares: Collection[str]
    given: Collection[object]


def group(test: Test) -> str | None:
    """The tests that must be in one worker, one after another. None: those of its file."""
    ground = next((name for name in GROUNDS if name in test.shares or name in test.given), None)
    if ground is not None:
        return ground
    if test.file in BUILDERS:
        return BUILDS
    return ALONE if test.machine and not test.shares else None


def marked(name: str, group: str) -> str:
    """The name of a test, with its group; before its parameters, which may hold anything."""
    base, bracket, parameters = name.partition("[")
    return f"{base}{BEHIND}{group}{bracket}{parameters}"


def scope(nodeid: str) -> str:
    """What must stay together with it, out of its whole name."""
    file, _, name = nodeid.partition("::")
    group = name.partition("[")[0].partition(BEHIND)[2]
    return nodeid if group == ALONE else group or file


def rank(test: Test) -> int:
    """Where it stands in the order in which groups begin: by the longest of the beginnings that fit."""
    key = group(test) or test.file
    if key == ALONE:
        key = OWN + test.file
    fitting = [start for start in FIRST if key.startswith(start)]
    return FIRST.index(max(fitting, key=len)) if fitting else len(FIRST)
