"""What the image is made from: Debian packages and Python wheels, each pinned by version and SHA-256.

Reads spine-image/inputs.lock and spine-image/python.lock, downloads with apt-get and pip into the cache, and
checks every byte against the lock before anything uses it. `relock` asks apt and pip what is current and
writes inputs.lock anew. Never installs anything. An input that is gone or changed is named, with the command
that renews the lock.
"""

import os
import re
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spine.errors import Exit, SpineError
from spine.image import commands
from spine.image.cache import Cache, digest, file_digest

LOCK = "spine-image/inputs.lock"
PYTHON_LOCK = "spine-image/python.lock"
RELOCK = "./spine build --relock"
# What a package is for: its source becomes the kernel, its files the root, or the boot loader.
USES = ("kernel", "root", "boot")

HEADER = """\
# What the image is made from. Written by `./spine build --relock`, which renews versions and hashes and keeps
# the names; the build refuses anything that does not match.

# The date of everything in the image (seconds since 1970): 2026-01-01.
epoch = {epoch}
"""


@dataclass(frozen=True)
class Package:
    """One Debian package."""

    name: str
    version: str
    sha256: str
    use: str


@dataclass(frozen=True)
class Wheel:
    """One Python wheel; its version is the one of python.lock."""

    name: str
    version: str
    file: str
    sha256: str


@dataclass(frozen=True)
class Inputs:
    """The whole lock."""

    epoch: int
    packages: tuple[Package, ...]
    wheels: tuple[Wheel, ...]

    def of(self, use: str) -> tuple[Package, ...]:
        """The packages with one use."""
        return tuple(package for package in self.packages if package.use == use)


def decode(text: str) -> Inputs:
    """Read the lock strictly; SpineError names the first thing that is wrong."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _refused(str(error)) from error
    _only(document, {"epoch", "package", "wheel"}, "the lock")
    epoch = document.get("epoch")
    if not isinstance(epoch, int) or isinstance(epoch, bool) or not 0 <= epoch < 1 << 32:
        raise _refused("epoch must be seconds since 1970")
    packages = tuple(
        Package(*(_text(row, key, "package") for key in ("name", "version", "sha256", "use")))
        for row in _rows(document, "package", {"name", "version", "sha256", "use"})
    )
    wheels = tuple(
        Wheel(*(_text(row, key, "wheel") for key in ("name", "version", "file", "sha256")))
        for row in _rows(document, "wheel", {"name", "version", "file", "sha256"})
    )
    pinned: list[Package | Wheel] = [*packages, *wheels]
    names = [entry.name for entry in pinned]
    for name in names:
        if names.count(name) > 1:
            raise _refused(f"{name} stands there twice")
    for package in packages:
        if package.use not in USES:
            raise _refused(f"{package.name}: use must be one of {', '.join(USES)}")
    for entry in pinned:
        if not re.fullmatch(r"[0-9a-f]{64}", entry.sha256):
            raise _refused(f"{entry.name}: sha256 must be 64 hex digits")
    return Inputs(epoch, packages, wheels)


def encode(inputs: Inputs) -> str:
    """The lock as text; `decode(encode(x)) == x`."""
    out = [HEADER.format(epoch=inputs.epoch)]
    for package in inputs.packages:
        out.append(
            f'[[package]]\nname = "{package.name}"\nversion = "{package.version}"\n'
            f'use = "{package.use}"\nsha256 = "{package.sha256}"\n'
        )
    for wheel in inputs.wheels:
        out.append(
            f'[[wheel]]\nname = "{wheel.name}"\nversion = "{wheel.version}"\n'
            f'file = "{wheel.file}"\nsha256 = "{wheel.sha256}"\n'
        )
    return "\n".join(out)


def fetch_package(cache: Cache, package: Package) -> Path:
    """The .deb of a package, downloaded when the cache lacks it, with the hash of the lock."""

    def make(directory: Path) -> None:
        what = f"the package {package.name} {package.version} cannot be downloaded"
        options = ["-q", "-o", "APT::Sandbox::User=root"]
        download = ["apt-get", *options, "download", f"{package.name}={package.version}"]
        try:
            try:
                commands.run(download, cwd=directory, what=what)
            except SpineError as error:
                if error.exit_code == Exit.HOST_NOT_READY or os.geteuid() != 0:
                    raise
                # The lists of a new system are older than the lock. One look at the archive, one more try.
                # Of two builds at once the second waits, where apt-get would refuse it.
                with cache.locked("package lists", "update"):
                    commands.run(["apt-get", *options, "update"], what="the package lists cannot be renewed")
                commands.run(download, cwd=directory, what=what)
        except SpineError as error:
            if error.exit_code == Exit.HOST_NOT_READY:
                raise
            raise SpineError(
                error.what,
                f"the archive does not have this version (any more), or cannot be reached: {error.why}",
                f"sudo apt-get update && {RELOCK}   # takes the versions that are current now",
            ) from error
        [found] = directory.glob("*.deb")
        check(found, package.name, package.version, package.sha256)
        found.rename(directory / "package.deb")

    return cache.entry("packages", digest(package.name, package.sha256), make) / "package.deb"


def fetch_wheels(cache: Cache, inputs: Inputs, python_lock: str) -> list[Path]:
    """The wheels of the lock, downloaded together when the cache lacks them, each with its hash."""

    def make(directory: Path) -> None:
        download_wheels(directory, [wheel.name for wheel in inputs.wheels], python_lock)
        for wheel in inputs.wheels:
            found = directory / wheel.file
            if not found.exists():
                raise SpineError(
                    f"the wheel {wheel.file} cannot be had",
                    "pip chose another file for this host",
                    f"{RELOCK}   # or build on a host like the one the lock was made on",
                )
            check(found, wheel.name, wheel.version, wheel.sha256)

    key = digest("wheels", *(wheel.sha256 for wheel in inputs.wheels))
    directory = cache.entry("wheels", key, make)
    return [directory / wheel.file for wheel in inputs.wheels]


def download_wheels(directory: Path, names: Sequence[str], python_lock: str) -> None:
    """Download the wheels of `names` into `directory`, as python.lock pins them."""
    wanted = directory / "wanted.txt"
    wanted.write_text(requirements(python_lock, names))
    pip = [sys.executable, "-I", "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    only = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--python-version", "3.11"]
    commands.run(
        [*pip, *only, "--dest", directory, "--requirement", wanted],
        what="the Python wheels of the image cannot be downloaded",
    )
    wanted.unlink()


def requirements(python_lock: str, names: Sequence[str]) -> str:
    """The part of python.lock that concerns `names`, with their hashes and the lock's own options."""
    blocks = re.split(r"\n(?=[A-Za-z0-9])", "\n" + python_lock)
    options = [line for line in blocks[0].splitlines() if line.startswith("--")]
    by_name = {block.split("==")[0].strip().lower(): block for block in blocks[1:]}
    out = list(options)
    for name in names:
        if name.lower() not in by_name:
            raise _refused(f"the wheel {name} is not in {PYTHON_LOCK}")
        lines = [line for line in by_name[name.lower()].splitlines() if not line.lstrip().startswith("#")]
        out.append("\n".join(line for line in lines if line.strip()))
    return "\n".join(out) + "\n"


