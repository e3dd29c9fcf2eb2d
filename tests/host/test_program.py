"""A program in a room as the host runs it: streams, ends, and what can be said when the end is not known."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import pytest

from bus.envelope import Code, Failure
from spine.errors import SpineError
from spine.ground.port import PortFailure
from spine.room import program
from spine.room.lease import Lease


class Room:
    """The operator's three methods over a real program of this host, a few bytes at a time."""

    def __init__(self, step: int) -> None:
        self._step = step
        self._child: subprocess.Popen[bytes] | None = None
        self.lost = False
        self.hung_up = False

    def port(self) -> Room:
        return self

    def call(self, name: str, params: Mapping[str, object]) -> dict[str, object]:
        if name == "operator.exec":
            argv = params["argv"]
            assert isinstance(argv, list)
            pipe = subprocess.PIPE
            self._child = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe)
            for stream in (self._child.stdout, self._child.stderr):
                assert stream is not None
                os.set_blocking(stream.fileno(), False)
            return {"session": 1}
        assert self._child is not None
        if name == "operator.hangUp":
            self.hung_up = True
            self._child.kill()
            self._child.wait()
            return {}
        if self.lost:
            self._child.kill()
            self._child.wait()
            raise PortFailure(name, Failure(Code.NOT_FOUND, "there is no such session any more"))
        return self._feed(params) if name == "operator.feed" else self._drain()

    def _feed(self, params: Mapping[str, object]) -> dict[str, object]:
        assert self._child is not None
        assert self._child.stdin is not None
        data = params["data"]
        assert isinstance(data, bytes)
        piece = data[: self._step]
        self._child.stdin.write(piece)
        self._child.stdin.flush()
        if params["end"] and piece == data:
            self._child.stdin.close()
        return {"taken": len(piece)}

    def _drain(self) -> dict[str, object]:
        assert self._child is not None
        code = self._child.poll()  # before the look: what was written by then is seen
        output, error = (_some(stream, self._step) for stream in (self._child.stdout, self._child.stderr))
        ended = ""
        if code is not None and not output and not error:
            ended = f"exit {code}" if code >= 0 else f"signal {-code}"
        return {"output": output, "error": error, "ended": ended}


def _some(stream: object, step: int) -> bytes:
    fileno = cast(Callable[[], int], stream.fileno)  # type: ignore[attr-defined]
    try:
        return os.read(fileno(), step)
    except BlockingIOError:
        return b""


def run(room: Room, tmp_path: Path, data: bytes, *argv: str) -> tuple[int, bytes, bytes]:
    (tmp_path / "in").write_bytes(data)
    with (
        open(tmp_path / "in", "rb") as source,
        open(tmp_path / "out", "wb") as output,
        open(tmp_path / "err", "wb") as error,
    ):
        sinks = program.into(output.fileno()), program.into(error.fileno())
        ended = program.run(cast(Lease, room), "linda", argv, source.fileno(), *sinks)
    code = program.exit_code(ended, argv[0])
    return code, (tmp_path / "out").read_bytes(), (tmp_path / "err").read_bytes()


@pytest.mark.parametrize("step", [1, 7, 65536])
def test_streams_and_code_are_the_programs(tmp_path: Path, step: int) -> None:
    data = os.urandom(300)
    code, output, error = run(Room(step), tmp_path, data, "sh", "-c", "cat; echo no >&2; exit 3")
    assert (code, output, error) == (3, data, b"no\n")


def test_no_input_is_an_end_of_input(tmp_path: Path) -> None:
    assert run(Room(100), tmp_path, b"", "cat") == (0, b"", b"")


def test_a_signal_is_told_as_shells_do(tmp_path: Path) -> None:
    assert run(Room(100), tmp_path, b"", "sh", "-c", "kill -TERM $$")[0] == 128 + 15


def test_an_end_that_nobody_knows_is_no_exit_code(tmp_path: Path) -> None:
    with pytest.raises(SpineError, match="how sleep ended is not known"):
        program.exit_code("unknown", "sleep")
    room = Room(100)
    room.lost = True
    with pytest.raises(SpineError, match="how sleep ended is not known") as told:
        run(room, tmp_path, b"", "sleep", "100")
    assert "operator was restarted" in told.value.why


@pytest.mark.parametrize("end", [KeyboardInterrupt, BrokenPipeError])
def test_what_ends_us_ends_the_program(end: type[BaseException]) -> None:
    def gone(_data: bytes) -> None:
        raise end

    room = Room(100)
    with open(os.devnull, "rb") as source, pytest.raises(end):
        program.run(cast(Lease, room), "linda", ("sh", "-c", "echo; sleep 100"), source.fileno(), gone, gone)
    assert room.hung_up


def test_a_program_that_ended_is_not_hung_up(tmp_path: Path) -> None:
    room = Room(100)
    assert run(room, tmp_path, b"", "true")[0] == 0
    assert not room.hung_up
