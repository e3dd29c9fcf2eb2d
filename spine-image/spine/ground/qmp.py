"""Speaks QEMU's control protocol (QMP): JSON lines on a unix socket.

Touches one socket. Every wait has a deadline. `QmpError` says what went wrong, be it the socket, silence or
QEMU's own refusal; events that arrive while an answer is awaited are kept for `wait_event`.
"""

import json
import socket
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

# QEMU answers from its main loop, which a busy TCG guest on a loaded host may hold up for a while.
ANSWER_S = 20.0
# Events nobody asked for; the oldest go first.
EVENTS_MAX = 1000


class QmpError(Exception):
    """QEMU did not do what it was asked."""


class Qmp:
    """A session. Use as a context manager; QEMU serves one session at a time."""

    def __init__(self, path: Path, deadline_s: float = ANSWER_S) -> None:
        self._deadline_s = deadline_s
        self._buffer = b""
        self._events: deque[dict[str, object]] = deque(maxlen=EVENTS_MAX)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        end = time.monotonic() + deadline_s
        try:
            self._socket.settimeout(deadline_s)
            self._socket.connect(str(path))
            while "QMP" not in self._receive(end):
                pass
        except (OSError, QmpError) as error:
            self._socket.close()
            raise QmpError(f"no QEMU answers on {path}: {error}") from error
        self.execute("qmp_capabilities")

    def __enter__(self) -> "Qmp":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        """Run a command; its result. QmpError."""
        asked: dict[str, object] = {"execute": command}
        if arguments:
            asked["arguments"] = dict(arguments)
        end = time.monotonic() + self._deadline_s
        try:
            self._socket.sendall(json.dumps(asked).encode() + b"\n")
        except OSError as error:
            raise QmpError(f"{command}: {error}") from error
        while True:
            answer = self._receive(end)
            if "event" in answer:
                self._events.append(answer)
            elif "error" in answer:
                raise QmpError(f"{command}: {_description(answer['error'])}")
            elif "return" in answer:
                return answer["return"]

    def wait_event(self, name: str, deadline_s: float) -> dict[str, object]:
        """The next event of this name, one that has come already included. QmpError after the deadline."""
        end = time.monotonic() + deadline_s
        while True:
            while self._events:
                event = self._events.popleft()
                if event.get("event") == name:
                    return event
            answer = self._receive(end)
            if "event" in answer:
                self._events.append(answer)

    def _receive(self, end: float) -> dict[str, object]:
        while b"\n" not in self._buffer:
            left = end - time.monotonic()
            if left <= 0:
                raise QmpError("QEMU is silent")
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(65536)
            except OSError as error:
                raise QmpError(str(error) or "QEMU is silent") from error
            if not data:
                raise QmpError("QEMU has gone")
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        try:
            found = json.loads(line)
        except ValueError as error:
            raise QmpError(f"not JSON: {line[:80]!r}") from error
        if not isinstance(found, dict):
            raise QmpError(f"not an object: {line[:80]!r}")
        return found


def _description(error: object) -> str:
    return str(error.get("desc", error)) if isinstance(error, dict) else str(error)
