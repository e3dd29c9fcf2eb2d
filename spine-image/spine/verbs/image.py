"""`./spine image WORD ...`: the keys that images are signed with.

Touches: the keys (makes those that are missing, never shows a secret half), and the directory of an export.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

from spine.errors import Exit, SpineError

HELP = "the image's keys: show them, export what a firmware enrolls"

Answer = dict[str, object]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words and their own arguments."""
    words = parser.add_subparsers(dest="word", metavar="WORD", required=True)

    def word(name: str, help_: str, run_: Callable[[argparse.Namespace], Answer]) -> argparse.ArgumentParser:
        found = words.add_parser(name, help=help_, description=help_, allow_abbrev=False)
        # Also behind the word; left out there, it must not undo the one before it.
        found.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="one JSON object")
        found.set_defaults(run=run_)
        return found

    keys = word("keys", "show the keys, and export those that a firmware with Secure Boot enrolls", _keys)
    keys.add_argument("--export", type=Path, default=None, metavar="DIR", help="write .cer, .esl and .auth")


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
