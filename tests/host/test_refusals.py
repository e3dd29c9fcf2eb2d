"""What a refusal about a persona is to a person: said of the persona, and with a command that exists."""

import re

import pytest

from bus.envelope import Code, Failure
from spine import cli
from spine.errors import Exit
from spine.ground.port import PortFailure, schemas
from spine.room.refusals import ROWS, told
from spine.verbs import persona


@pytest.mark.parametrize(("asked", "code"), ROWS)
def test_each_row_is_of_a_method_that_is_there_and_mends_with_a_verb(asked: str, code: Code) -> None:
    organ, _, method = asked.partition(".")
    assert method in schemas().interfaces[organ].methods
    shown = told("linda", PortFailure(asked, Failure(code, "why it is so")))
    assert shown.why == "why it is so"
    assert "{" not in shown.what + shown.fix
    assert shown.exit_code not in (Exit.OK, Exit.USAGE)
    for verb, word in re.findall(r"\./spine (\w+) ?(\w*)", shown.fix):
        assert verb in cli.verbs()
        assert verb != "persona" or hasattr(persona, f"_{word}")


def test_the_exit_codes_are_those_of_the_codes() -> None:
    def exit_of(asked: str, code: Code) -> int:
        return told("linda", PortFailure(asked, Failure(code, ""))).exit_code

    assert exit_of("operator.exec", Code.FROZEN) == Exit.REFUSED
    assert exit_of("operator.exec", Code.NOT_FOUND) == Exit.NO_SUCH_THING
    assert exit_of("freezer.start", Code.BUSY) == Exit.REFUSED
    assert exit_of("freezer.start", Code.CORRUPT) == Exit.FAILED


def test_what_has_no_row_is_told_as_it_came() -> None:
    failure = PortFailure("freezer.focus", Failure(Code.DEADLINE, "too late"))
    assert told("linda", failure) is failure
