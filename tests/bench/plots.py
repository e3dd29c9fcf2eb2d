"""The pictures of the bench, as SVG: bars side by side, or lines over a size or a number.

Pure: results in, text out; the same results give the same bytes. Rows with the same `plot` are one picture,
named by it. Light ground, so that the page can be read on paper.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Final
from xml.sax.saxutils import escape

from tests.bench.figures import Rounds, Summary, shown, summary
from tests.bench.table import OURS, Result

WIDTH: Final = 860
FONTS: Final = "system-ui,DejaVu Sans,Helvetica,Arial,sans-serif"
COLOURS: Final = (
    *("#c2410c", "#1d4ed8", "#047857", "#7c3aed", "#6b7280", "#0e7490", "#be185d", "#4d7c0f", "#78350f"),
)
"""Ours is the first, whatever it stands beside."""
GRID, INK, FAINT = "#e5e7eb", "#111827", "#4b5563"
LETTER_PX: Final = 6.6
LOG_FROM: Final = 20.0
"""Lines whose values differ by more than this are drawn on a logarithmic scale."""
BARS_LOG_FROM: Final = 200.0
"""The same for bars, whose length is to mean something as long as the shortest can be seen."""


def draw(results: Sequence[Result]) -> dict[str, str]:
    """Every picture, by the name of its file."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        if result.row.plot and _summaries(result):
            groups.setdefault(result.row.plot, []).append(result)
    colours = _colours(results)
    found = {}
    for title, group in groups.items():
        lines = all(result.row.at is not None for result in group) and len(group) > 1
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        found[f"bench-{name}.svg"] = _lines(title, group, colours) if lines else _bars(title, group, colours)
    return found


def _summaries(result: Result) -> dict[str, Summary]:
    found = {}
    for name in result.contenders:
        measured = result.of(name)
        if isinstance(measured, Rounds):
            found[name] = summary(measured)
    return found


def _colours(results: Sequence[Result]) -> dict[str, str]:
    """A colour for each contender, the same in all pictures as far as they last."""
    names = dict.fromkeys(name for result in results for name in result.contenders if name != OURS)
    others = COLOURS[1:]
    return {OURS: COLOURS[0], **{name: others[at % len(others)] for at, name in enumerate(names)}}


class _Scale:
    """From a value to a place between two pixels; logarithmic where the values are far apart."""

    def __init__(
        self, values: Sequence[float], start_px: float, end_px: float, log: bool | None = None
    ) -> None:
        positive = [value for value in values if value > 0] or [1.0]
        low, high = min(positive), max(positive)
        self.log = high / low > LOG_FROM if log is None else log
        if self.log:
            self._low, self._high = math.log10(low) - 0.08, math.log10(high) + 0.08
        else:
            self._low, self._high = 0.0, high * 1.05
        self._start, self._end = start_px, end_px

    def __call__(self, value: float) -> float:
        at = math.log10(max(value, 10**self._low)) if self.log else value
        share = (at - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)

    def ticks(self) -> list[float]:
        """Round values between the ends."""
        if self.log:
            first, last = math.floor(self._low), math.ceil(self._high)
            steps = (1, 2, 5) if last - first <= 3 else (1,)
            every = [step * 10.0**power for power in range(first, last + 1) for step in steps]
            return [value for value in every if self._low <= math.log10(value) <= self._high]
        step = 10.0 ** math.floor(math.log10(self._high))
        while self._high / step < 4:
            step /= 2
        return [step * number for number in range(int(self._high / step) + 1)]


