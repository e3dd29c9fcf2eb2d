"""A telling as a picture of a terminal (SVG), for the README.

Pure: lines in, text out. The same lines give the same bytes. Lines of progress are left out, and said to be.
"""

import textwrap
from collections.abc import Sequence
from typing import Final
from xml.sax.saxutils import escape

from spine.demo.narrate import Kind

COLUMNS: Final = 112
LINE_PX, LETTER_PX, MARGIN_PX, BAR_PX = 17, 7.8, 14, 26
FONTS: Final = "ui-monospace,DejaVu Sans Mono,Menlo,Consolas,monospace"
BACKGROUND, FOREGROUND = "#14171c", "#c9d1d9"
STYLES: Final = {
    Kind.TITLE: "fill:#ffffff;font-weight:bold",
    Kind.CLAIM: f"fill:{FOREGROUND}",
    Kind.COMMAND: "fill:#79c0ff",
    Kind.OUTPUT: "fill:#9aa4af",
    Kind.HELD: "fill:#56d364",
    Kind.WRONG: "fill:#ff7b72",
}


def svg(lines: Sequence[tuple[Kind, str]], heading: str) -> str:
    """The picture. `heading` stands in the bar of the window."""
    shown = [(kind, row) for kind, text in lines if kind is not Kind.PROGRESS for row in _rows(kind, text)]
    while shown and not shown[0][1]:
        shown.pop(0)
    width = round(COLUMNS * LETTER_PX) + 2 * MARGIN_PX
    height = len(shown) * LINE_PX + BAR_PX + 2 * MARGIN_PX
    rules = "".join(f".{kind.value}{{{style}}}" for kind, style in STYLES.items())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">',
        f"<style>text{{font:13px {FONTS};white-space:pre}}{rules}</style>",
        f'<rect width="{width}" height="{height}" rx="8" fill="{BACKGROUND}"/>',
        f'<rect width="{width}" height="{BAR_PX}" rx="8" fill="#272c34"/>',
        *(
            f'<circle cx="{18 + 18 * at}" cy="{BAR_PX // 2}" r="5" fill="{colour}"/>'
            for at, colour in enumerate(("#ff5f57", "#febc2e", "#28c840"))
        ),
        f'<text x="{width // 2}" y="{BAR_PX - 9}" text-anchor="middle" class="output">'
        f"{escape(heading)}</text>",
    ]
    for at, (kind, text) in enumerate(shown):
        if text:
            y = BAR_PX + MARGIN_PX + LINE_PX * (at + 1) - 4
            parts.append(f'<text x="{MARGIN_PX}" y="{y}" class="{kind.value}">{escape(text)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _rows(kind: Kind, text: str) -> list[str]:
    """A line in the width of the picture: a command goes on in the next row, anything else is cut off."""
    if kind is not Kind.COMMAND or len(text) <= COLUMNS:
        return [text[:COLUMNS]]
    return textwrap.wrap(
        text, COLUMNS - 2, subsequent_indent=" " * 6, break_on_hyphens=False, drop_whitespace=True
    ) or [text[:COLUMNS]]
