"""The harness that compares two builds finds the byte that differs."""

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from spine.image import reproduce


@given(st.binary(max_size=300), st.binary(max_size=300), st.integers(0, 3))
def test_the_first_difference_is_found(left: bytes, right: bytes, big: int) -> None:
    # A common start, sometimes longer than what is read at once.
    whole, there = (b"\xa5" * (big << 19) + end for end in (left, right))
    with tempfile.TemporaryDirectory() as place:
        one, other = Path(place, "one"), Path(place, "other")
        one.write_bytes(whole)
        other.write_bytes(there)
        at = reproduce.first_difference(one, other)
    if at is None:
        assert whole == there
    else:
        assert whole[:at] == there[:at]
        assert whole[at : at + 1] != there[at : at + 1]
