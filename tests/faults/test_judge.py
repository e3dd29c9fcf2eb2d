"""The judge on made-up machines: each verdict, and what must not be taken for a good one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest

from tests.faults.blessed import Counter, Look, Pair
from tests.faults.judge import BOOTS_MAX, SETTLED_S, STAYS_S, Judge, Press, Seen, Verdict

PATIENCE_S = 100.0
GOOD = Pair("now", "now", (3, 0), True, True, True)
WHOLE = Look({"a": GOOD, "b": GOOD})
STARTS = b"BdsDxe: starting Boot0001\n"


def pairs(a: Pair = GOOD, b: Pair = GOOD) -> Look:
    return Look({"a": a, "b": b})


@dataclass
class Story:
    """A machine that is told step by step; a second passes with each."""

    look: Look = WHOLE
    judge: Judge = field(default_factory=lambda: Judge(PATIENCE_S))
    counters: dict[str, Counter | None] = field(default_factory=lambda: {"a": (3, 0), "b": (3, 0)})
    at_s: float = 0.0
    resets: int = 0
    written: int = 0
    alive: bool = True
    shows: bool = True
    verdict: Verdict | Press | None = None

    def __post_init__(self) -> None:
        self.step()

    def step(self, serial: bytes = b"", seconds: float = 1.0) -> Story:
        """Let time pass; nothing more is asked once there is a verdict."""
        self.at_s += seconds
        if not isinstance(self.verdict, Verdict):
            seen = Seen(
                self.at_s, self.resets, dict(self.counters), serial, self.written, self.alive, self.shows
            )
            self.verdict = self.judge.take(seen, self.look)
        return self

    def tries(self, pair: str) -> Story:
        """The boot loader takes one from a counter."""
        left, done = self.counters[pair] or (0, 0)
        self.counters[pair] = (left - 1, done + 1)
        return self.step(STARTS)

    def resets_itself(self) -> Story:
        self.resets += 1
        return self.step()

    def armed(self, pair: str) -> Story:
        self.counters[pair] = (3, 0)
        return self.step()

    def waits(self, seconds: float) -> Story:
        for _ in range(int(seconds)):
            self.step()
        return self


def test_a_system_that_sets_its_counter_back_with_all_parts_alike_is_blessed() -> None:
    story = Story().tries("b").waits(20)
    assert story.verdict is None
    story.armed("b")
    assert story.verdict is None
    assert story.waits(SETTLED_S + 1).verdict is Verdict.BLESSED
    assert (story.judge.boots, story.judge.attempts, story.judge.why) == (1, ["b"], "now")


def test_counters_that_stand_as_they_were_prove_nothing() -> None:
    assert Story().step(STARTS).waits(PATIENCE_S + 2).verdict is Verdict.HANG


@pytest.mark.parametrize(
    "pair", [replace(GOOD, slot=""), replace(GOOD, volume=""), replace(GOOD, slot="old", volume="old")]
)
def test_a_part_that_differs_is_not_healed_until_it_is_replaced(pair: Pair) -> None:
    story = Story(look=pairs(a=pair)).tries("b").armed("b").waits(30)
    assert story.verdict is None
    story.look = WHOLE
    assert story.waits(SETTLED_S + 1).verdict is Verdict.BLESSED
    story = Story(look=pairs(a=pair)).tries("b").armed("b").waits(PATIENCE_S + 2)
    assert story.verdict is Verdict.UNHEALED
    parts = [name for name, held in (("slot-a", pair.slot), ("boot-a", pair.volume)) if held != "now"]
    assert story.judge.why == f"{', '.join(parts)} differs"


def test_who_writes_is_not_idle() -> None:
    story = Story(look=pairs(a=Pair())).tries("b").armed("b")
    for _ in range(int(2 * PATIENCE_S)):
        story.written += 4096
        story.step()
    assert story.verdict is None
    assert story.waits(PATIENCE_S + 2).verdict is Verdict.UNHEALED


def test_a_counter_that_was_not_taken_down_by_this_boot_does_not_count() -> None:
    # A was tried, then the machine was reset; that B stands armed is not A's doing.
    story = Story(counters={"a": (1, 2), "b": (3, 0)}).tries("a").resets_itself()
    story.armed("a").waits(20)
    assert story.verdict is None


def test_three_tries_of_one_then_the_other() -> None:
    story = Story(look=pairs(b=replace(GOOD, slot="")))
    for _ in range(3):
        story.tries("b").waits(5).resets_itself()
    story.tries("a").waits(5).armed("a")
    story.look = WHOLE
    story.armed("b").waits(SETTLED_S + 2)
    assert story.verdict is Verdict.BLESSED
    assert (story.judge.boots, "".join(story.judge.attempts)) == (4, "bbba")


def test_too_many_starts_are_a_loop() -> None:
    story = Story()
    for _ in range(BOOTS_MAX - 1):
        story.step(STARTS).resets_itself()
    assert story.verdict is None
    assert story.resets_itself().verdict is Verdict.LOOP


def test_the_rescue_must_show_and_stay() -> None:
    said = b"\r\nAlpine-Spine: rescue\r\n"
    assert Story().step(said).waits(STAYS_S + 1).verdict is Verdict.RESCUE
    assert Story(shows=False).step(said).waits(STAYS_S + 1).verdict is None
    story = Story().step(said).waits(STAYS_S - 5).resets_itself()
    assert story.waits(STAYS_S + 1).verdict is None


@pytest.mark.parametrize("said", [b"BdsDxe: No bootable option or device was found.\r\n", b"Shell> "])
def test_a_firmware_that_gives_up_is_dead(said: bytes) -> None:
    assert Story().step(said).waits(STAYS_S + 1).verdict is Verdict.DEAD


BAD_PROGRAM = replace(GOOD, volume="", program=False)
BAD_FIRST = replace(GOOD, volume="", first=False)
NO_FIRST = replace(GOOD, volume="", first=None)
BAD_LOADER = replace(GOOD, volume="", loader=False)
NO_LOADER = replace(GOOD, volume="", loader=None)
BARE = Pair()


@pytest.mark.parametrize(
    ("look", "checked", "unchecked"),
    [
        # What is looked at, and whether a start of B is doubtful with and without Secure Boot.
        (pairs(b=BAD_PROGRAM), True, True),
        (pairs(a=BAD_PROGRAM), False, False),
        (pairs(a=BAD_FIRST), False, True),
        (pairs(b=BAD_FIRST), False, False),
        (pairs(a=NO_FIRST), False, False),
        (pairs(a=NO_FIRST, b=BAD_FIRST), True, True),
        (pairs(a=BAD_FIRST, b=BAD_FIRST), True, True),
        (pairs(a=BAD_LOADER), False, True),
        (pairs(b=BAD_LOADER), False, False),
        (pairs(a=NO_LOADER), False, False),
        (pairs(a=NO_LOADER, b=BAD_LOADER), True, True),
        (pairs(a=BAD_LOADER, b=BAD_LOADER), True, True),
        (pairs(a=BARE), False, False),
        (pairs(a=BARE, b=BAD_LOADER), True, True),
    ],
)
@pytest.mark.parametrize("checks", [True, False])
@pytest.mark.parametrize("end", ["reset", "armed", "hang", "gone", "rescue"])
def test_a_program_of_no_release_that_started_is_never_forgiven(
    look: Look, checked: bool, unchecked: bool, checks: bool, end: str
) -> None:
    doubtful = checked if checks else unchecked
    story = Story(look=look, judge=Judge(PATIENCE_S, checks)).tries("b")
    if end == "reset":
        story.resets_itself()
    elif end == "armed":
        story.look = WHOLE
        story.armed("b").waits(SETTLED_S + 1)
    elif end == "hang":
        story.waits(PATIENCE_S + 2)
    elif end == "gone":
        story.alive = False
        story.step()
    else:
        story.step(b"Alpine-Spine: rescue").waits(STAYS_S + 1)
    assert (story.verdict is Verdict.UNBLESSED) == doubtful
    if not doubtful:
        expected: Mapping[str, Verdict | None] = {
            "reset": None,
            "armed": Verdict.BLESSED,
            "hang": Verdict.HANG,
            "gone": Verdict.GONE,
            "rescue": Verdict.RESCUE,
        }
        assert story.verdict is expected[end]


REFUSAL = b"\x1b[40mError loading \\EFI\\Linux\\spine-b+2-1.efi: Access Denied\r\n"
NEWER_REFUSAL = b"call_image_start: Error loading EFI binary \\EFI\\Linux\\spine-b+2-1.efi: Access denied\r\n"


@pytest.mark.parametrize("refusal", [REFUSAL, NEWER_REFUSAL])
def test_what_was_refused_did_not_run(refusal: bytes) -> None:
    story = Story(look=pairs(b=BAD_PROGRAM)).tries("b").step(refusal).resets_itself()
    assert story.verdict is None
    # The next boot is judged for itself.
    assert story.tries("b").resets_itself().verdict is Verdict.UNBLESSED


def test_each_program_must_have_been_refused_for_itself() -> None:
    refused_twice = Story(look=pairs(b=BAD_PROGRAM)).tries("b").step(REFUSAL).tries("b").step(REFUSAL)
    assert refused_twice.resets_itself().verdict is None
    once = Story(look=pairs(b=BAD_PROGRAM)).tries("b").step(REFUSAL).tries("b")
    assert once.resets_itself().verdict is Verdict.UNBLESSED


def test_a_name_that_is_gone_for_a_moment_is_still_counted() -> None:
    story = Story()
    story.counters["b"] = None
    story.step()
    story.counters["b"] = (2, 1)
    story.step()
    assert story.judge.attempts == ["b"]
    story.counters["b"] = None
    story.step()
    story.armed("b")
    assert story.waits(SETTLED_S + 1).verdict is Verdict.BLESSED


def test_with_both_slots_lost_a_person_presses_and_only_then() -> None:
    lost = replace(GOOD, slot="")
    story = Story(look=pairs(lost, lost)).tries("b")
    while story.verdict is None:
        story.step()
    assert isinstance(story.verdict, Press)
    story.resets_itself()
    assert (story.judge.pressed, story.judge.boots) == (1, 2)
    assert Story(look=pairs(a=lost)).tries("b").waits(PATIENCE_S + 2).verdict is Verdict.HANG
    # Without a try there is nothing that could come of it.
    assert Story(look=pairs(lost, lost)).waits(PATIENCE_S + 2).verdict is Verdict.HANG


def test_a_machine_that_ended_is_gone() -> None:
    assert Story(alive=False).verdict is Verdict.GONE
