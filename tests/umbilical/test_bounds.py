"""What rooms can make the umbilical hold, all of them together, against the memory that it is given.

More would end it, and with it the connections of every room; too many such ends are the machine's.
"""

from __future__ import annotations

from pathlib import Path

from organs.freezer.focus import ROOMS_MAX
from organs.manifest import load
from organs.umbilical import link, organ

MANIFEST = Path(__file__).resolve().parents[2] / "organs/manifest.toml"
# A process of the spine: its share of the interpreter and its own heap.
OWN_BYTES = 32 * 1024**2
# Of a value that is put: the request that came, the call made of it, the frames of that on their way.
COPIES = 3


def test_what_all_rooms_together_leave_here_fits() -> None:
    half_sent = organ.ROOM_BYTES_MAX + organ.CONNECTIONS_MAX * organ.READ_BYTES
    answers = organ.CONNECTIONS_MAX * 2 * organ.UNREAD_BYTES_MAX + organ.LARGE_MAX * link.MESSAGE_BYTES_MAX
    # Only the room that has the focus has requests under way; what the others left stays until they run.
    under_way = organ.CONNECTIONS_MAX * link.IN_FLIGHT_MAX * COPIES * link.MESSAGE_BYTES_MAX
    most = ROOMS_MAX * (half_sent + answers) + under_way + OWN_BYTES
    assert most <= load(str(MANIFEST)).organs["umbilical"].memory_max
