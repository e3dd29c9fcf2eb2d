"""A program in a room, its three streams joined to ours.

Touches: the operator's port; the descriptors it is given. Never waits for the program without also hearing
it, and never holds the port for long. A program whose end nobody can tell is a SpineError, not an exit code.
Whatever ends us here, ctrl-C or a reader of its output that went away, ends the program too.
"""

import contextlib
import os
import select
from collections.abc import Callable, Mapping, Sequence

from bus.envelope import Code
from spine.errors import Exit, SpineError
from spine.ground.port import PortFailure
from spine.room.lease import Lease

READ_BYTES = 64 * 1024
# How long one drain waits: short while somebody may type, longer when no more input can come.
TYPING_MS, WAITING_MS, FULL_MS = 50, 500, 10
# As shells tell the signal that ended a program.
SIGNAL_BASE = 128


Sink = Callable[[bytes], None]


def run(lease: Lease, persona: str, argv: Sequence[str], source: int, output: Sink, error: Sink) -> str:
    """Run it to its end, which is told as `exit N` or `signal N`. SpineError.

    `source` is the descriptor of its input; what it writes is given to `output` and `error` as it comes.
    """
    session = lease.port().call("operator.exec", {"persona": persona, "argv": list(argv)})["session"]
    try:
        return _to_its_end(lease, session, argv[0], source, {"output": output, "error": error})
    except BaseException:
        # Nobody is there any more who wants to know how it ends. The first failure is the one to tell.
        with contextlib.suppress(SpineError):
            lease.port().call("operator.hangUp", {"session": session})
        raise


def _to_its_end(lease: Lease, session: object, program: str, source: int, sinks: Mapping[str, Sink]) -> str:
    pending, at_end, told = b"", False, False
    arrived = select.poll()
    arrived.register(source, select.POLLIN)
    while True:
        if not pending and not at_end and arrived.poll(0):
            pending = os.read(source, READ_BYTES)
            at_end = not pending
        if pending or (at_end and not told):
            fed = {"session": session, "data": pending, "end": at_end}
            taken = int(str(_ask(lease, "operator.feed", fed, program)["taken"]))
            pending, told = pending[taken:], at_end
        wait_ms = FULL_MS if pending else WAITING_MS if at_end else TYPING_MS
        answer = _ask(lease, "operator.drain", {"session": session, "waitMs": wait_ms}, program)
        for name, sink in sinks.items():
            data = answer[name]
            assert isinstance(data, bytes)
            if data:
                sink(data)
        if ended := str(answer["ended"]):
            return ended


def into(fd: int) -> Sink:
    """What writes all it is given to a descriptor."""

    def write(data: bytes) -> None:
        while data:
            data = data[os.write(fd, data) :]

    return write


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
