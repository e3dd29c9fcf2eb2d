"""How a record of the tap reads to a person and to a script.

Pure: records in, rows out. A row names both ends, the method, its values by the schema (secrets left out),
and for an answer how long it took by the clock of the end that saw it. A call is expected at both ends; those
that only one end has seen are counted.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from bus.envelope import Kind, PeerError, Phase, split_beside, unpack_failure
from bus.tap import Record, Side
from bus.wire import Method, Schemas

# Calls that may be open at a time for the pairing; beyond it the oldest is let go, unpaired.
OPEN_MAX = 4096
# A value longer than this is cut in the row a person reads.
SHOWN_MAX = 60
SECRET = "(secret)"
# What an event is that tells nothing by itself.
PHASES: Mapping[int, str] = {Phase.ASK: "asks to hear", Phase.END: "that is the present state"}


@dataclass(frozen=True, slots=True)
class Row:
    """One record, decoded. `took_us` only for answers whose call was seen by the same end."""

    time_ns: int
    seen_by: str
    seq: int
    side: str
    sender: str
    receiver: str
    kind: str
    method: str
    values: Mapping[str, object]
    outcome: str
    attempt: int
    id: int
    took_us: int | None
    bytes: int

    def document(self) -> dict[str, object]:
        """For --json."""
        return {
            "timeNs": self.time_ns,
            "seenBy": self.seen_by,
            "seq": self.seq,
            "side": self.side,
            "from": self.sender,
            "to": self.receiver,
            "kind": self.kind,
            "method": self.method,
            "values": {name: _plain(value) for name, value in self.values.items()},
            "outcome": self.outcome,
            "attempt": self.attempt,
            "id": self.id,
            "tookUs": self.took_us,
            "bytes": self.bytes,
        }

    def line(self, start_ns: int) -> str:
        """For a person: seconds since the first record, who to whom, what."""
        values = " ".join(f"{name}={_short(value)}" for name, value in self.values.items())
        took = f" took {self.took_us} us" if self.took_us is not None else ""
        again = f" attempt {self.attempt}" if self.attempt else ""
        return (
            f"{(self.time_ns - start_ns) / 1e9:10.6f}  {self.sender} > {self.receiver}  {self.method or '-'}"
            f"  {self.kind} {self.side}  {self.outcome or values}{took}{again}"
        ).rstrip()


class Reader:
    """Decodes records one after the other and pairs calls with answers, and one end with the other."""

    def __init__(self, schemas: Schemas) -> None:
        self._schemas = schemas
        # (seen by, peer, side of the call, id, attempt) → when
        self._open: OrderedDict[tuple[str, str, Side, int, int], int] = OrderedDict()
        # (caller, callee, id, attempt) → how many of the call's two ends were seen
        self._ends: OrderedDict[tuple[str, str, int, int], int] = OrderedDict()
        self.calls = 0

    def read(self, record: Record) -> Row:
        """The row of a record."""
        envelope = record.envelope
        sent = record.side is Side.SENT
        sender, receiver = (record.organ, record.peer) if sent else (record.peer, record.organ)
        method = _method(self._schemas, record)
        took_us = None
        if envelope.kind is Kind.CALL:
            self._begin(record, sender, receiver)
        elif envelope.kind in (Kind.REPLY, Kind.FAILURE):
            opposite = Side.RECEIVED if sent else Side.SENT
            key = (record.organ, record.peer, opposite, envelope.id, envelope.attempt)
            if (began := self._open.pop(key, None)) is not None:
                took_us = (record.time_ns - began) // 1000
        return Row(
            time_ns=record.time_ns,
            seen_by=record.organ,
            seq=record.seq,
            side=record.side.name.lower(),
            sender=sender,
            receiver=receiver,
            kind=envelope.kind.name.lower(),
            method=f"{method.interface_name}.{method.name}" if method else "",
            values=_values(record, method),
            outcome=_outcome(record),
            attempt=0 if envelope.kind is Kind.EVENT else envelope.attempt,
            id=envelope.id,
            took_us=took_us,
            bytes=len(envelope.body),
        )

    @property
    def one_sided(self) -> int:
        """Calls that only one end has seen so far. Those of the last moment may still be under way."""
        return sum(1 for ends in self._ends.values() if ends == 1)

    def _begin(self, record: Record, caller: str, callee: str) -> None:
        envelope = record.envelope
        self._open[(record.organ, record.peer, record.side, envelope.id, envelope.attempt)] = record.time_ns
        end = (caller, callee, envelope.id, envelope.attempt)
        self._ends[end] = self._ends.get(end, 0) + 1
        self.calls += self._ends[end] == 1
        if self._ends[end] == 2:
            del self._ends[end]
        while len(self._open) > OPEN_MAX:
            self._open.popitem(last=False)
        while len(self._ends) > OPEN_MAX:
            self._ends.popitem(last=False)


def _method(schemas: Schemas, record: Record) -> Method | None:
    """The method, or the event, that a record is about."""
    envelope = record.envelope
    if envelope.kind is Kind.EVENT and envelope.attempt in (Phase.NEWS, Phase.PART):
        return schemas.event(envelope.interface, envelope.ordinal)
    if envelope.kind in (Kind.CALL, Kind.REPLY, Kind.FAILURE):
        return schemas.method(envelope.interface, envelope.ordinal)
    return None


def _values(record: Record, method: Method | None) -> dict[str, object]:
    if method is None or record.envelope.kind is Kind.FAILURE:
        return {}
    if not record.whole:
        return {"body": "(not shown)"}
    asked = record.envelope.kind is not Kind.REPLY
    fields = method.params if asked else method.results
    try:
        body, shown = record.envelope.body, dict[str, object]()
        if method.beside:
            _, shown["descriptors"], body = split_beside(body)
        values = method.decode_params(body) if asked else method.decode_results(body)
    except PeerError as error:
        return {"body": f"(unreadable: {error})"}
    return shown | {field.name: SECRET if field.secret else values.get(field.name) for field in fields}


def _outcome(record: Record) -> str:
    if record.envelope.kind is Kind.EVENT:
        return PHASES.get(record.envelope.attempt, "")
    if record.envelope.kind is not Kind.FAILURE:
        return ""
    try:
        return str(unpack_failure(record.envelope.body))
    except PeerError as error:
        return f"(unreadable: {error})"


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        try:
            return {"utf8": value.decode()}
        except UnicodeDecodeError:
            return {"hex": value.hex()}
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value


def _short(value: object) -> str:
    text = value if value is SECRET else json.dumps(_plain(value), ensure_ascii=True)
    if isinstance(value, bytes):
        text = json.dumps(value.decode(errors="backslashreplace"))
    text = str(text)
    return text if len(text) <= SHOWN_MAX else text[:SHOWN_MAX] + "..."
