"""The client of the operator's port: calls into a running spine, on either ground.

Touches one unix socket, and a lock beside it so that two commands on one machine do not mix their bytes
(QEMU serves one client of a port). Each frame is a line of base64; a hello with a number of our own marks
where the stream begins to be ours. Every wait has a deadline. A typed failure of the other side is a
`PortFailure`; silence and broken connections are `SpineError`s too.
"""

import base64
import binascii
import contextlib
import fcntl
import json
import os
import secrets
import socket
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from bus.envelope import Code, Envelope, Failure, Kind, PeerError, pack, unpack, unpack_failure
from spine import methods, paths
from spine.errors import Exit, SpineError

if TYPE_CHECKING:
    from bus.wire import Method, Schemas

# A message of 1 MiB + 64 KiB is 1.42 MiB of base64; the rest is room for the header.
LINE_MAX = 2 * 1024 * 1024
# How long the other side may take to answer a hello. Under TCG an organ may need seconds to be scheduled.
HELLO_S = 15.0
# Unanswered, a hello is said again this often: the one before may have been lost with the reader before ours.
HELLO_AGAIN_S = 1.0
# What a person waits for at least, though the method's own deadline be shorter: emulated machines are slow.
CALL_S = 20.0
# The answer to a call that ran to its deadline must still have time to come back.
ANSWER_SLACK_S = 5.0
LOCK_POLL_S = 0.02
# Who waits for the port waits longer than an answer may take: programs in rooms hold it in turns, and chance
# says whose turn it is.
TURNS = 4

EXITS = {
    Code.NOT_FOUND: Exit.NO_SUCH_THING,
    Code.UNKNOWN: Exit.NO_SUCH_THING,
    Code.UNKNOWN_METHOD: Exit.NO_SUCH_THING,
    Code.FORBIDDEN: Exit.REFUSED,
    Code.REFUSED: Exit.REFUSED,
    Code.QUOTA: Exit.REFUSED,
    Code.FULL: Exit.REFUSED,
    Code.INVALID: Exit.REFUSED,
    Code.TOO_LARGE: Exit.REFUSED,
    Code.THROTTLED: Exit.REFUSED,
    Code.FROZEN: Exit.REFUSED,
    Code.BUSY: Exit.REFUSED,
    Code.DEADLINE: Exit.TIMEOUT,
}

FIXES = {
    Code.NOT_FOUND: "check the names given   (./spine call lists the methods)",
    Code.UNKNOWN: "check the names given   (./spine call lists the methods)",
    Code.UNKNOWN_METHOD: "./spine build; ./spine reboot   (the image is older than the tree)",
    Code.DEADLINE: "./spine status; then run the same command again",
    Code.STALE: "run the same command again",
    Code.BUSY: "run the same command again",
    Code.PEER_DIED: "./spine status; then run the same command again",
    Code.THROTTLED: "wait, then run the same command again",
}
FIX_OTHERWISE = "./spine call   (lists what may be called, and with what)"


# Longer than anybody watches a tap.
EVER_S = 10.0**9


class PortFailure(SpineError):
    """The spine answered with a failure; `failure.code` says which."""

    def __init__(self, asked: str, failure: Failure) -> None:
        super().__init__(
            f"{asked} failed: {failure.code.name}",
            failure.message or "the organ gave no reason",
            FIXES.get(failure.code, FIX_OTHERWISE),
            EXITS.get(failure.code, Exit.FAILED),
            failure.code.name.lower().replace("_", "-"),
        )
        self.asked = asked
        self.failure = failure


def schemas() -> "Schemas":
    """The tree's schemas, compiled once for each state of their files and kept in the cache. SpineError."""
    from bus import wire

    return wire.load(schemas_file())


def schemas_file() -> Path:
    """The compiled schemas of the tree. SpineError."""
    made = methods.directory()
    if not (made / "schemas.cgr").is_file():
        _compile(paths.ROOT / "schemas", paths.ROOT / "organs" / "manifest.toml", made)
    return made / "schemas.cgr"


