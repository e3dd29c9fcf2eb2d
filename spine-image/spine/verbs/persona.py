"""`./spine persona WORD ...`: make, check, install, start and stop the personas that run in the rooms.

On the host: new, build, sign, verify, inspect, and the tree's half of list. In the running spine, through
the operator's port: install, the other half of list, remove, start, stop, log. What an image says is shown
with the word whether it was verified.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from organs import persona as format_
from organs.persona import Persona, PersonaRefused
from spine import paths
from spine.errors import Exit, SpineError
from spine.ground.attach import add_choice, attach
from spine.ground.port import PortFailure
from spine.ground.stages import plain
from spine.persona import image, recipe
from spine.persona.build import SUFFIX, build, out_file, refused, replace
from spine.progress import Progress
from spine.room.refusals import told
from spine.words import Words

if TYPE_CHECKING:
    from spine.ground.port import Port

HELP = "make, install, start and stop personas"

# A chunk of an image on its way in; a call carries at most a mebibyte.
CHUNK_BYTES = 512 * 1024
# An image that this host reads whole; a larger one is no persona of ours.
IMAGE_BYTES_MAX = 4 * 1024**3
# How often `log --follow` asks again (s).
FOLLOW_S = 0.5
# A persona that `new` writes is linda with another name, a first version and no grants.
MODEL = "linda"

Answer = dict[str, object]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words and their own arguments."""
    word = Words(parser).add

    def named(
        name: str, help_: str, run_: Callable[[argparse.Namespace], Answer | None]
    ) -> argparse.ArgumentParser:
        found = word(name, help_, run_)
        found.add_argument("name", metavar="NAME", help="the persona")
        return found

    named("new", "write the folder of a new persona", _new)
    built = named("build", "make and sign its image, out/NAME.persona", _build)
    built.add_argument("--relock", action="store_true", help="first renew the versions of its packages")
    built.add_argument("--out", type=Path, default=None, metavar="DIR", help="where the image goes (out/)")
    for name, help_, run_ in (
        ("sign", "sign an image with the key of this host, in place of its signature", _sign),
        ("verify", "check every byte of an image", _verify),
        ("inspect", "show what an image is and what it may", _inspect),
    ):
        about = word(name, help_, run_)
        about.add_argument("image", metavar="NAME|FILE", help="a persona built in out/, or an image")
        if name != "sign":
            about.add_argument(
                "--key", action="append", default=[], metavar="HEX", help="a public key to trust besides ours"
            )
    add_choice(word("list", "the personas of the tree and of the running spine", _list))
    install = word("install", "build when needed, and install in the running spine", _install)
    install.add_argument("image", metavar="NAME|FILE", help="a persona of the tree, or an image")
    add_choice(install)
    add_choice(named("remove", "take it out of the running spine; its records stay", _remove))
    add_choice(named("check", "read every byte of an installed one, as it lies on the disk", _check))
    add_choice(named("start", "make its room", _start))
    add_choice(named("stop", "end its room", _stop))
    log = named("log", "what its console showed", _log)
    log.add_argument("-f", "--follow", action="store_true", help="go on as it shows more, until ctrl-C")
    add_choice(log)


def run(args: argparse.Namespace) -> int:
    """Do what the word says; its answer goes to standard output."""
    answer = args.run(args)
    if answer is not None:
        text = str(answer.pop("text", ""))
        sys.stdout.write(json.dumps(answer, sort_keys=True) + "\n" if args.json else text)
    return Exit.OK


# ---- on the host -------------------------------------------------------------------------------------------


def _new(args: argparse.Namespace) -> Answer:
    name = args.name
    folder = recipe.directory(_name(name))
    model = recipe.directory(MODEL)
    text = (model / recipe.FILE).read_text(encoding="utf-8").replace(MODEL, name)
    written = {recipe.FILE: _fresh(text)}
    written |= {file: (model / file).read_text(encoding="utf-8") for file in (recipe.LOCK, "init")}
    written[recipe.LOCK] = written[recipe.LOCK].replace(MODEL, name)
    recipe.decode(name, written[recipe.FILE])
    try:
        folder.mkdir()
    except FileExistsError as error:
        raise SpineError(
            f"the persona {name} cannot be made",
            f"{folder} is there already",
            f"$EDITOR {folder}/{recipe.FILE}",
            Exit.REFUSED,
        ) from error
    for file, content in written.items():
        (folder / file).write_text(content, encoding="utf-8")
    (folder / "init").chmod(0o755)
    shown = folder.relative_to(paths.ROOT)
    return {
        "name": name,
        "folder": str(shown),
        "text": f"{shown}/{recipe.FILE} names every key, with a comment\n\n"
        f"  $EDITOR {shown}/{recipe.FILE}\n  ./spine persona install {name}\n",
    }


