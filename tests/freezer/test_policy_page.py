"""docs/focus.md says what the policy does: its tables are made by asking the policy, and compared.

`python -m tests.freezer.test_policy_page` writes them anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from organs.freezer import focus
from organs.freezer.focus import Step
from organs.freezer.organ import CODES
from organs.freezer.policy import ROOM_INTERVAL_MS, WAITS, Asked, Refusal, refusal, successor

PAGE = Path(__file__).resolve().parents[2] / "docs/focus.md"
END = "<!-- end -->"
RENEW = "python -m tests.freezer.test_policy_page"

WHO: Mapping[str, Mapping[str, bool]] = {
    "a person": {"by_person": True, "by_focused": False},
    "the room that has it": {"by_person": False, "by_focused": True},
    "any other room": {"by_person": False, "by_focused": False},
}
FINE: Mapping[str, bool | int] = {
    "exists": True,
    "able": True,
    "moving": False,
    "elapsed_ms": ROOM_INTERVAL_MS,
}
WHEN: Mapping[str, Mapping[str, bool | int]] = {
    "nothing is in the way": {},
    f"it moved less than {ROOM_INTERVAL_MS} ms ago": {"elapsed_ms": ROOM_INTERVAL_MS - 1},
    "it is moving already": {"moving": True},
    "the room is being made, is stuck or is ending": {"able": False},
    "there is no such room": {"exists": False, "able": False},
}
# Who had the focus before the one that died, the latest first; which of them are there and can run.
DEATHS: tuple[tuple[tuple[str, ...], frozenset[str]], ...] = (
    (("a", "b"), frozenset("ab")),
    (("a", "b"), frozenset("b")),
    (("a",), frozenset("b")),
    ((), frozenset("b")),
)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = tuple(head)
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def verdict(who: Mapping[str, bool], when: Mapping[str, bool | int]) -> str:
    reason = refusal(Asked(**{**FINE, **who, **when}))  # type: ignore[arg-type]  # each key has its type
    if reason is None:
        return "**moves**"
    if who["by_person"] and reason in WAITS:
        return f"**waits**: {reason.value}"
    return f"{CODES[reason].name}: {reason.value}"


def tables() -> dict[str, str]:
    """Each generated table by the name that the page has for it."""
    return {
        "who": table(
            ("when", *WHO),
            ((when, *(verdict(who, facts) for who in WHO.values())) for when, facts in WHEN.items()),
        ),
        "death": table(
            ("had it before, latest first", "stand ready", "has it now"),
            (
                (", ".join(recent) or "none", ", ".join(sorted(able)), successor(recent, able) or "nobody")
                for recent, able in DEATHS
            ),
        ),
        "steps": table(
            ("step", "done to", "at most", "then"),
            (
                (
                    step.value,
                    "the room that leaves" if step in focus.LEAVING else "the room that comes",
                    f"{focus.DEADLINE_MS[step]} ms",
                    focus.FORWARD[step].value if step in focus.FORWARD else "it has the focus",
                )
                for step in Step
            ),
        ),
    }


def filled(page: str) -> str:
    """The page with its tables as they are now."""
    for name, text in tables().items():
        before, begin, rest = page.partition(f"<!-- table {name} -->\n")
        _, end, after = rest.partition(END)
        assert begin, f"the page has no place for the table {name}"
        assert end, f"the table {name} has no end"
        page = before + begin + text + end + after
    return page


def test_the_page_says_what_the_policy_does() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == filled(page), f"docs/focus.md is old; renew it: {RENEW}"


def test_every_reason_of_a_refusal_is_in_the_table() -> None:
    shown = tables()["who"]
    for reason in Refusal:
        assert f"{CODES[reason].name}: {reason.value}" in shown


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
