"""Builds the kernel from Debian's source and spine-image/kernel.config; for PCs, kernel.pc.config over it.

Unpacks the source into a directory of the cache, configures it from nothing (allnoconfig) plus our lines,
checks that each line took, compiles, keeps bzImage, .config and System.map, and deletes the rest. Date,
user, host, build number and the seeds of the compiler's plugins are fixed and the build runs inside its
tree, so the same inputs give the same bytes in any directory. Touches nothing outside the cache. An
interrupted build leaves nothing.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from spine.errors import Exit, SpineError
from spine.image import commands
from spine.image.cache import Cache, digest, remove
from spine.progress import Progress

# Raise this when the steps below change the bytes of the kernel: it is part of the cache's key.
RECIPE = "2"

# Our lines, relative to the root of the tree: the virtual machine's, and what a real one needs besides.
FRAGMENT = "spine-image/kernel.config"
OVERLAYS = {"qemu": "", "pc": "spine-image/kernel.pc.config"}
PROFILES = tuple(OVERLAYS)

# What the kernel says about who built it and when; anything real would differ from build to build.
FIXED = {
    "KBUILD_BUILD_USER": "spine",
    "KBUILD_BUILD_HOST": "spine",
    "KBUILD_BUILD_VERSION": "1",
    # Without it the plugin that gathers entropy puts random bytes into the program while it is compiled.
    "KCFLAGS": "-frandom-seed=spine",
}
# The script that draws the seed by which structures are shuffled, and the line in it that does.
SEED_SCRIPT = "scripts/gen-randstruct-seed.sh"
SEED_LINE = re.compile(r"^SEED=.*$", re.MULTILINE)
# What the compiler's plugins are compiled against, below the directory that the compiler names.
PLUGIN_HEADER = "include/plugin-version.h"
PLUGIN_PACKAGE = "gcc-12-plugin-dev"

# How many files a build compiles, when no earlier build has left the true number.
STEPS_GUESS = 1660
# Seconds of one processor for one of them, measured on a small machine; only for the estimate.
SECONDS_PER_STEP = 0.5

KEPT_FILES = {"arch/x86/boot/bzImage": "bzImage", ".config": "config", "System.map": "System.map"}


def wanted(fragment: str, file: str = FRAGMENT) -> dict[str, str]:
    """The options of a fragment with their values; SpineError for a line that is no option and no comment."""
    found: dict[str, str] = {}
    for number, line in enumerate(fragment.splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = re.fullmatch(r'(CONFIG_[A-Z0-9_a-z]+)=(y|n|-?\d+|0x[0-9a-f]+|"[^"]*")', text)
        if match is None or match[1] in found:
            why = "is no option" if match is None else "stands there twice"
            raise SpineError(
                f"{file.rpartition('/')[2]} line {number}: {text}",
                f"the line {why}; it must be CONFIG_NAME=value, once",
                f"$EDITOR +{number} {file}",
            )
        found[match[1]] = match[2]
    return found


def merged(profile: str, read: Callable[[str], str]) -> str:
    """The lines of a profile without comments: an overlay's line replaces the same option of the fragment.

    `read` gives the text of a file of the tree. SpineError for a line that is no option.
    """
    options = wanted(read(FRAGMENT))
    if overlay := OVERLAYS[profile]:
        options |= wanted(read(overlay), overlay)
    return "".join(f"{option}={value}\n" for option, value in options.items())


def not_taken(fragment: str, config: str) -> list[str]:
    """Which wishes of the fragment the final .config does not hold, as `CONFIG_X=y (is n)`."""
    final = dict(re.findall(r"^(CONFIG_\w+)=(.*)$", config, re.MULTILINE))
    return [
        f"{option}={value} (is {final.get(option, 'n')})"
        for option, value in wanted(fragment).items()
        if final.get(option, "n") != value
    ]


def key(source_sha256: str, fragment: str, epoch: int) -> str:
    """What a kernel is made of; comments in the fragment do not count."""
    compiler = commands.run(["gcc", "--version"], what="the compiler cannot be asked").split(b"\n")[0]
    linker = commands.run(["ld", "--version"], what="the linker cannot be asked").split(b"\n")[0]
    options = [f"{option}={value}" for option, value in wanted(fragment).items()]
    return digest("kernel", RECIPE, source_sha256, str(epoch), compiler, linker, *options)


def build(
    cache: Cache, fetch: Callable[[], Path], key: str, fragment: str, epoch: int, progress: Progress
) -> Path:
    """The directory with bzImage, config and System.map, made when the cache lacks it.

    `fetch` gets the source's package; it is asked only when there is something to build.
    """

    def make(directory: Path) -> None:
        if wanted(fragment).get("CONFIG_GCC_PLUGINS") == "y":
            _need_plugins()
        deb = fetch()
        tree = directory / "tree"
        tree.mkdir()
        with progress.stage("kernel: unpack the source", 40):
            _unpack(deb, tree)
        with progress.stage("kernel: configure", 20):
            _fix_seed(tree, key)
            _configure(tree, directory, fragment, epoch)
        _compile(cache, tree, epoch, progress)
        for there, here in KEPT_FILES.items():
            (tree / there).rename(directory / here)
        remove(tree)

    return cache.entry("kernel", key, make)


def _unpack(package: Path, tree: Path) -> None:
    # dpkg-deb and tar as a pipe: the inner archive alone is 150 MB.
    deb = subprocess.Popen(
        [commands.find("dpkg-deb"), "--fsys-tarfile", package],
        stdout=subprocess.PIPE,
        env=commands.environment(),
    )
    inner = subprocess.Popen(
        [commands.find("tar"), "--extract", "--to-stdout", "--wildcards", "./usr/src/linux-source-*.tar.xz"],
        stdin=deb.stdout,
        stdout=subprocess.PIPE,
        env=commands.environment(),
    )
    outer = subprocess.run(
        [commands.find("tar"), "--extract", "--xz", "--strip-components=1", "--directory", tree],
        stdin=inner.stdout,
        stderr=subprocess.PIPE,
        env=commands.environment(),
        check=False,
    )
    for pipe in (deb.stdout, inner.stdout):
        if pipe is not None:
            pipe.close()
    codes = (deb.wait(), inner.wait(), outer.returncode)
    if any(codes):
        raise commands.failed("the kernel's source cannot be unpacked", "tar", max(codes), outer.stderr)


def _make(tree: Path, epoch: int) -> tuple[list[str], dict[str, str]]:
    fixed = {
        **FIXED,
        "KBUILD_BUILD_TIMESTAMP": time.strftime("%a %b %d %H:%M:%S UTC %Y", time.gmtime(epoch)),
        "LOCALVERSION": "",
    }
    return [commands.find("make"), "-C", str(tree)], commands.environment(fixed)


def _need_plugins() -> None:
    said = commands.run(["gcc", "-print-file-name=plugin"], what="the compiler cannot be asked")
    if not (Path(said.decode().strip()) / PLUGIN_HEADER).is_file():
        raise SpineError(
            "the kernel needs plugins of the compiler, and they cannot be compiled",
            f"{PLUGIN_HEADER} of this gcc is not there; for Debian's gcc 12 it is in {PLUGIN_PACKAGE}",
            f"sudo apt-get install --no-install-recommends {PLUGIN_PACKAGE}",
            Exit.HOST_NOT_READY,
        )


def _fix_seed(tree: Path, key: str) -> None:
    """Have structures shuffled by a seed that follows from what the kernel is made of, not a random one."""
    script = tree / SEED_SCRIPT
    fixed, count = SEED_LINE.subn(f"SEED={digest('randstruct', key)}", script.read_text())
    if count != 1:
        raise SpineError(
            "the kernel's seed cannot be fixed",
            f"{SEED_SCRIPT} of this source draws it in another way ({count} places)",
            "$EDITOR spine-image/spine/image/kernel.py",
        )
    script.write_text(fixed)


def _configure(tree: Path, directory: Path, fragment: str, epoch: int) -> None:
    # EXPERT first: it is what lets most of our "n" lines be said at all.
    lines = ["CONFIG_EXPERT=y", *(f"{option}={value}" for option, value in wanted(fragment).items())]
    wishes = directory / "wishes"
    wishes.write_text("\n".join(lines) + "\n")
    command, env = _make(tree, epoch)
    done = subprocess.run(
        [*command, "-s", f"KCONFIG_ALLCONFIG={wishes}", "allnoconfig"],
        env=env,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        raise commands.failed("the kernel cannot be configured", "make", done.returncode, done.stderr)
    wishes.unlink()
    # INV-IMAGE-2
    if missed := not_taken(fragment, (tree / ".config").read_text()):
        raise SpineError(
            "the kernel does not take these lines of kernel.config: " + ", ".join(missed),
            "an option they depend on is off, or this kernel has no such option",
            "$EDITOR spine-image/kernel.config",
        )


def _compile(cache: Cache, tree: Path, epoch: int, progress: Progress) -> None:
    remembered = cache.root / "kernel-steps"
    try:
        expected = int(remembered.read_text())
    except (OSError, ValueError):
        expected = STEPS_GUESS
    jobs = len(os.sched_getaffinity(0))
    log = cache.root / "kernel.log"
    command, env = _make(tree, epoch)
    with progress.stage("kernel: compile", expected * SECONDS_PER_STEP / jobs), log.open("wb") as kept:
        # A group of its own, so that all of make's children end with it on ctrl-C; and when this process is
        # killed, make is told.
        make = subprocess.Popen(
            [commands.find("setpriv"), "--pdeathsig", "TERM", *command, f"-j{jobs}", "bzImage"],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert make.stdout is not None
        steps, began = 0, time.monotonic()
        try:
            for line in make.stdout:
                kept.write(line)
                if line.startswith((b"  CC", b"  AS", b"  HOSTCC")):
                    steps += 1
                    left_s = (time.monotonic() - began) / steps * max(expected - steps, 0)
                    left = f", about {round(left_s / 60)} min to go" if left_s > 60 else ""
                    progress.note(f"{steps} of about {max(expected, steps)} files{left}")
            code = make.wait()
        finally:
            if make.poll() is None:
                os.killpg(make.pid, signal.SIGTERM)
                make.wait()
            make.stdout.close()
    if code != 0:
        raise _compile_failed(log, code)
    remembered.write_text(f"{steps}\n")


def _compile_failed(log: Path, code: int) -> SpineError:
    said = log.read_bytes()
    errors = [line for line in said.splitlines() if b"error" in line.lower() or b"No space" in line]
    error = commands.failed("the kernel cannot be compiled", "make", code, b"\n".join(errors[:5]) or said)
    return SpineError(error.what, error.why, f"less {log}", error.exit_code)
