"""The rescue is the same program each time, one that any firmware can start, and the last resort."""

import itertools
import re
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest

from spine import paths
from spine.errors import SpineError
from spine.image import disk, rescue, uki
from tests.image import loader
from tests.image.programs import stub

SOURCE, SCRIPT = ((paths.ROOT / path).read_bytes() for path in rescue.FILES)
# Where the optional header begins, from the COFF header (Microsoft, "PE Format").
OPTIONAL = 24
CODE, WRITE = 0x20000000, 0x80000000


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return rescue.make(tmp_path_factory.mktemp("rescue"), SOURCE, SCRIPT)


@pytest.mark.proves("INV-IMAGE-1")
def test_it_is_the_same_from_any_directory(tmp_path: Path, program: bytes) -> None:
    other = tmp_path / "a-longer-name" / "below"
    other.mkdir(parents=True)
    assert rescue.make(other, SOURCE, SCRIPT) == program
    assert list(other.iterdir()) == []


def test_it_is_a_uefi_program_that_runs_anywhere(program: bytes) -> None:
    [coff] = struct.unpack_from("<I", program, 0x3C)
    assert program[:2] == b"MZ"
    assert program[coff : coff + 4] == b"PE\0\0"
    machine, count, stamp = struct.unpack_from("<HHI", program, coff + 4)
    assert (machine, stamp) == (0x8664, 0)
    [flags] = struct.unpack_from("<H", program, coff + 22)
    assert flags & 0x0001 == 0, "what is said to be bound to its address is started nowhere else"
    optional = coff + OPTIONAL
    [magic] = struct.unpack_from("<H", program, optional)
    subsystem, kinds = struct.unpack_from("<HH", program, optional + 68)
    assert (magic, subsystem) == (0x20B, 10)
    assert kinds & 0x140 == 0x140, "it may be moved, and its data is not code"
    directories = struct.unpack_from("<32I", program, optional + 112)
    # Nothing is imported or exported; there is a relocation table, for those who insist on one.
    assert [at // 2 for at in range(0, 32, 2) if directories[at + 1]] == [5]
    table = optional + 240
    rows = [struct.unpack_from("<8sIIIIIIHHI", program, table + 40 * at) for at in range(count)]
    names = [row[0].rstrip(b"\0").decode() for row in rows]
    assert names == [".text", ".rodata", ".data", ".osrel", ".reloc"]
    for name, row in zip(names, rows, strict=True):
        assert bool(row[-1] & CODE) == (name == ".text")
        assert bool(row[-1] & WRITE) == (name == ".data")
    [entry] = struct.unpack_from("<I", program, optional + 16)
    assert rows[0][2] <= entry < rows[0][2] + rows[0][1]
    assert len(program) < 16_384


def test_an_address_in_its_data_is_refused(tmp_path: Path) -> None:
    seeded = SOURCE + b'\n__attribute__((used)) static const char *const seeded[] = { "one", "two" };\n'
    with pytest.raises(SpineError, match="rescue cannot be made") as refused:
        rescue.make(tmp_path, seeded, SCRIPT)
    assert "R_X86_64_64" in str(refused.value.why)


def test_what_the_linker_script_does_not_place_is_refused(tmp_path: Path) -> None:
    seeded = SOURCE + b'\n__attribute__((used, section(".init"))) static int seeded(void) { return 1; }\n'
    with pytest.raises(SpineError, match="rescue cannot be made"):
        rescue.make(tmp_path, seeded, SCRIPT)


def test_it_says_what_a_person_needs(program: bytes) -> None:
    for words in (b"no try left", b"Nothing durable was touched", b"(persist)", b"./spine usb", b"restart"):
        assert words in program
    [text] = [section.data for section in uki.sections(program) if section.name == ".rodata"]
    lines = re.split(rb"\0|\r\n", text)
    assert max(len(line) for line in lines if line.isascii()) < 80


def volumes(
    program: bytes, counters: tuple[str, str], versions: tuple[str, str]
) -> tuple[Mapping[str, bytes], ...]:
    """Both boot volumes with those counters, the programs with those versions."""
    made = []
    for letter, counter, version in zip("ab", counters, versions, strict=True):
        about = f"ID=alpine-spine\nVERSION_ID={version}\n".encode()
        files = disk.volume(letter, b"MZ", b"MZ", uki.append(stub(), [(".osrel", about)]), program)
        fresh = disk.program_path(letter)
        made.append({path.replace(disk.COUNTER, counter): data for path, data in files.items()})
        assert fresh in files
    return tuple(made)


COUNTERS = ("+3-0", "+2-1", "+1-2", "+0-3", "+0-9")
VERSIONS = ("0", "0.1.0", "0.2.0", "10.0.0")


def last_resort(found: tuple[Mapping[str, bytes], ...]) -> str | None:
    """What is wrong with the place of the rescue among the entries; None: nothing is."""
    order = loader.entries(found)
    first = order.index("spine-rescue.efi") if "spine-rescue.efi" in order else None
    if first is None:
        return "there is none"
    if any(loader.tries_left(name) == 0 for name in order[:first]):
        return "a pair that has no try left comes before it"
    if any(loader.tries_left(name) for name in order[first:]):
        return "it comes before a pair that has tries left, or can be used up"
    return None


@pytest.mark.proves("INV-RESCUE-1")
def test_it_comes_after_every_try_and_before_every_pair_that_has_none(program: bytes) -> None:
    for counters in itertools.product(COUNTERS, COUNTERS):
        for versions in itertools.product(VERSIONS, VERSIONS):
            found = volumes(program, counters, versions)
            assert last_resort(found) is None, (counters, versions)
            if counters[0] == counters[1] == "+3-0":
                # The newer pair first, and of two equal ones the second.
                newer_a = tuple(map(int, versions[0].split("."))) > tuple(map(int, versions[1].split(".")))
                assert loader.entries(found)[0] == f"spine-{'a' if newer_a else 'b'}+3-0.efi"


def test_a_rescue_with_a_counter_would_be_seen(program: bytes, tmp_path: Path) -> None:
    for counter in ("+3-0", "+0-3"):
        found = tuple(
            {path.replace("spine-rescue", f"spine-rescue{counter}"): data for path, data in files.items()}
            for files in volumes(program, ("+0-3", "+0-3"), ("1", "1"))
        )
        assert last_resort(found) == "there is none"
    # And one under the right name that is as new as the pairs, and sorts with them.
    newer = SOURCE.replace(rb"ID=alpine-spine-rescue\nVERSION_ID=0", rb"ID=alpine-spine\nVERSION_ID=99")
    assert newer != SOURCE
    seeded = rescue.make(tmp_path, newer, SCRIPT)
    assert last_resort(volumes(seeded, ("+3-0", "+3-0"), ("1", "1"))) is not None


def test_no_default_switches_the_counting_off(program: bytes) -> None:
    conf = disk.volume("a", b"MZ", b"MZ", b"MZ", program)["loader/loader.conf"].decode()
    keys = {line.split()[0] for line in conf.splitlines()}
    assert not keys & {"default", "preferred"}
    assert {"timeout 0", "editor no"} <= set(conf.splitlines())