def _frame(title: str, height: float, parts: Sequence[str]) -> str:
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" '
        f'viewBox="0 0 {WIDTH} {height:.0f}">',
        f"<style>text{{font:12px {FONTS};fill:{INK}}}.t{{font-size:15px;font-weight:bold}}"
        f".f{{fill:{FAINT}}}.b{{font-weight:bold}}</style>",
        f'<rect width="{WIDTH}" height="{height:.0f}" fill="#ffffff"/>',
        f'<text x="16" y="26" class="t">{escape(title)}</text>',
    ]
    return "\n".join([*head, *parts, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    extra = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{escape(text)}</text>'


def _bars(title: str, group: Sequence[Result], colours: Mapping[str, str]) -> str:
    bar_px, gap_px, head_px = 17, 12, 20
    found = [(result, _summaries(result)) for result in group]
    names = {name for _, one in found for name in one}
    left = 28 + LETTER_PX * max(len(name) for name in names)
    right = WIDTH - 120
    medians = [s.median for _, one in found for s in one.values() if s.median > 0] or [1.0]
    values = [value for _, one in found for s in one.values() for value in (s.median, s.high)]
    scale = _Scale(values, left, right, log=max(medians) / min(medians) > BARS_LOG_FROM)
    height = 70 + sum(head_px + gap_px + bar_px * len(one) for _, one in found)
    parts = [_axis_x(scale, 44, height - 18)]
    units = ", ".join(dict.fromkeys(result.row.unit for result in group))
    parts.append(_text(WIDTH - 16, 26, f"{units}{', logarithmic' if scale.log else ''}", "end", "f"))
    y = 48.0
    for result, one in found:
        y += gap_px
        parts.append(_text(16, y + 12, result.row.what, kind="b"))
        y += head_px
        for name, s in one.items():
            start, end = scale(0) if not scale.log else left, scale(s.median)
            parts.append(_text(left - 6, y + 12, name, "end", "b" if name == OURS else ""))
            parts.append(
                f'<rect x="{start:.1f}" y="{y + 2:.1f}" width="{max(1.0, end - start):.1f}" '
                f'height="{bar_px - 4}" rx="2" fill="{colours[name]}"/>'
            )
            parts.append(_whisker(scale(s.low), scale(s.high), y + bar_px / 2))
            figure = f"{shown(s.median)} {result.row.unit}"
            parts.append(_text(max(end, scale(s.high)) + 6, y + 12, figure, kind="f"))
            y += bar_px
    return _frame(title, height, parts)


def _whisker(low: float, high: float, y: float) -> str:
    return (
        f'<path d="M{low:.1f} {y:.1f}H{high:.1f}M{low:.1f} {y - 3:.1f}v6M{high:.1f} {y - 3:.1f}v6" '
        f'stroke="{INK}" stroke-opacity="0.55" fill="none"/>'
    )


def _axis_x(scale: _Scale, top: float, bottom: float) -> str:
    return "".join(
        f'<path d="M{scale(value):.1f} {top:.1f}V{bottom:.1f}" stroke="{GRID}"/>'
        + _text(scale(value), bottom + 14, shown(value), "middle", "f")
        for value in scale.ticks()
    )


def _lines(title: str, group: Sequence[Result], colours: Mapping[str, str]) -> str:
    points: dict[str, list[tuple[float, Summary]]] = {}
    for result in sorted(group, key=lambda one: one.row.at or 0.0):
        for name, s in _summaries(result).items():
            assert result.row.at is not None
            points.setdefault(name, []).append((result.row.at, s))
    longest = max(len(name) for name in points)
    left, right, top, bottom = 76.0, WIDTH - 40 - LETTER_PX * longest, 52.0, 392.0
    every = [s for one in points.values() for _, s in one]
    places = sorted({at for one in points.values() for at, _ in one})
    across = _Scale(places, left, right, log=places[0] > 0 and places[-1] / places[0] > 8)
    up = _Scale([value for s in every for value in (s.low, s.high)], bottom, top)
    parts = [
        f'<path d="M{left:.1f} {up(value):.1f}H{right:.1f}" stroke="{GRID}"/>'
        + _text(left - 8, up(value) + 4, shown(value), "end", "f")
        for value in up.ticks()
    ]
    parts += [
        f'<path d="M{across(at):.1f} {top:.1f}V{bottom:.1f}" stroke="{GRID}"/>'
        + _text(across(at), bottom + 16, _plain(at), "middle", "f")
        for at in places
    ]
    unit = group[0].row.unit
    parts.append(_text(WIDTH - 16, 26, f"{unit}{', logarithmic' if up.log else ''}", "end", "f"))
    ends = _apart({name: up(one[-1][1].median) for name, one in points.items()}, 14.0)
    for name in [*(name for name in points if name != OURS), *([OURS] if OURS in points else [])]:
        one = points[name]
        path = "L".join(f"{across(at):.1f} {up(s.median):.1f}" for at, s in one)
        width = 3 if name == OURS else 1.6
        parts.append(f'<path d="M{path}" fill="none" stroke="{colours[name]}" stroke-width="{width}"/>')
        for at, s in one:
            x = across(at)
            parts.append(
                f'<circle cx="{x:.1f}" cy="{up(s.median):.1f}" r="{width + 1:.1f}" fill="{colours[name]}"/>'
                f'<path d="M{x:.1f} {up(s.low):.1f}V{up(s.high):.1f}" stroke="{colours[name]}" '
                f'stroke-opacity="0.6"/>'
            )
        parts.append(
            f'<text x="{right + 12:.1f}" y="{ends[name] + 4:.1f}" style="fill:{colours[name]}"'
            f"{' class=' + chr(34) + 'b' + chr(34) if name == OURS else ''}>{escape(name)}</text>"
        )
    return _frame(title, bottom + 30, parts)


def _plain(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ") if value == int(value) else shown(value)


def _apart(wanted: Mapping[str, float], least: float) -> dict[str, float]:
    """The same places, moved down as far as needed to be that far from each other."""
    placed: dict[str, float] = {}
    floor = -math.inf
    for name in sorted(wanted, key=lambda one: wanted[one]):
        placed[name] = max(wanted[name], floor)
        floor = placed[name] + least
    return placed
