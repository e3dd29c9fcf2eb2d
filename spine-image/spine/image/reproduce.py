"""Builds the image twice, as two strangers would, and compares every byte: `python -m spine.image.reproduce`.

Takes the committed tree, unpacks it in two directories, builds each with an empty cache, another umask, hash
seed and time zone, and the same keys; compares the SHA-256 of kernel, root, UKI and disk; writes
docs/evidence/reproducible.json. Takes twice as long as one whole build. Touches a temporary directory and
that file. Says which artefact differs and from which byte on; ends with 1 then and writes no evidence.
`--share-kernel` takes the kernel from the person's own cache, to try the harness itself; it writes no
evidence either.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from spine import paths
from spine.errors import SpineError
from spine.image import commands, inputs, kernel
from spine.image.build import IMAGE_FILES
from spine.image.cache import digest, file_digest
from spine.image.keys import Role, boot_key, persona_key, release_key
from spine.progress import Progress

EVIDENCE = "docs/evidence/reproducible.json"
COMMAND = "./spine build  (twice; python -m spine.image.reproduce)"
# What the evidence is about: when one of these changes, it is old.
COVERED = ("spine-image", "organs", "bus", "schemas", "pyproject.toml")

# How the two builders differ. Their directories differ in name and in length.
STRANGERS = {
    "one": {"umask": "022", "PYTHONHASHSEED": "1", "TZ": "UTC", "LC_ALL": "C.UTF-8"},
    "another-one/far/below": {"umask": "077", "PYTHONHASHSEED": "2", "TZ": "Asia/Tokyo", "LC_ALL": "C"},
}


def first_difference(one: Path, other: Path) -> int | None:
    """The first byte at which two files differ, or None."""
    with one.open("rb") as left, other.open("rb") as right:
        at = 0
        while True:
            here, there = left.read(1 << 20), right.read(1 << 20)
            if here != there:
                return at + next(
                    (
                        index
                        for index, pair in enumerate(zip(here, there, strict=False))
                        if pair[0] != pair[1]
                    ),
                    min(len(here), len(there)),
                )
            if not here:
                return None
            at += len(here)


def main(words: list[str]) -> int:
    """Run the two builds; 0 when they are the same."""
    parser = argparse.ArgumentParser(prog="python -m spine.image.reproduce")
    parser.add_argument("--share-kernel", action="store_true", help="do not compile; writes no evidence")
    parser.add_argument("--keep", type=Path, help="work in this directory and leave it")
    args = parser.parse_args(words)
    release_key()
    persona_key()
    boot_key(Role.DB)
    commit = _git("rev-parse", "HEAD").decode().strip()
    progress = Progress()
    with tempfile.TemporaryDirectory(prefix="spine-reproduce-") as temporary:
        place = args.keep or Path(temporary)
        reports = []
        for name, habits in STRANGERS.items():
            home = place / name
            home.mkdir(parents=True)
            tree = home / "tree"
            _checkout(commit, tree)
            if args.share_kernel:
                _share_kernel(tree, home / "cache" / paths.NAME / "kernel")
            with progress.stage(f"build in {home}"):
                reports.append(_build(tree, home, habits))
        homes = [place / name for name in STRANGERS]
        wrong = list(_differences(homes))
        for line in wrong:
            print(line)
        if wrong:
            return 1
        hashes = cast(dict[str, str], reports[0]["sha256"])
        print(json.dumps(hashes, indent=1, sort_keys=True))
        if not args.share_kernel:
            evidence = _evidence(commit, reports[0], homes[0] / "tree")
            (paths.ROOT / EVIDENCE).write_text(json.dumps(evidence, indent=1, sort_keys=True) + "\n")
    return 0


def _share_kernel(tree: Path, target: Path) -> None:
    locked = inputs.decode((tree / inputs.LOCK).read_text())
    [source] = locked.of("kernel")
    key = kernel.key(source.sha256, (tree / kernel.FRAGMENT).read_text(), locked.epoch)
    made = paths.cache() / "kernel" / key
    if not made.is_dir():
        raise SpineError(
            "there is no kernel to share",
            "the cache has none of the committed kernel.config and inputs.lock",
            "commit them and run ./spine build first",
        )
    shutil.copytree(made, target / key)


def _differences(homes: list[Path]) -> Iterator[str]:
    for name in (*IMAGE_FILES, "report.json"):
        at = first_difference(homes[0] / "out" / name, homes[1] / "out" / name)
        if at is not None:
            yield f"{name}: differs from byte {at} on"


def _build(tree: Path, home: Path, habits: dict[str, str]) -> dict[str, object]:
    env = {
        **commands.environment(),
        **{name: value for name, value in habits.items() if name != "umask"},
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        # The same keys: they are the person's, and an input like any other.
        "XDG_DATA_HOME": str(paths.data().parent),
        "PYTHONPATH": f"{tree}:{tree / 'spine-image'}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "spine", "build", "--json", "--out", home / "out"],
        cwd=tree,
        env=env,
        umask=int(habits["umask"], 8),
        stdout=subprocess.PIPE,
        check=False,
    )
    if done.returncode != 0:
        why = done.stdout.decode(errors="replace")[-2000:] or f"it ended with {done.returncode}"
        raise SpineError(f"the build in {home} failed", why, "./spine build")
    report = json.loads(done.stdout)
    assert isinstance(report, dict)
    return report


def _checkout(commit: str, tree: Path) -> None:
    tree.mkdir()
    archive = _git("archive", "--format=tar", commit)
    commands.run(["tar", "--extract", "--directory", tree], stdin=archive, what="the tree cannot be unpacked")


def _evidence(commit: str, report: dict[str, object], tree: Path) -> dict[str, object]:
    files = sorted(
        path
        for name in COVERED
        for path in ((tree / name).rglob("*") if (tree / name).is_dir() else [tree / name])
        if path.is_file()
    )
    covered = digest(*(part for path in files for part in (str(path.relative_to(tree)), file_digest(path))))
    return {
        "what": "two builds from empty caches in two directories gave the same bytes",
        "commit": commit,
        "command": COMMAND,
        "seed": None,
        "strangers": STRANGERS,
        "sha256": report["sha256"],
        "compiler": report["compiler"],
        "inputs": report["inputs"],
        "covered": {"paths": COVERED, "sha256": covered},
    }


def _git(*words: str) -> bytes:
    # The tree may belong to another user than the one who runs this (a checkout in a container).
    return commands.run(
        ["git", "-c", f"safe.directory={paths.ROOT}", "-C", paths.ROOT, *words],
        what="the committed tree cannot be read",
    )


if __name__ == "__main__":
    os.nice(5)
    sys.exit(main(sys.argv[1:]))
