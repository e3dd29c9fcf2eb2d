"""What the programs of the bench share: questions and answers on standard input and output.

A JSON line each. Standard library only, for it is imported by every Python that a peer needs.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator


def ready() -> None:
    """Say that we are, with a heap as quiet as the zygote leaves it to an organ."""
    gc.collect()
    gc.freeze()
    answer({"ready": True})


def answer(words: dict[str, object]) -> None:
    """One line."""
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


def questions() -> Iterator[tuple[int, int, int]]:
    """Calls, callers and bytes of each round, until the bench closes our input."""
    for line in sys.stdin:
        asked = json.loads(line)
        yield asked["calls"], asked["callers"], asked["bytes"]


def told(took_ns: list[int], began_ns: int) -> dict[str, object]:
    """What a round came to."""
    return {"ns": took_ns, "wall_ns": time.perf_counter_ns() - began_ns}


def pipelined(
    calls: int, callers: int, send: Callable[[bytes], None], receive: Callable[[], bytes], size: int
) -> dict[str, object]:
    """A round of one thread that keeps `callers` calls under way; answers come in the order of the calls."""
    payload = bytes(size)
    sent: deque[int] = deque()
    took: list[int] = []
    clock = time.perf_counter_ns
    began = clock()
    for _ in range(min(callers, calls)):
        sent.append(clock())
        send(payload)
    left = calls - len(sent)
    while sent:
        got = receive()
        took.append(clock() - sent.popleft())
        assert len(got) == size
        if left:
            left -= 1
            sent.append(clock())
            send(payload)
    return told(took, began)
