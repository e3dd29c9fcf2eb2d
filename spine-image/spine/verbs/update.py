"""`./spine update WORD ...`: make a file with a new version of the system, and bring it to a running one.

`make` packs what `./spine build` makes. `apply` checks the file here, sends it through the operator's port,
and says which slot it went to; whether it is taken is decided there. With `--reboot` it stays until the new
version is confirmed healthy, or an old one is back.

Touches: the builder, the cache, the file that is made; the operator's port.
Never: writes a slot. `make` leaves the image in out/ as it is when it builds another version.
Fails: with three lines, the kind of refusal first among them.
"""

import argparse
import contextlib
import json
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bus.envelope import Code
from spine import paths
from spine.errors import Exit, SpineError
from spine.ground import gpt
from spine.ground.attach import add_choice, attach
from spine.ground.port import PortFailure
from spine.ground.stages import Stages
from spine.image import keys, update
from spine.image.update import NoUpdate, Update
from spine.progress import Progress
from spine.words import Words

if TYPE_CHECKING:
    from spine.ground.container import Container
    from spine.ground.port import Port
    from spine.ground.qemu import Machine

HELP = "make a new version of the system, and bring it to a running one"

# A chunk of it on its way in; a call carries at most a mebibyte.
CHUNK_BYTES = 512 * 1024
# What the spine takes as a version (organs/integrity/update.py).
VERSION = re.compile(r"(?:0|[1-9][0-9]{0,8})(?:\.(?:0|[1-9][0-9]{0,8})){0,3}")
# Where a start begins on a machine's console (spine/ground/stages.py).
FIRMWARE = re.compile(rb"BdsDxe|UEFI|EDK II|TianoCore")
# Three boots that fail and the old version's, emulated and under load, each with bay0's own patience in it.
BACK_S = 1800.0
# Until a spine that has just started is confirmed healthy and has read its slots, emulated and under load.
BUSY_S = 120.0
ASK_S = 1.0

