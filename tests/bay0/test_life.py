"""bay0 as PID 1 of fresh namespaces, with stand-in organs: the whole life, from the first mount to the exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bay0.spine import OPERATOR, running, stanza, until

pytestmark = pytest.mark.container


def test_first(tmp_path: Path) -> None:
    with running(tmp_path, OPERATOR, stanza("alpha", 2101)) as spine:
        spine.wait_ready("alpha")
        spine.wait_ready("operator")
        until("healthy", lambda: spine.state()["boot"]["healthy"])
        print(spine.state())
        print(spine.ask(ask="pss"))
        print(spine.ask(ask="write-root"))
        spine.kill("alpha")
        spine.wait_ready("alpha", 2)
        spine.ask(ask="poweroff")
        assert spine.end() == 0
