"""freezer: decides which room runs. It asks the kernel to freeze and thaw, and believes only what it answers.

What is decided is in `organs/freezer/focus.py`; this file carries it out, and brings back what comes of it.

Touches: the cgroups of rooms, in the subtree that bay0 made for it; the bus.
Never: makes a process, opens a device, waits for a room: every step of a hand-over has a deadline.
Fails: a cgroup that cannot be written fails its step, and the hand-over goes back. After a restart the
kernel's state is read and taken for the truth.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, assert_never

import trio

from bus.envelope import Code, Failure
from organs import layout
from organs.freezer import focus
from organs.freezer.focus import Act, Blocker, Effect, Event, Kernel, Phase, Step
from organs.freezer.policy import PERSON, Refusal
from organs.kernel import cgroups
from organs.kernel.cgroups import Standing, Subtree

# `watch` answers after this long with nothing new, well inside its deadline, so that a lost peer is noticed.
WATCH_S = 5.0

CODES: Mapping[Refusal, Code] = {
    Refusal.NO_SUCH_ROOM: Code.NOT_FOUND,
    Refusal.MOVING: Code.BUSY,
    Refusal.NOT_ABLE: Code.BUSY,
    Refusal.NOT_YOURS: Code.FORBIDDEN,
    Refusal.TOO_SOON: Code.THROTTLED,
}

Handler = Callable[[object, Mapping[str, object]], Awaitable[dict[str, object]]]
Perform = Callable[[Step, str], Awaitable[None]]
"""Does REVOKE, CUT, CONNECT or GRANT to a room. Raises Failure or OSError."""
Builder = Callable[[str], Awaitable[None]]
"""Makes a room in its frozen cgroup. Raises Failure or OSError."""


class Spine(Protocol):
    """What this organ uses of the runtime."""

    async def serve(self, handlers: Mapping[str, Handler]) -> None: ...


@dataclass(frozen=True, slots=True)
class Line:
    """What the umbilical may do with a room; see `Line` of the schema."""

    epoch: int = 0
    open: bool = False
    gap_ns: int = 0


class Wish:
    """Somebody waits for the end of a hand-over."""

    def __init__(self) -> None:
        self.over = trio.Event()
        self.why = ""


class Freezer:
    """The machine with its hands: `happen` takes an event through decision and effects to the outcomes."""

    def __init__(self, groups: Subtree, perform: Perform, build: Builder) -> None:
        self._groups, self._perform, self._build = groups, perform, build
        self._nursery: trio.Nursery | None = None
        self._state = focus.State()
        self._queue: deque[Event] = deque()
        self._turning = False
        self._moved = trio.Event()
        self._wishes: list[Wish] = []
        self._refusal: Refusal | None = None
        self._moved_ns = time.monotonic_ns()
        self._froze_ns: dict[str, int] = {}
        # No version is that of another incarnation: the clock goes on while the freezer is away.
        self._version = time.monotonic_ns()
        self._lines: dict[str, Line] = {}
        self._news = trio.Event()

    @property
    def state(self) -> focus.State:
        """What is believed now."""
        return self._state

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take over what the kernel has, then live. Never returns."""
        async with trio.open_nursery() as self._nursery:
            found = {name: self._groups.read(name) for name in self._groups.names()}
            self._recover(found)
            self._nursery.start_soon(self._hear_the_kernel)
            self._nursery.start_soon(self._keep_deadlines)
            task_status.started()

    def _recover(self, found: Mapping[str, Standing]) -> None:
        for name, standing in found.items():
            if not standing.populated:
                self._remove(name)
        living = [(name, kernel(standing)) for name, standing in found.items() if standing.populated]
        self._lines = {name: Line() for name, _ in living}
        self._state, effects = focus.recover(living)
        self._moved.set()
        self._turning = True
        self._carry_out(effects)
        self._turning = False
        self._turn()

    async def _hear_the_kernel(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._groups.fileno())
            for name in self._groups.changed():
                self._look(name)

    def _look(self, name: str) -> None:
        """Read the room's state from the kernel and make the event of it that the machine waits for."""
        try:
            standing = self._groups.read(name)
        except (OSError, KeyError):
            return  # removed meanwhile
        phase = self._state.phase(name)
        if not standing.populated:
            # A room that is being made is empty until it is there.
            if phase not in (Phase.ABSENT, Phase.BUILDING):
                self.happen(focus.Died(name))
        elif standing.asked and standing.frozen and phase is Phase.FREEZING:
            self.happen(focus.Froze(name))
        elif not standing.asked and not standing.frozen and phase is Phase.THAWING:
            self.happen(focus.Awoke(name))

    async def _keep_deadlines(self) -> None:
        while True:
            self._moved = trio.Event()
            move = self._state.move
            with trio.move_on_after(focus.DEADLINE_MS[move.step] / 1000 if move else float("inf")):
                await self._moved.wait()
                continue
            assert move is not None
            room = move.room
            found = self._groups.blocker(room) if room is not None else None
            self.happen(focus.Late(move.step, Blocker(*found) if found else None))
            if self._state.move == move:
                # Nothing came of it: the step waits for a death, which no deadline brings about.
                await self._moved.wait()

    # One event after the other

    def happen(self, event: Event) -> None:
        """An event, and everything that follows from it at once."""
        self._queue.append(event)
        self._turn()

    def _turn(self) -> None:
        if self._turning:
            return
        self._turning = True
        try:
            while self._queue:
                before = self._state.move
                self._state, effects = focus.decide(self._state, self._queue.popleft())
                if self._state.move != before:
                    self._moved.set()
                self._carry_out(effects)
        finally:
            self._turning = False

    def _carry_out(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case focus.Build(room):
                    self._start(self._make, room)
                case focus.Hush(room, epoch):
                    self._say(room, Line(epoch=epoch))
                case focus.Speak(room):
                    froze_ns = self._froze_ns.pop(room, None)
                    gap_ns = time.monotonic_ns() - froze_ns if froze_ns is not None else 0
                    self._say(room, Line(open=True, gap_ns=gap_ns))
                case Act(Step.FREEZE | Step.THAW as step, room):
                    self._ask_the_kernel(step, room)
                case Act(step, room):
                    self._start(self._act, step, room)
                case focus.Kill(room):
                    self._say(room, Line())
                    self._kill(room)
                case focus.Remove(room):
                    self._lines.pop(room, None)
                    self._froze_ns.pop(room, None)
                    self._tell()
                    self._remove(room)
                case focus.Refused(reason):
                    self._refusal = reason
                case focus.Settled(_, why):
                    self._settle(why)
                case _:
                    assert_never(effect)

    def _start(self, job: Callable[..., Awaitable[None]], *arguments: object) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(job, *arguments)

    def _ask_the_kernel(self, step: Step, room: str) -> None:
        """Asked is not done: that it was done is heard from the kernel, or read if it was so already."""
        if step is Step.FREEZE:
            # The room is silent by now; a line that was being hushed is closed.
            self._say(room, Line())
        try:
            if step is Step.FREEZE:
                self._groups.freeze(room)
                self._froze_ns[room] = time.monotonic_ns()
            else:
                self._groups.thaw(room)
        except OSError as error:
            self._queue.append(focus.Failed(step, room, str(error)))
            return
        self._look(room)

    async def _act(self, step: Step, room: str) -> None:
        why = "too late"
        with trio.move_on_after(focus.DEADLINE_MS[step] / 1000):
            try:
                await self._perform(step, room)
            except (Failure, OSError) as error:
                why = str(error)
            else:
                self.happen(focus.Done(step, room))
                return
        self.happen(focus.Failed(step, room, why))

    async def _make(self, room: str) -> None:
        with trio.move_on_after(focus.BUILD_DEADLINE_MS / 1000):
            try:
                self._groups.make(room)
                self._say(room, Line())
                await self._build(room)
            except (Failure, OSError) as error:
                say(f"{room}: not built: {error}")
            else:
                self.happen(focus.Built(room))
                self._look(room)
                return
        self.happen(focus.NotBuilt(room))

    def _kill(self, room: str) -> None:
        try:
            self._groups.kill(room)
        except OSError as error:
            say(f"{room}: unable to kill: {error}")
            if not isinstance(error, FileNotFoundError):
                return
            self._queue.append(focus.Died(room))
            return
        self._look(room)

    def _remove(self, room: str) -> None:
        try:
            self._groups.remove(room)
        except OSError as error:
            say(f"{room}: its cgroup stays: {error}")

    def _settle(self, why: str) -> None:
        self._moved_ns = time.monotonic_ns()
        if why:
            say(why)
        for wish in self._wishes:
            wish.why = why
            wish.over.set()
        self._wishes.clear()

    # What the umbilical is told

    def _say(self, room: str, line: Line) -> None:
        if self._lines.get(room) != line:
            self._lines[room] = line
            self._tell()

    def _tell(self) -> None:
        self._version += 1
        self._news.set()
        self._news = trio.Event()

    # The interface

    def _wish(self, room: str, by: str | None) -> Wish:
        """Ask for the focus. Raises Failure when it does not move."""
        wish = Wish()
        self._refusal = None
        # Before the event: a hand-over may be over before `happen` returns.
        self._wishes.append(wish)
        elapsed_ms = (time.monotonic_ns() - self._moved_ns) // 10**6
        self.happen(focus.Focus(room, by, elapsed_ms))
        if (reason := self._refusal) is not None:
            self._wishes.remove(wish)
            raise Failure(CODES[reason], f"{room[:64]}: {reason.value}")
        return wish

    async def rooms(self, _call: object, _params: Mapping[str, object]) -> dict[str, object]:
        """All rooms, and the focus."""
        rooms = [
            {
                "name": name,
                "state": room.phase.value,
                "cpuUsec": self._cpu_usec(name),
                "blocker": f"{room.blocker.pid} {room.blocker.wchan}" if room.blocker else "",
            }
            for name, room in self._state.rooms
        ]
        return {"rooms": rooms, "focus": self._state.focus or ""}

    def _cpu_usec(self, name: str) -> int:
        try:
            return self._groups.cpu_usec(name)
        except OSError:
            return 0  # being made, or gone

    async def focus(self, _call: object, params: Mapping[str, object]) -> dict[str, object]:
        """Give a room the focus; answered when it has it."""
        wish = self._wish(str(params["persona"]), PERSON)
        await wish.over.wait()
        if wish.why:
            raise Failure(Code.REFUSED, wish.why)
        return {}

    async def request_focus(self, _call: object, params: Mapping[str, object]) -> dict[str, object]:
        """A room's wish; answered when the hand-over has begun."""
        self._wish(str(params["persona"]), str(params["room"]))
        return {}

    async def hushed(self, _call: object, params: Mapping[str, object]) -> dict[str, object]:
        """The umbilical came to rest with a room."""
        self.happen(focus.Hushed(str(params["room"]), int(str(params["epoch"]))))
        return {}

    async def watch(self, _call: object, params: Mapping[str, object]) -> dict[str, object]:
        """The lines, when they are not those that the caller has seen."""
        news = self._news
        if params["seen"] == self._version:
            with trio.move_on_after(WATCH_S):
                await news.wait()
        lines = [
            {"room": room, "epoch": line.epoch, "open": line.open, "gapNs": line.gap_ns}
            for room, line in sorted(self._lines.items())
        ]
        return {"version": self._version, "lines": lines}

    def handlers(self) -> dict[str, Handler]:
        """The interface, method by method."""
        return {
            "rooms": self.rooms,
            "focus": self.focus,
            "requestFocus": self.request_focus,
            "hushed": self.hushed,
            "watch": self.watch,
        }


def kernel(standing: Standing) -> Kernel:
    """What the machine calls this standing of a living cgroup."""
    if not standing.asked:
        return Kernel.AWAKE
    return Kernel.FROZEN if standing.frozen else Kernel.FREEZING


def say(sentence: str) -> None:
    """One line in the organ's log."""
    print(f"freezer: {sentence}", file=sys.stderr, flush=True)


async def nothing_lent(_step: Step, _room: str) -> None:
    """REVOKE, CUT, CONNECT and GRANT of a room that was lent no device and no network, as all are today."""


async def no_builder(room: str) -> None:
    """Rooms cannot be made yet. Raises Failure."""
    raise Failure(Code.REFUSED, f"{room}: there is no builder of rooms")


async def main(spine: Spine) -> None:
    """Read the kernel's state, then serve."""
    freezer = Freezer(Subtree(cgroups.path(layout.ROOMS)), nothing_lent, no_builder)
    async with trio.open_nursery() as nursery:
        await nursery.start(freezer.run)
        await spine.serve(freezer.handlers())
