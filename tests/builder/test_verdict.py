"""The builder's own check: each rule at its edge, and the size of a hash tree against one that was made."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from organs.builder import verdict
from organs.builder.verdict import (
    BLOCK,
    COMMANDS_MAX,
    DEVICES_MAX,
    ERRANDS_MAX,
    IDS,
    LENGTH_MAX,
    UID_BASE,
    WRITABLE_MAX,
    WRITABLE_MIN,
    Backing,
    Home,
    Source,
)
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


@settings(deadline=None)  # a large tree takes long to make on a busy host
@given(st.integers(1, 300) | st.sampled_from([127, 128, 129, 128 * 128, 128 * 128 + 1]))
def test_the_size_of_a_tree_is_what_the_image_builder_makes(blocks: int) -> None:
    assert verdict.tree_blocks(blocks) * BLOCK == len(verity.tree(bytes(blocks * BLOCK)).data)


def test_a_limit_of_devices_and_one_incarnation() -> None:
    assert verdict.room_for(["x"] * (DEVICES_MAX - 1)) is None
    assert verdict.room_for(["x"] * DEVICES_MAX)
    assert verdict.addressed(3, 3) is None
    assert verdict.addressed(2, 3) == "it was for incarnation 2, this is 3"


ROOM: dict[str, Any] = {
    "name": "linda",
    "hostname": "linda",
    "uid_base": UID_BASE,
    "init": ("/init",),
    "writable_bytes": 2**20,
}


@pytest.mark.proves("INV-ROOM-7")
@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({}, None),
        ({"name": "a"}, None),
        ({"name": "a" + "0" * 14}, None),
        ({"name": ""}, "name"),
        ({"name": "a" * 16}, "name"),
        ({"name": "Linda"}, "name"),
        ({"name": "1a"}, "name"),
        ({"name": "a-b"}, "name"),
        ({"name": "a/../b"}, "name"),
        ({"name": "\u0131"}, "name"),
        ({"hostname": "a-1"}, None),
        ({"hostname": "0" * 63}, None),
        ({"hostname": "0" * 64}, "host name"),
        ({"hostname": "-a"}, "host name"),
        ({"hostname": "a-"}, "host name"),
        ({"hostname": "a.b"}, "host name"),
        ({"hostname": ""}, "host name"),
        ({"uid_base": UID_BASE + 15 * IDS}, None),
        ({"uid_base": UID_BASE + 16 * IDS}, "ids"),
        ({"uid_base": UID_BASE - IDS}, "ids"),
        ({"uid_base": UID_BASE + 1}, "ids"),
        ({"uid_base": 0}, "ids"),
        ({"init": ("/i",) + ("x" * 256,) * 15}, None),
        ({"init": ("/i",) + ("x",) * 16}, "16 words"),
        ({"init": ("/" + "x" * 256,)}, "256 characters"),
        ({"init": ()}, "words"),
        ({"init": ("init",)}, "from the root"),
        ({"init": ("",)}, "from the root"),
        ({"init": ("/i", "a\0b")}, "zero"),
        ({"writable_bytes": WRITABLE_MIN - 1}, "may write"),
        ({"writable_bytes": WRITABLE_MAX}, None),
        ({"writable_bytes": WRITABLE_MAX + 1}, "may write"),
    ],
)
def test_a_room(wrong: dict[str, Any], sentence: str | None) -> None:
    said = verdict.room(**{**ROOM, **wrong})
    assert (said is None) == (sentence is None)
    assert (sentence or "") in (said or "")


HOME = Home(cgroup=True, named=True, asked=True, populated=False)


@pytest.mark.proves("INV-ROOM-1")
@pytest.mark.parametrize("cgroup", [True, False])
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("populated", [True, False])
def test_a_home_in_every_state(cgroup: bool, named: bool, asked: bool, populated: bool) -> None:
    home = Home(cgroup=cgroup, named=named, asked=asked, populated=populated)
    assert (verdict.birthplace(home) is None) == (home == HOME)
    assert (verdict.home(home) is None) == (cgroup and named)
    assert verdict.birthplace(None) is not None
    assert verdict.home(None) is not None


SOURCE = Source(block=True, written=False, size=BLOCK, name="room-1-1")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (SOURCE, None),
        (None, "a descriptor"),
        (replace(SOURCE, block=False), "a builder made"),
        (replace(SOURCE, name=None), "a builder made"),
        (replace(SOURCE, name="spine"), "a builder made"),
        (replace(SOURCE, written=True), "written"),
        (replace(SOURCE, size=BLOCK - 1), "empty"),
    ],
)
def test_a_source(source: Source | None, sentence: str | None) -> None:
    said = verdict.source(source)
    assert (said is None) == (sentence is None)
    assert (sentence or "") in (said or "")


@pytest.mark.parametrize(
    ("argv", "environment", "sentence"),
    [
        (("sh",), (), None),
        (("sh", ""), ("A=",), None),
        ((), (), "no command"),
        (("",), (), "no command"),
        (("sh",), ("A",), "NAME=VALUE"),
        (("sh",), ("=b",), "NAME=VALUE"),
        (("sh", "a\0"), (), "zero"),
        (("sh",), ("A=\0",), "zero"),
    ],
)
def test_a_command(argv: tuple[str, ...], environment: tuple[str, ...], sentence: str | None) -> None:
    said = verdict.command(argv, environment)
    assert (said is None) == (sentence is None)
    assert (sentence or "") in (said or "")


def test_limits_of_what_is_under_way() -> None:
    assert verdict.errands(ERRANDS_MAX - 1) is None
    assert str(ERRANDS_MAX) in (verdict.errands(ERRANDS_MAX) or "")
    assert verdict.commands(COMMANDS_MAX - 1) is None
    assert str(COMMANDS_MAX) in (verdict.commands(COMMANDS_MAX) or "")


@given(st.text(max_size=70))
def test_names_are_what_their_patterns_say(text: str) -> None:
    assert verdict.named(text) == (re.fullmatch(r"[a-z][a-z0-9]{0,14}", text) is not None)
    host = re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", text) is not None
    assert (verdict.room(**{**ROOM, "hostname": text}) is None) == host
