"""Where the peers come from: Debian packages unpacked into the cache, Python wheels in a venv of their own.

Nothing is installed into the system. A package that is installed already is used as it is. Touches:
`bench/` in the cache, the network by `apt-get download` and pip. What cannot be had is an `Absent` with the
reason, never an end of the bench.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from spine import paths
from tests.bench.bench import Absent

DOWNLOAD_S: Final = 300
"""For one download. A mirror that is slower is a mirror that is not there."""
REQUIREMENTS: Final = Path(__file__).with_name("requirements.txt")
LIBRARIES: Final = ("usr/lib", "lib", "usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")
PROGRAMS: Final = ("usr/bin", "usr/sbin", "bin", "sbin")


@contextlib.contextmanager
def locked() -> Iterator[Path]:
    """The directory of the peers; one bench at a time sets them up."""
    base = paths.private(paths.private(paths.cache()) / "bench")
    with (base / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield base


def program(name: str, *packages: str) -> tuple[Path, dict[str, str]]:
    """A program of these Debian packages, and the environment that it needs; the first names it."""
    found = shutil.which(name)
    if found is not None:
        return Path(found), {}
    root = unpacked(*packages)
    for place in PROGRAMS:
        if (root / place / name).exists():
            return root / place / name, {
                "LD_LIBRARY_PATH": ":".join(str(root / one) for one in LIBRARIES),
                "PATH": ":".join([*(str(root / one) for one in PROGRAMS), os.environ.get("PATH", "")]),
            }
    raise Absent(f"{name} is in none of the packages {', '.join(packages)}")


def unpacked(*packages: str) -> Path:
    """The files of these Debian packages, below a directory of their own. They must name what they need."""
    with locked() as base:
        root = base / f"debian-{'+'.join(packages)}"
        if not root.is_dir():
            fresh = base / f"fresh-{os.getpid()}"
            shutil.rmtree(fresh, ignore_errors=True)
            (fresh / "deb").mkdir(parents=True)
            try:
                _download(packages, fresh / "deb")
                for file in sorted((fresh / "deb").glob("*.deb")):
                    run(["dpkg-deb", "-x", str(file), str(fresh / "root")])
                (fresh / "root").rename(root)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
        return root


def _download(packages: tuple[str, ...], into: Path) -> None:
    # apt drops root for the download where it can; where it cannot write it says so and goes on.
    words = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", *packages]
    try:
        run(words, into)
    except Absent:
        # The list of packages is older than the mirror: once more with a new one.
        with contextlib.suppress(Absent):
            run(["apt-get", "update", "-qq"])
        run(words, into)


def python() -> Path:
    """The Python with the wheels of `requirements.txt`, set up once for each version of that file."""
    with locked() as base:
        key = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:16]
        venv = base / f"venv-{key}"
        if not (venv / "done").exists():
            shutil.rmtree(venv, ignore_errors=True)
            run(["/usr/bin/python3", "-m", "venv", str(venv)])
            pip = [str(venv / "bin/python"), "-m", "pip", "install", "--quiet", "--no-input"]
            checked = ["--require-hashes", "--no-deps", "--only-binary", ":all:", "-r", str(REQUIREMENTS)]
            run([*pip, "--disable-pip-version-check", *checked])
            (venv / "done").touch()
        return venv / "bin/python"


def compiled(source: Path, name: str, *flags: str) -> Path:
    """A C program of the bench, compiled once for each version of its source."""
    with locked() as base:
        key = hashlib.sha256(source.read_bytes() + repr(flags).encode()).hexdigest()[:16]
        program = base / f"{name}-{key}"
        if not program.exists():
            made = base / f"{name}-{os.getpid()}"
            run(["gcc", "-O2", "-Wall", "-o", str(made), str(source), *flags])
            made.rename(program)
        return program


def version(package: str) -> str:
    """The version of a Debian package, as installed or as offered; for the notes."""
    try:
        said = run(["apt-cache", "policy", package])
    except Absent:
        return "unknown version"
    found = dict(line.strip().split(": ", 1) for line in said.splitlines() if ": " in line)
    installed = found.get("Installed", "(none)")
    return installed if installed != "(none)" else found.get("Candidate", "unknown version")


def run(words: list[str], cwd: Path | None = None, environment: Mapping[str, str] | None = None) -> str:
    """What a program says on its output. Absent when it is not there, fails or takes too long."""
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=DOWNLOAD_S,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise Absent(f"{words[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise Absent(f"{' '.join(words[:2])} took over {DOWNLOAD_S} s") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Absent(f"{' '.join(words[:2])}: {said[-1][:200] if said else done.returncode}")
    return done.stdout
