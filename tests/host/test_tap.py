"""Recordings of the tap, and how records read."""

from __future__ import annotations

import contextlib
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.envelope import Code, Envelope, Failure, Kind, Phase, pack_beside, pack_failure
from bus.tap import Record, Side
from spine.ground import port
from spine.tap import pcapng
from spine.tap.view import Reader
from tests.bus import wiring

SCHEMAS = b"the compiled schemas, any bytes"


def record(seq: int = 1, organ: str = "operator", side: Side = Side.SENT, **fields: object) -> Record:
    get = port.schemas().interfaces["gate"].methods["get"]
    envelope = Envelope(
        kind=fields.pop("kind", Kind.CALL),  # type: ignore[arg-type]
        id=7,
        interface=get.interface_id,
        ordinal=get.ordinal,
        body=fields.pop("body", get.encode_params({"persona": "linda", "key": b"k"})),  # type: ignore[arg-type]
    )
    peer = "gate" if organ == "operator" else "operator"
    return Record(organ=organ, seq=seq, time_ns=1000 * seq, side=side, peer=peer, envelope=envelope)


def recording(records: list[Record]) -> bytes:
    file = io.BytesIO()
    writer = pcapng.Writer(file, SCHEMAS)
    for one in records:
        writer.add(one)
    return file.getvalue()


def read(data: bytes) -> tuple[bytes, list[Record]]:
    file = io.BytesIO(data)
    return pcapng.read_schemas(file), list(pcapng.read_records(file))


def test_a_recording_is_read_as_it_was_written() -> None:
    records = [record(seq) for seq in range(1, 5)]
    assert read(recording(records)) == (SCHEMAS, records)


@given(st.data())
def test_a_damaged_recording_is_refused_or_read(data: st.DataObject) -> None:
    whole = bytearray(recording([record(1), record(2)]))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(pcapng.RecordingError):
        read(bytes(whole[: data.draw(st.integers(0, len(whole)))]))


@given(st.binary(max_size=200))
def test_garbage_is_no_recording(junk: bytes) -> None:
    with pytest.raises(pcapng.RecordingError):
        read(junk)


def test_a_call_is_paired_with_its_answer_and_its_other_end() -> None:
    get = port.schemas().interfaces["gate"].methods["get"]
    reader = Reader(port.schemas())
    sent = reader.read(record(1))
    assert (sent.sender, sent.receiver, sent.method) == ("operator", "gate", "gate.get")
    assert sent.values == {"persona": "linda", "key": b"k"}
    assert reader.one_sided == 1
    reader.read(record(1, organ="gate", side=Side.RECEIVED))
    assert (reader.calls, reader.one_sided) == (1, 0)
    answer = get.encode_results({"value": b"never shown", "seq": 4})
    back = reader.read(record(9, side=Side.RECEIVED, kind=Kind.REPLY, body=answer))
    assert (back.sender, back.receiver, back.took_us) == ("gate", "operator", 8)
    assert back.values == {"value": "(secret)", "seq": 4}
    assert "never shown" not in back.line(0)


def test_a_failure_names_its_code() -> None:
    body = pack_failure(Failure(Code.QUOTA, "used up"))
    row = Reader(port.schemas()).read(record(1, side=Side.RECEIVED, kind=Kind.FAILURE, body=body))
    assert row.outcome == "QUOTA: used up"


def test_descriptors_are_a_number_and_both_ends_are_one_call() -> None:
    table = wiring.schemas("courier")
    swap = table.interfaces["courier"].methods["swap"]
    reader = Reader(table)
    rows = []
    for kind, body in ((Kind.CALL, swap.encode_params({"tag": 5})), (Kind.REPLY, b"")):
        for organ, peer in (("alpha", "courier"), ("courier", "alpha")):
            envelope = Envelope(
                kind=kind,
                id=1,
                interface=swap.interface_id,
                ordinal=swap.ordinal,
                body=pack_beside(1 << 40, 3) + body,
            )
            side = Side.SENT if (kind is Kind.CALL) == (organ == "alpha") else Side.RECEIVED
            row = reader.read(Record(organ=organ, seq=1, time_ns=1, side=side, peer=peer, envelope=envelope))
            rows.append(row)
    assert [row.values.get("descriptors") for row in rows[:2]] == [3, 3]
    assert rows[0].values["tag"] == 5
    assert "unreadable" in str(rows[2].values["body"])
    assert (reader.calls, reader.one_sided) == (1, 0)


def test_events_are_read_by_their_schema() -> None:
    table = wiring.schemas("herald")
    changed = table.interfaces["herald"].events["changed"]
    told = Envelope(
        kind=Kind.EVENT,
        id=1,
        interface=changed.interface_id,
        ordinal=changed.ordinal,
        body=changed.encode_params({"key": 1, "value": "v", "password": b""}),
    )
    asked = Envelope(kind=Kind.EVENT, id=1, interface=changed.interface_id, attempt=Phase.ASK)
    reader = Reader(table)
    rows = [
        reader.read(Record(organ="herald", seq=1, time_ns=1, side=Side.SENT, peer="alpha", envelope=envelope))
        for envelope in (told, asked)
    ]
    assert rows[0].method == "herald.changed"
    assert rows[0].values == {"key": 1, "value": "v", "password": "(secret)"}
    assert rows[0].line(0).endswith('herald.changed  event sent  key=1 value="v" password=(secret)')
    assert (rows[1].method, rows[1].outcome, rows[1].attempt) == ("", "asks to hear", 0)
    assert reader.calls == 0
