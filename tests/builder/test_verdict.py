"""The builder's own check: each rule at its edge, and the size of a hash tree against one that was made."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from organs.builder import verdict
from organs.builder.verdict import BLOCK, DEVICES_MAX, LENGTH_MAX, Backing
from spine.image import verity

GOOD = Backing(readable=True, suitable=True, size=10 * BLOCK)
HASH = "5e" * 32


@pytest.mark.proves("INV-BUILD-3")
@pytest.mark.parametrize(
    ("offset", "length", "backing", "sentence"),
    [
        (0, 10 * BLOCK, GOOD, None),
        (9 * BLOCK, BLOCK, GOOD, None),
        (0, BLOCK, None, "exactly one"),
        (0, BLOCK, replace(GOOD, suitable=False), "regular file"),
        (0, BLOCK, replace(GOOD, readable=False), "read from"),
        (1, BLOCK, GOOD, "multiples"),
        (0, BLOCK + 512, GOOD, "multiples"),
        (0, 0, GOOD, "from 4096"),
        (0, LENGTH_MAX + BLOCK, replace(GOOD, size=2**62), "from 4096"),
        (0, LENGTH_MAX, replace(GOOD, size=2**62), None),
        (0, 11 * BLOCK, GOOD, "ends at"),
        (10 * BLOCK, BLOCK, GOOD, "ends at"),
    ],
)
def test_a_region(offset: int, length: int, backing: Backing | None, sentence: str | None) -> None:
    wrong = verdict.region(offset, length, backing)
    assert (wrong is None) == (sentence is None)
    assert (sentence or "") in (wrong or "")


@pytest.mark.parametrize(
    ("root_hash", "salt", "blocks", "hash_offset", "length", "sentence"),
    [
        (HASH, "", 1, BLOCK, 2 * BLOCK, None),
        (HASH, "ab" * 64, 129, 129 * BLOCK, 132 * BLOCK, None),
        (HASH[:-1], "", 1, BLOCK, 2 * BLOCK, "root hash"),
        (HASH.upper(), "", 1, BLOCK, 2 * BLOCK, "root hash"),
        (HASH[:-1] + " ", "", 1, BLOCK, 2 * BLOCK, "root hash"),
        (HASH, "abc", 1, BLOCK, 2 * BLOCK, "salt"),
        (HASH, "ab" * 65, 1, BLOCK, 2 * BLOCK, "salt"),
        (HASH, "0 panic_on_corruption", 1, BLOCK, 2 * BLOCK, "salt"),
        (HASH, "", 0, BLOCK, 2 * BLOCK, "at least one"),
        (HASH, "", 1, BLOCK + 1, 3 * BLOCK, "multiple"),
        (HASH, "", 2, BLOCK, 3 * BLOCK, "behind"),
        (HASH, "", 1, BLOCK, BLOCK, None),
        (HASH, "", 2, 2 * BLOCK, 2 * BLOCK, "within"),
        (HASH, "", 129, 129 * BLOCK, 131 * BLOCK, "within"),
    ],
)
def test_a_tree(
    root_hash: str, salt: str, blocks: int, hash_offset: int, length: int, sentence: str | None
) -> None:
    wrong = verdict.tree(root_hash, salt, blocks, hash_offset, length)
    assert (wrong is None) == (sentence is None)
    assert (sentence or "") in (wrong or "")


@given(st.integers(1, 300) | st.sampled_from([127, 128, 129, 128 * 128, 128 * 128 + 1]))
def test_the_size_of_a_tree_is_what_the_image_builder_makes(blocks: int) -> None:
    assert verdict.tree_blocks(blocks) * BLOCK == len(verity.tree(bytes(blocks * BLOCK)).data)


def test_a_limit_of_devices_and_one_incarnation() -> None:
    assert verdict.room_for(["x"] * (DEVICES_MAX - 1)) is None
    assert verdict.room_for(["x"] * DEVICES_MAX)
    assert verdict.addressed(3, 3) is None
    assert verdict.addressed(2, 3) == "it was for incarnation 2, this is 3"
