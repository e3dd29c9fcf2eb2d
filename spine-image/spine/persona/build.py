"""Builds a persona: from its recipe, its files and pinned packages to one signed file, `out/NAME.persona`.

Needs no root. Works in the cache; the file in `out` is replaced by one rename. The same inputs and the same
key give the same bytes. Refused, with the place: what the recipe, the lock or the tree of files does not
allow. The signing key is used here and nowhere else.
"""

import json
import os
import re
import stat
import tomllib
from dataclasses import dataclass
from pathlib import Path

from organs.persona import Persona, PersonaRefused
from spine import paths
from spine.errors import Exit, SpineError
from spine.image import commands, inputs, root
from spine.image.cache import Cache, digest, remove
from spine.image.inputs import Package
from spine.persona import image, programs, recipe
from spine.persona.recipe import Recipe
from spine.persona.tree import Link, Regular, Tree
from spine.progress import Progress

SUFFIX = ".persona"
USE = "persona"
# One file of a persona's folder; larger things come in packages (bytes).
FILE_BYTES_MAX = 64 * 1024**2

LOCK_HEADER = """\
# What the persona's packages are, to the byte. Written by `./spine persona build {name} --relock`.
"""


@dataclass(frozen=True)
class Built:
    """One image."""

    path: Path
    persona: Persona
    key: bytes


def out_file(name: str) -> Path:
    """Where the image of a persona of the tree is left."""
    return paths.out() / f"{name}{SUFFIX}"


def build(name: str, progress: Progress, *, relock: bool = False, out: Path | None = None) -> Built:
    """Build and sign the persona, and leave it in `out`. SpineError when it cannot be built."""
    from spine.image import keys

    wanted = recipe.load(name)
    cache = Cache(paths.cache(), progress.say)
    if relock:
        with progress.stage(f"{name}: renew the lock"):
            _renew(wanted)
    packages = _locked(wanted)
    own = {each.target: _own_file(wanted, each.source) for each in wanted.files}
    sources = {program: programs.source(program) for program in wanted.programs}
    epoch = inputs.decode((paths.ROOT / inputs.LOCK).read_text(encoding="utf-8")).epoch
    key = digest(
        "persona",
        _code(),
        programs.compiler(),
        str(epoch),
        repr(wanted),
        *(package.sha256 for package in packages),
        *(part for pair in own.items() for part in pair),
        *(part for pair in sources.items() for part in pair),
    )

    def make(directory: Path) -> None:
        with progress.stage(f"{name}: pack"):
            tree = _tree(wanted, packages, own, sources, cache, directory, progress)
            made = image.body(name, _squash(tree, directory, epoch))
            (directory / "image").write_bytes(made.image)
            (directory / "tree").write_bytes(made.tree)
            facts = {"root_hash": made.root_hash, "salt": made.salt, "blocks": made.blocks}
            (directory / "facts.json").write_text(json.dumps(facts), encoding="utf-8")

    kept = cache.entry("persona", key, make)
    made = image.Body(
        (kept / "image").read_bytes(),
        (kept / "tree").read_bytes(),
        **json.loads((kept / "facts.json").read_bytes()),
    )
    secret = keys.persona_key()
    public = keys.public_bytes(secret)
    try:
        block = image.seal(image.manifest(wanted, made), public, secret.sign)
        data = made.image + made.tree + block
        checked = image.check(data, [public])
    except PersonaRefused as error:
        raise refused(name, error) from error
    file = (out / f"{name}{SUFFIX}") if out else out_file(name)
    replace(file, data)
    return Built(file, checked, public)


def refused(what: str, error: PersonaRefused) -> SpineError:
    """The refusal of an image, for a person."""
    return SpineError(
        f"the persona {what} is refused: {error.kind.value}",
        f"{error.key}: {error.rule}",
        "./spine persona build NAME   # makes and signs it with the key of this host",
        Exit.REFUSED,
    )


