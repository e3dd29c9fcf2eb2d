"""One caller under fire: calls over a connection of its own, and its account of what became of them.

The account is kept here, outside of the spine. A put that was acknowledged must be found until another put of
the same key was acknowledged; a put that ended otherwise may or may not have happened, and its key is never
written again, so that nothing done late can be mistaken for a loss. Every call must have an end: an answer, a
typed failure, or the end of the connection it went over. A call without one is a violation.
"""

from __future__ import annotations

import base64
import random
import select
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from bus.envelope import Code, Envelope, Kind, pack, unpack, unpack_failure
from bus.wire import Method, Schemas

# Calls of one caller under way at once.
WINDOW = 4
# The time each call is given. A hung organ is found well within it.
CALL_S = 4.0
# What an end may come late by: the way back through a busy host.
LATE_S = 4.0
# The same where the operator is hit too: hung, it can keep nobody's deadline until bay0 has found it.
LATE_PORT_HIT_S = 16.0
KEYS = 24
VALUE_BYTES_MAX = 300
CONNECT_S = 60.0
POLL_S = 0.1

# What honest callers may be told while organs die. Anything else is a violation.
EXPECTED = frozenset({Code.PEER_DIED, Code.DEADLINE, Code.STALE, Code.BUSY, Code.NOT_FOUND})


@dataclass
class Asked:
    """A call under way."""

    method: Method
    key: bytes
    value: bytes
    end: float


@dataclass
class Account:
    """What the caller knows of its keys, and how its calls ended."""

    # What each key may hold; None for nothing. One value only, unless a put of it ended without an answer.
    keys: dict[bytes, set[bytes | None]] = field(default_factory=dict)
    acknowledged: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


class Caller:
    """Calls put, get, list and usage of the gate at random until told to stop."""

    def __init__(self, name: str, port: Path, schemas: Schemas, seed: str, late_s: float) -> None:
        self.name, self.account = name, Account()
        self._late_s = late_s
        self._port, self._dice = port, random.Random(seed)
        self._methods = schemas.interfaces["gate"].methods
        self._asked: dict[int, Asked] = {}
        self._last_id = 0
        self._names = 0
        self._writable = [self._new_key() for _ in range(KEYS)]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name)

    def start(self) -> None:
        """Begin to call."""
        self._thread.start()

    def stop(self) -> None:
        """Ask nothing more; returns when each call has ended or is known not to."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._converse()
        except Exception as error:  # a thread's own end must not pass for silence
            self.account.violations.append(f"{self.name}: the caller itself failed: {error!r}")

    def _converse(self) -> None:
        """One connection, as long as it lasts."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(CONNECT_S)
            try:
                sock.connect(str(self._port))
                sock.sendall(b"\n")
                buffer = b""
                while self._asked or not self._stop.is_set():
                    while len(self._asked) < WINDOW and not self._stop.is_set():
                        sock.sendall(self._ask())
                    readable, _, _ = select.select([sock], [], [], POLL_S)
                    if readable:
                        data = sock.recv(65536)
                        if not data:
                            break
                        *lines, buffer = (buffer + data).split(b"\n")
                        for line in lines:
                            self._hear(unpack(base64.b64decode(line, validate=True)))
                    if self._overdue():
                        break
            except OSError:
                pass  # the operator died: that is an end of what went over it
        for asked in self._asked.values():
            self._ended(asked, "connection ended")
        self._asked.clear()

    def _overdue(self) -> bool:
        late = [
            number for number, asked in self._asked.items() if time.monotonic() > asked.end + self._late_s
        ]
        for number in late:
            asked = self._asked.pop(number)
            self.account.violations.append(f"{self.name}: {asked.method.name} has no end")
            self._ended(asked, "no end")
        return bool(late)

    def _new_key(self) -> bytes:
        self._names += 1
        return f"{self._names:06}".encode()

    def _ask(self) -> bytes:
        busy = {asked.key for asked in self._asked.values()}
        act = self._dice.choices(("put", "get", "list", "usage"), (6, 4, 1, 1))[0]
        key = value = b""
        params: dict[str, object] = {"persona": self.name}
        if act == "put":
            at = self._dice.choice([i for i, k in enumerate(self._writable) if k not in busy])
            key, value = self._writable[at], self._dice.randbytes(self._dice.randint(1, VALUE_BYTES_MAX))
            params |= {"key": key, "value": value}
        elif act == "get":
            known = self._dice.sample(list(self.account.keys), min(9, len(self.account.keys)))
            key = next((k for k in known if k not in busy), self._new_key())
            params |= {"key": key}
        elif act == "list":
            params |= {"after": b"", "limit": 1000}
        self._last_id += 1
        method = self._methods[act]
        asked = Asked(method, key, value, time.monotonic() + CALL_S)
        self._asked[self._last_id] = asked
        return frame(self._last_id, method, params)

    def _hear(self, answer: Envelope) -> None:
        asked = self._asked.pop(answer.id, None)
        if asked is None:
            self.account.violations.append(
                f"{self.name}: an answer that nobody asked for ({answer.kind.name})"
            )
        elif answer.kind is Kind.FAILURE:
            failure = unpack_failure(answer.body)
            if failure.code not in EXPECTED:
                said = f"{failure.code.name} {failure.message}"
                self.account.violations.append(f"{self.name}: {asked.method.name} was told {said}")
            self._ended(asked, failure.code.name)
        else:
            self._answered(asked, asked.method.decode_results(answer.body))

    def _answered(self, asked: Asked, results: dict[str, object]) -> None:
        self.account.ends["answered"] += 1
        if asked.method.name == "put":
            self.account.acknowledged += 1
            self.account.keys[asked.key] = {asked.value}
        elif asked.method.name == "get":
            self._holds(asked.key, results["value"])

    def _ended(self, asked: Asked, how: str) -> None:
        """Not answered. Of a put nobody knows whether it happened, now or later."""
        self.account.ends[how] += 1
        if asked.method.name == "put":
            self.account.keys.setdefault(asked.key, {None}).add(asked.value)
            self._writable[self._writable.index(asked.key)] = self._new_key()
        elif asked.method.name == "get" and how == Code.NOT_FOUND.name:
            self._holds(asked.key, None)

    def _holds(self, key: bytes, value: object) -> None:
        if value not in self.account.keys.get(key, {None}):
            self.account.violations.append(f"{self.name}: {key.decode()} lost what was acknowledged")


def frame(number: int, method: Method, params: dict[str, object], limit_s: float = CALL_S) -> bytes:
    """One call as the port carries it: its deadline is what remains."""
    envelope = Envelope(
        kind=Kind.CALL,
        id=number,
        deadline_ns=int(limit_s * 10**9),
        interface=method.interface_id,
        ordinal=method.ordinal,
        body=method.encode_params(params),
    )
    return base64.b64encode(pack(envelope)) + b"\n"
