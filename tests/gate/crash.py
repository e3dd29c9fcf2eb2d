"""Crashes of a real file system under the gate, as many as one has patience for.

An ext4 image on a loop device is mounted, callers drive the gate on it in a process of its own, and at a
moment drawn from the seed the process is killed and, in the same breath, the file system shut down without
writing its journal: what was not synced is gone, as it is when the power goes. Then the image is mounted
again, and what the stores hold is compared with the account the callers kept in a pipe, outside of all that.

The kill comes first, and nobody waits for it: a sync that is under way when the shutdown hits may come back
with success though nothing reached the image (seen on Linux 6.18, in about one crash of twenty). A power cut
does not let a program live to be told so, and here the signal is pending before the call can return.

`python -m tests.gate.crash --count 10000 --seed 1 --evidence docs/evidence/gate-crash.json` is a campaign; it
proves itself first on gates with a seeded bug, which it must catch, and writes the file only when it does and
when no cycle failed. Needs root and a loop device.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import random
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from organs.gate import store as gate_store
from organs.gate import writeahead
from organs.gate.verdict import PAGE_BYTES
from organs.gate.writeahead import FRAME_HEADER_BYTES, HEADER_BYTES, Fold
from tests.gate import load

ROOT = Path(__file__).resolve().parents[2]
# What runs in a cycle: the gate below its organ, and the harness.
COVERED = (
    "organs/gate/ballast.py",
    "organs/gate/store.py",
    "organs/gate/verdict.py",
    "organs/gate/worker.py",
    "organs/gate/writeahead.py",
    "tests/gate/crash.py",
    "tests/gate/load.py",
)

# linux/fs.h: EXT4_IOC_SHUTDOWN, and the flag that drops the journal as well.
EXT4_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2

IMAGE_MIB = 24
CLIENTS = 4
# The crash comes after this many answers, or a few instructions later.
ANSWERS_MAX = 24
SPIN_MAX = 20_000
# In half of the lives.
SHORT_LOG_BYTES = 24 << 10
# Says, by its process, that a campaign runs in a mount namespace of its own.
ALONE = "SPINE_CRASH_ALONE"
# Cycles a seeded bug gets before it must have been caught.
BUG_CYCLES = 25


# Seeded bugs: each a gate that breaks its promise in one line.


Patches = Sequence[tuple[object, str, object]]


@dataclass(frozen=True)
class Bug:
    """A gate with something wrong: which names of it are replaced by what."""

    name: str
    patches: Callable[[], Patches]
    # Whether the wrong gate also does the recovery after the crash.
    recovers: bool = False


@contextmanager
def planted(patches: Patches) -> Iterator[None]:
    """The bug is in place inside of the block."""
    good = [(where, name, getattr(where, name)) for where, name, _ in patches]
    try:
        for where, name, wrong in patches:
            setattr(where, name, wrong)
        yield
    finally:
        for where, name, right in good:
            setattr(where, name, right)


def _synchronous(value: str, read_back: int) -> Patches:
    pragmas = tuple(
        ("synchronous", value, read_back) if name == "synchronous" else (name, asked, expected)
        for name, asked, expected in gate_store.PRAGMAS
    )
    return [(gate_store, "PRAGMAS", pragmas)]


def _answers_before_commit() -> Patches:
    """Three transactions share a commit that comes after the answers of two of them."""
    begin, commit = gate_store.Store.begin, gate_store.Store.commit
    turns: dict[int, int] = {}

    def lazy_begin(self: gate_store.Store, *, writes: bool) -> None:
        if not self._connection.in_transaction:
            begin(self, writes=writes)

    def lazy_commit(self: gate_store.Store) -> None:
        turns[id(self)] = turns.get(id(self), 0) + 1
        if turns[id(self)] % 3 == 0:
            commit(self)

    return [
        (gate_store.Store, "begin", lazy_begin),
        (gate_store.Store, "commit", lazy_commit),
        # Folding would need the commit that is missing.
        (gate_store.Store, "fold_due", lambda _: Fold.LATER),
    ]


def _log_thrown_away() -> Patches:
    """Opening a store begins by tidying up what looks like a leftover."""
    connect = gate_store._connect

    def clean(path: Path) -> sqlite3.Connection:
        path.with_name(path.name + "-wal").unlink(missing_ok=True)
        return connect(path)

    return [(gate_store, "_connect", clean)]


def _folds_without_a_sync() -> Patches:
    """The log begins anew while what was in it is in the file, but not yet on the device."""
    fold = gate_store.Store.fold

    def hasty(self: gate_store.Store, how: Fold = Fold.EMPTY) -> None:
        self._connection.execute("PRAGMA synchronous = OFF")
        fold(self, how)
        self._connection.execute("PRAGMA synchronous = FULL")

    return [(gate_store.Store, "fold", hasty), *short_log()]


def short_log() -> Patches:
    """A log that begins anew every few commits: a life of this campaign is too short for the real length."""
    return [(writeahead, "LOG_BYTES_MAX", SHORT_LOG_BYTES)]


NONE = Bug("none", lambda: ())
BUGS = (
    Bug("synchronous OFF", lambda: _synchronous("OFF", 0)),
    Bug("synchronous NORMAL", lambda: _synchronous("NORMAL", 1)),
    Bug("answers before the commit", _answers_before_commit),
    Bug("throws the log away", _log_thrown_away, recovers=True),
    Bug("folds without a sync", _folds_without_a_sync),
)


class Ground:
    """An ext4 image on a loop device, mounted and unmounted."""

    def __init__(self, home: Path) -> None:
        self._image = home / "image"
        self.mount_point = home / "mnt"
        self.mount_point.mkdir()
        with open(self._image, "wb") as file:
            file.truncate(IMAGE_MIB << 20)
        # Without the discard and the lazy tables a mount is quick and the same each time.
        run("mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0", "-m", "0", str(self._image))
        self._loop = run("losetup", "-f", "--show", str(self._image)).strip()
        self._mounted = False

    def mount(self) -> Path:
        run("mount", "-t", "ext4", self._loop, str(self.mount_point))
        self._mounted = True
        return self.mount_point

    def unmount(self) -> None:
        run("umount", str(self.mount_point))
        self._mounted = False

    def shut_down(self) -> None:
        """From now on nothing reaches the image."""
        fd = os.open(self.mount_point, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def close(self) -> None:
        if self._mounted:
            self.unmount()
        run("losetup", "-d", self._loop)
        self._image.unlink()


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@dataclass
class Result:
    """What a row of crashes came to."""

    cycles: int = 0
    submitted: int = 0
    acknowledged: int = 0
    # Logs that a crash left with frames of an older one behind their own.
    begun_anew: int = 0
    violations: list[str] = field(default_factory=list)


def begun_anew(directory: Path) -> int:
    """How many logs hold frames with other salts than their header's."""
    count, frame = 0, FRAME_HEADER_BYTES + PAGE_BYTES
    for path in directory.glob("*-wal"):
        log = path.read_bytes()
        salts = log[16:24]
        whole = range(HEADER_BYTES, len(log) - frame + 1, frame)
        count += any(log[at + 8 : at + 16] != salts for at in whole)
    return count


