"""A program in a room, its three streams joined to ours.

Touches: the operator's port; the descriptors it is given. Never waits for the program without also hearing
it, and never holds the port for long. A program whose end nobody can tell is a SpineError, not an exit code.
"""

import os
import select
from collections.abc import Mapping, Sequence

from bus.envelope import Code
from spine.errors import Exit, SpineError
from spine.ground.port import PortFailure
from spine.room.lease import Lease

READ_BYTES = 64 * 1024
# How long one drain waits: short while somebody may type, longer when no more input can come.
TYPING_MS, WAITING_MS, FULL_MS = 50, 500, 10
# As shells tell the signal that ended a program.
SIGNAL_BASE = 128


def run(lease: Lease, persona: str, argv: Sequence[str], streams: tuple[int, int, int]) -> int:
    """Run it to its end; its exit code, or 128 and the signal that ended it. SpineError.

    `streams` are our input, output and error descriptors.
    """
    source, output, error = streams
    session = lease.port().call("operator.exec", {"persona": persona, "argv": list(argv)})["session"]
    pending, at_end, told = b"", False, False
    while True:
        if not pending and not at_end and select.select([source], [], [], 0)[0]:
            pending = os.read(source, READ_BYTES)
            at_end = not pending
        if pending or (at_end and not told):
            fed = {"session": session, "data": pending, "end": at_end}
            taken = int(str(_ask(lease, "operator.feed", fed, argv[0])["taken"]))
            pending, told = pending[taken:], at_end
        wait_ms = FULL_MS if pending else WAITING_MS if at_end else TYPING_MS
        answer = _ask(lease, "operator.drain", {"session": session, "waitMs": wait_ms}, argv[0])
        for name, fd in (("output", output), ("error", error)):
            data = answer[name]
            assert isinstance(data, bytes)
            while data:
                data = data[os.write(fd, data) :]
        if ended := str(answer["ended"]):
            return exit_code(ended, argv[0])


def _ask(lease: Lease, name: str, params: Mapping[str, object], program: str) -> dict[str, object]:
    """One call about a session that must be there. SpineError when it is there no more."""
    try:
        return lease.port().call(name, params)
    except PortFailure as failure:
        if failure.failure.code is not Code.NOT_FOUND:
            raise
        raise _lost(program, "the operator was restarted and knows nothing of it") from failure


def exit_code(ended: str, program: str) -> int:
    """What `exit N` or `signal N` is to a shell. SpineError when nobody knows how the program ended."""
    how, _, number = ended.partition(" ")
    if how == "exit":
        return int(number)
    if how == "signal":
        return SIGNAL_BASE + int(number)
    raise _lost(program, "the builder, which had started it, was restarted")


def _lost(program: str, why: str) -> SpineError:
    return SpineError(
        f"how {program} ended is not known", why, "./spine status; look in the room what it did", Exit.FAILED
    )