Answer = dict[str, object]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words and their own arguments."""
    word = Words(parser).add

    made = word("make", "build, and pack it into one signed file", _make)
    made.add_argument("--out", type=Path, default=None, metavar="FILE", help="the file (out/VERSION.update)")
    made.add_argument("--version", default=None, metavar="V", help="instead of pyproject.toml's version")
    made.add_argument("--production", action="store_true", help="leave out all that serves development")
    shown = word("show", "check every byte of a file and say what it brings", _show)
    shown.add_argument("file", type=Path, metavar="FILE")
    applied = word("apply", "bring it to the running spine", _apply)
    applied.add_argument("file", type=Path, metavar="FILE")
    applied.add_argument(
        "--reboot", action="store_true", help="start it, and wait until it is confirmed healthy"
    )
    add_choice(applied)


def run(args: argparse.Namespace) -> int:
    """Do what the word says; its answer goes to standard output."""
    answer: Answer = args.run(args)
    text = str(answer.pop("text"))
    sys.stdout.write(json.dumps(answer, sort_keys=True) + "\n" if args.json else text)
    return Exit.OK


# ---- on the host -------------------------------------------------------------------------------------------


def _make(args: argparse.Namespace) -> Answer:
    version = args.version
    if version is not None and not VERSION.fullmatch(version):
        raise SpineError(
            f"{version!r} cannot be a version",
            "a version is one to four numbers with dots between, without zeros in front",
            "./spine update make --version 1.2.3",
            Exit.USAGE,
        )
    data, report = make(version, production=args.production)
    file: Path = args.out or paths.out() / f"{report['version']}{update.SUFFIX}"
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".part-{file.name}")
    part.write_bytes(data)
    part.replace(file)
    found = read(file)
    return {
        **_document(found),
        "path": str(file),
        "bytes": len(data),
        "text": f"{_shown(found)}{file}\n",
    }


def make(
    version: str | None, *, production: bool = False, replace: Mapping[str, bytes] | None = None
) -> tuple[bytes, Mapping[str, object]]:
    """The bytes of the file, and the report of the build. SpineError.

    `version` instead of that of pyproject.toml. `replace` lays other bytes over files of the tree.
    """
    from spine.image.build import build

    over = dict(replace or {})
    if version is not None:
        over["pyproject.toml"] = other_version((paths.ROOT / "pyproject.toml").read_bytes(), version)
    with contextlib.ExitStack() as stack:
        out = paths.out()
        if over or production:
            # What `boot` starts stays as it is.
            paths.private(paths.cache())
            out = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=paths.cache(), prefix="update-")))
        report = build(out, production=production, replace=over, progress=Progress())
        image = out / "spine.img"
        place = gpt.read(image)["slot-a"]
        with image.open("rb") as file:
            file.seek(place.start)
            return update.pack(file.read(place.size), _verify), report


def other_version(project: bytes, version: str) -> bytes:
    """pyproject.toml with another version in it, and nothing else changed."""
    changed, count = re.subn(rb'(?m)^version = "[^"\n]*"$', f'version = "{version}"'.encode(), project)
    assert count == 1, "pyproject.toml has one line that says the version"
    return changed


def _verify(signature: bytes, message: bytes) -> None:
    keys.check(keys.public_bytes(keys.release_key()), signature, message)


def read(file: Path) -> Update:
    """The update in a file. SpineError."""
    try:
        with file.open("rb") as opened:
            return update.unpack(opened.read(update.FILE_BYTES_MAX + 1), _verify)
    except FileNotFoundError as error:
        raise SpineError(
            f"there is no file {file}", "it is not there", "./spine update make", Exit.NO_SUCH_THING
        ) from error
    except NoUpdate as error:
        raise _refused(str(file), error.kind, error.why) from error


def _show(args: argparse.Namespace) -> Answer:
    found = read(args.file)
    return {**_document(found), "text": _shown(found)}


def _document(found: Update) -> Answer:
    return {"version": found.version, "image": found.image, "slotBytes": len(found.slot)}


def _shown(found: Update) -> str:
    size = f"{len(found.slot) / 1e6:.1f} MB"
    return f"Alpine-Spine {found.version}, {found.image} image, {size}, signed with the key of this host\n"


# What helps against each kind of refusal.
_MENDS = {
    **dict.fromkeys(("truncated", "altered", "malformed", "too large"), "./spine update make"),
    "unsigned": "./spine update make   (on the host that has the key which the running image was built with)",
    "downgrade": "$EDITOR pyproject.toml   # raise version; or: ./spine update make --version V",
    "other image": "./spine update make --production   (for a production image, and without for the other)",
}


def _refused(what: str, kind: str, why: str) -> SpineError:
    return SpineError(
        f"{what} is refused: {kind}", why.strip(), _MENDS[kind], Exit.REFUSED, kind.replace(" ", "-")
    )


# ---- in the running spine ----------------------------------------------------------------------------------


def _apply(args: argparse.Namespace) -> Answer:
    found = read(args.file)
    ground = attach(args.ground)
    if args.reboot and not ground.console.before:
        raise SpineError(
            "a container starts no slot",
            "it has no boot loader, so what is written to a slot does not run there",
            f"./spine update apply {args.file}   (or on a machine: ./spine boot --detach)",
            Exit.USAGE,
        )
    progress = Progress()
    with ground.port() as port:
        written = send(port, found.block, found.slot, progress)
    answer: Answer = {**_document(found), "slot": written["slot"], "rebooted": False}
    there = f"slot {written['slot']} has {written['version']} now"
    if not args.reboot:
        # A container starts no slot.
        then = "; it runs after the next start   (./spine reboot)" if ground.console.before else ""
        return {**answer, "text": f"{there}{then}\n"}
    progress.say(there)
    came = _reboot(ground, found.version, progress)
    return {
        **answer,
        "rebooted": True,
        "running": came.slot,
        "text": f"{came.version} runs from slot {came.slot or 'none'} and is confirmed healthy\n",
    }


def send(port: "Port", block: bytes, data: bytes, progress: Progress) -> Mapping[str, object]:
    """Bring a slot through the port: the slot that it went to and its version. SpineError."""
    ticket: object = None
    try:
        with progress.stage("send the update"):
            ticket = _begin(port, block, len(data), progress)
            for at in range(0, len(data), CHUNK_BYTES):
                piece = {"ticket": ticket, "offset": at, "data": data[at : at + CHUNK_BYTES]}
                port.call("integrity.updateChunk", piece)
                progress.note(f"{at * 100 // len(data)} %")
        with progress.stage("examine and write it"):
            return port.call("integrity.commitUpdate", {"ticket": ticket, "reboot": False})
    except BaseException as error:
        # The first failure is the one to tell, whatever becomes of giving up.
        if ticket is not None:
            with contextlib.suppress(SpineError):
                port.call("integrity.abandonUpdate", {"ticket": ticket})
        kind, _, why = error.why.partition(":") if isinstance(error, PortFailure) else ("", "", "")
        if kind not in _MENDS:
            raise
        raise _refused("the update", kind, why) from error


def _begin(port: "Port", block: bytes, length: int, progress: Progress) -> object:
    """A ticket, as soon as one is given: a spine that has just started is busy with its own slots."""
    end = time.monotonic() + BUSY_S
    while True:
        try:
            return port.call("integrity.beginUpdate", {"manifest": block, "bytes": length})["ticket"]
        except PortFailure as failure:
            if failure.failure.code is not Code.BUSY or time.monotonic() > end:
                raise
            progress.note(failure.why)
            time.sleep(ASK_S)


@dataclass(frozen=True)
class Came:
    """What runs after a start."""

    version: str
    slot: str
    healthy: bool


def _reboot(ground: "Machine | Container", version: str, progress: Progress) -> Came:
    """Restart and stay until a version is confirmed healthy; SpineError when that is another one."""
    mark = ground.console.mark()
    with progress.stage("restart"):
        with ground.port() as port:
            port.call("operator.power", {"action": "reboot"})
        came = _wait_healthy(ground, mark, progress)
    if came.version == version:
        return came
    tries, panic = failures(ground.console.read(mark))
    why = f"{version} was started {tries} times and not confirmed healthy" if tries else "it was not started"
    raise SpineError(
        f"{came.version} is back",
        f"{why}{f'; its last words: {panic}' if panic else ''}",
        "./spine log; ./spine call integrity.slots",
        Exit.FAILED,
        "rolled-back",
    )


def _wait_healthy(ground: "Machine | Container", mark: int, progress: Progress) -> Came:
    end = time.monotonic() + BACK_S
    # The one that is going down may answer for a moment.
    ground.console.wait_text("spine: stage ready", BACK_S, since=mark)
    while True:
        with contextlib.suppress(SpineError):
            with ground.port() as port:
                boot = json.loads(str(port.call("operator.status")["json"]))["organs"]["boot"]
            came = Came(str(boot["version"]), str(boot["slot"] or ""), boot["healthy"] is True)
            if came.healthy:
                return came
            progress.note(f"{came.version} runs, not yet confirmed")
        if not ground.alive():
            break
        if time.monotonic() > end:
            raise SpineError(
                f"nothing was confirmed healthy within {BACK_S:.0f} s",
                "the machine is there and does not come to rest",
                "./spine status; ./spine log",
                Exit.TIMEOUT,
            )
        time.sleep(ASK_S)
    raise SpineError("the ground ended", "it did not come back from the restart", "./spine log")


def failures(console: bytes) -> tuple[int, str]:
    """How many starts a console shows before the last one, and the last panic in it."""
    stages = Stages()
    # What was said on the way down is no start.
    down = FIRMWARE.search(console)
    stages.feed(console[down.start() :] if down else b"")
    panics = re.findall(rb"spine: panic: ([^\r\n]*)", console)
    words = panics[-1].decode(errors="replace") if panics else stages.panic
    return stages.restarts, words
