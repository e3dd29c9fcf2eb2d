"""The tap of a running spine, through ./spine as a person uses it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bus.tap import Gaps, Record, unpack_record
from spine import paths
from spine.ground.container import Container
from spine.ground.port import Port, schemas
from spine.tap import pcapng
from spine.tap.view import Reader
from tests.host.test_export import judged
from tests.host.test_export import shown as judged_by_us
from tests.integration.live import Live, spine


@contextmanager
def tapping(live: Live, *words: str) -> Iterator[subprocess.Popen[str]]:
    """`./spine tap` in the background, from the moment it taps."""
    command = [str(paths.ROOT / "spine"), "tap", f"--{live.kind}", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as tap:
        try:
            assert tap.stderr is not None
            assert tap.stderr.readline() == "spine: tapping\n"
            within_sight(live)
            yield tap
        finally:
            tap.kill()


def within_sight(live: Live) -> None:
    """Subscriptions reach the organs a moment after the answer; calls until then may go unseen."""
    with tap_port(live) as port:
        port.call("operator.tap")
        end = time.monotonic() + 60
        while port.event(time.monotonic() + 0.2) is None:
            assert time.monotonic() < end, "the tap shows nothing"
            live.call("gate.usage", persona="sight")


@contextmanager
def tap_port(live: Live) -> Iterator[Port]:
    """A client of the tap of our own, where the ground takes more than one."""
    shared = isinstance(live.ground, Container)
    with Port(live.ground.tap_path, shared=shared) as port:
        yield port


@pytest.mark.container
def test_a_call_is_seen_at_both_ends_and_its_recording_says_the_same(container: Live, tmp_path: Path) -> None:
    file = tmp_path / "tap.pcapng"
    filters = ("--method", "gate.put", "--count", "4")
    with tapping(container, "--json", "--record", str(file), *filters) as tap:
        spine("call", "--container", "gate.put", "persona=tapped", "key=k", "value=a secret value")
        shown = tap.communicate(timeout=60)[0]
    rows = [json.loads(line) for line in shown.splitlines()]
    assert {(r["seenBy"], r["side"], r["kind"]) for r in rows} == {
        ("operator", "sent", "call"),
        ("gate", "received", "call"),
        ("gate", "sent", "reply"),
        ("operator", "received", "reply"),
    }
    assert all(r["values"].get("value", "(secret)") == "(secret)" for r in rows)
    assert b"a secret value" not in file.read_bytes()
    assert spine("tap", "--replay", str(file), "--json", *filters).decode() == shown


@pytest.mark.container
def test_what_was_tapped_is_read_by_the_tools_of_capnproto_alike(container: Live, tmp_path: Path) -> None:
    """Real calls and answers, recorded, exported, decoded by the C++ tool: field by field the same."""
    file, out = tmp_path / "tap.pcapng", tmp_path / "out"
    filters = ("--method", "gate.usage", "--method", "gate.list")
    with tapping(container, "--record", str(file), *filters, "--count", "8") as tap:
        spine("call", "--container", "gate.list", "persona=judged", "after=hex:00ff", "limit=3")
        spine("call", "--container", "gate.usage", "persona=judged")
        tap.communicate(timeout=60)
    shown = spine("tap", "--replay", str(file), "--json", "--export", str(out), *filters, "--count", "8")
    rows = [json.loads(line) for line in shown.splitlines()]
    messages = sorted(out.glob("*.bin"))
    assert len(rows) == len(messages) == 8
    methods = {
        f"{m.interface_name}.{m.name}": m for i in schemas().interfaces.values() for m in i.methods.values()
    }
    for row, message in zip(rows, messages, strict=True):
        method = methods[row["method"]]
        asked = row["kind"] == "call"
        fields = method.params if asked else method.results
        reader = Reader(schemas())
        record = next(one for one in recorded(file) if (one.organ, one.seq) == (row["seenBy"], row["seq"]))
        schema, struct = out / f"{row['method']}.capnp", "Params" if asked else "Results"
        assert judged(schema, struct, message, fields) == judged_by_us(fields, reader.read(record).values)


def recorded(file: Path) -> list[Record]:
    """The records of a recording."""
    with file.open("rb") as opened:
        pcapng.read_schemas(opened)
        return list(pcapng.read_records(opened))


@pytest.mark.container
def test_a_slow_reader_counts_what_it_lost(container: Live) -> None:
    """What arrived and what the holes say was lost are together all that was sent."""
    calls = 1500
    with tap_port(container) as tap, container.port() as port:
        tap.call("operator.tap")
        while tap.event(time.monotonic() + 0.2) is None:
            port.call("gate.usage", {"persona": "slow"})
        while tap.event(time.monotonic() + 0.5) is not None:
            pass
        for _ in range(calls):
            port.call("gate.usage", {"persona": "slow"})
        gaps, arrived = Gaps(), 0
        first: dict[str, int] = {}
        last: dict[str, int] = {}
        while (body := tap.event(time.monotonic() + 1.0)) is not None:
            record = unpack_record(body)
            if record.organ not in ("gate", "operator"):
                continue  # other organs may have something to say meanwhile
            gaps.see(record)
            arrived += 1
            first.setdefault(record.organ, record.seq)
            last[record.organ] = record.seq
        # Now that there is room again, one more call shows how far the numbers have come.
        port.call("gate.usage", {"persona": "slow"})
        while (body := tap.event(time.monotonic() + 1.0)) is not None:
            record = unpack_record(body)
            if record.organ not in first:
                continue
            gaps.see(record)
            arrived += 1
            last[record.organ] = record.seq
    sent = sum(last[organ] - first[organ] + 1 for organ in last)
    assert {"gate", "operator"} <= set(last)
    assert sent >= 4 * calls
    assert arrived + gaps.lost == sent


@pytest.mark.machine
def test_the_machine_is_tapped_while_it_is_called(machine: Live) -> None:
    command = [
        str(paths.ROOT / "spine"),
        "tap",
        "--machine",
        "--json",
        "--method",
        "gate.usage",
        "--count",
        "8",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as tap:
        try:
            assert tap.stderr is not None
            assert tap.stderr.readline() == "spine: tapping\n"
            end = time.monotonic() + 120
            while tap.poll() is None:
                assert time.monotonic() < end
                machine.call("gate.usage", persona="tapped")
            rows = [json.loads(line) for line in tap.communicate()[0].splitlines()]
        finally:
            tap.kill()
    assert {r["method"] for r in rows} == {"gate.usage"}
    assert {r["seenBy"] for r in rows} == {"gate", "operator"}
