"""Makes one UEFI program of systemd's stub, the kernel, its command line and the release's name.

Pure: bytes in, bytes out. Appends PE sections to the stub, each at the next free aligned address, in the
place of its symbol table, which nobody reads and which would leave a gap where signatures must have none;
changes nothing else. Refuses a stub that is no 64-bit PE program or has no room for the section headers.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from spine.image import parameters

# Offsets in the PE headers (Microsoft, "PE Format"), relative to the header named.
_DOS_PE_OFFSET = 0x3C
_COFF_SECTIONS = 6
# Where the symbol table is, and how many symbols it has.
_COFF_SYMBOLS = 12
_COFF_OPTIONAL_SIZE = 20
_COFF_END = 24
_OPTIONAL_MAGIC_64 = 0x20B
_OPTIONAL_INITIALIZED = 8
_OPTIONAL_SECTION_ALIGNMENT = 32
_OPTIONAL_FILE_ALIGNMENT = 36
_OPTIONAL_IMAGE_SIZE = 56
_OPTIONAL_HEADERS_SIZE = 60
_SECTION = struct.Struct("<8sIIIIIIHHI")
# Initialised data, readable: the firmware maps it, nobody runs or writes it.
_SECTION_FLAGS = 0x40000040

_FILE_ALIGN_MAX = 1 << 16
_MEMORY_ALIGN_MAX = 1 << 21
_ADDRESS_MAX = 0xFFFF_FFFF - _MEMORY_ALIGN_MAX

# The kernel refuses a longer value of one parameter (kernel/params.c).
TABLE_MAX = 1024
# COMMAND_LINE_SIZE of x86, less the closing NUL.
COMMAND_LINE_MAX = 2047


@dataclass(frozen=True)
class Section:
    """One section: its name, where it lies in memory and in the file, and its bytes."""

    name: str
    address: int
    offset: int
    data: bytes


def sections(program: bytes) -> list[Section]:
    """The sections of a PE program; ValueError when it is none."""
    coff, optional, count, _room = _headers(program)
    table = coff + _COFF_END + optional
    found = []
    for index in range(count):
        name, size, address, raw, offset, *_ = _SECTION.unpack_from(program, table + index * _SECTION.size)
        if offset + min(size, raw) > len(program):
            raise ValueError("a section ends outside the program")
        found.append(
            Section(
                name.rstrip(b"\0").decode("ascii"), address, offset, program[offset : offset + min(size, raw)]
            )
        )
    return found


def layout(program: bytes) -> tuple[int, int, int, list[tuple[int, int]]]:
    """Where the optional header is and its size, the headers' size, and each section's offset and length
    in the file; ValueError when it is no PE program."""
    coff, optional, count, _room = _headers(program)
    head = coff + _COFF_END
    [headers] = struct.unpack_from("<I", program, head + _OPTIONAL_HEADERS_SIZE)
    rows = [_SECTION.unpack_from(program, head + optional + index * _SECTION.size) for index in range(count)]
    return head, optional, headers, [(row[4], row[3]) for row in rows]


def append(stub: bytes, added: Sequence[tuple[str, bytes]]) -> bytes:
    """The program `stub` with sections added behind its own; ValueError when there is no room."""
    coff, optional, count, room = _headers(stub)
    if room < len(added):
        raise ValueError(f"the stub has room for {room} more sections, {len(added)} are wanted")
    head = coff + _COFF_END
    memory_align, file_align = struct.unpack_from("<II", stub, head + _OPTIONAL_SECTION_ALIGNMENT)
    [headers] = struct.unpack_from("<I", stub, head + _OPTIONAL_HEADERS_SIZE)
    # What the format allows, and the largest page: more would only make the program large.
    if not _power(file_align, _FILE_ALIGN_MAX) or not _power(memory_align, _MEMORY_ALIGN_MAX):
        raise ValueError("not a PE program: it is aligned to what no program is")
    table = head + optional
    address = 0
    end = headers
    for index in range(count):
        _, size, start, raw, offset, *_ = _SECTION.unpack_from(stub, table + index * _SECTION.size)
        address = max(address, start + max(size, raw))
        end = max(end, offset + raw)
    if end > len(stub):
        raise ValueError("a section ends outside the program")
    [symbols] = struct.unpack_from("<I", stub, coff + _COFF_SYMBOLS)
    if len(stub) > end and symbols != end:
        raise ValueError("something that is no symbol table lies behind the stub's sections")
    out = bytearray(stub[:end])
    struct.pack_into("<II", out, coff + _COFF_SYMBOLS, 0, 0)
    grown = 0
    [initialized] = struct.unpack_from("<I", stub, head + _OPTIONAL_INITIALIZED)
    for index, (name, data) in enumerate(added, count):
        encoded = name.encode("ascii")
        if len(encoded) > 8 or not data:
            raise ValueError(f"the section {name} is empty, or its name is longer than 8 bytes")
        out += bytes(-len(out) % file_align)
        address += -address % memory_align
        raw = len(data) + -len(data) % file_align
        if max(address + len(data), len(out) + raw, initialized + grown + raw) > _ADDRESS_MAX:
            raise ValueError("the program is too large")
        row = _SECTION.pack(encoded, len(data), address, raw, len(out), 0, 0, 0, 0, _SECTION_FLAGS)
        out[table + index * _SECTION.size : table + (index + 1) * _SECTION.size] = row
        out += data + bytes(raw - len(data))
        address += len(data)
        grown += raw
    struct.pack_into("<H", out, coff + _COFF_SECTIONS, count + len(added))
    struct.pack_into("<I", out, head + _OPTIONAL_INITIALIZED, initialized + grown)
    struct.pack_into("<I", out, head + _OPTIONAL_IMAGE_SIZE, address + -address % memory_align)
    return bytes(out)


def _power(number: int, limit: int) -> bool:
    """Whether it is a power of two up to a limit."""
    return 0 < number <= limit and not number & (number - 1)


def _headers(program: bytes) -> tuple[int, int, int, int]:
    """Where the COFF header is, the optional header's size, the sections, and how many more have room."""
    try:
        [coff] = struct.unpack_from("<I", program, _DOS_PE_OFFSET)
        [count] = struct.unpack_from("<H", program, coff + _COFF_SECTIONS)
        [optional] = struct.unpack_from("<H", program, coff + _COFF_OPTIONAL_SIZE)
        [magic] = struct.unpack_from("<H", program, coff + _COFF_END)
        [headers] = struct.unpack_from("<I", program, coff + _COFF_END + _OPTIONAL_HEADERS_SIZE)
    except struct.error as error:
        raise ValueError("not a PE program: it is too short") from error
    end = coff + _COFF_END + optional + count * _SECTION.size
    if program[:2] != b"MZ" or program[coff : coff + 4] != b"PE\0\0" or magic != _OPTIONAL_MAGIC_64:
        raise ValueError("not a 64-bit PE program")
    if end > headers or headers > len(program):
        raise ValueError("not a PE program: its section table does not fit its headers")
    return coff, optional, count, (headers - end) // _SECTION.size


