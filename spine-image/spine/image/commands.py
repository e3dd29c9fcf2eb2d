"""Runs the outside tools of the build.

Starts programs with a fixed environment, so that neither the locale nor a variable of the caller's shell
changes a byte of the image. Never goes through a shell. A tool that is missing is named with the Debian
package that has it; a tool that fails is quoted.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from spine.errors import Exit, SpineError

# Which Debian package brings a tool, where the two are not called the same.
PACKAGE_OF = {
    "apt-cache": "apt",
    "apt-get": "apt",
    "as": "binutils",
    "debugfs": "e2fsprogs",
    "dpkg-deb": "dpkg",
    "ld": "binutils",
    "mcopy": "mtools",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
    "mksquashfs": "squashfs-tools",
    "mmd": "mtools",
    "readelf": "binutils",
    "setpriv": "util-linux",
    "sfdisk": "fdisk",
    "strip": "binutils",
    "unsquashfs": "squashfs-tools",
    "xz": "xz-utils",
}

# System tools live here also for users whose PATH lacks sbin.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# How much of a failed tool's own words goes into the message (characters).
QUOTE_MAX = 400


def find(tool: str) -> str:
    """The full path of `tool`; SpineError (host not ready) when it is not installed."""
    found = shutil.which(tool, path=PATH)
    if found is None:
        package = PACKAGE_OF.get(tool, tool)
        raise SpineError(
            f"the tool {tool} is missing",
            f"the build needs it; it is in the package {package}",
            f"sudo apt-get install {package}",
            Exit.HOST_NOT_READY,
        )
    return found


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What every tool sees: a fixed PATH, the C locale, UTC, no configuration of the person's own."""
    kept = {
        name: value
        for name, value in os.environ.items()
        # How to reach the archive, and where temporary files may go, are the host's own affair.
        if name.lower().endswith("_proxy") or name in ("HOME", "TMPDIR")
    }
    return {**kept, "PATH": PATH, "LC_ALL": "C", "TZ": "UTC", **(extra or {})}


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    what: str,
) -> bytes:
    """Run one tool to its end and return its standard output; SpineError when it fails."""
    done = subprocess.run(
        [find(str(command[0])), *map(str, command[1:])],
        cwd=cwd,
        env=environment(env),
        input=stdin,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        raise failed(what, str(command[0]), done.returncode, done.stderr or done.stdout)
    return done.stdout


def failed(what: str, tool: str, code: int, words: bytes) -> SpineError:
    """The error for a tool that ended with `code`, quoting the end of what it said."""
    quote = words.decode(errors="replace").strip()[-QUOTE_MAX:]
    if "No space left on device" in quote:
        return full_disk(what)
    return SpineError(what, f"{tool} ended with {code}: {quote or 'it said nothing'}", "./spine build")


def full_disk(what: str) -> SpineError:
    """The error for a disk without space; what was there before is as it was."""
    return SpineError(
        what,
        "the disk is full; the image that was there is unchanged",
        "df -h . ~/.cache   # a build needs about 2 GiB in the cache while the kernel is made",
    )