def _fresh(text: str) -> str:
    """The recipe of the model for somebody else: nothing that the new one did not ask for."""
    kept = []
    for line in text.splitlines():
        key = line.partition(" = ")[0]
        kept.append(
            {
                "summary": 'summary = "Say what it is for"',
                "version": "version = 1",
                "grants": "grants = []",
                "autostart": "autostart = false",
            }.get(key, line)
        )
    return "\n".join(kept) + "\n"


def _build(args: argparse.Namespace) -> Answer:
    made = build(args.name, Progress(), relock=args.relock, out=args.out)
    return {
        **_document(made.persona, made.key, "ours"),
        "path": str(made.path),
        "text": f"{_shown(made.persona, made.key, 'signed with the key of this host')}\n{made.path}\n",
    }


def _sign(args: argparse.Namespace) -> Answer:
    from spine.image import keys

    file, data = _read(args.image)
    secret = keys.persona_key()
    public = keys.public_bytes(secret)
    try:
        text = format_.split(data[-format_.MANIFEST_BYTES :])[3]
        sealed = data[: -format_.MANIFEST_BYTES] + image.seal(text, public, secret.sign)
        # A signature of ours says that we saw the whole of it and that it fits together.
        found = image.check(sealed, [public])
    except PersonaRefused as error:
        raise refused(args.image, error) from error
    replace(file, sealed)
    return {
        **_document(found, public, "ours"),
        "path": str(file),
        "text": f"{file}: {found.name} {found.version} is signed with the key {format_.key_id(public)}\n",
    }


def _verify(args: argparse.Namespace) -> Answer:
    file, data = _read(args.image)
    try:
        found = image.check(data, _trusted(args.key))
    except PersonaRefused as error:
        raise refused(args.image, error) from error
    key = format_.split(data[-format_.MANIFEST_BYTES :])[0]
    signer = format_.key_id(key)
    return {
        **_document(found, key, "verified"),
        "path": str(file),
        "text": f"{file}: {found.name} {found.version}, every byte as the key {signer} signed it\n",
    }


def _inspect(args: argparse.Namespace) -> Answer:
    _, data = _read(args.image)
    try:
        found, key = image.described(data)
    except PersonaRefused as error:
        raise refused(args.image, error) from error
    verdict, words = "verified", "verified, signed with a trusted key"
    try:
        image.check(data, _trusted(args.key))
    except PersonaRefused as error:
        verdict, words = error.kind.value, f"NOT VERIFIED: {error}"
    return {**_document(found, key, verdict), "text": _shown(found, key, words)}


def _list(args: argparse.Namespace) -> Answer:
    rows: dict[str, Answer] = {
        name: {"name": name, "recipe": True, "built": out_file(name).is_file(), "installed": None}
        for name in recipe.names()
    }
    found: object = []
    try:
        ground = attach(args.ground)
    except SpineError as error:
        # Without a spine there is still the tree; any other failure is one.
        if error.exit_code != Exit.NO_SUCH_THING:
            raise
        running = False
    else:
        running = True
        with ground.port() as port:
            found = port.call("integrity.personas")["personas"]
    assert isinstance(found, list)
    for each in found:
        row = rows.setdefault(each["name"], {"name": each["name"], "recipe": False, "built": False})
        # Of a damaged one the spine lists what it remembers, without the text that was signed.
        row["installed"] = {
            "version": each["version"],
            "keyId": each["keyId"],
            "bytes": each["length"],
            "damaged": not each["manifest"],
        }
    listed = [rows[name] for name in sorted(rows)]
    return {"personas": listed, "running": running, "text": _table(listed, running)}


def _table(rows: list[Answer], running: bool) -> str:
    out = [f"{'NAME':<16}{'RECIPE':<8}{'BUILT':<8}INSTALLED\n"]
    for row in rows:
        there = row["installed"]
        if isinstance(there, Mapping):
            state = f"version {there['version']}, key {there['keyId']}, {_size(int(there['bytes']))}"
            state += ", DAMAGED" if there["damaged"] else ""
        else:
            state = "no" if running else "?"
        words = ["yes" if row[key] else "no" for key in ("recipe", "built")]
        out.append(f"{row['name']:<16}{words[0]:<8}{words[1]:<8}{state}\n")
    if not running:
        out.append("\nno spine runs, so what is installed is not known   (./spine boot --detach)\n")
    return "".join(out)


# ---- in the running spine ----------------------------------------------------------------------------------


