"""One run of the bench: each family in turn, the table, the files.

Writes `docs/benchmarks.md`, its pictures and `docs/evidence/bench.json` only when asked to. A family that
cannot be measured (no root, no QEMU) leaves its rows in the table as missing, with the reason.
"""

from __future__ import annotations

import fnmatch
import importlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

from spine import paths
from spine.errors import Exit, SpineError
from spine.progress import Progress
from tests.bench import noise, plots, table
from tests.bench.bench import FAMILIES, Absent, Bench, scratch
from tests.bench.figures import Measured, Missing
from tests.bench.table import Result, Row
from tests.fire import evidence

COVERED = ("bus", "organs", "schemas", "spine-image", "tests/bench")
PAGE = "docs/benchmarks.md"
PICTURES = "docs/pictures"
EVIDENCE = "docs/evidence/bench.json"


class Family(Protocol):
    """What a module of rows offers."""

    ABOUT: str

    def rows(self, quick: bool) -> Sequence[Row]: ...

    def measure(
        self, bench: Bench, wanted: frozenset[str]
    ) -> Iterator[tuple[str, Mapping[str, Measured]]]: ...


def family(name: str) -> Family:
    """One family."""
    return cast(Family, importlib.import_module(f"tests.bench.{name}"))


def chosen(only: Sequence[str], quick: bool) -> dict[str, list[Row]]:
    """The rows of each family that these patterns name: a family, or FAMILY/ROW; all for none.

    SpineError when a pattern names nothing.
    """
    declared = {name: list(family(name).rows(quick)) for name in FAMILIES}
    if not only:
        return declared
    found: dict[str, list[Row]] = {}
    unused = set(only)
    for name, rows in declared.items():
        for row in rows:
            for pattern in only:
                if fnmatch.fnmatchcase(f"{name}/{row.name}", pattern if "/" in pattern else f"{pattern}/*"):
                    unused.discard(pattern)
                    if row not in found.setdefault(name, []):
                        found[name].append(row)
    if unused:
        raise SpineError(
            f"there is no row {sorted(unused)[0]!r}",
            f"the families are {', '.join(FAMILIES)}; a row is FAMILY/NAME, and * stands for anything",
            "./spine bench --list",
            Exit.NO_SUCH_THING,
        )
    return {name: rows for name, rows in found.items() if rows}


def run(only: Sequence[str], quick: bool, seed: str, progress: Progress) -> dict[str, object]:
    """Measure; the document, whose `results` are for `shown` and `write`."""
    rows = chosen(only, quick)
    began = time.monotonic()
    looks = [noise.look()]
    results: list[Result] = []
    with scratch() as directory:
        bench = Bench(quick, seed, directory, progress)
        for name, declared in rows.items():
            with progress.stage(f"bench: {name}"):
                results += _measured(bench, name, declared)
            looks.append(noise.look())
    results = table.whole(rows, results, "it was not measured")
    return {
        "what": "the performance of the spine beside that of what people would pick instead",
        "commit": evidence.commit(COVERED),
        "covered": evidence.covered(COVERED),
        "seed": seed,
        "command": " ".join(["./spine bench", *(["--quick"] if quick else []), *_only(only)]),
        "quick": quick,
        "seconds": round(time.monotonic() - began),
        "machine": noise.machine(),
        "noise": noise.verdict(looks),
        "counts": {
            "rows": len(results),
            "contenders": sum(len(result.contenders) for result in results),
            "missing": sum(isinstance(r.of(c), Missing) for r in results for c in r.contenders),
        },
        "rows": [table.document(result) for result in results],
        "misses": table.misses(results),
        "results": results,
    }


def _only(only: Sequence[str]) -> list[str]:
    return ["--only", *only] if only else []


def _measured(bench: Bench, name: str, declared: Sequence[Row]) -> list[Result]:
    by_name = {row.name: row for row in declared}
    results: dict[str, Result] = {}
    why = "its family did not measure it"
    try:
        for row, measured in family(name).measure(bench, frozenset(by_name)):
            results[row] = Result(name, by_name[row], measured)
    except (Absent, SpineError, OSError) as error:
        why = error.why if isinstance(error, SpineError) else str(error)
        why = f"{name} cannot be measured here: {' '.join(why.split())}"
        bench.progress.say(why)
    return table.whole({name: list(declared)}, list(results.values()), why)


def results_of(document: Mapping[str, object]) -> list[Result]:
    """The results that a document was made of."""
    return cast(list[Result], document["results"])


def as_json(document: Mapping[str, object]) -> str:
    """The document without what is only for this process."""
    return json.dumps({key: value for key, value in document.items() if key != "results"}, indent=1) + "\n"


def as_text(document: Mapping[str, object]) -> str:
    """What is printed: the table, what was missed, how far to trust it."""
    missed = cast(list[str], document["misses"])
    said = "".join(f"  {line}\n" for line in missed) if missed else "  none\n"
    words = cast(Mapping[str, object], document["noise"])["words"]
    return f"{table.text(results_of(document))}\ngoals not met:\n{said}\nthe machine was {words}\n"


def write(document: Mapping[str, object], root: Path = paths.ROOT) -> list[str]:
    """The page, its pictures and the evidence, below `root`; the files written."""
    results = results_of(document)
    pictures = plots.draw(results)
    files = {f"{PICTURES}/{name}": text for name, text in pictures.items()}
    files[PAGE] = page(document, list(pictures))
    files[EVIDENCE] = as_json(document)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return sorted(files)


def page(document: Mapping[str, object], pictures: Sequence[str]) -> str:
    """docs/benchmarks.md."""
    results = results_of(document)
    on = cast(Mapping[str, object], document["machine"])
    words = cast(Mapping[str, object], document["noise"])["words"]
    missed = cast(list[str], document["misses"])
    families = dict.fromkeys(result.family for result in results)
    abouts = "\n".join(f"* **{name}**: {family(name).ABOUT}" for name in families)
    shown = "\n\n".join(f"![{name.removesuffix('.svg')}](pictures/{name})" for name in pictures)
    lines = "\n".join(f"* {line}" for line in missed) if missed else "None."
    return f"""# Benchmarks

Written by `./spine bench --write`; everything here is in `docs/evidence/bench.json`. Run `./spine bench` to
see what your machine says: only the ratios travel.

Commit {document["commit"]}, seed {document["seed"]}, {document["seconds"]} s.
{on["processors"]} processors ({on["processor"]}), {on["memoryMB"]} MB,
Linux {on["kernel"]}, Python {on["python"]}.
The machine was {words}.

Ours and theirs alternate, a round of each after the other, in an order drawn from the seed, after a warm-up.
A ratio is taken within each round; given are the median of the rounds' ratios, the least and the greatest.
p99 is over all samples. Whoever asks and whoever answers are pinned to a processor each. Every Python program
collects its garbage and freezes its heap before the first round, as the spine's zygote does, and leaves the
collector on.

{abouts}

{shown}

## Goals not met

{lines}

## The table

{table.markdown(results)}"""