def replace(file: Path, data: bytes) -> None:
    """Put `data` at `file` in one step; nothing when it is there already."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.is_file() and file.read_bytes() == data:
        return
    part = file.with_name(f".part-{file.name}.{os.getpid()}")
    try:
        part.write_bytes(data)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def decode_lock(wanted: Recipe, text: str) -> tuple[Package, ...]:
    """The packages of a lock, in the order of the recipe. SpineError when the two do not fit."""
    fix = f"./spine persona build {wanted.name} --relock"
    what = f"personas/{wanted.name}/{recipe.LOCK} cannot be used"
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpineError(what, str(error), fix, Exit.REFUSED) from error
    rows = document.pop("package", [])
    if document or not isinstance(rows, list):
        raise SpineError(what, "it holds something else than packages", fix, Exit.REFUSED)
    found: dict[str, Package] = {}
    for row in rows:
        match row:
            case {"name": str(name), "version": str(version), "sha256": str(sha256)} if len(row) == 3:
                plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+:~-]*", version)
                if plain and re.fullmatch(r"[0-9a-f]{64}", sha256) and name not in found:
                    found[name] = Package(name, version, sha256, USE)
                    continue
        raise SpineError(what, f"a package of it is not name, version and sha256: {row!r}", fix, Exit.REFUSED)
    if found.keys() != set(wanted.packages):
        other = ", ".join(sorted(found.keys() ^ set(wanted.packages)))
        raise SpineError(what, f"it does not name the packages of the recipe: {other}", fix, Exit.REFUSED)
    return tuple(found[name] for name in wanted.packages)


def encode_lock(name: str, packages: tuple[Package, ...]) -> str:
    """The text of a lock; `decode_lock` reads it back."""
    rows = (
        f'\n[[package]]\nname = "{each.name}"\nversion = "{each.version}"\nsha256 = "{each.sha256}"\n'
        for each in packages
    )
    return LOCK_HEADER.format(name=name) + "".join(rows)


def _locked(wanted: Recipe) -> tuple[Package, ...]:
    file = recipe.directory(wanted.name) / recipe.LOCK
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        text = ""
    return decode_lock(wanted, text)


def _renew(wanted: Recipe) -> None:
    packages = tuple(inputs.current(name, USE) for name in wanted.packages)
    replace(recipe.directory(wanted.name) / recipe.LOCK, encode_lock(wanted.name, packages).encode())


def _code() -> str:
    """The hash of the code that decides about the bytes."""
    own = sorted(Path(__file__).parent.glob("*.py"))
    return digest(*(part for path in own for part in (path.name, path.read_bytes())), repr(root.SQUASH))


def _own_file(wanted: Recipe, source: str) -> bytes:
    """The bytes of a file in the persona's folder; a link on the way there, or something else, is refused."""
    folder = recipe.directory(wanted.name)
    place = folder
    what = f"the file personas/{wanted.name}/{source} cannot be taken"
    fix = f"$EDITOR personas/{wanted.name}/{recipe.FILE}   # files"
    for part in source.split("/"):
        place = place / part
        try:
            seen = place.lstat()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise SpineError(what, "it is not there", fix, Exit.REFUSED) from error
        if stat.S_ISLNK(seen.st_mode):
            # It could lead anywhere on this host.
            raise SpineError(what, f"{place} is a link", fix, Exit.REFUSED)  # INV-PERSONA-21
    if not stat.S_ISREG(seen.st_mode) or seen.st_size > FILE_BYTES_MAX:
        raise SpineError(
            what, f"it is no plain file of at most {FILE_BYTES_MAX >> 20} MiB", fix, Exit.REFUSED
        )
    return place.read_bytes()


def _tree(
    wanted: Recipe,
    packages: tuple[Package, ...],
    own: dict[str, bytes],
    sources: dict[str, bytes],
    cache: Cache,
    directory: Path,
    progress: Progress,
) -> Tree:
    tree = Tree()
    for package in packages:
        progress.note(package.name)
        deb = _fetch(wanted, package, cache)
        tar = commands.run(["dpkg-deb", "--fsys-tarfile", deb], what=f"{package.name} cannot be unpacked")
        tree.add_package(f"the package {package.name}", tar)
    for name, text in sources.items():
        place = directory / f"program-{name}"
        place.mkdir()
        made = programs.compile_program(name, text, place)
        remove(place)
        tree.add(f"the program {name}", f"{programs.TARGET}/{name}", Regular(0o755, made))
    origin = f"personas/{wanted.name}/{recipe.FILE}"
    for each in wanted.files:
        tree.add(origin, each.target, Regular(each.mode, own[each.target]), instead=True)
    for path, target in wanted.links.items():
        tree.add(origin, path, Link(target), instead=True)
    tree.spine_directories()
    if wanted.network.use and "/etc/resolv.conf" not in tree.entries:
        # The spine lays its own over it; there must be something to lay it over.
        tree.add(origin, "/etc/resolv.conf", Regular(0o644, b""))
    _runs(tree, wanted)
    return tree


def _runs(tree: Tree, wanted: Recipe) -> None:
    place = tree.resolve(wanted.init[0])
    entry = tree.entries.get(place or "")
    if not isinstance(entry, Regular) or not entry.mode & 0o100:
        raise SpineError(
            f"the persona {wanted.name} has no first process",
            f"{wanted.init[0]} is no file in it that can be run",
            f"$EDITOR personas/{wanted.name}/{recipe.FILE}   # init, files, packages",
            Exit.REFUSED,
        )


def _fetch(wanted: Recipe, package: Package, cache: Cache) -> Path:
    try:
        return inputs.fetch_package(cache, package)
    except SpineError as error:
        if error.exit_code == Exit.HOST_NOT_READY:
            raise
        # The lock that can be renewed is the persona's.
        fix = f"./spine persona build {wanted.name} --relock   # takes the versions that are current now"
        raise SpineError(error.what, error.why, fix, error.exit_code) from error


def _squash(tree: Tree, directory: Path, epoch: int) -> bytes:
    laid, squashed = directory / "laid", directory / "squashed"
    tree.write(laid)
    # INV-PERSONA-24
    dates = ["-mkfs-time", str(epoch), "-all-time", str(epoch)]
    commands.run(
        ["mksquashfs", laid, squashed, *root.SQUASH, *root.SQUASH_FIXED, *dates],
        what="the persona cannot be packed",
    )
    data = squashed.read_bytes()
    squashed.unlink()
    remove(laid)
    return data
