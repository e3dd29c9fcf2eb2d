"""Signs of life: when an organ gives them, and how PID 1 gathers those of all."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from organs.bay0 import loop
from organs.pulse import EARLY_NS, until_beat_ms, until_beat_ns

MS = 1_000_000
NOW = st.integers(0, 2**62)
HEARTBEAT_MS = st.integers(10, 60_000)
SOON_S = 0.0005
FOR_EVER_MS = 3_600_000


@given(NOW, HEARTBEAT_MS)
def test_the_next_one_is_at_the_common_moment_and_no_later_than_a_heartbeat(now_ns: int, ms: int) -> None:
    left_ns = until_beat_ns(now_ns, ms)
    assert 0 < left_ns <= ms * MS + EARLY_NS
    assert (now_ns + left_ns) % (ms * MS) == 0
    assert left_ns <= until_beat_ms(now_ns, ms) * MS < left_ns + MS


@given(NOW, HEARTBEAT_MS, st.integers(0, EARLY_NS - 1))
def test_a_timer_that_ends_early_brings_no_second_one(now_ns: int, ms: int, early_ns: int) -> None:
    woken_ns = now_ns + until_beat_ns(now_ns, ms) - early_ns
    assert until_beat_ns(woken_ns, ms) == ms * MS + early_ns


@pytest.fixture
def pipes() -> Iterator[list[tuple[int, int]]]:
    made = [os.pipe(), os.pipe()]
    before = signal.getsignal(signal.SIGALRM)
    yield made
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    for pair in made:
        for fd in pair:
            os.close(fd)


def gathered(pipes: list[tuple[int, int]], *, second_patient: bool) -> list[int]:
    """Who was called in a turn that the first one's byte began, the second one's coming a little later."""
    turning, called = loop.Loop(), list[int]()
    for index, (reader, _) in enumerate(pipes):
        turning.add(reader, lambda index=index: called.append(index), patient=index == 0 or second_patient)  # type: ignore[misc]
    signal.signal(signal.SIGALRM, lambda _number, _frame: os.write(pipes[1][1], b"H"))
    os.write(pipes[0][1], b"H")
    signal.setitimer(signal.ITIMER_REAL, SOON_S)
    turning.turn(FOR_EVER_MS)
    for reader, _ in pipes:
        turning.remove(reader)
    turning.turn(0)
    return called


def test_signs_of_life_one_after_the_other_are_read_in_one_turn(
    pipes: list[tuple[int, int]],
) -> None:
    assert sorted(gathered(pipes, second_patient=True)) == [0, 1]


def test_whatever_else_happens_is_not_kept_waiting(
    pipes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "GATHER_MS", FOR_EVER_MS)
    assert sorted(gathered(pipes, second_patient=False)) == [0, 1]
