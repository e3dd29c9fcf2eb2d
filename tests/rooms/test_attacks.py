"""Each attack on a room succeeds where nothing protects: an attack that always fails would prove nothing.

The attacks themselves are made in rooms by tests/integration/test_attacks.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rooms import controls
from tests.rooms.attacks import ATTACKS, Answer, Attack, Misused, answers

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def unprotected(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Answer]:
    """How every attack ends as root without a room."""
    folder = tmp_path_factory.mktemp("attacks")
    program = controls.compiled(HERE / "attack.c", folder / "attack")
    return controls.tried(ATTACKS, program, folder)


@pytest.mark.container
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_succeeds_where_nothing_protects(unprotected: Mapping[str, Answer], attack: Attack) -> None:
    answer = unprotected[attack.name]
    if not answer.reached and answer.error in attack.absent:
        pytest.skip(f"no control here: this kernel has nothing for {attack.name} to reach: {answer.said}")
    assert answer.reached, f"{attack.name}: {answer.said}"


def test_each_attack_has_a_name_of_its_own() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)
    assert len({attack.words for attack in ATTACKS}) == len(ATTACKS)


def test_each_attack_stands_for_rows_of_the_table_of_escapes() -> None:
    text = (HERE.parent.parent / "docs/threats.md").read_text()
    rows = {int(number) for row in re.findall(r"^\| ([\d, ]+) \|", text, re.M) for number in row.split(",")}
    assert rows == set(range(1, 32))
    tried = {number for attack in ATTACKS for number in attack.escapes}
    assert tried <= rows
    # The others are no single act of a program in a room: hostile images, names, floods, what freezes.
    assert rows - tried == {4, 5, 11, 12, 23, 26, 29, 30, 31}


def test_an_attack_that_was_not_made_is_no_refusal() -> None:
    assert answers("1 reached: it\n2 refused: EPERM mount\n", 2) == [
        Answer(True, "it"),
        Answer(False, "EPERM mount"),
    ]
    for text in ("1 misused: no such attack\n", "1 reached: it\n", "", "1 reached: it\n1 reached: it\n", "x"):
        with pytest.raises(Misused):
            answers(text, 2)


@given(st.text(), st.integers(1, 5))
def test_whatever_a_room_prints_is_answers_or_misused(text: str, wanted: int) -> None:
    try:
        found = answers(text, wanted)
    except Misused:
        return
    assert len(found) == wanted


@pytest.mark.container
def test_the_world_of_the_controls_leaves_nothing(unprotected: Mapping[str, Answer]) -> None:
    assert unprotected
    assert not list(controls.unified().glob(f"spine-attack-{os.getpid()}*"))
    assert not list(Path("/tmp").glob("attack-??????"))
