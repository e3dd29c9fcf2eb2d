"""The operator port's splitter against a plain model of the same stream, cut in any way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from organs.operator.lines import Oversized, Splitter

LIMIT = 8


def model(stream: bytes) -> list[bytes | Oversized]:
    """What a whole stream means, however it was cut on the way."""
    *complete, rest = stream.split(b"\n")
    answer: list[bytes | Oversized] = [
        line if len(line) <= LIMIT else Oversized.LINE for line in complete if line
    ]
    return answer + ([Oversized.LINE] if len(rest) > LIMIT else [])


@pytest.mark.proves("INV-PORT-1")
@given(st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\x00", b"\n"))))
def test_any_cut_gives_the_same_lines_and_a_bounded_buffer(pieces: list[bytes]) -> None:
    splitter = Splitter(limit=LIMIT)
    lines: list[bytes | Oversized] = []
    for piece in pieces:
        lines += splitter.feed(piece)
        assert len(splitter.buffered) <= LIMIT
    assert lines == model(b"".join(pieces))


def test_a_half_sent_line_ends_at_the_next_newline() -> None:
    splitter = Splitter()
    assert splitter.feed(b"half") == []
    assert splitter.feed(b"\nwhole\n") == [b"half", b"whole"]
