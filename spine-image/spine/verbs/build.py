"""`./spine build`: make the image and say where each megabyte goes."""

import argparse
import json
from pathlib import Path
from typing import cast

from spine import paths
from spine.image import kernel
from spine.image.build import build
from spine.progress import Progress

HELP = "make the image: out/spine.img and out/report.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("--production", action="store_true", help="leave out all that serves development")
    parser.add_argument(
        "--relock", action="store_true", help="first renew versions and hashes in inputs.lock"
    )
    parser.add_argument(
        "--profile", choices=kernel.PROFILES, default="qemu", help="the machine that the kernel is for (qemu)"
    )
    parser.add_argument(
        "--out", type=Path, default=None, metavar="DIR", help="where the image goes (out/, or out/pc/)"
    )


def run(args: argparse.Namespace) -> int:
    """Build, then print the report."""
    out: Path = args.out or paths.out(args.profile)
    report = build(
        out, production=args.production, profile=args.profile, relock=args.relock, progress=Progress()
    )
    print(json.dumps(report, indent=1, sort_keys=True) if args.json else summary(report, out))
    return 0


def summary(report: dict[str, object], out: Path) -> str:
    """The report as a person reads it."""
    sizes = cast(dict[str, int], report["sizes"])
    root = cast(dict[str, dict[str, int]], report["root"])
    rows = [
        f"{report['name']} {report['version']}, {report['image']}, {report['profile']}: {out}/spine.img",
        "",
    ]
    rows += [_row(name, sizes[name]) for name in sizes if name not in ("total", "budget")]
    # The build does not end well with more.
    limits = f"at most {sizes['budget'] / 1e6:.0f} MB"
    rows += [
        _row("total", sizes["total"]) + f"   ({limits})",
        "",
        "in the root, before compression:",
    ]
    rows += [
        _row(name, size) for name, size in sorted(root["unpackedBytes"].items(), key=lambda row: -row[1])
    ]
    rows += ["", f"root hash  {report['rootHash']}", f"the rest   {out}/report.json"]
    return "\n".join(rows)


def _row(name: str, size: int) -> str:
    return f"  {name:<24}{size / 1e6:>7.2f} MB"
