"""What all tests share: which ground a test needs, that what it needs is there, and who runs beside whom.

A test marked `container` needs root; one marked `machine` needs QEMU and a built image. A ground that is not
there is a skip with its name, except under SPINE_GROUNDS, which `./spine test` sets to the grounds that it
promises to cover: there a missing ground is a failure.

Workers of pytest-xdist take tests by their groups (`tests/side_by_side.py`). A worker may find that another
one is building what a fixture of its test needs, and waits for it; so only the test itself is timed where a
build may be waited for.
"""

from __future__ import annotations

import os
import shutil
import signal

import pytest
from _pytest.nodeid import NodeId
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests import side_by_side

# No test is about wall time: an example may take as long as a busy machine makes it.
settings.register_profile("spine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("spine")

# Who starts this in the background has it ignore SIGINT, and with it all that it starts; some tests send one.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A test of the machine ground without a limit of its own, as long as any other; what it waits for at the
# beginning has limits of its own.
MACHINE_S = 600
# Fixtures of one test alone.
OWN = "function"
# Of all tests, and harmless to have in each worker: directories, and what the cache has or makes only once.
EVERYWHERE = {"own_state", "report"}


def _missing(ground: str) -> str | None:
    """Why this ground cannot be used here, or None."""
    if ground == "container" and os.geteuid() != 0:
        return "the container ground needs root"
    if ground == "machine" and shutil.which("qemu-system-x86_64") is None:
        return "the machine ground needs qemu-system-x86"
    return None


def _collected(item: pytest.Item) -> side_by_side.Test:
    shares, given = set[str](), set[object]()
    if isinstance(item, pytest.Function):
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        for name, found in item._fixtureinfo.name2fixturedefs.items():
            if not found[-1].baseid:
                continue  # pytest's own, or no fixture at all: a parameter of the test itself
            if found[-1].scope != OWN and name not in EVERYWHERE:
                shares.add(name)
            if isinstance(parameters.get(name), str):
                given.add(parameters[name])
    machine = item.get_closest_marker("machine") is not None
    return side_by_side.Test(item.nodeid.partition("::")[0], item.name, machine, shares, given)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    promised = os.environ.get("SPINE_GROUNDS", "").split()
    beside = hasattr(config, "workerinput")
    ranks: dict[pytest.Item, int] = {}
    for item in items:
        for ground in ("container", "machine"):
            reason = _missing(ground)
            if item.get_closest_marker(ground) and reason is not None and ground not in promised:
                item.add_marker(pytest.mark.skip(reason=reason))
        test = _collected(item)
        group, ranks[item] = side_by_side.group(test), side_by_side.rank(test)
        if (test.machine or group == side_by_side.BUILDS) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(MACHINE_S, func_only=True))
        if beside and group is not None:
            # Nothing else of a test reaches who hands them out.
            *outer, name = item._id.names
            marked = side_by_side.marked(name, group)
            item._id = NodeId(path=test.file, names=(*outer, marked), params=item._id.params)
    if beside:
        # One by one they go in the order of their files.
        items.sort(key=lambda item: ranks[item])


class Groups(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Hands out group after group, in the order in which they were collected."""

    def _split_scope(self, nodeid: str) -> str:
        return side_by_side.scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    config.option.loadscopereorder = False
    return Groups(config, log)
