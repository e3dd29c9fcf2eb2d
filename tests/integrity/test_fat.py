"""The FAT reader against real volumes, and against what real volumes become when they rot."""

from __future__ import annotations

import random
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from organs.integrity import fat
from tests.integrity import volumes

NAMES = ["spine-a+3-0.efi", "spine-b+2-1.efi", "rescue.efi"]
# The most bytes a walk may read: three directories and the table entries of their chains.
WALK_BYTES_MAX = 4 * fat.DIRECTORY_BYTES_MAX
# The same for a whole volume: as many directories as it may have.
TREE_BYTES_MAX = (fat.NODES_MAX + 2) * fat.DIRECTORY_BYTES_MAX


def reader(data: bytes | bytearray) -> Callable[[int, int], bytes]:
    return lambda offset, length: bytes(data[offset : offset + length])


@pytest.fixture(scope="module", params=[16, 32])
def volume(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("fat") / "esp.img"
    return volumes.make(path, request.param, NAMES, crowd=30).read_bytes()


def test_names_and_positions(volume: bytes) -> None:
    found = {e.name: e for e in fat.entries(reader(volume))}
    assert set(NAMES) <= set(found)
    for name in NAMES[:2]:
        entry = found[name]
        assert not entry.directory
        assert [volume[at : at + 2] for at in entry.at] == [c.encode("utf-16-le") for c in name]
    # The crowd pushed them past the first cluster: what is read here was found through the chain.
    assert found[NAMES[0]].at[0] - found["something-else-0000.conf"].at[0] > 512


@pytest.mark.parametrize(("kind", "cluster_sectors"), [(16, 1), (16, 2), (16, 4), (32, 1)])
def test_geometries(tmp_path: Path, kind: int, cluster_sectors: int) -> None:
    path = volumes.make(tmp_path / "esp.img", kind, NAMES, cluster_sectors=cluster_sectors, crowd=70)
    assert set(NAMES) <= {e.name for e in fat.entries(reader(path.read_bytes()))}


def test_deleted_and_renamed_entries(tmp_path: Path) -> None:
    path = volumes.make(tmp_path / "esp.img", 32, ["spine-a+3-0.efi", "spine-b+3-0.efi"])
    volumes.mtools(path, "mren", "::EFI/Linux/spine-a+3-0.efi", "spine-a+2-1.efi")
    volumes.mtools(path, "mdel", "::EFI/Linux/spine-b+3-0.efi")
    live = {e.name for e in fat.entries(reader(path.read_bytes())) if not e.directory}
    assert live == {"spine-a+2-1.efi"} == volumes.listing(path) - {".", ".."}


def test_two_names_on_one_chain(tmp_path: Path) -> None:
    path = volumes.make(tmp_path / "esp.img", 32, ["spine-a+3-0.efi", "spine-a+2-1.efi"])
    data = bytearray(path.read_bytes())
    at = {e.name: volumes.short_entry(data, e.at[0]) for e in fat.entries(reader(data)) if e.at}
    volumes.share_chain(data, at["spine-a+3-0.efi"], at["spine-a+2-1.efi"])
    both = [e for e in fat.entries(reader(data)) if e.name.startswith("spine-a")]
    assert {e.name for e in both} == {"spine-a+3-0.efi", "spine-a+2-1.efi"}
    assert len({e.cluster for e in both}) == 1


def test_a_long_name_of_another_entry_is_ignored(volume: bytes) -> None:
    data = bytearray(volume)
    (entry,) = (e for e in fat.entries(reader(data)) if e.name == NAMES[0])
    data[volumes.short_entry(data, entry.at[0])] ^= 1
    found = {e.name: e for e in fat.entries(reader(data))}
    assert NAMES[0] not in found
    assert any(not e.at for e in found.values() if not e.directory)


def test_looping_directory(volume: bytes) -> None:
    data = bytearray(volume)
    first = min(e.at[0] for e in fat.entries(reader(data)) if e.at)
    shape = fat._volume(reader(data))
    cluster = (first - shape.data_at) // shape.cluster_bytes + 2
    width = 4 if shape.wide else 2
    struct.pack_into("<I" if shape.wide else "<H", data, shape.table_at + width * cluster, cluster)
    with pytest.raises(fat.BadVolume, match="loop"):
        fat.entries(reader(data))


def test_endless_directory(volume: bytes) -> None:
    data = bytearray(volume)
    shape = fat._volume(reader(data))
    first = min(e.at[0] for e in fat.entries(reader(data)) if e.at)
    cluster = (first - shape.data_at) // shape.cluster_bytes + 2
    width, form = (4, "<I") if shape.wide else (2, "<H")
    long_chain = range(1000, 1000 + fat.DIRECTORY_BYTES_MAX // shape.cluster_bytes + 1)
    struct.pack_into(form, data, shape.table_at + width * cluster, long_chain[0])
    for here in long_chain:
        struct.pack_into(form, data, shape.table_at + width * here, here + 1)
        at = shape.data_at + (here - 2) * shape.cluster_bytes
        data[at : at + shape.cluster_bytes] = (b"A" * 11 + b"\x20" + bytes(20)) * (shape.cluster_bytes // 32)
    with pytest.raises(fat.BadVolume, match="longer than"):
        fat.entries(reader(data))


@pytest.mark.parametrize("missing", ["EFI", "LINUX"])
def test_missing_directory(volume: bytes, missing: str) -> None:
    data = volume.replace(missing.ljust(11).encode(), b"\xe5" + missing.ljust(11)[1:].encode())
    with pytest.raises(fat.BadVolume):
        fat.entries(reader(data))


@pytest.mark.parametrize("length", [0, 1, 511, 512, 1024, 40_000])
def test_short_volume(volume: bytes, length: int) -> None:
    with pytest.raises(fat.BadVolume):
        fat.entries(reader(volume[:length]))


def test_fat12_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "esp.img"
    subprocess.run(["mkfs.vfat", "-F", "12", "-C", str(path), "1024"], check=True, capture_output=True)
    with pytest.raises(fat.BadVolume, match="are not FAT16"):
        fat.entries(reader(path.read_bytes()))


def walk(data: bytes | bytearray) -> None:
    """Whatever the bytes are: entries that lie inside, or BadVolume, and a bounded number of bytes read."""
    total = 0

    def read(offset: int, length: int) -> bytes:
        nonlocal total
        total += length
        assert total <= WALK_BYTES_MAX, "unbounded work"
        assert offset >= 0
        assert length >= 0
        return bytes(data[offset : offset + length])

    try:
        found = fat.entries(read)
    except fat.BadVolume:
        return
    for entry in found:
        assert all(0 <= at <= len(data) - 2 for at in entry.at)
        assert not entry.at or len(entry.at) == len(entry.name)


def follow(data: bytes | bytearray) -> None:
    """The same for the whole volume: a bounded number of nodes, and no file without end."""
    total = 0

    def read(offset: int, length: int) -> bytes:
        nonlocal total
        total += length
        assert offset >= 0
        assert length >= 0
        return bytes(data[offset : offset + length])

    try:
        volume, nodes = fat.tree(read)
    except fat.BadVolume:
        assert total <= TREE_BYTES_MAX, "unbounded work"
        return
    assert total <= TREE_BYTES_MAX, "unbounded work"
    assert len(nodes) <= fat.NODES_MAX
    for node in nodes:
        if node.directory:
            continue
        total, followed = 0, 0
        try:
            for at, length in fat.stretches(read, volume, node):
                assert at >= volume.data_at
                assert 0 < length < fat.STRETCH_BYTES + volume.cluster_bytes
                followed += length
            assert followed == node.size
        except fat.BadVolume:
            pass
        links = -(-node.size // volume.cluster_bytes)
        # A link costs a block of the table at most: a chain that leaps has one for each.
        assert total <= links * 4096


@pytest.mark.proves("INV-SLOT-3")
def test_rotten_volumes(volume: bytes) -> None:
    """Thousands of damaged volumes: in the boot sector, in the table, in the directories."""
    dice = random.Random(20)
    shape = fat._volume(reader(volume))
    first = min(e.at[0] for e in fat.entries(reader(volume)) if e.at)
    regions = [(0, 64), (shape.table_at, shape.table_at + 256), (first - 512, first + 4096)]
    if shape.root_bytes:
        regions.append((shape.root_at, shape.root_at + 256))
    else:
        root = shape.data_at + (shape.root_cluster - 2) * shape.cluster_bytes
        regions.append((root, root + 128))
    data = bytearray(volume)
    for _ in range(3000):
        undo = []
        for _ in range(dice.choice([1, 1, 2, 8])):
            at = dice.randrange(*dice.choice(regions))
            undo.append((at, data[at]))
            flipped = data[at] ^ 1 << dice.randrange(8)
            data[at] = dice.choice([0, 1, 0x0F, 0xE5, 0xFF, dice.randrange(256), flipped])
        walk(data)
        follow(data)
        for at, was in reversed(undo):
            data[at] = was
    assert data == volume


@given(st.binary(max_size=2048), st.binary(max_size=90))
@settings(deadline=None)
def test_arbitrary_bytes(body: bytes, boot: bytes) -> None:
    sector = bytearray(512)
    sector[510:] = b"\x55\xaa"
    sector[: len(boot)] = boot
    for data in (bytes(sector) + body, body):
        walk(data)
        follow(data)


@pytest.fixture(scope="module", params=[16, 32])
def furnished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume with files of many sizes, some of them in pieces, in directories of some depth."""
    folder = tmp_path_factory.mktemp("furnished")
    path = volumes.make(folder / "esp.img", request.param, ["spine-a+3-0.efi"])
    dice = random.Random(7)
    volumes.mtools(path, "mmd", "::EFI/BOOT", "::loader", "::loader/deeper")
    sizes = [0, 1, 511, 512, 513, 65_536, 3 * 1024 * 1024 + 5]
    for at, size in enumerate(sizes):
        source = folder / "source"
        source.write_bytes(dice.randbytes(size))
        volumes.mtools(path, "mcopy", str(source), f"::loader/deeper/file number {at}.bin")
        if at % 2:
            volumes.mtools(path, "mdel", f"::loader/deeper/file number {at - 1}.bin")
    # It goes where the deleted ones were, and then on behind the others.
    source.write_bytes(dice.randbytes(300_000))
    volumes.mtools(path, "mcopy", str(source), "::EFI/BOOT/pieces.bin")
    return path


def test_a_whole_tree_and_its_bytes(furnished: Path) -> None:
    data = furnished.read_bytes()
    volume, nodes = fat.tree(reader(data))
    assert {"/".join(node.path) for node in nodes if node.directory} == {
        *("EFI", "EFI/Linux", "EFI/BOOT", "loader", "loader/deeper")
    }
    files = {"/".join(node.path): node for node in nodes if not node.directory}
    assert "loader/deeper/file number 6.bin" in files
    pieces = 0
    for name, node in files.items():
        spans = list(fat.stretches(reader(data), volume, node))
        copy = furnished.with_suffix(".copy")
        volumes.mtools(furnished, "mcopy", "-o", f"::{name}", str(copy))
        assert b"".join(data[at : at + length] for at, length in spans) == copy.read_bytes(), name
        pieces = max(pieces, len(spans))
    assert pieces > 1


@pytest.mark.proves("INV-SLOT-3")
def test_rotten_files(furnished: Path) -> None:
    dice = random.Random(21)
    data = bytearray(furnished.read_bytes())
    read = reader(data)
    volume, nodes = fat.tree(read)
    regions = [(0, 64), (volume.table_at, volume.table_at + 30_000)]
    for node in nodes:
        if node.directory:
            at = volume.data_at + (node.cluster - 2) * volume.cluster_bytes
            regions.append((at, at + 512))
    for _ in range(400):
        undo = []
        for _ in range(dice.choice([1, 2, 16, 200])):
            at = dice.randrange(*dice.choice(regions))
            undo.append((at, data[at]))
            data[at] = dice.choice([0, 1, 0xFF, dice.randrange(256), data[at] ^ 1 << dice.randrange(8)])
        follow(data)
        for at, was in reversed(undo):
            data[at] = was


@pytest.mark.proves("INV-SLOT-3")
def test_a_file_whose_chain_is_a_loop_ends_with_its_size(furnished: Path) -> None:
    data = bytearray(furnished.read_bytes())
    volume, nodes = fat.tree(reader(data))
    node = next(node for node in nodes if node.path[-1] == "file number 6.bin")
    width, form = (4, "<I") if volume.wide else (2, "<H")
    struct.pack_into(form, data, volume.table_at + width * node.cluster, node.cluster)
    spans = list(fat.stretches(reader(data), volume, node))
    assert {at for at, _ in spans} == {volume.data_at + (node.cluster - 2) * volume.cluster_bytes}
    assert sum(length for _, length in spans) == node.size


def test_a_file_whose_chain_ends_too_early_is_broken(furnished: Path) -> None:
    data = bytearray(furnished.read_bytes())
    volume, nodes = fat.tree(reader(data))
    node = next(node for node in nodes if node.path[-1] == "file number 6.bin")
    for link in (0, 1, 0x0FFFFFFF if volume.wide else 0xFFFF, volume.clusters + 2):
        width, form = (4, "<I") if volume.wide else (2, "<H")
        struct.pack_into(form, data, volume.table_at + width * node.cluster, link)
        with pytest.raises(fat.BadVolume, match="chain leads to"):
            list(fat.stretches(reader(data), volume, node))


@pytest.mark.proves("INV-SLOT-3")
def test_directories_in_a_circle_end(furnished: Path) -> None:
    data = bytearray(furnished.read_bytes())
    volume, nodes = fat.tree(reader(data))
    deeper = next(node for node in nodes if node.path[-1] == "deeper")
    above = next(node for node in nodes if node.path == ("loader",))
    at = volume.data_at + (above.cluster - 2) * volume.cluster_bytes
    found = next(
        at + offset
        for offset in range(0, volume.cluster_bytes, 32)
        if volumes.first_cluster(data, at + offset) == deeper.cluster
    )
    struct.pack_into("<H", data, found + 26, above.cluster & 0xFFFF)
    struct.pack_into("<H", data, found + 20, above.cluster >> 16)
    with pytest.raises(fat.BadVolume, match="more on it than"):
        fat.tree(reader(data))


def test_files_larger_than_the_volume_are_refused(furnished: Path) -> None:
    data = bytearray(furnished.read_bytes())
    volume, nodes = fat.tree(reader(data))
    deeper = next(node for node in nodes if node.path[-1] == "deeper")
    at = volume.data_at + (deeper.cluster - 2) * volume.cluster_bytes
    node = next(node for node in nodes if node.path[-1] == "file number 1.bin")
    found = next(
        at + offset
        for offset in range(0, volume.cluster_bytes, 32)
        if data[at + offset + 11] != 0x0F and volumes.first_cluster(data, at + offset) == node.cluster
    )
    struct.pack_into("<I", data, found + 28, 0xFFFFFFFF)
    with pytest.raises(fat.BadVolume, match="larger than it is"):
        fat.tree(reader(data))


@given(
    st.lists(
        st.one_of(
            st.binary(min_size=32, max_size=32),
            st.tuples(st.integers(0, 255), st.binary(min_size=31, max_size=31)).map(
                lambda t: bytes([t[0]]) + t[1][:10] + b"\x0f" + t[1][11:]
            ),
        ),
        max_size=60,
    )
)
@settings(deadline=None)
def test_arbitrary_directories(raw: list[bytes]) -> None:
    for wide in (False, True):
        for entry in fat._parse(iter([(4096, b"".join(raw))]), wide):
            assert all(4096 <= at < 4096 + 32 * len(raw) - 1 for at in entry.at)
            assert not entry.at or len(entry.at) == len(entry.name)


@given(st.text(st.characters(min_codepoint=33, max_codepoint=0x2FFF), min_size=1, max_size=255))
@settings(deadline=None)
def test_long_names_read_as_written(name: str) -> None:
    """An encoder of our own, the other way round: what it writes, the reader gives back."""
    raw = encode(name, b"SHORT   EFI")
    (entry,) = fat._parse(iter([(0, raw)]), True)
    assert entry.name == name
    assert [raw[at : at + 2].decode("utf-16-le") for at in entry.at] == list(name)


def encode(name: str, short: bytes) -> bytes:
    units = name.encode("utf-16-le")
    if len(name) % 13:
        units += b"\0\0"
    units += b"\xff\xff" * (-(len(units) // 2) % 13)
    parts = [units[i : i + 26] for i in range(0, len(units), 26)]
    check = fat._checksum(short)
    raw = b""
    for number, part in reversed(list(enumerate(parts, 1))):
        flag = 0x40 if number == len(parts) else 0
        raw += (
            bytes([number | flag])
            + part[:10]
            + b"\x0f\0"
            + bytes([check])
            + part[10:22]
            + b"\0\0"
            + part[22:]
        )
    return raw + short + b"\x20" + bytes(8) + b"\0\0" + bytes(4) + b"\x05\0" + bytes(4)
