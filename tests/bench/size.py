"""How large the image is, part by part, beside the smallest Debian that boots with systemd.

Sizes are of files, as the build reports them: what is read at a boot and carried by an update. Debian's root
is packed as ours is, and its kernel counts with the initrd that it needs.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from spine import paths
from spine.image.build import build
from spine.progress import Progress
from tests.bench.bench import Absent, Bench
from tests.bench.debian import debian
from tests.bench.figures import Goal, Measured, Missing, Rounds
from tests.bench.table import OURS, Row

ABOUT = "what there is to store, to verify and to send: the image by its parts"
DEBIAN: Final = "Debian minimal, systemd"
PARTS: Final = {
    "kernel": ("kernel", "the kernel (Debian's with its initrd)"),
    "stub": ("stub, command line, signature", "what else is in the signed program"),
    "root": ("root, compressed", "the root, packed"),
    "tree": ("hash tree", "the hash tree of the root"),
}
PLOT: Final = "The image by its parts"


def rows(quick: bool) -> Sequence[Row]:
    """The rows."""
    del quick
    return (
        Row("total", "all of the image", "MB", (DEBIAN,), absolute=Goal(at_most=20)),
        *(
            Row(name, what, "MB", (DEBIAN,) if name in ("kernel", "root") else (), plot=PLOT)
            for name, (_, what) in PARTS.items()
        ),
    )


def measure(bench: Bench, wanted: frozenset[str]) -> Iterator[tuple[str, Mapping[str, Measured]]]:
    """Measure."""
    del bench
    sizes = build(paths.out(), progress=Progress(io.StringIO()))["sizes"]
    assert isinstance(sizes, dict)
    theirs: dict[str, Measured] = {}
    if {"total", "kernel", "root"} & wanted:
        try:
            made = debian()
        except Absent as absent:
            theirs = {name: Missing(str(absent)) for name in ("total", "kernel", "root")}
        else:
            kernel, root = (
                sum(path.stat().st_size for path in found)
                for found in ((made.kernel, made.initrd), (made.packed,))
            )
            theirs = {"total": _mb(kernel + root), "kernel": _mb(kernel), "root": _mb(root)}
    for name, key in (("total", "total"), *((name, key) for name, (key, _) in PARTS.items())):
        if name in wanted:
            own: dict[str, Measured] = {OURS: _mb(int(sizes[key]))}
            yield name, own | ({DEBIAN: theirs[name]} if name in theirs else {})


def _mb(size: int) -> Rounds:
    return Rounds(((size / 1e6,),))
