"""What bay0 shows and writes down: the screen, the state file."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from organs.bay0 import screen, state
from organs.bay0.ground import Ground
from organs.bay0.state import ChildFacts, Release

RELEASE = Release(name="Alpine-Spine", version="0.1.0", image="production", built_ms=0)
MACHINE = Ground(
    kind="machine", devices={}, port_fd=None, missing=(), slot="a", root_hash="5e" * 32, verified=True
)
ZYGOTE = ChildFacts(state="ready", pid=2, generation=1, deaths=0, since_ms=100)
GATE = ChildFacts(state="starting", pid=None, generation=3, deaths=2, since_ms=900)


def lines(page: str) -> list[str]:
    assert page.startswith(screen.CLEAR)
    return page.removeprefix(screen.CLEAR).split("\r\n")


def on_a_terminal(shown: list[str], text: str) -> list[str]:
    """The rows of a terminal that showed `shown` once it was told to go to rows and rewrite them."""
    rows = [*shown, *[""] * (screen.ROWS - len(shown))]
    for row, line in re.findall(r"\x1b\[(\d+)H([^\x1b]*)\x1b\[K", text):
        rows[int(row) - 1] = line
    return rows


def facts() -> st.SearchStrategy[dict[str, ChildFacts]]:
    child = st.builds(
        ChildFacts,
        state=st.sampled_from(["starting", "ready", "waiting"]),
        pid=st.none(),
        generation=st.integers(0, 3),
        deaths=st.integers(0, 3),
        since_ms=st.just(0),
        closed=st.booleans(),
    )
    return st.dictionaries(st.sampled_from(["gate", "freezer", "integrity", "netroom"]), child)


@given(facts(), facts(), st.booleans(), st.booleans())
def test_a_page_is_made_of_the_one_before_it_by_the_lines_that_differ(
    before: dict[str, ChildFacts], after: dict[str, ChildFacts], was: bool, healthy: bool
) -> None:
    old = screen.page(RELEASE, MACHINE, was, ZYGOTE, before)
    new = screen.page(RELEASE, MACHINE, healthy, ZYGOTE, after)
    text = screen.changed(old, new)
    assert re.sub(r"\x1b\[(\d+)H([^\x1b]*)\x1b\[K", "", text) == ""
    shown = on_a_terminal(on_a_terminal([], screen.changed(screen.CLEAR, old)), text)
    assert shown == on_a_terminal([], screen.changed(screen.CLEAR, new))
    assert [line for line in lines(new) if line] == [line for line in shown if line]
    assert screen.changed(new, new) == ""


def test_the_page() -> None:
    assert lines(screen.page(RELEASE, MACHINE, True, ZYGOTE, {"gate": GATE})) == [
        "Alpine-Spine 0.1.0 (production)",
        "",
        "  slot     a",
        f"  root     {'5e' * 32}",
        "  boot     healthy",
        "",
        "  organ            state     generation  deaths",
        "  zygote           ready              1       0",
        "  gate             starting           3       2",
        "",
    ]


@pytest.mark.proves("INV-STATE-4")
def test_the_page_says_that_the_data_are_bad() -> None:
    closed = replace(GATE, state="ready", closed=True)
    shown = lines(screen.page(RELEASE, MACHINE, True, ZYGOTE, {"gate": closed}))
    at = shown.index("  boot     healthy")
    assert shown[at + 1] == "  data     BAD: gate is closed, writes nothing"
    assert state.document(RELEASE, MACHINE, (), True, ZYGOTE, {"gate": closed})["organs"]["gate"]["closed"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("on", "  secure   boot is on"),
        ("off", "  secure   boot is off: who has the disk in hand can replace the kernel"),
        ("unknown", "  secure   boot is unknown: who has the disk in hand can replace the kernel"),
    ],
)
def test_the_page_says_what_secure_boot_means(said: str, shown: str) -> None:
    page = screen.page(RELEASE, replace(MACHINE, secure_boot=said), True, ZYGOTE, {})
    assert shown in lines(page)
    content = state.document(RELEASE, replace(MACHINE, secure_boot=said), (), True, ZYGOTE, {})
    assert content["boot"]["secureBoot"] == said  # type: ignore[index]  # a document of ours


@given(st.text(max_size=3000))
def test_a_panic_page_fits_whatever_the_reason(reason: str) -> None:
    shown = lines(screen.panic_page("Alpine-Spine", reason))
    assert len(shown) <= screen.ROWS + 1
    assert all(len(line) <= screen.COLUMNS and (line.isprintable() or not line) for line in shown)


def test_the_state_file_is_replaced_whole_and_only_when_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "organs.json"
    file = state.StateFile(str(path))
    content = state.document(RELEASE, MACHINE, ("cgroup.cpu",), False, ZYGOTE, {"gate": GATE})
    assert file.write(content)
    first = path.stat().st_ino
    assert not file.write(content)
    assert path.stat().st_ino == first
    assert file.write(state.document(RELEASE, MACHINE, (), True, ZYGOTE, {"gate": GATE}))
    assert path.stat().st_ino != first
    assert path.stat().st_mode & 0o777 == 0o644
    assert json.loads(path.read_text()) == {
        "boot": {
            "ground": "machine",
            "slot": "a",
            "rootHash": "5e" * 32,
            "verified": True,
            "secureBoot": None,
            "healthy": True,
            "missing": [],
            "version": "0.1.0",
            "image": "production",
        },
        "zygote": {"state": "ready", "pid": 2, "generation": 1, "deaths": 0, "sinceMs": 100, "closed": False},
        "organs": {
            "gate": {
                "state": "starting",
                "pid": None,
                "generation": 3,
                "deaths": 2,
                "sinceMs": 900,
                "closed": False,
            }
        },
    }