def _install(args: argparse.Namespace) -> Answer:
    ground = attach(args.ground)  # before anything is built for it
    if _is_file(args.image):
        file, data = _read(args.image)
    else:
        file = build(args.image, Progress()).path
        data = file.read_bytes()
    try:
        described, key = image.described(data)
    except PersonaRefused as error:
        raise refused(args.image, error) from error
    with ground.port() as port:
        # Whether it is taken is decided there, by the keys in the verified root.
        installed = send(port, data, described.name)
    return {
        **{key: installed[key] for key in ("name", "version", "keyId")},
        "path": str(file),
        "text": f"{_shown(described, key, 'verified by the spine')}\n"
        f"It is installed.   ./spine persona start {installed['name']}; ./spine focus {installed['name']}\n",
    }


def send(port: "Port", data: bytes, name: str) -> Mapping[str, object]:
    """Install an image through the port: what the spine says it has now. Half an image is given up."""
    ticket = port.call("integrity.beginInstall", {"bytes": len(data)})["ticket"]
    progress = Progress()
    try:
        with progress.stage(f"install {name}"):
            for at in range(0, len(data), CHUNK_BYTES):
                chunk = data[at : at + CHUNK_BYTES]
                port.call("integrity.chunk", {"ticket": ticket, "offset": at, "data": chunk})
                progress.note(f"{at * 100 // len(data)} %")
            installed = port.call("integrity.commit", {"ticket": ticket})["persona"]
    except BaseException as error:
        # The first failure is the one to tell, whatever becomes of giving up.
        with contextlib.suppress(SpineError):
            port.call("integrity.abandon", {"ticket": ticket})
        kind, _, rule = error.why.partition(":") if isinstance(error, PortFailure) else ("", "", "")
        if kind not in _MENDS:
            raise
        raise SpineError(
            f"the spine refuses the persona {name}: {kind}",
            rule.strip(),
            _MENDS[kind].replace("NAME", name),
            Exit.REFUSED,
            kind.replace(" ", "-"),
        ) from error
    assert isinstance(installed, Mapping)
    return installed


# What helps against each kind of refusal.
_MENDS = {
    **dict.fromkeys(("unsigned", "truncated", "altered", "malformed"), "./spine persona build NAME"),
    "foreign key": "./spine persona inspect FILE; ./spine persona sign FILE   # when you trust it as it is",
    "downgrade": "$EDITOR personas/NAME/persona.toml   # raise version",
    "other identity": "./spine persona remove NAME   # when the new one is to take its place",
    "full": "./spine persona list; ./spine persona remove ANOTHER",
}


def _remove(args: argparse.Namespace) -> Answer:
    _asked(args, "integrity.remove", "name")
    return {
        "name": args.name,
        "text": f"{args.name} is removed; its records stay, and a room it has goes on\n",
    }


def _check(args: argparse.Namespace) -> Answer:
    found = _asked(args, "integrity.verify", "name")
    return {
        "name": args.name,
        **found,
        "text": f"{args.name} {found['version']}: all {found['bytes']} bytes are what was installed\n",
    }


def _start(args: argparse.Namespace) -> Answer:
    _asked(args, "freezer.start", "persona")
    return {
        "name": args.name,
        "text": f"{args.name} has a room; it runs while it has the focus   (./spine focus {args.name})\n",
    }


def _stop(args: argparse.Namespace) -> Answer:
    _asked(args, "freezer.stop", "persona")
    return {"name": args.name, "text": f"{args.name} is stopped\n"}


def _asked(args: argparse.Namespace, method: str, parameter: str) -> Answer:
    name = _name(args.name)
    with attach(args.ground).port() as port:
        return _call(port, name, method, {parameter: name})


def _call(port: "Port", name: str, method: str, params: Mapping[str, object]) -> Answer:
    """One call about a persona. SpineError as a person needs it."""
    try:
        return port.call(method, params)
    except PortFailure as failure:
        raise told(name, failure) from failure


def _log(args: argparse.Namespace) -> Answer | None:
    name = _name(args.name)
    if args.follow and args.json:
        raise SpineError(
            "a log that goes on has no end to make one object of",
            "--follow and --json were given together",
            f"./spine persona log {name} --json",
            Exit.USAGE,
        )
    after, text = 0, b""
    while True:
        # The port is for one at a time, so it is let go between two looks.
        with attach(args.ground).port() as port:
            while True:
                answer = _call(port, name, "freezer.console", {"persona": name, "after": after, "waitMs": 0})
                data, seen = answer["data"], answer["next"]
                assert isinstance(data, bytes)
                assert isinstance(seen, int)
                if args.follow:
                    _write(data)
                else:
                    text += data
                if seen < after:
                    after = 0  # the spine was started anew, and its clock with it
                    continue
                if not data:
                    break
                after = seen
        if not args.follow:
            break
        time.sleep(FOLLOW_S)
    if args.json:
        return {"name": name, "console": text.decode(errors="replace")}
    _write(text)
    if not text:
        Progress().say(f"{name} has shown nothing yet: it runs only with the focus   (./spine focus {name})")
    return None


