"""The seeded bugs still fit the files that they are laid over."""

from __future__ import annotations

import ast

import pytest

from spine import paths
from tests.faults.bugs import BUGS, Bug


@pytest.mark.parametrize("bug", [bug for bug in BUGS if bug.file], ids=lambda bug: str(bug.name))
def test_a_seeded_bug_changes_its_file_and_leaves_it_a_program(bug: Bug) -> None:
    [(path, data)] = bug.overlay().items()
    assert data != (paths.ROOT / path).read_bytes()
    ast.parse(data)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: str(bug.name))
def test_no_bug_may_end_as_the_promise_says(bug: Bug) -> None:
    assert bug.expected
    assert not any(verdict.kept for verdict in bug.expected)


def test_a_text_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="0 times"):
        Bug("", BUGS[0].case, BUGS[0].expected, BUGS[0].file, (("not there", ""),)).overlay()
