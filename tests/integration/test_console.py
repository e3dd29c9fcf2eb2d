"""`./spine boot` as a person at a terminal has it: the console of the persona with the focus, until Ctrl-].

A spine of its own on the container ground, since it is booted and stopped here.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spine import paths
from spine.ground import state
from spine.room.console import LEAVE
from tests.integration.live import spine, within

pytestmark = pytest.mark.container

# Each is seen within a second on a machine that is not busy.
PATIENCE_S = 60.0
PROMPT = b"linda # "


class Terminal:
    """./spine boot --container on a terminal of its own, and the person at it."""

    def __init__(self) -> None:
        self._hand, self._terminal = os.openpty()
        self.before = termios.tcgetattr(self._terminal)
        self._boot = subprocess.Popen(
            [paths.ROOT / "spine", "boot", "--container"],
            stdin=self._terminal,
            stdout=self._terminal,
            stderr=self._terminal,
            start_new_session=True,
        )

    def see(self, until: bytes) -> bytes:
        """What it shows, up to this and no further."""
        seen, end = b"", time.monotonic() + PATIENCE_S
        while until not in seen:
            assert select.select([self._hand], [], [], max(0.0, end - time.monotonic()))[0], seen
            seen += os.read(self._hand, 1)
        return seen

    def type(self, keys: bytes) -> None:
        os.write(self._hand, keys)

    def modes(self) -> list[object]:
        return list(termios.tcgetattr(self._terminal))

    def over(self) -> int:
        return self._boot.wait(PATIENCE_S)

    def close(self) -> None:
        self._boot.kill()
        self._boot.wait()
        os.close(self._hand)
        os.close(self._terminal)


@pytest.fixture(name="terminal")
def _terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """A terminal at which a spine boots that has linda, who starts by herself."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    found = None
    try:
        spine("boot", "--detach", "--container")
        spine("persona", "install", "linda")
        spine("stop")
        found = Terminal()
        yield found
    finally:
        if found is not None:
            found.close()
        if state.read(state.directory("container")):
            spine("stop")


def status() -> dict[str, object]:
    return dict(json.loads(spine("status", "--json")))


def test_a_person_types_to_linda_and_leaves(terminal: Terminal) -> None:
    assert b"Ctrl-] leaves" in terminal.see(PROMPT)
    assert terminal.modes() != terminal.before
    terminal.type(b"umbilical status\r")
    shown = terminal.see(PROMPT)
    assert b"persona linda\r\n" in shown
    assert b"quota " in shown
    # Ctrl-C is the room's: it ends the program and nothing else.
    terminal.type(b"echo be''gun; sleep 1000\r")
    terminal.see(b"begun\r\n")
    terminal.type(b"\x03")
    terminal.see(PROMPT)
    terminal.type(LEAVE)
    assert b"./spine status" in terminal.see(b"left running; next:") + terminal.see(b"\n")
    assert terminal.over() == 0
    assert terminal.modes() == terminal.before
    found = status()
    assert found["focus"] == "linda"
    # A ground that does not run is not the one that does.
    spine("stop", "--machine", code=4)
    assert status()["ground"] == found["ground"]


def test_the_console_goes_on_after_what_restarts(terminal: Terminal) -> None:
    terminal.see(PROMPT)
    spine("call", "operator.probe", "name=kill", "organ=freezer", "signal=9")
    within("linda has it", lambda: status()["focus"] == "linda")
    within("she hears", lambda: _heard(terminal))
    spine("reboot")
    # A reboot may be over before the view has noticed it; then it goes on with the new shell, without a word.
    terminal.see(b"BusyBox")
    terminal.see(PROMPT)
    spine("stop")
    terminal.see(b"the spine has shut down")
    assert terminal.over() == 0
    assert terminal.modes() == terminal.before


def _heard(terminal: Terminal) -> bool:
    """Type a word; whether the room said it, and not only the terminal."""
    terminal.type(b"echo $((40+2))\r")
    return b"42\r\n" in terminal.see(PROMPT)
