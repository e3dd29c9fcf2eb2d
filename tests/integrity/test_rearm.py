"""The decision about names, whole: every pair of counters, every set of up to three names of one slot."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from organs.integrity.rearm import LEFT, Change, Counted, Nothing, decide, parse, plain

# Every state systemd-boot can leave a counter of three in, and the settled state of a further name.
STATES = [(3, 0), (2, 1), (1, 2), (0, 3), (0, 9), (0, 8), (2, 0), (9, 9)]


def name(slot: str, left: int, done: int) -> str:
    return f"spine-{slot}+{left}-{done}.efi"


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        ("spine-a+3-0.efi", Counted(slot="a", left=3, done=0, left_at=8, done_at=10)),
        ("SPINE-B+0-3.EFI", Counted(slot="b", left=0, done=3, left_at=8, done_at=10)),
        ("spine-a.efi", None),
        ("spine-a+3.efi", None),
        ("spine-a+10-0.efi", None),
        ("spine-a+3-10.efi", None),
        ("spine-+3-0.efi", None),
        ("rescue+3-0.efi", None),
        ("spine-a+3-0.conf", None),
        ("spine-a+x-0.efi", None),
        ("spine-a+٣-0.efi", None),
        ("spine-a-b+3-0.efi", None),
        ("", None),
        (".efi", None),
    ],
)
def test_names(text: str, counted: Counted | None) -> None:
    assert parse(text) == counted


@given(st.text(max_size=30))
def test_any_name_has_an_answer(text: str) -> None:
    counted = parse(text)
    if counted is not None:
        assert (text[counted.left_at], text[counted.done_at]) == (str(counted.left), str(counted.done))
        assert plain(text, counted).lower() == f"spine-{counted.slot}.efi"


def after(names: list[str], changes: tuple[Change, ...]) -> list[str]:
    result = list(names)
    for change in changes:
        characters = list(result[change.index])
        characters[change.counted.left_at] = str(change.left)
        characters[change.counted.done_at] = str(change.done)
        result[change.index] = "".join(characters)
    return result


def countdown(names: list[str], which: str) -> None:
    """systemd-boot's renames from a fresh counter to the end: none may meet another name."""
    others = [n for n in names if n != which]
    for tried in range(1, LEFT + 1):
        assert name("a", LEFT - tried, tried) not in others


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_set_of_names(count: int) -> None:
    for states in itertools.permutations(STATES, count):
        names = ["rescue.efi", "spine-b+1-2.efi", *(name("a", *state) for state in states)]
        decided = decide(names, "a")
        changed = names if isinstance(decided, Nothing) else after(names, decided)
        assert not isinstance(decided, Nothing) or decided.armed
        assert changed[:2] == names[:2], "another slot's name was touched"
        assert len(set(changed)) == len(changed), (names, changed)
        assert changed.count("spine-a+3-0.efi") == 1
        assert isinstance(decide(changed, "a"), Nothing), "one time is enough"
        assert [len(n) for n in changed] == [len(n) for n in names]
        countdown(changed, "spine-a+3-0.efi")


@pytest.mark.parametrize("names", [[], ["rescue.efi"], ["spine-b+3-0.efi"], ["spine-a.efi"]])
def test_without_a_counter_nothing_is_done(names: list[str]) -> None:
    decided = decide(names, "a")
    assert isinstance(decided, Nothing)
    assert not decided.armed


def test_no_slot() -> None:
    assert isinstance(decide(["spine-a+1-2.efi"], ""), Nothing)
