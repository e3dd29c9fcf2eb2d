"""The table is whole: whoever was declared is in it, with figures or with a reason."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from spine import paths
from spine.errors import SpineError
from spine.progress import Progress
from tests.bench import plots, run, table
from tests.bench.bench import FAMILIES, Absent, Bench, Program, scratch
from tests.bench.figures import Goal, Missing, Rounds
from tests.bench.table import OURS, Result, Row

ROW = Row("call", "a call", "us", ("raw", "dbus"), {"raw": Goal(at_most=1.5)}, Goal(at_most=10), "Calls", 1.0)
TWO = Rounds(((2.0, 2.0, 3.0), (4.0,)))
ONE = Rounds(((1.0,), (2.0,)))


def test_a_goal_needs_a_peer() -> None:
    with pytest.raises(ValueError, match="which is no peer"):
        Row("call", "a call", "us", ("raw",), {"row": Goal(at_most=1)})


def test_what_nobody_measured_is_missing_with_a_reason() -> None:
    found = table.whole(
        {"bus": [ROW, Row("other", "other", "us", ("raw",))]}, [Result("bus", ROW, {})], "no root"
    )
    assert [result.row.name for result in found] == ["call", "other"]
    assert found[0].of("dbus") == Missing("it was not measured")
    assert found[1].of(OURS) == found[1].of("raw") == Missing("no root")


def test_the_document_of_a_row() -> None:
    found = table.document(Result("bus", ROW, {OURS: TWO, "raw": ONE, "dbus": Missing("no daemon")}))
    assert json.loads(json.dumps(found)) == {
        "family": "bus",
        "name": "call",
        "what": "a call",
        "unit": "us",
        "goal": "≤ 10",
        "met": True,
        "contenders": [
            {
                "name": OURS,
                "median": 3.0,
                "p99": 4.0,
                "low": 2.0,
                "high": 4.0,
                "rounds": 2,
                "samples": 4,
                "medians": [2.0, 4.0],
            },
            {
                "name": "raw",
                "median": 1.5,
                "p99": 2.0,
                "low": 1.0,
                "high": 2.0,
                "rounds": 2,
                "samples": 2,
                "medians": [1.0, 2.0],
            },
            {"name": "dbus", "missing": "no daemon"},
        ],
        "ratios": [{"to": "raw", "median": 2.0, "low": 2.0, "high": 2.0, "goal": "≤ 1.5", "met": False}],
    }


def test_the_text_names_everybody() -> None:
    results = [Result("bus", ROW, {OURS: TWO, "raw": ONE, "dbus": Missing("no daemon")})]
    for text in (table.text(results), table.markdown(results)):
        assert "MISSED" in text
        assert "missing: no daemon" in text
        assert all(name in text for name in (OURS, "raw", "dbus", "a call"))
    # A contender whom nobody declared stands there too.
    extra = [Result("bus", ROW, {OURS: TWO, "raw": ONE, "stranger": ONE})]
    assert "stranger" in table.text(extra)


def test_every_goal_that_is_not_met_is_named() -> None:
    missed = table.misses([Result("bus", ROW, {OURS: TWO, "raw": ONE})])
    assert missed == ["bus/call: 2.00 of raw, the goal is ≤ 1.5"]
    assert table.misses([Result("bus", ROW, {OURS: TWO, "raw": TWO})]) == []
    slow = Rounds(((20.0,),))
    assert table.misses([Result("bus", ROW, {OURS: slow, "raw": slow})]) == [
        "bus/call: 20.0 us, the goal is ≤ 10"
    ]
    assert (
        "no raw to compare with: gone"
        in table.misses([Result("bus", ROW, {OURS: TWO, "raw": Missing("gone")})])[0]
    )
    assert table.misses([Result("bus", ROW, {OURS: Missing("no root")})]) == [
        "bus/call: not measured: no root"
    ]


def test_the_pictures_are_pictures() -> None:
    def row(name: str, at: float | None, plot: str) -> Row:
        return Row(name, f"row <{name}>", "us", ("raw",), plot=plot, at=at)

    results = [
        Result("bus", row("a", 200, "Size & time"), {OURS: TWO, "raw": ONE}),
        Result("bus", row("b", 16384, "Size & time"), {OURS: Rounds(((900.0,),)), "raw": Missing("gone")}),
        Result("bus", row("c", None, "Side by side"), {OURS: TWO, "raw": Rounds(((0.0,),))}),
        Result("bus", row("d", None, "Nobody"), {OURS: Missing("no root")}),
        Result("bus", row("e", None, ""), {OURS: TWO}),
    ]
    found = plots.draw(results)
    assert set(found) == {"bench-size-time.svg", "bench-side-by-side.svg"}
    for text in found.values():
        root = ElementTree.fromstring(text)
        words = [element.text for element in root.iter() if element.text and element.tag.endswith("text")]
        assert {OURS, "raw"} <= set(words)
    assert plots.draw(results) == found


def test_every_row_has_a_name_of_its_own() -> None:
    for quick in (False, True):
        for name in FAMILIES:
            names = [row.name for row in run.family(name).rows(quick)]
            assert names
            assert len(names) == len(set(names))
            assert run.family(name).ABOUT


def test_rows_are_chosen_by_name() -> None:
    assert set(run.chosen([], True)) == set(FAMILIES)
    assert [row.name for row in run.chosen(["verification/mem*"], True)["verification"]] == ["memory"]
    assert set(run.chosen(["verification"], True)) == {"verification"}
    with pytest.raises(SpineError, match="there is no row 'nothing'"):
        run.chosen(["nothing"], True)


def test_rounds_alternate_and_who_fails_is_missing(tmp_path: Path) -> None:
    seen: list[str] = []

    def one(name: str) -> list[float]:
        seen.append(name)
        if name == "b" and seen.count("b") == 3:
            raise Absent("b is tired")
        return [1.0]

    bench = Bench(True, "1", tmp_path, Progress())
    contenders = {name: (lambda name=name: one(name)) for name in ("a", "b")}
    found = bench.alternate({**contenders, "c": Missing("not here")}, 4, warm=1)
    assert isinstance(found["a"], Rounds)
    assert len(found["a"].samples) == 4
    assert found["b"] == Missing("b is tired")
    assert found["c"] == Missing("not here")
    assert {seen[0], seen[1]} == {"a", "b"}
    assert seen[0] != seen[2]  # The next round begins with another.


def test_a_program_that_dies_says_its_last_words() -> None:
    with scratch() as directory:
        with pytest.raises(Absent, match="no such thing"):
            Program(["/bin/sh", "-c", "echo no such thing >&2; exit 3"], directory)
        with pytest.raises(Absent, match="ended with 4"):
            Program(["/bin/sh", "-c", "exit 4"], directory)
        with pytest.raises(Absent, match="No such file"):
            Program([directory / "nothing"], directory)
        answering = 'echo "{}"; while read line; do echo "{\\"n\\": 1}"; done'
        with Program(["/bin/sh", "-c", answering], directory) as program:
            assert program.ask(question=1) == {"n": 1}


def test_a_quick_run_has_its_shape_and_is_written(tmp_path: Path) -> None:
    done = subprocess.run(
        [paths.ROOT / "spine", "bench", "--quick", "--json", "--only", "verification"],
        capture_output=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode()
    document = json.loads(done.stdout)
    assert document["command"] == "./spine bench --quick --only verification"
    assert {"commit", "seed", "machine", "noise", "counts", "misses"} <= document.keys()
    assert [f"{row['family']}/{row['name']}" for row in document["rows"]] == [
        f"verification/{row.name}" for row in run.chosen(["verification"], True)["verification"]
    ]
    for row in document["rows"]:
        declared = next(r for r in run.family("verification").rows(True) if r.name == row["name"])
        assert [one["name"] for one in row["contenders"]] == [OURS, *declared.peers]
        for one in row["contenders"]:
            assert "missing" in one or 0 < one["low"] <= one["median"] <= one["high"]
    results = [Result("verification", ROW, {OURS: TWO, "raw": ONE})]
    names = run.write({**document, "results": results}, tmp_path)
    assert {"docs/benchmarks.md", "docs/evidence/bench.json", "docs/pictures/bench-calls.svg"} == set(names)
    assert "pictures/bench-calls.svg" in (tmp_path / "docs/benchmarks.md").read_text()
    assert json.loads((tmp_path / "docs/evidence/bench.json").read_text())["rows"] == document["rows"]
