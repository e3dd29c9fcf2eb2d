"""`./spine image WORD ...`: keys, what development adds, and whether a file is what this tree makes.

Touches: the keys (makes those that are missing, never shows a secret half), the directory of an export, and
for `diff` and `verify` a temporary directory in which images are built.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from spine.errors import Exit, SpineError
from spine.image import kernel
from spine.image.build import build
from spine.progress import Progress
from spine.words import Words

HELP = "an image's keys, what development adds to it, is it what this tree makes"

Answer = dict[str, object]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words and their own arguments."""
    word = Words(parser).add

    keys = word("keys", "show the keys, and export those that a firmware with Secure Boot enrolls", _keys)
    keys.add_argument("--export", type=Path, default=None, metavar="DIR", help="write .cer, .esl and .auth")
    word("diff", "build both images, and show exactly what development adds", _diff)
    checked = word("verify", "build anew, and compare part by part with a disk image or an update", _verify)
    checked.add_argument("file", metavar="FILE", type=Path, help="a spine.img, or a NAME.update")
    checked.add_argument(
        "--profile", choices=kernel.PROFILES, default="qemu", help="the machine its kernel is for (qemu)"
    )
    checked.add_argument(
        "--alone", action="store_true", help="check its signatures and hashes, build nothing"
    )


def run(args: argparse.Namespace) -> int:
    """Do what the word says; its answer goes to standard output."""
    answer = args.run(args)
    text = str(answer.pop("text", ""))
    code = int(answer.pop("exit", Exit.OK))
    sys.stdout.write(json.dumps(answer, sort_keys=True) + "\n" if args.json else text)
    return code


def _keys(args: argparse.Namespace) -> Answer:
    from spine.image import enrolment, keys

    boot = {role: keys.boot_key(role) for role in keys.Role}
    public = {
        keys.FILE: keys.public_bytes(keys.release_key()),
        keys.PERSONA_FILE: keys.public_bytes(keys.persona_key()),
    }
    rows = [
        *((file, "Ed25519", hashlib.sha256(data).hexdigest()) for file, data in public.items()),
        *((role.file, "RSA-2048", hashlib.sha256(key.der).hexdigest()) for role, key in boot.items()),
    ]
    directory = keys.directory()
    shown = [
        {"file": str(directory / file), "kind": kind, "sha256": digest, "purpose": keys.PURPOSE[file]}
        for file, kind, digest in rows
    ]
    lines = [f"{directory}   (what each is worth, and what is lost with it: docs/keys.md)", ""]
    for file, kind, digest in rows:
        lines += [f"{file}   {kind}", f"  {keys.PURPOSE[file]}", f"  SHA-256 {digest}"]
    written = []
    if args.export is not None:
        written = _export(args.export, enrolment.exported(boot))
        lines += ["", f"written to {args.export}: {', '.join(path.name for path in written)}"]
        lines.append("enroll db first, then KEK, then PK: with PK the firmware begins to check")
    return {
        "keys": shown,
        "exported": [str(path) for path in written],
        "text": "\n".join(lines) + "\n",
    }


def _diff(_args: argparse.Namespace) -> Answer:
    from spine.image import difference

    with tempfile.TemporaryDirectory(prefix="spine-diff-") as place:
        looks = {}
        for name in ("development", "production"):
            out = Path(place, name, "out")
            build(out, production=name == "production", progress=Progress())
            looks[name] = difference.look(out, out.parent)
    found = difference.compare(looks["development"], looks["production"])
    return {**found, "text": difference.page(found, "development", "production")}


def _verify(args: argparse.Namespace) -> Answer:
    from spine.image import keys, verify

    file: Path = args.file
    if not file.is_file():
        raise SpineError(
            f"there is no file {file}",
            "it is not there, or no file",
            "./spine image verify out/spine.img",
            Exit.NO_SUCH_THING,
        )
    if not verify.kind_of(file):
        raise SpineError(
            f"{file} is neither a disk image nor an update",
            "it begins like neither",
            "./spine image verify out/spine.img",
            Exit.REFUSED,
        )
    public = keys.public_bytes(keys.release_key())

    def check(signature: bytes, message: bytes) -> None:
        keys.check(public, signature, message)

    told = verify.alone(file, check, keys.boot_key(keys.Role.DB).certificate)
    answer: Answer = {
        "file": str(file),
        "kind": told.kind,
        "image": told.image or None,
        "version": told.version or None,
        "problems": list(told.problems),
        "rebuilt": False,
        "differs": None,
    }
    lines = [f"{file}: {told.kind} {told.version} {told.image}".rstrip()]
    lines += [f"  by itself: {why}" for why in told.problems]
    lines += [] if told.problems else ["  by itself: signatures and hashes are right"]
    code = Exit.REFUSED if told.problems else Exit.OK
    if not args.alone:
        try:
            differs = _against_rebuilt(args, told.kind, told.image == "production", check)
        except SpineError as error:
            # What is known already is worth saying.
            answer["why"] = f"{error.what}: {error.why}"
            lines.append(f"  not compared: it cannot be built anew: {error.what}: {error.why}")
            code = Exit.REFUSED if told.problems else Exit.FAILED
        else:
            wrong = {name: at for name, at in differs.items() if at is not None}
            answer |= {"rebuilt": True, "differs": wrong, "same": sorted(differs.keys() - wrong.keys())}
            lines += [
                f"  {name}: {'the same' if at is None else f'differs from byte {at} on'}"
                for name, at in differs.items()
            ]
            lines.append("  it is what this tree makes" if not wrong else "  it is NOT what this tree makes")
            code = Exit.REFUSED if wrong or told.problems else Exit.OK
    return {**answer, "text": "\n".join(lines) + "\n", "exit": int(code)}


def _against_rebuilt(
    args: argparse.Namespace, kind: str, production: bool, check: Callable[[bytes, bytes], None]
) -> dict[str, int | None]:
    from spine.ground import gpt
    from spine.image import update, verify

    with tempfile.TemporaryDirectory(prefix="spine-verify-") as place:
        build(Path(place), production=production, profile=args.profile, progress=Progress())
        ours = Path(place, "spine.img")
        if kind == "update":
            at = gpt.read(ours)["slot-a"]
            with open(ours, "rb") as opened:
                opened.seek(at.start)
                packed = update.pack(opened.read(at.size), check)
            ours = Path(place, "ours.update")
            ours.write_bytes(packed)
        return verify.compare(args.file, ours, verify.stretches(ours, check))


def _export(directory: Path, files: dict[str, bytes]) -> list[Path]:
    """Write public files; those of the same names are replaced."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        written = []
        for name, data in sorted(files.items()):
            path = directory / name
            part = directory / f".part-{name}"
            part.write_bytes(data)
            part.replace(path)
            written.append(path)
    except OSError as error:
        raise SpineError(
            f"the keys cannot be written to {directory}",
            error.strerror or str(error),
            "./spine image keys --export another/directory",
        ) from error
    return written