def drive(directory: Path, seed: str, pipe: int, bug: Bug) -> int:
    """Fork the callers and the gate; their process."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with planted([*bug.patches(), *(short_log() if random.Random(seed).random() < 0.5 else ())]):
            # More steps than the crash lets happen.
            load.drive(directory, seed, CLIENTS, ANSWERS_MAX * 4, lambda line: os.write(pipe, line))
        code = 0
    finally:
        os._exit(code)


def cycle(
    ground: Ground, state: load.State, seed: str, bug: Bug
) -> tuple[load.State, load.Account, int, list[str]]:
    """One life of the gate and its end; what is there afterwards, and how many logs had begun anew."""
    dice = random.Random(seed)
    answers, spin = dice.randrange(ANSWERS_MAX), dice.randrange(SPIN_MAX)
    reading, writing = os.pipe()
    directory = ground.mount()
    child = drive(directory, seed, writing, bug)
    os.close(writing)
    try:
        with open(reading, "rb") as pipe:
            lines: list[bytes] = []
            while answers >= 0 and (line := pipe.readline()):
                lines.append(line)
                answers -= line.startswith(b"A")
            for _ in range(spin):
                pass
            os.kill(child, signal.SIGKILL)
            ground.shut_down()
            lines += pipe.readlines()
    finally:
        os.waitpid(child, 0)
        ground.unmount()
    ground.mount()
    anew = begun_anew(directory)
    with planted(bug.patches() if bug.recovers else ()):
        state, account, wrong = load.verify(directory, state, seed, lines)
    return state, account, anew, wrong


def campaign(
    home: Path,
    count: int,
    seed: str,
    bug: Bug,
    *,
    stop_at_first: bool = False,
    said: Callable[[str], None] = lambda _: None,
) -> Result:
    """`count` crashes in a row on one image; what was kept is carried from each to the next."""
    result = Result()
    ground = Ground(home)
    state: load.State = {}
    try:
        for number in range(count):
            state, account, anew, wrong = cycle(ground, state, f"{seed}.{number}", bug)
            ground.unmount()
            result.begun_anew += anew
            result.cycles += 1
            result.acknowledged += account.acknowledged
            result.submitted += sum(last + 1 for last in account.submitted.values())
            result.violations += [f"cycle {number}: {sentence}" for sentence in wrong]
            if wrong and stop_at_first:
                break
            if number % 500 == 499:
                wrong_so_far = len(result.violations)
                said(f"{number + 1} crashes, {result.acknowledged} acknowledged, {wrong_so_far} wrong")
    finally:
        with suppress(subprocess.CalledProcessError):
            ground.close()
    return result


def covered() -> dict[str, object]:
    """The files this speaks about and one hash over them."""
    files = [ROOT / name for name in COVERED]
    hashed = hashlib.sha256()
    for path in files:
        hashed.update(f"{path.relative_to(ROOT)} {path.stat().st_size}\n".encode())
        hashed.update(path.read_bytes())
    return {"files": [str(path.relative_to(ROOT)) for path in files], "sha256": hashed.hexdigest()}


def commit_of_tree() -> str:
    """The commit, and whether the covered files are as they are there."""
    commit = run("git", "-C", str(ROOT), "rev-parse", "HEAD").strip()
    changed = run("git", "-C", str(ROOT), "status", "--porcelain", "--", *COVERED).strip()
    return f"{commit}-dirty" if changed else commit


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A directory for an image: in memory where that is possible, since the file system is what is tested."""
    return tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)


