"""Makes docs/faults.md from the evidence of the fault matrix.

`python -m tests.faults.page` writes the page; `render` is pure, and a test holds the page against it. No
figure on the page was typed by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spine import paths
from tests.faults.cases import AREAS, REGIONS, Damage
from tests.faults.judge import BOOTS_MAX, Verdict
from tests.faults.matrix import EVIDENCE

PAGE = paths.ROOT / "docs/faults.md"
MEANINGS = {
    Verdict.BLESSED: "a blessed system runs; both slots and both boot volumes have exactly its bytes",
    Verdict.RESCUE: "the rescue screen shows and stays",
    Verdict.LOOP: f"more than {BOOTS_MAX} starts without an end",
    Verdict.UNBLESSED: "a program ran that is of no release",
    Verdict.UNHEALED: "a blessed system runs, and a part still differs from it",
    Verdict.HANG: "nothing happens any more, and no screen says why",
    Verdict.DEAD: "the firmware finds nothing to start, and says so",
    Verdict.GONE: "the emulator ended",
}
KEPT = {verdict.value for verdict in Verdict if verdict.kept}
HEAD = """\
<!-- Made by `python -m tests.faults.page` from `docs/evidence/faults.json`: do not edit. -->
# What the machine does when its disk is damaged

The disk of the production image is damaged, booted in QEMU and judged from outside, by its bytes, its resets,
its serial line and its screen (`tests/faults/judge.py`). Which bytes are blessed is known from the build. The
promise: within {boots} starts a blessed system runs with all four parts bit for bit its own, or the rescue
screen shows; never a loop, never a run of bytes that are not blessed.
"""


def render(evidence: Mapping[str, Any]) -> str:
    """The page."""
    rows: Sequence[Mapping[str, Any]] = evidence["cases"]
    counts: Mapping[str, int] = evidence["counts"]
    out = [HEAD.format(boots=BOOTS_MAX)]
    out.append(
        f"{counts['cases']} cases, seed {evidence['seed']}, firmware with Secure Boot "
        f"{'on' if evidence['firmware'] == 'secure' else 'off'}, image `{evidence['image'][:16]}`.\n"
    )
    out.append(_table(("verdict", "cases", "meaning"), _verdicts(counts)))
    out.append("## Where the promise was broken\n")
    broken = [row for row in rows if row["verdict"] not in KEPT]
    if broken:
        out.append(
            _table(
                ("case", "verdict", "starts", "why"),
                ((row["name"], row["verdict"], row["boots"], row["why"]) for row in broken),
            )
        )
    else:
        out.append("In none of these cases.\n")
    again = [row for row in rows if row.get("earlier")]
    if again:
        out.append("Judged more than once, since an earlier verdict broke the promise:\n")
        out.append(
            _table(
                ("case", "before", "verdict"),
                ((row["name"], "; ".join(row["earlier"]), row["verdict"]) for row in again),
            )
        )
    kinds = [damage.value for damage in Damage]
    out.append("## Damage in one place\n")
    out.append(_table(("area", "cases", *(verdict.value for verdict in Verdict)), _areas(rows)))
    out.append("Region by region; a number is how many cases had that verdict.\n")
    regions = [*REGIONS, *sorted({row["region"] for row in rows} - set(REGIONS) - {"several", ""})]
    alone = [
        (region, *(_cell(rows, region, kind) for kind in kinds))
        for region in regions
        if any(row["region"] == region and row["damage"] in kinds for row in rows)
    ]
    out.append(_table(("region", *kinds), alone))
    out.append("## Several places at once, and tries spent\n")
    several = [row for row in rows if row["region"] == "several"]
    out.append(
        _table(
            ("case", "verdict", "starts", "tried"),
            ((row["name"], row["verdict"], row["boots"], row["attempts"] or "-") for row in several),
        )
    )
    out.append("## Power cuts\n\nAfter a write of the log; unflushed writes are gone, or in part and torn.\n")
    cut = [row for row in rows if row["damage"] == "power cut"]
    out.append(_table(("cut", "verdict", "starts"), ((r["name"], r["verdict"], r["boots"]) for r in cut)))
    out.append("## Seeded bugs\n\nThe same harness on images that break the promise on purpose.\n")
    bugs: Mapping[str, Mapping[str, Any]] = evidence["seededBugs"]
    out.append(
        _table(
            ("bug", "case", "verdict", "caught"),
            (
                (name, row["case"], row["verdict"], "yes" if row["caught"] else "NO")
                for name, row in sorted(bugs.items())
            ),
        )
    )
    return "\n".join(out)


def _verdicts(counts: Mapping[str, int]) -> Iterable[tuple[object, ...]]:
    for verdict in Verdict:
        if counts[verdict.value] or verdict is not Verdict.GONE:
            yield verdict.value, counts[verdict.value], MEANINGS[verdict]


def _areas(rows: Sequence[Mapping[str, Any]]) -> Iterable[tuple[object, ...]]:
    """How often each area was hit, alone, and what came of it."""
    for area, regions in AREAS.items():
        found = [row["verdict"] for row in rows if row["region"] in regions]
        yield area, len(found), *(found.count(verdict.value) or "" for verdict in Verdict)


def _cell(rows: Sequence[Mapping[str, Any]], region: str, kind: str) -> str:
    found = [row["verdict"] for row in rows if (row["region"], row["damage"]) == (region, kind)]
    words = []
    for verdict in sorted(set(found)):
        count = found.count(verdict)
        words.append(verdict if count == 1 else f"{verdict} {count}")
    return ", ".join(words)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page."""
    PAGE.write_text(render(json.loads(Path(EVIDENCE).read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
