"""The hash tree is the one dm-verity expects."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spine.image import verity

# Around each number of blocks at which the tree gets another block or another level.
COUNTS = (1, 2, 127, 128, 129, 255, 257, 128 * 128, 128 * 128 + 1)


@pytest.mark.skipif(
    shutil.which("veritysetup", path="/usr/sbin:/sbin") is None, reason="needs cryptsetup-bin"
)
@pytest.mark.parametrize("blocks", COUNTS)
def test_agrees_with_veritysetup(tmp_path: Path, blocks: int) -> None:
    data = b"".join(number.to_bytes(4, "little") * (verity.BLOCK // 4) for number in range(blocks))
    (tmp_path / "data").write_bytes(data)
    said = subprocess.run(
        ["/usr/sbin/veritysetup", "format", "--no-superblock", f"--salt={verity.SALT.hex()}", "data", "tree"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    made = verity.tree(data)
    assert re.search(r"Root hash:\s+(\w+)", said)[1] == made.root_hash  # type: ignore[index]  # it is there
    assert (tmp_path / "tree").read_bytes() == made.data


@given(st.binary(min_size=1, max_size=3 * verity.BLOCK), st.data())
def test_any_changed_bit_changes_the_root_hash(data: bytes, draw: st.DataObject) -> None:
    whole = verity.padded(data)
    at = draw.draw(st.integers(0, len(whole) * 8 - 1))
    other = bytearray(whole)
    other[at // 8] ^= 1 << at % 8
    assert verity.tree(bytes(other)).root_hash != verity.tree(whole).root_hash


@pytest.mark.parametrize("length", [0, 1, verity.BLOCK - 1, verity.BLOCK + 1])
def test_only_whole_blocks(length: int) -> None:
    with pytest.raises(ValueError, match="whole blocks"):
        verity.tree(bytes(length))
