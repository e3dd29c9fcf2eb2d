"""Whether a call is executed: the one decision between a message that arrived and a handler that runs.

Pure: the call, who made it, what the schema allows, the time and the load come in; the method with the time
it has, or the failure to answer with, goes out.
"""

from typing import Final, NamedTuple, Protocol

from bus.envelope import Code, Envelope, Failure

CALLS_MAX: Final = 64
"""Calls of one caller that may be under way in one callee. Above what any organ has reason to ask at once."""
CALL_BYTES_MAX: Final = 4 * 1024 * 1024
"""Bytes of their bodies: a few of the largest. With `CALLS_MAX` it bounds what one caller makes us hold."""


class Rules(Protocol):
    """What the schema says of a method, as far as it matters here."""

    @property
    def callers(self) -> tuple[str, ...]: ...

    @property
    def deadline_ms(self) -> int: ...


class Load(NamedTuple):
    """What one caller has under way."""

    calls: int
    bytes: int


def admit(
    call: Envelope,
    rules: Rules | None,
    *,
    caller: str,
    generation: int,
    now_ns: int,
    load: Load,
) -> int | Failure:
    """The deadline in nanoseconds by which the call must be answered, or why it is not executed at all.

    `rules` is None when the interface has no such method.
    """
    if call.generation != generation:  # INV-BUS-3
        return Failure(Code.STALE, f"this is generation {generation}")
    if rules is None:
        return Failure(Code.UNKNOWN_METHOD)
    if caller not in rules.callers:  # INV-BUS-1
        return Failure(Code.FORBIDDEN)
    if call.deadline_ns <= now_ns:  # INV-BUS-2
        return Failure(Code.DEADLINE, "time was up before it began")
    if load.calls >= CALLS_MAX or load.bytes + len(call.body) > CALL_BYTES_MAX:
        return Failure(Code.BUSY)
    # A caller may ask for less time than the schema gives, never for more.
    return min(call.deadline_ns, now_ns + rules.deadline_ms * 1_000_000)
