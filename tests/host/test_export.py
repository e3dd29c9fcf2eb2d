"""The tap judged from outside: Cap'n Proto's own C++ tools read what it exports, and agree field by field."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bus.envelope import Code, Envelope, Failure, Kind, pack_beside, pack_failure
from bus.tap import Record, Side, redact
from bus.wire import Field, Method, Type
from spine.errors import SpineError
from spine.ground import port
from spine.tap import pcapng, show
from spine.tap.export import Exporter, ExportError, named, schema_text
from spine.tap.view import SECRET, Reader
from tests.bus.strategies import fields as any_values

METHODS = [m for i in port.schemas().interfaces.values() for m in i.methods.values()]


def record(method: Method, kind: Kind, values: Mapping[str, object], seq: int = 1) -> Record:
    """A message of the method as the tap would record it, secrets emptied."""
    body = method.encode_params(values) if kind is Kind.CALL else method.encode_results(values)
    if method.beside:
        body = pack_beside(0, 0) + body
    envelope = Envelope(kind=kind, id=3, interface=method.interface_id, ordinal=method.ordinal, body=body)
    redacted, whole = redact(port.schemas(), envelope)
    return Record(
        organ=method.interface_name,
        seq=seq,
        time_ns=seq,
        side=Side.RECEIVED if kind is Kind.CALL else Side.SENT,
        peer="operator",
        envelope=redacted,
        whole=whole,
    )


def capnp(*words: str, stdin: bytes) -> bytes:
    """What the C++ tool says."""
    done = subprocess.run(["capnp", *words], input=stdin, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout


def as_capnp_json(type_: Type, value: object) -> object:
    """A value as `capnp convert binary:json` writes it: 64 bits as text, bytes as numbers."""
    if isinstance(value, bytes):
        return list(value)
    if isinstance(value, list):
        assert type_.element is not None
        return [as_capnp_json(type_.element, item) for item in value]
    if isinstance(value, Mapping):
        return {f.name: as_capnp_json(f.type, value[f.name]) for f in type_.fields}
    return str(value) if type_.kind in ("int64", "uint64") else value


def shown(fields: tuple[Field, ...], row: Mapping[str, object]) -> dict[str, object]:
    """What the tap's row says, in the words of the C++ tool. An emptied secret is an unset field there."""
    kept = {f.name: as_capnp_json(f.type, row[f.name]) for f in fields if row[f.name] != SECRET}
    assert {f.name for f in fields} - kept.keys() <= {f.name for f in fields if f.secret}
    return kept


def judged(schema: Path, struct: str, message: Path, fields: tuple[Field, ...]) -> dict[str, object]:
    """What the C++ tool reads in an exported file; each secret must be empty there."""
    said = json.loads(
        capnp("convert", "--quiet", "binary:json", str(schema), struct, stdin=message.read_bytes())
    )
    for field in fields:
        if field.secret:
            assert not said.pop(field.name)
    return dict(said)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.interface_name}.{m.name}")
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_c_plus_plus_tool_agrees_on_every_message(
    tmp_path_factory: pytest.TempPathFactory, method: Method, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("export") / "of"
    exporter = Exporter(directory, port.schemas())
    reader = Reader(port.schemas())
    for kind, struct, fields in (
        (Kind.CALL, "Params", method.params),
        (Kind.REPLY, "Results", method.results),
    ):
        one = record(method, kind, data.draw(any_values(fields)))
        exporter.add(one)
        (message,) = directory.glob(f"*-{kind.name.lower()}.bin")
        schema = directory / f"{method.interface_name}.{method.name}.capnp"
        values = dict(reader.read(one).values)
        assert values.pop("descriptors", 0) == 0
        assert judged(schema, struct, message, fields) == shown(fields, values)
        assert exporter.example == f"capnp decode --quiet {schema} {struct} <{message}"


def test_a_person_decodes_with_the_line_that_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put = port.schemas().interfaces["gate"].methods["put"]
    values = {"persona": "linda", "key": b"k", "value": b"hush"}
    recording = tmp_path / "tap.pcapng"
    with recording.open("wb") as file:
        writer = pcapng.Writer(file, port.schemas_file().read_bytes())
        failure = pack_failure(Failure(Code.FULL, "no"))
        call = record(put, Kind.CALL, values, 1)
        writer.add(call)
        writer.add(replace(call, seq=2, envelope=replace(call.envelope, kind=Kind.FAILURE, body=failure)))
        writer.add(replace(call, seq=3, whole=False, envelope=replace(call.envelope, body=b"")))
    assert show.run(options(recording, tmp_path / "out")) == 0
    said = capsys.readouterr().err
    assert "1 messages" in said
    assert "1 without a body left out" in said
    line = said.strip().splitlines()[-1].removeprefix("spine: next: ")
    decoded = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout
    assert " ".join(decoded.split()) == '(persona = "linda", key = "k", value = "")'
    # What is there is not overwritten.
    with pytest.raises(SpineError) as refused:
        show.run(options(recording, tmp_path / "out"))
    assert "is not empty" in refused.value.why


def options(recording: Path, directory: Path) -> argparse.Namespace:
    """`./spine tap --replay RECORDING --export DIRECTORY`."""
    return argparse.Namespace(
        replay=recording,
        record=None,
        export=directory,
        json=True,
        organ=None,
        method=None,
        kind=None,
        count=None,
        seconds=None,
        ground=None,
    )


@pytest.mark.parametrize("name", ["", "../etc", "a b", "a;b", "$(x)", "1st", "é", "a" * 65, "a\nb"])
def test_a_recordings_names_reach_no_path_unless_they_are_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ExportError):
        named(name)
    get = port.schemas().interfaces["gate"].methods["get"]
    exporter = Exporter(tmp_path / "out", port.schemas())
    with pytest.raises(ExportError):
        exporter.add(replace(record(get, Kind.CALL, {"persona": "", "key": b""}), organ=name))
    wrong = replace(get, params=(replace(get.params[0], name=name),))
    with pytest.raises(ExportError):
        schema_text(wrong)
    assert [path.name for path in (tmp_path / "out").iterdir()] in ([], ["gate.get.capnp"])
