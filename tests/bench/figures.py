"""The arithmetic of the bench: medians, percentiles, ratios, and how far they may be trusted.

Pure: numbers in, numbers out. What was measured comes as *rounds*: ours and theirs alternate, one round of
each after the other, so that a machine that slows down slows both. A ratio is taken within each round, and
the median of those is reported with the least and the greatest of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

UNITS: Final = ("ns", "us", "ms", "s", "calls/s", "puts/s", "MB/s", "MB", "%", "count")
"""What a figure may be of."""


def percentile(values: Sequence[float], share: float) -> float:
    """The least of the values within which this share of them lies. ValueError for none."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def median(values: Sequence[float]) -> float:
    """The middle one, or between the middle two. ValueError for none."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


@dataclass(frozen=True, slots=True)
class Missing:
    """A contender that was not measured, and why. It stays in the table."""

    reason: str


@dataclass(frozen=True, slots=True)
class Rounds:
    """What was measured of one contender: the samples of each round, in the row's unit."""

    samples: tuple[tuple[float, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        if not self.samples or not all(self.samples):
            raise ValueError("a round without samples")

    @property
    def medians(self) -> tuple[float, ...]:
        """The median of each round."""
        return tuple(median(one) for one in self.samples)

    @property
    def every(self) -> list[float]:
        """All samples."""
        return [value for one in self.samples for value in one]


Measured = Rounds | Missing


@dataclass(frozen=True, slots=True)
class Summary:
    """One contender in a few figures. `low` and `high` are the least and greatest median of a round."""

    median: float
    p99: float
    low: float
    high: float
    rounds: int
    samples: int
    note: str = ""


def summary(rounds: Rounds) -> Summary:
    """The few figures of what was measured."""
    medians, every = rounds.medians, rounds.every
    return Summary(
        median=median(medians),
        p99=percentile(every, 0.99),
        low=min(medians),
        high=max(medians),
        rounds=len(medians),
        samples=len(every),
        note=rounds.note,
    )


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours by theirs: the median of the rounds, the least and the greatest."""

    median: float
    low: float
    high: float


def ratio(ours: Rounds, theirs: Rounds) -> Ratio:
    """Round by round. When one has fewer rounds than the other, only the common ones count."""
    found = [a / b if b else math.inf for a, b in zip(ours.medians, theirs.medians, strict=False)]
    return Ratio(median(found), min(found), max(found))


@dataclass(frozen=True, slots=True)
class Goal:
    """A budget: a bound from above, from below, or both."""

    at_most: float | None = None
    at_least: float | None = None

    def met(self, value: float) -> bool:
        """Whether a value keeps it."""
        return not (
            (self.at_most is not None and value > self.at_most)
            or (self.at_least is not None and value < self.at_least)
        )

    def __str__(self) -> str:
        bounds = []
        if self.at_most is not None:
            bounds.append(f"≤ {self.at_most:g}")
        if self.at_least is not None:
            bounds.append(f"≥ {self.at_least:g}")
        return ", ".join(bounds)


def shown(value: float) -> str:
    """Three digits that matter, without an exponent."""
    if not math.isfinite(value):
        return "∞"
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}".replace(",", " ")