def _write(data: bytes) -> None:
    if sys.stdout.isatty():
        # A console holds what a persona wrote; a terminal obeys control sequences.
        sys.stdout.write("".join(c for c in plain(data) if c.isprintable() or c in "\n\t"))
    else:
        sys.stdout.buffer.write(data)
    sys.stdout.flush()


# ---- what is shown -----------------------------------------------------------------------------------------


def _shown(found: Persona, key: bytes, verdict: str) -> str:
    """An image the way a phone shows an app before it is installed: what it is, then what it may."""
    network = "none"
    if found.network.use:
        ports = ", ".join(map(str, found.network.inbound))
        network = "may call anybody" + (f"; may be called on TCP {ports}" if ports else "; may not be called")
    loss = {"freeze": "stands still until it comes back", "kill": "ends"}[found.on_focus_loss.value]
    rows = {
        "signature": f"{verdict} ({format_.key_id(key)})",
        "size": _size(found.length),
        "starts": ("at boot" if found.autostart else "when asked") + f": {' '.join(found.init)}",
        "console": "yes" if found.console else "no",
        "may use": f"{_size(found.limits.memory_bytes)} of memory, {found.limits.pids} processes, "
        f"{_size(found.limits.writable_bytes)} of files in memory",
        "network": network,
        "devices": _list_of(found.devices, "none"),
        "may ask for": _list_of({"its own records"} | {_GRANTS[grant] for grant in found.grants}, ""),
        "loses focus": loss,
    }
    # Words in an image are a stranger's.
    rows = {name: line if line.isprintable() else repr(line) for name, line in rows.items()}
    listed = "".join(f"  {name:<12} {line}\n" for name, line in rows.items())
    return f"{found.name} {found.version}: {found.summary}\n\n{listed}"


_GRANTS = {
    "focus": "passing the focus to another persona",
    "update": "bringing updates of the system, and starting it anew with them",
}


def _document(found: Persona, key: bytes, verdict: str) -> Answer:
    return {
        "name": found.name,
        "version": found.version,
        "summary": found.summary,
        "keyId": format_.key_id(key),
        "signature": verdict,
        "bytes": found.length,
        "rootHash": found.verity.root_hash,
        "init": list(found.init),
        "console": found.console,
        "limits": {
            "memoryBytes": found.limits.memory_bytes,
            "pids": found.limits.pids,
            "writableBytes": found.limits.writable_bytes,
        },
        "network": {"use": found.network.use, "inbound": list(found.network.inbound)},
        "devices": sorted(found.devices),
        "grants": sorted(found.grants),
        "autostart": found.autostart,
        "onFocusLoss": found.on_focus_loss.value,
    }


def _list_of(words: Collection[str], none: str) -> str:
    return ", ".join(sorted(words)) or none


def _size(number: int) -> str:
    for unit, size in (("GiB", 1024**3), ("MiB", 1024**2)):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number / 1024:.4g} KiB"


# ---- what is given -----------------------------------------------------------------------------------------


def _name(name: str) -> str:
    if not format_.NAME.fullmatch(name):
        raise SpineError(
            f"{name!r} cannot be the name of a persona",
            "a name is 1 to 15 lower case letters and digits, a letter first",
            "./spine persona list",
            Exit.USAGE,
        )
    return name


def _is_file(given: str) -> bool:
    return os.sep in given or given.endswith(SUFFIX)


def _read(given: str) -> tuple[Path, bytes]:
    """The image that was named: a file, or the one in out/ of a persona of the tree."""
    file = Path(given) if _is_file(given) else out_file(_name(given))
    try:
        if file.stat().st_size > IMAGE_BYTES_MAX:
            raise SpineError(
                f"{file} is no persona",
                f"it has more than {_size(IMAGE_BYTES_MAX)}",
                "./spine persona list",
                Exit.REFUSED,
            )
        return file, file.read_bytes()
    except FileNotFoundError as error:
        fix = "./spine persona list" if _is_file(given) else f"./spine persona build {given}"
        raise SpineError(f"there is no image {file}", "it is not there", fix, Exit.NO_SUCH_THING) from error


def _trusted(given: list[str]) -> list[bytes]:
    """The public keys to trust: this host's own, and those that were given."""
    from spine.image import keys

    for word in given:
        if not format_.DIGEST.fullmatch(word):
            raise SpineError(
                f"{word!r} is no public key",
                "a key is 64 hexadecimal digits in lower case",
                "./spine persona verify NAME --key HEX",
                Exit.USAGE,
            )
    return [keys.public_bytes(keys.persona_key()), *(bytes.fromhex(word) for word in given)]
