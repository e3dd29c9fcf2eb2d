"""The table of the bench: which rows there are, what became of each, and how that is shown.

Pure. A row is declared before anything is measured, with everybody it is to be compared with. Whoever was
not measured stands in the table with a reason: a row or a peer cannot be dropped by forgetting it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.bench.figures import Goal, Measured, Missing, Rounds, ratio, shown, summary

OURS = "ours"


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that is measured.

    `goals` bound the ratio of ours by a peer's, `absolute` our own figure. `plot` names the picture that the
    row goes into and `at` its place there, when the row is one point of a line; rows without `at` are bars.
    """

    name: str
    what: str
    unit: str
    peers: tuple[str, ...] = ()
    goals: Mapping[str, Goal] = field(default_factory=dict)
    absolute: Goal | None = None
    plot: str = ""
    at: float | None = None

    def __post_init__(self) -> None:
        unknown = self.goals.keys() - set(self.peers)
        if unknown:
            raise ValueError(f"{self.name}: a goal for {', '.join(sorted(unknown))}, which is no peer of it")


@dataclass(frozen=True, slots=True)
class Result:
    """A row and what was measured for it, by contender."""

    family: str
    row: Row
    measured: Mapping[str, Measured]

    def of(self, contender: str) -> Measured:
        """What was measured of a contender; whoever nobody spoke of is missing."""
        return self.measured.get(contender, Missing("it was not measured"))

    @property
    def contenders(self) -> tuple[str, ...]:
        """Ours, then everybody declared, then whoever else was measured."""
        declared = (OURS, *self.row.peers)
        return (*declared, *(name for name in self.measured if name not in declared))


def whole(rows: Mapping[str, Sequence[Row]], results: Sequence[Result], why: str) -> list[Result]:
    """A result for each declared row, in the order of the declarations; what is missing, for that reason."""
    found = {(result.family, result.row.name): result for result in results}
    return [
        found.get((family, row.name))
        or Result(family, row, {name: Missing(why) for name in (OURS, *row.peers)})
        for family, declared in rows.items()
        for row in declared
    ]


def document(result: Result) -> dict[str, object]:
    """A row as JSON."""
    row, ours = result.row, result.of(OURS)
    contenders: list[dict[str, object]] = []
    ratios: list[dict[str, object]] = []
    for name in result.contenders:
        measured = result.of(name)
        if isinstance(measured, Missing):
            contenders.append({"name": name, "missing": measured.reason})
            continue
        one = summary(measured)
        contenders.append(
            {
                "name": name,
                "median": one.median,
                "p99": one.p99,
                "low": one.low,
                "high": one.high,
                "rounds": one.rounds,
                "samples": one.samples,
                "medians": list(measured.medians),
                **({"note": one.note} if one.note else {}),
            }
        )
        if name != OURS and isinstance(ours, Rounds):
            found, goal = ratio(ours, measured), row.goals.get(name)
            ratios.append(
                {
                    "to": name,
                    "median": found.median,
                    "low": found.low,
                    "high": found.high,
                    **({} if goal is None else {"goal": str(goal), "met": goal.met(found.median)}),
                }
            )
    own: dict[str, object] = {}
    if row.absolute is not None and isinstance(ours, Rounds):
        own = {"goal": str(row.absolute), "met": row.absolute.met(summary(ours).median)}
    return {
        "family": result.family,
        "name": row.name,
        "what": row.what,
        "unit": row.unit,
        **own,
        "contenders": contenders,
        "ratios": ratios,
    }


HEADINGS = ("contender", "median", "p99", "spread", "ours ÷ theirs", "spread", "goal", "")