class Port:
    """One connection to the operator's port. Use as a context manager; not for several threads."""

    def __init__(
        self,
        path: Path,
        *,
        deadline_s: float = HELLO_S,
        table: "Schemas | None" = None,
        shared: bool = False,
    ) -> None:
        """Connect and say hello. SpineError: nobody listens (3), no answer in time (124).

        `shared`: the port takes several clients at a time, so nobody has to wait for the others.
        """
        self._path = path
        self._table = table
        self._buffer = b""
        self._events: deque[bytes] = deque()
        self._lock = contextlib.ExitStack()
        self.generation = 0
        end = time.monotonic() + deadline_s
        try:
            if not shared:
                self._lock_port(time.monotonic() + TURNS * deadline_s)
                end = time.monotonic() + deadline_s
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._lock.callback(self._socket.close)
            self._connect(end)
            self._hello(end)
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> "Port":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; others may have the port."""
        self._lock.close()

    def call(
        self, name: str, params: Mapping[str, object] | None = None, *, timeout_s: float | None = None
    ) -> dict[str, object]:
        """Call `organ.method` with plain values; its results.

        PortFailure, SpineError; ValueError or TypeError (naming the field) when the values do not fit.
        """
        if self._table is None:
            self._table = schemas()
        organ, _, method_name = name.partition(".")
        interface = self._table.interfaces.get(organ)
        method = interface.methods.get(method_name) if interface else None
        if method is None:
            raise SpineError(
                f"there is no method {name!r}", "the schemas name none", "./spine call", Exit.NO_SUCH_THING
            )
        body = method.encode_params(dict(params or {}))
        return self.call_raw(method, body, timeout_s)

    def call_raw(self, method: "Method", body: bytes, timeout_s: float | None = None) -> dict[str, object]:
        """The same for a body that is encoded already, well or badly."""
        asked = f"{method.interface_name}.{method.name}"
        limit_s = max(method.deadline_ms / 1000, CALL_S) if timeout_s is None else timeout_s
        envelope = Envelope(
            kind=Kind.CALL,
            id=secrets.randbits(63),
            generation=self.generation,
            # The two clocks differ: here the deadline is what remains.
            deadline_ns=int(limit_s * 10**9),
            interface=method.interface_id,
            ordinal=method.ordinal,
            body=body,
        )
        end = time.monotonic() + limit_s + ANSWER_SLACK_S
        self._send(envelope, end)
        while True:
            answer = self._receive(end, asked)
            if answer.kind is Kind.EVENT:
                self._events.append(answer.body)
                continue
            if answer.id != envelope.id and not (answer.id == 0 and answer.kind is Kind.FAILURE):
                continue  # the answer to a call that gave up
            if answer.kind is Kind.FAILURE:
                raise PortFailure(asked, _failure(answer.body))
            if answer.kind is Kind.REPLY:
                try:
                    return method.decode_results(answer.body)
                except PeerError as error:
                    raise _broken(asked, str(error)) from error

    def event(self, end: float | None) -> bytes | None:
        """The body of the next event; None when the time (time.monotonic) is up. SpineError when it broke."""
        while not self._events:
            line = self._line(time.monotonic() + EVER_S if end is None else end)
            if line is None:
                return None
            envelope = _envelope(line)
            if envelope is not None and envelope.kind is Kind.EVENT:
                self._events.append(envelope.body)
        return self._events.popleft()

    def _lock_port(self, end: float) -> None:
        file = self._lock.enter_context(self._path.with_suffix(".lock").open("w", encoding="ascii"))
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise SpineError(
                        "the operator's port is in use",
                        f"another ./spine holds {self._path.with_suffix('.lock')}",
                        "wait for it, then run the same command again",
                        Exit.TIMEOUT,
                    ) from error
                time.sleep(LOCK_POLL_S)

    def _connect(self, end: float) -> None:
        try:
            self._socket.settimeout(max(0.1, end - time.monotonic()))
            self._socket.connect(str(self._path))
        except OSError as error:
            raise SpineError(
                "the operator's port cannot be reached",
                f"{self._path}: {error.strerror or error}",
                "./spine status; ./spine log",
                Exit.HOST_NOT_READY,
            ) from error

    def _hello(self, end: float) -> None:
        # The newline ends what a client before us may have left half-sent.
        number = secrets.randbits(63)
        self._write(b"\n", end)
        while True:
            self._send(Envelope(kind=Kind.HELLO, id=number), end)
            again = min(end, time.monotonic() + HELLO_AGAIN_S)
            while (line := self._line(again)) is not None:
                answer = _envelope(line)
                if answer is not None and answer.kind is Kind.HELLO and answer.id == number:
                    self.generation = answer.generation
                    return
            if time.monotonic() >= end:
                raise SpineError(
                    "the operator does not answer",
                    f"no hello came back on {self._path}",
                    "./spine log; ./spine reboot",
                    Exit.TIMEOUT,
                    "deadline",
                )

    def _send(self, envelope: Envelope, end: float) -> None:
        self._write(base64.b64encode(pack(envelope)) + b"\n", end)

    def _write(self, data: bytes, end: float) -> None:
        try:
            self._socket.settimeout(max(0.1, end - time.monotonic()))
            self._socket.sendall(data)
        except OSError as error:
            raise _broken("the operator's port", error.strerror or str(error)) from error

    def _receive(self, end: float, asked: str) -> Envelope:
        line = self._line(end)
        if line is None:
            raise SpineError(
                f"{asked} was not answered in time",
                "the spine is silent; whether the call was executed is not known",
                "./spine status; then run the same command again",
                Exit.TIMEOUT,
                "deadline",
            )
        envelope = _envelope(line)
        if envelope is None:
            raise _broken(asked, "the answer is not an envelope")
        return envelope

    def _line(self, end: float) -> bytes | None:
        """The next line, or None when the time is up. SpineError when the connection ended."""
        while b"\n" not in self._buffer:
            if len(self._buffer) > LINE_MAX:
                raise _broken("the operator's port", f"a line of more than {LINE_MAX} bytes")
            left = end - time.monotonic()
            if left <= 0:
                return None
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                return None
            except OSError as error:
                raise _broken("the operator's port", error.strerror or str(error)) from error
            if not data:
                raise _broken("the operator's port", "the connection was closed from the other side")
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line


def _envelope(line: bytes) -> Envelope | None:
    try:
        return unpack(base64.b64decode(line, validate=True))
    except (binascii.Error, PeerError):
        return None


def _failure(body: bytes) -> Failure:
    try:
        return unpack_failure(body)
    except PeerError as error:
        return Failure(Code.BAD_MESSAGE, str(error))


def _broken(asked: str, why: str) -> SpineError:
    return SpineError(f"{asked} broke", why, "./spine status; ./spine log", Exit.FAILED, "peer-died")


def _compile(directory: Path, manifest: Path, made: Path) -> None:
    from bus import wire
    from bus.compile import SchemaRefused, compile_schemas

    draft = paths.private(paths.cache()) / f"{made.name}.{os.getpid()}"
    try:
        compile_schemas(directory, manifest, draft)
        kept = methods.document(wire.load(draft / "schemas.cgr"))
        (draft / methods.FILE).write_text(json.dumps(kept) + "\n", encoding="utf-8")
    except SchemaRefused as error:
        raise SpineError(
            f"a schema is refused: {error.rule}", f"{error.file}:{error.line}", "mend it"
        ) from error
    except FileNotFoundError as error:
        raise SpineError(
            "the schemas cannot be compiled",
            f"{error.filename or 'capnp'} is not installed",
            "apt-get install --no-install-recommends capnproto",
            Exit.HOST_NOT_READY,
        ) from error
    try:
        draft.rename(made)
    except OSError:
        # Another ./spine was first; its files are the same bytes.
        for file in draft.iterdir():
            file.unlink()
        draft.rmdir()