def proof_on_bugs(seed: str, said: Callable[[str], None]) -> dict[str, dict[str, int]]:
    """For each seeded bug, after how many crashes it was noticed; no violations means it was missed."""
    caught: dict[str, dict[str, int]] = {}
    for bug in BUGS:
        with scratch() as home:
            found = campaign(Path(home), BUG_CYCLES, f"{seed}/{bug.name}", bug, stop_at_first=True)
        said(f"seeded bug {bug.name}: {'caught' if found.violations else 'MISSED'} in cycle {found.cycles}")
        caught[bug.name] = {"cycles": found.cycles, "violations": len(found.violations)}
    return caught


def alone() -> None:
    """Be in a mount namespace of one's own. In a shared one, any other program that makes a namespace for
    itself keeps a copy of our mount, and with it the file system that was shut down: mounting the image again
    would only give that one back."""
    if os.environ.get(ALONE) != str(os.getpid()):
        os.environ[ALONE] = str(os.getpid())
        command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", "tests.gate.crash"]
        os.execvp(command[0], [*command, *sys.argv[1:]])


def main() -> int:
    """The campaign."""
    alone()
    parser = argparse.ArgumentParser(description="crash a file system under the gate")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--evidence", type=Path)
    arguments = parser.parse_args()

    def said(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    # However it ends, the image is unmounted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    caught = proof_on_bugs(arguments.seed, said)
    with scratch() as home:
        result = campaign(Path(home), arguments.count, arguments.seed, NONE, said=said)
    for sentence in result.violations[:20]:
        said(sentence)
    counts = {
        "crashes": result.cycles,
        "submitted": result.submitted,
        "acknowledged": result.acknowledged,
        "logsBegunAnew": result.begun_anew,
        "violations": len(result.violations),
    }
    print(json.dumps({"counts": counts, "seededBugsCaught": caught}))
    good = not result.violations and all(row["violations"] for row in caught.values())
    if good and arguments.evidence:
        evidence = {
            "what": "ext4 on a loop device shut down without its journal under the gate; acknowledged writes "
            "compared with what the stores hold after the next mount",
            "commit": commit_of_tree(),
            "seed": arguments.seed,
            "command": " ".join(["python", "-m", "tests.gate.crash", *sys.argv[1:]]),
            "counts": counts,
            "seededBugsCaught": caught,
            "covered": covered(),
            "ground": {"kernel": platform.release(), "sqlite": sqlite3.sqlite_version},
        }
        arguments.evidence.write_text(json.dumps(evidence, indent=2) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
