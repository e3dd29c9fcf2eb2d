"""What the gate never closes for the sake of a damaged file is let go of after each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from organs.gate import store


@pytest.fixture(autouse=True)
def _let_go() -> Iterator[None]:
    yield
    # By being forgotten: a worker's thread made some of them, and only that thread may close them.
    store._ABANDONED.clear()
