"""How fast a slot is read and verified: the organ's own code beside openssl and sha256sum on the same bytes.

Touches: a slot of its own in the scratch directory, made by the image's code with a key of the tests. The
organ reads past the page cache and the others through it, so each is measured as it is used, and ours also on
bytes that lie in memory, which leaves the disk out.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from organs.integrity.examine import examine
from organs.integrity.reading import Raw
from spine.image import disk, slot
from tests.bench.bench import Absent, Bench
from tests.bench.figures import Goal, Measured
from tests.bench.table import OURS, Row
from tests.integrity import disks

ABOUT = "a slot read from its first byte to its last, hashed and held against its signed manifest"
SLOT_BYTES: Final = 48 * 1024 * 1024
ROOT_BYTES: Final = 40 * 1024 * 1024
OPENSSL, SHA256SUM, HASHLIB = "openssl dgst -sha256", "sha256sum", "hashlib.sha256"


def rows(quick: bool) -> Sequence[Row]:
    """The rows."""
    del quick
    what = f"a slot of {SLOT_BYTES // 2**20} MiB verified"
    peers = (OPENSSL, SHA256SUM, HASHLIB)
    return (
        Row(
            "memory",
            f"{what}, its bytes in memory",
            "MB/s",
            peers,
            {OPENSSL: Goal(at_least=0.8)},
            plot="Verification of a slot",
        ),
        Row(
            "raw",
            f"{what}, read past the page cache",
            "MB/s",
            (OPENSSL, SHA256SUM),
            plot="Verification of a slot",
        ),
    )


def measure(bench: Bench, wanted: frozenset[str]) -> Iterator[tuple[str, Mapping[str, Measured]]]:
    """Measure."""
    data = made(bench.folder("slot"))
    file = bench.folder("verification") / "slot"
    file.write_bytes(data)
    read = disks.reader(data)
    rounds = bench.count(7, 3)

    def program(*words: str) -> Callable[[], Sequence[float]]:
        def one() -> Sequence[float]:
            began = time.perf_counter()
            try:
                subprocess.run([*words, str(file)], check=True, stdout=subprocess.DEVNULL)
            except FileNotFoundError:
                raise Absent(f"{words[0]} is not installed") from None
            except subprocess.CalledProcessError as error:
                raise Absent(f"{words[0]} ended with {error.returncode}") from None
            return (speed(began),)

        return one

    def hashed() -> Sequence[float]:
        began = time.perf_counter()
        hashlib.sha256(data).digest()
        return (speed(began),)

    def in_memory() -> Sequence[float]:
        began = time.perf_counter()
        found = examine(read, SLOT_BYTES, disks.PUBLIC)
        took = speed(began)
        assert found.signed == found.read
        assert found.signed
        return (took,)

    def past_the_cache() -> Sequence[float]:
        fd = os.open(file, os.O_RDONLY)
        try:
            raw = Raw(fd, direct=True)
            began = time.perf_counter()
            found = examine(raw.read, raw.size, disks.PUBLIC)
            took = speed(began)
            assert found.signed == found.read
            return (took,)
        finally:
            os.close(fd)

    os.sync()  # What is still to be written would be written while we measure.
    theirs = {OPENSSL: program("openssl", "dgst", "-sha256"), SHA256SUM: program("sha256sum")}
    if "memory" in wanted:
        yield "memory", bench.alternate({OURS: in_memory, **theirs, HASHLIB: hashed}, rounds)
    if "raw" in wanted:
        yield "raw", bench.alternate({OURS: past_the_cache, **theirs}, rounds)


def speed(began: float) -> float:
    """MB/s of a whole slot since that moment."""
    return SLOT_BYTES / 1e6 / (time.perf_counter() - began)


def made(directory: Path) -> bytes:
    """A slot whose root fills most of it."""
    root = bytearray(b"hsqs") + hashlib.shake_128(b"bench").digest(ROOT_BYTES - 4)
    root[40:48] = len(root).to_bytes(8, "little")
    tree = hashlib.shake_128(b"tree").digest(slot.manifest_offset(bytes(root[:96])) - len(root))
    programs = disks.programs("1")
    boots = {
        name: disk.make_boot(
            directory, name, disk.volume(name, disks.FIRST, disks.LOADER, data, disks.RESCUE), disks.EPOCH
        ).read_bytes()
        for name, data in programs.items()
    }
    data, _ = slot.compose(bytes(root), tree, programs, boots, {"version": "1"}, disks.KEY.sign)
    return data + bytes(SLOT_BYTES - len(data))
