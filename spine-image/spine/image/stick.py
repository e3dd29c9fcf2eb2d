"""Writes a disk image to a stick: what must be so before, the table that fits it, the writing, the comparing.

`refusals` and `relocated` are pure. `look` reads sysfs and opens the device; `write` writes it whole and
reads it back past the cache. The table comes last, so a stick whose writing was cut short starts nothing.
Never: writes a device that something uses, a partition, or a disk that is built in unless that was said.
Fails: SpineError (3) not allowed, (4) no device, (5) refused, (6) what was read back is not what was written;
OSError of the device.
"""

import binascii
import errno
import mmap
import os
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from spine.errors import Exit, SpineError
from spine.ground import gpt

# Read and written at once: large enough for a stick's own blocks, small enough for a progress line.
PIECE = 4 << 20
# The copy of the table at the end: its header, and its entries in front of it.
COPY_SECTORS = 1 + gpt.ENTRIES_MAX * gpt.ENTRY_BYTES // gpt.SECTOR
# Where the size stands in the protective record of the first sector, and the largest that it can say.
_PROTECTIVE_SIZE = 446 + 12
_PROTECTIVE_MAX = 0xFFFF_FFFF
_HEADER_CRC = 16


@dataclass(frozen=True)
class Device:
    """What a device is, as the kernel says it."""

    path: Path
    size: int
    sector: int
    whole: bool
    removable: bool
    read_only: bool
    # What holds it, in words; empty when nothing does.
    in_use: str
    model: str = ""


def refusals(device: Device, image_bytes: int, *, built_in: bool) -> list[str]:
    """Why the image must not be written to the device; empty when it may. Pure.

    `built_in`: the person said that a disk which is not removable is meant.
    """
    checks = [
        (not device.whole, "it is a partition; the whole device is wanted"),
        (
            not device.removable and not built_in,
            "it is not removable (--built-in, if it is meant)",
        ),
        (device.read_only, "it is write-protected"),
        (bool(device.in_use), device.in_use),
        (
            device.sector != gpt.SECTOR,
            f"its sectors have {device.sector} bytes, the image's have {gpt.SECTOR}",
        ),
        (
            device.size < image_bytes,
            f"it has {device.size / 1e6:.0f} MB, the image has {image_bytes / 1e6:.0f}",
        ),
    ]
    return [why for refused, why in checks if refused]


def relocated(head: bytes, sectors: int) -> tuple[bytes, bytes]:
    """The start of a disk with its table made for `sectors`, and the table's copy for the last sectors.

    `head` is the start of the image, at least `gpt.TABLE_BYTES`. GptError. Pure.
    """
    gpt.parse(head)
    fields = list(gpt.HEADER.unpack_from(head, gpt.SECTOR))
    last_used = max(
        struct.unpack_from("<Q", head, at + 40)[0]
        for at in range(2 * gpt.SECTOR, gpt.TABLE_BYTES, gpt.ENTRY_BYTES)
    )
    last = sectors - 1
    if last - COPY_SECTORS < last_used:
        raise gpt.GptError(f"the table's copy does not fit behind the last partition of {sectors} sectors")
    fields[6], fields[8] = last, last - COPY_SECTORS
    front = bytearray(head)
    front[gpt.SECTOR : gpt.SECTOR + gpt.HEADER.size] = _sealed(fields)
    struct.pack_into("<I", front, _PROTECTIVE_SIZE, min(last, _PROTECTIVE_MAX))
    # The copy names itself and the first one the other way round, and its own entries.
    fields[5], fields[6], fields[10] = last, 1, last - COPY_SECTORS + 1
    entries = head[2 * gpt.SECTOR : gpt.TABLE_BYTES]
    header = _sealed(fields)
    return bytes(front), entries + header + bytes(gpt.SECTOR - len(header))


def _sealed(fields: list[int | bytes]) -> bytes:
    header = bytearray(gpt.HEADER.pack(*fields))
    header[_HEADER_CRC : _HEADER_CRC + 4] = bytes(4)
    struct.pack_into("<I", header, _HEADER_CRC, binascii.crc32(header))
    return bytes(header)


