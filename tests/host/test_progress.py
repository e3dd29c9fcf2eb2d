"""Progress: plain lines where nobody looks, one live line on a terminal, never in the way of the work."""

import io
import os
import pty
import time

import pytest

from spine.progress import Progress


def until(stream: io.StringIO, count: int) -> list[str]:
    """The lines of a stream once there are so many."""
    end = time.monotonic() + 20
    while len(stream.getvalue().splitlines()) < count:
        assert time.monotonic() < end
        time.sleep(0.001)
    return stream.getvalue().splitlines()


def test_plain_lines_and_a_heartbeat() -> None:
    stream = io.StringIO()
    progress = Progress(stream, heartbeat_s=0.01)
    progress.start("kernel", estimate_s=600)
    progress.note("cc init.o")
    lines = until(stream, 3)
    progress.done("3 MB")
    assert lines[0] == "spine: kernel (about 10 min 00 s)"
    assert lines[2].startswith("spine: kernel … ")
    assert lines[2].endswith("  cc init.o")
    last = stream.getvalue().splitlines()[-1]
    assert last.startswith("spine: kernel done ")
    assert last.endswith(": 3 MB")
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()


def test_a_stage_that_fails_says_so_and_lets_the_error_go_on() -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    with pytest.raises(RuntimeError), progress.stage("disk"):
        raise RuntimeError
    assert "disk FAILED" in stream.getvalue()
    progress.done()
    assert len(stream.getvalue().splitlines()) == 2


def test_a_stream_that_is_gone_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    # Unbuffered below, so that nothing is left to fail at the end.
    stream = io.TextIOWrapper(os.fdopen(writer, "wb", buffering=0), write_through=True)
    progress = Progress(stream)
    progress.start("x")
    progress.say("y")
    progress.done()
    stream.close()
    progress.say("z")


@pytest.mark.parametrize("no_colour", [False, True])
def test_a_terminal_gets_one_line_drawn_anew(monkeypatch: pytest.MonkeyPatch, no_colour: bool) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_colour:
        monkeypatch.setenv("NO_COLOR", "1")
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream:
        progress = Progress(stream)
        with progress.stage("boot"):
            progress.note("kernel")
            progress.say("a line")
        shown = ""
        while not shown.endswith(" s\r\n"):
            shown += os.read(ours, 65536).decode()
    os.close(ours)
    assert shown.startswith("\r\x1b[Kspine: boot … ")
    assert "\r\x1b[Kspine: a line\r\n" in shown
    assert ("\x1b[32mdone" in shown) is not no_colour