def command_line(
    slot: str,
    partition: str,
    blocks: int,
    root_hash: str,
    salt: str,
    *,
    production: bool,
    wait_for: str | None = None,
) -> str:
    """What the kernel is told: where its root is and by which hash to believe it.

    `partition` is the PARTUUID of the slot, which holds the data and behind it the tree; `blocks` is the
    number of data blocks, so the tree begins at block `blocks`. `wait_for` is the PARTUUID of a partition
    that must have been found before the root is looked for: disks behind USB and their like come when they
    come. ValueError when the kernel would refuse it.
    """
    table = (
        f"spine,,,ro,0 {blocks * 8} verity 1 PARTUUID={partition} PARTUUID={partition} 4096 4096 "
        f"{blocks} {blocks} sha256 {root_hash} {salt} 1 panic_on_corruption"  # INV-ROOT-1
    )
    if len(table) > TABLE_MAX:
        raise ValueError("the verity table is longer than the kernel takes")
    words = [
        # Not without an end: a root that never comes must panic, so that the next boot tries another slot.
        "root=/dev/dm-0 rootfstype=squashfs ro rootwait=10",
        *parameters.words(),
        # Where the first partition table is wrong, take the second.
        "gpt",
        f"init=/usr/bin/bay0 spine.slot={slot} quiet",
    ]
    if not production:
        words.append("console=tty0 console=ttyS0")
    if wait_for is not None:
        words.append(f"dm-mod.waitfor=PARTUUID={wait_for}")
    line = " ".join([*words, f'dm-mod.create="{table}"'])
    if len(line) > COMMAND_LINE_MAX:
        raise ValueError("the command line is longer than the kernel takes")
    return line