def look(path: Path) -> Device:
    """What the kernel says of a device. SpineError (3, 4)."""
    try:
        seen = path.stat()
    except OSError as error:
        raise SpineError(
            f"there is no device {path}", error.strerror or str(error), "lsblk", Exit.NO_SUCH_THING
        ) from error
    if not stat.S_ISBLK(seen.st_mode):
        raise SpineError(
            f"{path} is no disk",
            "it is no block device",
            "lsblk   # which disks there are",
            Exit.NO_SUCH_THING,
        )
    folder = Path(f"/sys/dev/block/{os.major(seen.st_rdev)}:{os.minor(seen.st_rdev)}").resolve()
    whole = not (folder / "partition").exists()
    disk = folder if whole else folder.parent
    return Device(
        path=path,
        size=int(_said(folder / "size")) * 512,
        sector=int(_said(disk / "queue/logical_block_size")),
        whole=whole,
        removable=_said(disk / "removable") == "1",
        read_only=_said(folder / "ro") == "1",
        in_use=_in_use(path, folder),
        model=" ".join(f"{_said(disk / 'device/vendor', '')} {_said(disk / 'device/model', '')}".split()),
    )


def _said(path: Path, otherwise: str = "0") -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return otherwise


def _in_use(path: Path, folder: Path) -> str:
    """Who has the device or a partition of it, in words: the kernel answers, the list of mounts names it."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except PermissionError as error:
        raise SpineError(
            f"{path} may not be opened",
            str(error.strerror),
            f"sudo ./spine usb {path} --dry-run",
            Exit.HOST_NOT_READY,
        ) from error
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOMEDIUM):
            raise
        if error.errno == errno.ENOMEDIUM:
            return "there is no medium in it"
        numbers = {_said(found) for found in (folder / "dev", *folder.glob("*/dev"))}
        rows = [row.split() for row in _said(Path("/proc/self/mountinfo")).splitlines()]
        at = sorted({row[4] for row in rows if row[2] in numbers})
        return (
            f"it is mounted at {', '.join(at)}"
            if at
            else "something uses it (swap, LVM, RAID, another program)"
        )
    return ""


def write(image: Path, device: Device, note: Callable[[str], None]) -> None:
    """Write the image, with the table made for the device, and compare. SpineError (6), GptError, OSError."""
    with image.open("rb") as source:
        length = os.fstat(source.fileno()).st_size
        head, copy = relocated(source.read(PIECE)[: gpt.TABLE_BYTES], device.size // gpt.SECTOR)
        # Exclusive: refused when something mounted it in the meantime, and from now on nothing can.
        target = os.open(device.path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
        try:
            copy_at = device.size // gpt.SECTOR * gpt.SECTOR - len(copy)
            patches = ((0, head), (copy_at, copy))
            # No table at all until everything else is there.
            _put(target, bytes(len(head)), 0)
            os.fsync(target)
            for at in range(0, length, PIECE):
                piece = _piece(
                    source.fileno(), at, min(PIECE, length - at), ((0, bytes(len(head))), patches[1])
                )
                _put(target, piece, at)
                note(f"{at // 1_000_000} of {length // 1_000_000} MB written")
            _put(target, copy, copy_at)
            os.fsync(target)
            _put(target, head, 0)
            os.fsync(target)
        finally:
            os.close(target)
        _compare(source.fileno(), length, patches, device, note)


def _piece(source: int, at: int, length: int, patches: tuple[tuple[int, bytes], ...]) -> bytes:
    """A piece of the image as it is to stand on the device: with the patches that lie in it laid over."""
    piece = bytearray(os.pread(source, length, at))
    if len(piece) != length:
        raise OSError(errno.EIO, "the image became shorter while it was written")
    for start, data in patches:
        low, high = max(start, at), min(start + len(data), at + length)
        if low < high:
            piece[low - at : high - at] = data[low - start : high - start]
    return bytes(piece)


def _put(target: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(target, view, at)
        view, at = view[count:], at + count


def _compare(
    source: int,
    length: int,
    patches: tuple[tuple[int, bytes], ...],
    device: Device,
    note: Callable[[str], None],
) -> None:
    # O_DIRECT: what the device has and not what the kernel remembers; it wants aligned memory.
    target = os.open(device.path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, PIECE) as memory:
            for at in range(0, length, PIECE):
                wanted = _piece(source, at, min(PIECE, length - at), patches)
                _same(target, memory, at, wanted, device)
                note(f"{at // 1_000_000} of {length // 1_000_000} MB compared")
            _same(target, memory, *patches[1], device)
    finally:
        os.close(target)


def _same(target: int, memory: mmap.mmap, at: int, wanted: bytes, device: Device) -> None:
    # A read past the end is shorter, and one that is not a multiple of the sector is refused.
    count = os.preadv(target, [memoryview(memory)[: len(wanted)]], at)
    if count != len(wanted) or memory[: len(wanted)] != wanted:
        raise SpineError(
            f"{device.path} does not keep what was written to it",
            f"it gave back something else within {len(wanted)} bytes from byte {at}",
            "use another stick",
            Exit.LOSS,
        )