def relock(cache: Cache, old: Inputs, python_lock: str) -> Inputs:
    """The same names with the versions and hashes that apt and python.lock give now."""
    packages = tuple(current(package.name, package.use) for package in old.packages)
    names = [wheel.name for wheel in old.wheels]
    found: list[Wheel] = []

    def make(directory: Path) -> None:
        download_wheels(directory, names, python_lock)

    directory = cache.entry("wheels", digest("relock", python_lock, *names), make)
    for name in names:
        stem = re.sub(r"[-.]+", "_", name).lower()
        [path] = [path for path in directory.iterdir() if path.name.lower().startswith(f"{stem}-")]
        found.append(Wheel(name, path.name.split("-")[1], path.name, file_digest(path)))
    return Inputs(old.epoch, packages, tuple(found))


def current(name: str, use: str) -> Package:
    """The package as apt would take it now. SpineError when apt does not know it."""
    shown = commands.run(
        ["apt-cache", "show", "--no-all-versions", name],
        what=f"apt does not know the package {name}",
    ).decode()
    fields = dict(re.findall(r"^(Version|SHA256): (\S+)$", shown, re.MULTILINE))
    if fields.keys() != {"Version", "SHA256"}:
        raise SpineError(
            f"apt does not know the package {name}",
            "its lists have neither version nor hash of it",
            "sudo apt-get update",
            Exit.HOST_NOT_READY,
        )
    return Package(name, fields["Version"], fields["SHA256"], use)


def check(path: Path, name: str, version: str, sha256: str) -> None:
    """Return when the file has the locked hash; SpineError (refused) when it has another."""
    # INV-IMAGE-1
    if (seen := file_digest(path)) != sha256:
        raise SpineError(
            f"the input {name} {version} is not what the lock says",
            f"its SHA-256 is {seen}, the lock has {sha256}",
            f"find out why; if it is right, {RELOCK}",
            Exit.REFUSED,
        )


def _rows(document: dict[str, object], key: str, fields: set[str]) -> list[dict[str, object]]:
    rows = document.get(key, [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise _refused(f"[[{key}]] must be tables")
    for row in rows:
        _only(row, fields, f"[[{key}]]")
    return rows


def _text(row: dict[str, object], key: str, where: str) -> str:
    value = row.get(key)
    # The characters that Debian's and Python's names, versions and file names are made of.
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+:~_-]*", value):
        raise _refused(f"[[{where}]] {key} is missing or not a plain word")
    return value


def _only(table: dict[str, object], known: set[str], where: str) -> None:
    for key in table.keys() - known:
        raise _refused(f"{where} has an unknown key {key}")


def _refused(why: str) -> SpineError:
    return SpineError(f"{LOCK} cannot be used", why, f"git checkout {LOCK}, or {RELOCK}", Exit.REFUSED)
