"""The tap's records: what they carry, what they leave out, what of them was lost."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.compile import compile_schemas
from bus.envelope import CHUNK_MAX, Code, Envelope, Failure, Kind, PeerError, pack_failure
from bus.tap import BODY_MAX, Gaps, Record, Side, Tap, pack_record, redact, unpack_record
from bus.wire import Method, Schemas, load
from tests.bus.strategies import fields

ROOT = Path(__file__).resolve().parents[2]
NAMES = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=15)
ENVELOPES = st.builds(
    Envelope,
    kind=st.sampled_from(Kind),
    id=st.integers(0, 2**64 - 1),
    generation=st.integers(0, 2**32 - 1),
    attempt=st.integers(0, 2**16 - 1),
    body=st.binary(max_size=200),
)
RECORDS = st.builds(
    Record,
    organ=NAMES,
    seq=st.integers(0, 2**64 - 1),
    time_ns=st.integers(-(2**63), 2**63 - 1),
    side=st.sampled_from(Side),
    peer=NAMES,
    envelope=ENVELOPES,
    whole=st.booleans(),
)


@given(RECORDS)
def test_a_record_is_read_as_it_was_written(record: Record) -> None:
    assert unpack_record(pack_record(record)) == record


@given(RECORDS, st.data())
def test_a_damaged_record_is_refused_or_another_record(record: Record, data: st.DataObject) -> None:
    packed = bytearray(pack_record(record))
    for _ in range(data.draw(st.integers(1, 4))):
        packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(packed)))
    with contextlib.suppress(PeerError):
        assert isinstance(unpack_record(bytes(packed[:cut])), Record)


@given(st.binary(max_size=300))
def test_garbage_is_refused(junk: bytes) -> None:
    with pytest.raises(PeerError):
        unpack_record(junk)


class Outlet:
    """Keeps what is published."""

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        self.records: list[bytes] = []

    def publish(self, record: bytes) -> None:
        self.records.append(record)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Schemas:
    """The tree's own schemas."""
    out = tmp_path_factory.mktemp("schemas")
    compile_schemas(ROOT / "schemas", ROOT / "organs" / "manifest.toml", out)
    return load(out / "schemas.cgr")


@pytest.fixture(scope="module")
def put(table: Schemas) -> Method:
    """A method with a secret among its parameters."""
    return next(
        m for i in table.interfaces.values() for m in i.methods.values() if any(f.secret for f in m.params)
    )


def call(method: Method, body: bytes) -> Envelope:
    return Envelope(kind=Kind.CALL, id=1, interface=method.interface_id, ordinal=method.ordinal, body=body)


@pytest.mark.proves("INV-TAP-1")
@given(data=st.data())
def test_no_secret_leaves_in_a_record(table: Schemas, put: Method, data: st.DataObject) -> None:
    canary = b"a canary of 24 bytes.."
    values = data.draw(fields(put.params))
    for field in put.params:
        if field.secret:
            values[field.name] = canary if field.type.kind == "data" else canary.decode()
    outlet = Outlet(wanted=True)
    Tap("gate", table, outlet).show(Side.RECEIVED, "operator", call(put, put.encode_params(values)))
    (packed,) = outlet.records
    assert canary not in packed
    record = unpack_record(packed)
    assert record.whole
    shown = put.decode_params(record.envelope.body)
    assert {f.name: shown[f.name] for f in put.params if not f.secret} == {
        f.name: values[f.name] for f in put.params if not f.secret
    }


@given(junk=st.binary(max_size=100))
def test_a_body_that_cannot_be_read_is_not_shown(table: Schemas, put: Method, junk: bytes) -> None:
    shown, whole = redact(table, call(put, junk))
    assert whole or shown.body == b""


def test_a_failure_is_shown_as_it_is(table: Schemas) -> None:
    failure = Envelope(kind=Kind.FAILURE, id=1, body=pack_failure(Failure(Code.QUOTA, "full")))
    assert redact(table, failure) == (failure, True)


def test_nothing_is_made_while_nobody_listens(table: Schemas, put: Method) -> None:
    outlet = Outlet(wanted=False)
    tap = Tap("gate", table, outlet)
    tap.show(Side.SENT, "operator", call(put, b""))
    outlet.wanted = True
    tap.show(Side.SENT, "operator", call(put, b""))
    assert [unpack_record(r).seq for r in outlet.records] == [1]


def test_a_long_body_is_left_out(table: Schemas) -> None:
    outlet = Outlet(wanted=True)
    event = Envelope(kind=Kind.EVENT, id=1, body=bytes(BODY_MAX + 1))
    assert BODY_MAX > CHUNK_MAX
    Tap("gate", table, outlet).show(Side.SENT, "operator", event)
    record = unpack_record(outlet.records[0])
    assert (record.envelope.body, record.whole) == (b"", False)


@pytest.mark.proves("INV-TAP-2")
@given(st.lists(st.booleans(), max_size=60))
def test_what_was_lost_is_counted(arrived: list[bool]) -> None:
    record = Record(
        organ="gate", seq=0, time_ns=0, side=Side.SENT, peer="x", envelope=Envelope(kind=Kind.EVENT, id=0)
    )
    gaps = Gaps()
    gaps.see(record)
    for seq, came in enumerate(arrived, start=1):
        if came:
            gaps.see(replace(record, seq=seq))
    last = max((seq for seq, came in enumerate(arrived, start=1) if came), default=0)
    assert gaps.lost == sum(1 for seq, came in enumerate(arrived, start=1) if seq < last and not came)