def cells(result: Result) -> list[tuple[str, ...]]:
    """The lines of a row, a contender each, under `HEADINGS`."""
    row, ours = result.row, result.of(OURS)
    lines: list[tuple[str, ...]] = []
    for name in result.contenders:
        measured = result.of(name)
        if isinstance(measured, Missing):
            lines.append((name, "missing", "", measured.reason, "", "", "", ""))
            continue
        one = summary(measured)
        goal, value, compared, spread = None, 0.0, "", ""
        if name == OURS:
            goal, value = row.absolute, one.median
        elif isinstance(ours, Rounds):
            goal, found = row.goals.get(name), ratio(ours, measured)
            value, compared = found.median, shown(found.median)
            spread = f"{shown(found.low)} to {shown(found.high)}"
        unit = "" if row.unit == "count" else f" {row.unit}"
        lines.append(
            (
                name,
                f"{shown(one.median)}{unit}",
                shown(one.p99),
                f"{shown(one.low)} to {shown(one.high)}",
                compared,
                spread,
                "" if goal is None else str(goal),
                "" if goal is None else ("met" if goal.met(value) else "MISSED"),
            )
        )
    return lines


def text(results: Sequence[Result]) -> str:
    """The whole table for a terminal."""
    bodies = [cells(result) for result in results]
    shown_widths = [
        max([len(HEADINGS[at]), *(len(line[at]) for body in bodies for line in body if line[1] != "missing")])
        for at in range(len(HEADINGS))
    ]
    width_of_name = max([shown_widths[0], *(len(line[0]) for body in bodies for line in body)])
    widths = [width_of_name, *shown_widths[1:]]
    out = [_line(HEADINGS, widths)]
    for result, body in zip(results, bodies, strict=True):
        out.append(f"\n{result.family}/{result.row.name}: {result.row.what}")
        for line in body:
            if line[1] == "missing":
                out.append(f"  {line[0]:<{widths[0]}}  missing: {line[3]}")
            else:
                out.append(_line(line, widths))
            measured = result.of(line[0])
            if isinstance(measured, Rounds) and measured.note:
                out.append(f"  {'':<{widths[0]}}  ({measured.note})")
    return "\n".join(out) + "\n"


def _line(words: Sequence[str], widths: Sequence[int]) -> str:
    padded = [f"{word:<{width}}" for word, width in zip(words, widths, strict=True)]
    return ("  " + "  ".join(padded)).rstrip()


def markdown(results: Sequence[Result]) -> str:
    """The whole table for a page."""
    out: list[str] = []
    family = ""
    for result in results:
        if result.family != family:
            family = result.family
            out.append(f"\n### {family}\n")
            out.append("| what | contender | median | p99 | ours ÷ theirs | spread | goal | |")
            out.append("|---|---|---:|---:|---:|---|---|---|")
        first = result.row.what
        for line in cells(result):
            name, mid, p99, spread, compared, ratios, goal, met = line
            if mid == "missing":
                out.append(f"| {first} | {name} | missing: {spread} | | | | | |")
            else:
                bold = f"**{name}**" if name == OURS else name
                out.append(f"| {first} | {bold} | {mid} | {p99} | {compared} | {ratios} | {goal} | {met} |")
            first = ""
    return "\n".join(out).lstrip("\n") + "\n"


def misses(results: Sequence[Result]) -> list[str]:
    """Every goal that was missed or could not be looked at, one line each."""
    found = []
    for result in results:
        ours = result.of(OURS)
        label = f"{result.family}/{result.row.name}"
        if isinstance(ours, Missing):
            found.append(f"{label}: not measured: {ours.reason}")
            continue
        own = summary(ours).median
        if result.row.absolute is not None and not result.row.absolute.met(own):
            found.append(f"{label}: {shown(own)} {result.row.unit}, the goal is {result.row.absolute}")
        for peer, goal in result.row.goals.items():
            theirs = result.of(peer)
            if isinstance(theirs, Missing):
                found.append(f"{label}: no {peer} to compare with: {theirs.reason}")
                continue
            value = ratio(ours, theirs).median
            if not goal.met(value):
                found.append(f"{label}: {shown(value)} of {peer}, the goal is {goal}")
    return found
