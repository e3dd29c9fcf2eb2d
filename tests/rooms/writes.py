"""Where on the disk the writes of a write log fall: by partition, and outside of all of them.

Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from spine.ground.gpt import Partition
from spine.ground.powercut import Entry

# The partition table and what lies between partitions.
NOWHERE = "no partition"


def places(entries: Iterable[Entry], table: Mapping[str, Partition]) -> Counter[str]:
    """How many of the writes touch each partition. One that touches two is counted in both."""
    found: Counter[str] = Counter()
    for entry in entries:
        if not entry.is_write:
            continue
        inside = 0
        for part in table.values():
            first, last = max(entry.start, part.start), min(entry.start + entry.size, part.start + part.size)
            if first < last:
                found[part.name] += 1
                inside += last - first
        if inside < entry.size:
            found[NOWHERE] += 1
    return found
