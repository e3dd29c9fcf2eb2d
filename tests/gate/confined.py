"""The gate under its filter of system calls, where refused calls would hide: on a failing or a full device.

`python -m tests.gate.confined HOW` makes an ext4 image, runs callers and the gate on it in a process that was
dropped and confined as the gate's stanza says, and ends with 0 when the account the callers kept agrees with
what is on the image. HOW is `well` (an orderly end), `failing` (the device goes away under it), `full` (no
block is left) or `without:CALL` (a filter that lacks one call, which must end it and lose nothing).
Needs root, a loop device, and a mount namespace of its own.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import signal
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

from organs.kernel import privileges, seccomp, syscalls
from organs.manifest import load as load_manifest
from tests.gate import crash, load

CLIENTS, STEPS = 4, 60
# The device goes away after this many answers.
ANSWERS = 20
# What is left on the full device: room for the stores' own blocks and a few values.
LEFT_BYTES = 512 * 1024
FILLER = "filler"
WITHOUT = "without:"
# linux/fs.h: the shutdown that writes everything first. From then on each write and each sync fails.
FLUSH_FIRST = 0
STANZA = load_manifest(str(crash.ROOT / "organs/manifest.toml")).organs["gate"]


def take_away(call: str) -> None:
    """Leave one call out of every group."""
    less: Mapping[str, syscalls.Group] = {
        name: dataclasses.replace(group, rules=tuple(r for r in group.rules if r.name != call))
        for name, group in syscalls.GROUPS.items()
    }
    vars(syscalls)["GROUPS"] = less


def drive(directory: Path, how: str, pipe: int) -> int:
    """Fork the callers and the gate, as the gate's stanza says; their process."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        privileges.drop(STANZA.uid, STANZA.gid, set())
        if how.startswith(WITHOUT):
            take_away(how.removeprefix(WITHOUT))
        seccomp.confine(STANZA.syscalls)
        cause = load.drive(directory, how, CLIENTS, STEPS, lambda line: os.write(pipe, line))
        code = 0 if cause is None else load.DIED
    finally:
        os._exit(code)


def fill(directory: Path) -> None:
    """Take all blocks but a few."""
    room = os.statvfs(directory)
    with open(directory / FILLER, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - LEFT_BYTES)


def fail(directory: Path) -> None:
    """From now on the device takes nothing. All that it was given before is on it."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, crash.EXT4_IOC_SHUTDOWN, struct.pack("I", FLUSH_FIRST))
    finally:
        os.close(fd)


def life(home: Path, how: str) -> str | None:
    """One life of the gate; what is wrong with it, or None."""
    ground = crash.Ground(home)
    try:
        directory = ground.mount()
        os.chown(directory, STANZA.uid, STANZA.gid)
        os.chown(home, STANZA.uid, STANZA.gid)
        if how == "full":
            fill(directory)
        reading, writing = os.pipe()
        child = drive(directory, how, writing)
        os.close(writing)
        with open(reading, "rb") as pipe:
            lines: list[bytes] = []
            while how == "failing" and sum(line.startswith(b"A") for line in lines) < ANSWERS:
                lines.append(pipe.readline())
            if how == "failing":
                fail(directory)
            lines += pipe.readlines()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        ground.unmount()
        directory = ground.mount()
        (directory / FILLER).unlink(missing_ok=True)
        _, account, wrong = load.verify(directory, {}, how, lines)
    finally:
        ground.close()
    if wrong:
        return "; ".join(wrong)
    if code != (load.DIED if how == "failing" else -signal.SIGSYS if how.startswith(WITHOUT) else 0):
        return f"the gate ended with {code}"
    if bool(account.refused) != (how == "full"):
        return f"{len(account.refused)} requests refused"
    return None if account.acknowledged or how.startswith(WITHOUT) else "nothing was acknowledged"


def main() -> int:
    """The program."""
    with crash.scratch() as home:
        wrong = life(Path(home), sys.argv[1])
    if wrong is not None:
        print(wrong, file=sys.stderr)
    return 0 if wrong is None else 1


if __name__ == "__main__":
    sys.exit(main())
