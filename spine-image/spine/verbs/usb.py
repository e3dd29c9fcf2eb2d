"""`./spine usb DEVICE`: write the image for real PCs to a stick.

The production image of the profile `pc`, unless another one is named: a PC has no operator's port. Writes
nothing without `--yes`; `--dry-run` builds, checks everything and says what it would do. Touches the image
(through the builder) and, with `--yes`, the device and nothing else.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from spine import paths
from spine.errors import Exit, SpineError
from spine.ground import gpt
from spine.image import stick
from spine.progress import Progress

HELP = "write the image for real PCs to a USB stick"
# A slow stick writes a few MB a second; only for the estimate.
BYTES_PER_S = 8e6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("device", type=Path, metavar="DEVICE", help="the whole stick, as /dev/sdX")
    parser.add_argument("--dry-run", action="store_true", help="check everything, write nothing")
    parser.add_argument("--yes", action="store_true", help="write: all that is on the device is lost")
    parser.add_argument("--built-in", action="store_true", help="also a disk that is not removable")
    parser.add_argument(
        "--image", type=Path, metavar="FILE", help="another disk image (else a production image is built)"
    )


def run(args: argparse.Namespace) -> int:
    """Check, and write if that was said."""
    progress = Progress()
    # The device first: what it cannot be is said before anything is built.
    device = stick.look(args.device)
    _refuse(device, 0, args)
    image = args.image or _built(progress)
    try:
        length = image.stat().st_size
        with image.open("rb") as file:
            partitions = gpt.parse(file.read(gpt.TABLE_BYTES))
            file.seek(0)
            stick.relocated(file.read(gpt.TABLE_BYTES), max(length, device.size) // gpt.SECTOR)
    except (OSError, gpt.GptError) as error:
        raise SpineError(
            f"{image} cannot be written to a stick",
            str(error),
            "./spine usb DEVICE --dry-run",
            Exit.NO_SUCH_THING,
        ) from error
    _refuse(device, length, args)
    if not args.dry_run:
        if not args.yes:
            raise SpineError(
                f"all that is on {device.path} would be lost",
                f"it is {_words(device)}; nothing was written, because --yes was not said",
                f"./spine usb {device.path} --yes",
                Exit.REFUSED,
            )
        with progress.stage(f"writing {device.path}", 2 * length / BYTES_PER_S):
            stick.write(image, device, progress.note)
    document = {
        "device": str(device.path),
        "model": device.model,
        "deviceBytes": device.size,
        "image": str(image),
        "imageBytes": length,
        "partitions": {row.name: {"offset": row.start, "length": row.size} for row in partitions.values()},
        "written": not args.dry_run,
    }
    if args.json:
        sys.stdout.write(json.dumps(document) + "\n")
        return Exit.OK
    done = "written and compared" if not args.dry_run else "would be written; nothing was"
    print(f"{device.path} ({_words(device)}): {length / 1e6:.0f} MB of {image} {done}")
    for row in partitions.values():
        print(f"  {row.name:<10}{row.size / 1e6:>8.1f} MB at byte {row.start}")
    return Exit.OK


def _built(progress: Progress) -> Path:
    from spine.image.build import build

    out = paths.out("usb")
    build(out, production=True, profile="pc", progress=progress)
    return out / "spine.img"


def _refuse(device: stick.Device, length: int, args: argparse.Namespace) -> None:
    if whys := stick.refusals(device, length, built_in=args.built_in):
        raise SpineError(
            f"{device.path} is not written to",
            "; ".join(whys),
            f"lsblk -o NAME,SIZE,RM,RO,MODEL,MOUNTPOINTS '{os.fspath(device.path)}'",
            Exit.REFUSED,
        )


def _words(device: stick.Device) -> str:
    return f"{device.size / 1e9:.1f} GB{', ' + device.model if device.model else ''}"
