"""The grounds that the integration tests run on, booted as a person boots them: through ./spine.

All state of these tests lives in a directory of their own (XDG_STATE_HOME), so a spine that the person
running them has booted is not touched. What was booted is stopped, whatever the tests did.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from spine import paths
from spine.ground import state
from spine.ground.container import Container
from spine.ground.qemu import Machine
from spine.image.build import build
from spine.progress import Progress
from tests.integration.live import Live, spine


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """These tests' own XDG_STATE_HOME."""
    before = os.environ.get("XDG_STATE_HOME")
    home = tmp_path_factory.mktemp("state")
    os.environ["XDG_STATE_HOME"] = str(home)
    yield home
    if before is None:
        del os.environ["XDG_STATE_HOME"]
    else:
        os.environ["XDG_STATE_HOME"] = before
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Mapping[str, object]:
    """The report of the whole image, built if it is not there. For the machine."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        return build(paths.out(), progress=Progress())


@pytest.fixture(scope="session")
def container() -> Iterator[Live]:
    """The spine in namespaces, as `./spine boot --container` starts it."""
    spine("boot", "--detach", "--container")
    try:
        ground = Container.attach(state.directory("container"))
        assert ground is not None
        yield Live("container", ground)
    finally:
        if state.read(state.directory("container")):
            spine("stop", "--container")


@pytest.fixture(scope="session")
def machine(report: Mapping[str, object]) -> Iterator[Live]:
    """The spine in QEMU, as `./spine boot` starts it. Boot.SHARED."""
    assert report["version"]
    spine("boot", "--detach")
    try:
        ground = Machine.attach(state.directory("machine"))
        assert ground is not None
        yield Live("machine", ground)
    finally:
        if state.read(state.directory("machine")):
            spine("stop")


@pytest.fixture(
    params=[
        pytest.param("container", marks=pytest.mark.container),
        pytest.param("machine", marks=pytest.mark.machine),
    ],
)
def live(request: pytest.FixtureRequest) -> Live:
    """The spine on each ground in turn."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Live)
    return found
