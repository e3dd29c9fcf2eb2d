"""freezer: decides which room runs. It asks the kernel to freeze and thaw, and believes only what it answers.

What is decided is in `organs/freezer/focus.py`; this file carries it out, and brings back what comes of it.

Touches: the cgroups of rooms, in the subtree that bay0 made for it; the bus; what else rooms are made of, by
`organs/freezer/rooms.py`.
Never: makes a process, opens a device, waits for a room: every step of a hand-over has a deadline.
Fails: a cgroup that cannot be written fails its step, and the hand-over goes back. After a restart the
kernel's state is read and taken for the truth.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, assert_never

import trio

from bus.envelope import Code, Failure
from bus.server import Answer, Call, Events
from bus.wire import Interface, Schemas
from organs import layout, persona
from organs.builder.protocol import WORDS_BYTES_MAX, WORDS_MAX
from organs.freezer import facts, focus
from organs.freezer.focus import Act, Blocker, Effect, Event, Kernel, Phase, Step
from organs.freezer.line import Line as BuilderLine
from organs.freezer.policy import PERSON, WAITS, Refusal
from organs.freezer.rooms import LISTENER, Peer, Room, Rooms, say
from organs.kernel import cgroups
from organs.kernel.cgroups import Standing, Subtree

# `console` answers after this long with nothing new at the latest, well inside its deadline.
CONSOLE_S = 5.0
PAIR: Final = "pair:builder"
VERITY: Final = "dm-verity"
# An errand of the builder ends within moments; what is left after this goes when the name is used again.
REMOVE_TRIES: Final = 50
REMOVE_PAUSE_S: Final = 0.1
# Until integrity is asked again: it may be restarting.
AGAIN_S: Final = 1.0
# When a room is looked at that was told to freeze or to thaw, each after the one before. After that nobody
# looks: the kernel's notice cannot be later, unless the room cannot be stopped.
LOOKS_MS: Final = (1, 2, 4, 8)
# Three streams and the pipe for the end.
EXEC_DESCRIPTORS: Final = 4

CODES: Mapping[Refusal, Code] = {
    Refusal.NO_SUCH_ROOM: Code.NOT_FOUND,
    Refusal.MOVING: Code.BUSY,
    Refusal.NOT_ABLE: Code.BUSY,
    Refusal.NOT_YOURS: Code.FORBIDDEN,
    Refusal.TOO_SOON: Code.THROTTLED,
}

Handler = Callable[[Call, Mapping[str, object]], Awaitable[Mapping[str, object] | Answer]]


class Hands(Protocol):
    """Does to rooms what takes more than their cgroups. Raises Failure or OSError."""

    async def build(self, name: str) -> None:
        """Make a room in its frozen cgroup."""

    async def perform(self, step: Step, name: str) -> None:
        """REVOKE, CUT, CONNECT or GRANT."""

    def forget(self, name: str) -> None:
        """The room is gone."""

    def find(self, name: str) -> Room | None:
        """What is known of a complete room."""

    async def exec(self, name: str, argv: Sequence[str], fds: Sequence[int]) -> int:
        """Start a program in a room."""


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


class Start:
    """Somebody waits for a room to be made."""

    def __init__(self) -> None:
        self.over = trio.Event()
        self.failure: Failure | None = None


class Freezer:
    """The machine with its hands: `happen` takes an event through decision and effects to the outcomes."""

    def __init__(self, groups: Subtree, hands: Hands, interface: Interface) -> None:
        self._groups, self._hands = groups, hands
        self.events = Events(interface, self.present)
        self._nursery: trio.Nursery | None = None
        self._state = focus.State()
        self._queue: deque[Event] = deque()
        self._turning = False
        self._moved = trio.Event()
        self._wishes: list[Wish] = []
        self._settled = trio.Event()
        # Persons' wishes in the order that they were asked; the first waits for the hand-over under way.
        self._persons = trio.StrictFIFOLock()
        self._starts: dict[str, Start] = {}
        # What makes a room. It must have ended before the room can be over, or it would make it afterwards.
        self._making: dict[str, trio.CancelScope] = {}
        self._ends: dict[str, trio.Event] = {}
        self._refusal: Refusal | None = None
        self._moved_ns = time.monotonic_ns()
        self._froze_ns: dict[str, int] = {}
        self._lines: dict[str, Line] = {}

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
                self._hands.forget(name)
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

    async def _look_again(self, name: str) -> None:
        """Look while the kernel holds its notice back: it tells of one cgroup once in ten milliseconds.

        So a room that is frozen right after it was thawed would be believed awake for that long.
        """
        for wait_ms in LOOKS_MS:
            await trio.sleep(wait_ms / 1000)
            if self._look(name):
                return

    def _look(self, name: str) -> bool:
        """Read the room's state from the kernel and make the event of it that the machine waits for.

        False: what it waits for is not so yet.
        """
        try:
            standing = self._groups.read(name)
        except (OSError, KeyError):
            return True  # removed meanwhile
        phase = self._state.phase(name)
        if not standing.populated:
            # A room that is being made is empty until it is there.
            if phase not in (Phase.ABSENT, Phase.BUILDING) and name not in self._making:
                self.happen(focus.Died(name))
        elif standing.asked and standing.frozen and phase is Phase.FREEZING:
            self.happen(focus.Froze(name))
        elif not standing.asked and not standing.frozen and phase is Phase.THAWING:
            self.happen(focus.Awoke(name))
        else:
            return phase not in (Phase.FREEZING, Phase.THAWING)
        return True

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
                    self._making[room] = scope = trio.CancelScope()
                    self._start(self._make, room, scope)
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
                    self._froze_ns.pop(room, None)
                    if self._lines.pop(room, None) is not None:
                        self.events.emit("gone", room=room)
                    self._remove(room)
                    self._hands.forget(room)
                    if (end := self._ends.pop(room, None)) is not None:
                        end.set()
                case focus.Refused(reason):
                    self._refusal = reason
                case focus.Settled(now, why):
                    self._settle(now, why)
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
        if not self._look(room):
            self._start(self._look_again, room)

    async def _act(self, step: Step, room: str) -> None:
        why = "too late"
        with trio.move_on_after(focus.DEADLINE_MS[step] / 1000):
            try:
                await self._hands.perform(step, room)
            except (Failure, OSError) as error:
                why = str(error)
            else:
                self.happen(focus.Done(step, room))
                return
        self.happen(focus.Failed(step, room, why))

    async def _make(self, room: str, scope: trio.CancelScope) -> None:
        failure: Failure | None = Failure(Code.DEADLINE, f"{room}: making it took too long")
        scope.deadline = trio.current_time() + focus.BUILD_DEADLINE_MS / 1000
        with scope:
            try:
                self._groups.make(room)
                await self._hands.build(room)
            except Failure as error:
                failure = error
            except OSError as error:
                failure = Failure(Code.REFUSED, f"{room}: {error}")
            else:
                failure = None
        del self._making[room]
        if self._state.phase(room) is not Phase.BUILDING:
            # Stopped meanwhile: what was made until then ends as well.
            failure = Failure(Code.REFUSED, f"{room}: it was stopped while it was made")
            self._kill(room)
            self._turn()
        elif failure is None:
            self._say(room, Line())
            self.happen(focus.Built(room))
            self._look(room)
        else:
            say(f"{room}: not built: {failure}")
            self.happen(focus.NotBuilt(room))
        self._started(room, failure)

    def _started(self, room: str, failure: Failure | None) -> None:
        if (start := self._starts.pop(room, None)) is not None:
            start.failure = failure
            start.over.set()

    def _kill(self, room: str) -> None:
        if (making := self._making.get(room)) is not None:
            making.cancel()  # it kills what it has made
            return
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
            self._start(self._remove_later, room)

    async def _remove_later(self, room: str) -> None:
        """What the builder had begun came into it after the look: that ends, and the cgroup goes."""
        for _ in range(REMOVE_TRIES):
            await trio.sleep(REMOVE_PAUSE_S)
            if self._state.phase(room) is not Phase.ABSENT:
                return  # another room has the name, which cleared it
            with contextlib.suppress(OSError):
                self._groups.kill(room)
                self._groups.remove(room)
                return

    def _settle(self, now: str | None, why: str) -> None:
        self._moved_ns = time.monotonic_ns()
        for name, _ in self._state.rooms:
            room = self._hands.find(name)
            # One that never had the focus has lost nothing.
            if room is not None and room.facts.dies_unfocused and name != now and name in self._state.recent:
                self._queue.append(focus.Stop(name))  # INV-FOCUS-6
        if why:
            say(why)
        for wish in self._wishes:
            wish.why = why
            wish.over.set()
        self._wishes.clear()
        self._settled.set()
        self._settled = trio.Event()

    # What the umbilical is told

    def _say(self, room: str, line: Line) -> None:
        if self._lines.get(room) != line:
            self._lines[room] = line
            self.events.emit("line", line=self._told(room))

    def _told(self, room: str) -> dict[str, object]:
        line, made = self._lines[room], self._hands.find(room)
        return {
            "room": room,
            "epoch": line.epoch,
            "open": line.open,
            "gapNs": line.gap_ns,
            "cgroup": made.cgroup if made else 0,
        }

    def present(self) -> list[tuple[str, dict[str, object]]]:
        """The line of each room, for who begins to hear."""
        return [("line", {"line": self._told(room)}) for room in sorted(self._lines)]

    # The interface

    def _wish(self, room: str, by: str | None) -> Wish | Refusal:
        """Ask for the focus."""
        wish = Wish()
        self._refusal = None
        # Before the event: a hand-over may be over before `happen` returns.
        self._wishes.append(wish)
        elapsed_ms = (time.monotonic_ns() - self._moved_ns) // 10**6
        self.happen(focus.Focus(room, by, elapsed_ms))
        if (reason := self._refusal) is not None:
            self._wishes.remove(wish)
            return reason
        return wish

    async def rooms(self, _call: object, _params: Mapping[str, object]) -> dict[str, object]:
        """All rooms, and the focus."""
        rooms = [
            {
                "name": name,
                "state": room.phase.value,
                "cpuUsec": self._cpu_usec(name),
                "blocker": f"{room.blocker.pid} {room.blocker.wchan}" if room.blocker else "",
                "version": made.facts.version if made else 0,
                "store": made.facts.store if made else "",
                "network": made.network if made else "",
            }
            for name, room in self._state.rooms
            for made in (self._hands.find(name),)
        ]
        return {"rooms": rooms, "focus": self._state.focus or ""}

    def _cpu_usec(self, name: str) -> int:
        try:
            return self._groups.cpu_usec(name)
        except OSError:
            return 0  # being made, or gone

    async def focus(self, _call: object, params: Mapping[str, object]) -> dict[str, object]:
        """Give a room the focus; answered when it has it."""
        room = str(params["persona"])
        async with self._persons:
            while (wish := self._wish(room, PERSON)) in WAITS:
                await self._settled.wait()  # INV-FOCUS-8
        if isinstance(wish, Refusal):
            raise _refused(room, wish)
        await wish.over.wait()
        if wish.why:
            raise Failure(Code.REFUSED, wish.why)
        return {}

    async def request_focus(self, _call: object, params: Mapping[str, object]) -> dict[str, object]:
        """A room's wish; answered when the hand-over has begun."""
        room = self._hands.find(str(params["room"]))
        if room is None or not room.facts.may_focus:  # INV-FOCUS-7
            raise Failure(Code.FORBIDDEN, "the persona was not granted to pass the focus on")
        wish = self._wish(str(params["persona"]), str(params["room"]))
        if isinstance(wish, Refusal):
            raise _refused(str(params["persona"]), wish)
        return {}

    async def hushed(self, _call: object, params: Mapping[str, object]) -> dict[str, object]:
        """The umbilical came to rest with a room."""
        self.happen(focus.Hushed(str(params["room"]), int(str(params["epoch"]))))
        return {}

    async def start(self, _call: object, params: Mapping[str, object]) -> dict[str, object]:
        """Make a room; answered when it is complete and frozen."""
        name = str(params["persona"])
        if not persona.NAME.fullmatch(name):
            raise Failure(Code.INVALID, "a persona's name is 1 to 15 lower case letters and digits")
        if self._state.phase(name) is not Phase.ABSENT:
            raise Failure(Code.BUSY, f"{name}: it has a room: {self._state.phase(name).value}")
        if len(self._state.rooms) >= focus.ROOMS_MAX:
            raise Failure(Code.FULL, f"there are {focus.ROOMS_MAX} rooms already")
        start = self._starts[name] = Start()
        self.happen(focus.Start(name))
        await start.over.wait()
        if start.failure is not None:
            raise start.failure
        return {}

    async def stop(self, _call: object, params: Mapping[str, object]) -> dict[str, object]:
        """End a room; answered when the kernel says that it is gone."""
        name = self._known(params["persona"])
        end = self._ends.setdefault(name, trio.Event())
        self.happen(focus.Stop(name))
        await end.wait()
        return {}

    def _known(self, value: object) -> str:
        name = str(value)
        if self._state.phase(name) is Phase.ABSENT:
            raise Failure(Code.NOT_FOUND, f"{name[:64]}: {Refusal.NO_SUCH_ROOM.value}")
        return name

    def _complete(self, value: object) -> Room:
        room = self._hands.find(self._known(value))
        if room is None:
            raise Failure(Code.BUSY, f"{value}: it is being made or is ending")
        return room

    def _awake(self, value: object) -> Room:
        """A room that runs and has the focus. Raises Failure: FROZEN for any other."""
        room = self._complete(value)
        if self._state.focus != value or self._state.move is not None:
            raise Failure(Code.FROZEN, f"{value}: it has not the focus")
        return room

    async def exec(self, call: Call, params: Mapping[str, object]) -> dict[str, object]:
        """Start a program in the room that has the focus."""
        self._awake(params["persona"])
        argv = _words(params["argv"])
        if len(call.fds) != EXEC_DESCRIPTORS:
            raise Failure(Code.INVALID, "three streams and a pipe for the end must come with it")
        try:
            return {"pid": await self._hands.exec(str(params["persona"]), argv, call.fds)}
        except OSError as error:
            why = f"{params['persona']}: unable to start {argv[0][:64]}: {error}"
            raise Failure(Code.REFUSED, why) from None

    async def console(self, _call: object, params: Mapping[str, object]) -> dict[str, object]:
        """What a room wrote."""
        console = self._complete(params["persona"]).console
        if console is None:
            raise Failure(Code.NOT_FOUND, f"{params['persona']}: its manifest asks for no console")
        after = int(str(params["after"]))
        with trio.move_on_after(min(CONSOLE_S, int(str(params["waitMs"])) / 1000)):
            await console.wait(after)
        data, following = console.since(after)
        return {"data": data, "next": following}

    async def type(self, _call: object, params: Mapping[str, object]) -> dict[str, object]:
        """Type into a room's console."""
        console = self._awake(params["persona"]).console
        if console is None:
            raise Failure(Code.NOT_FOUND, f"{params['persona']}: its manifest asks for no console")
        data = params["data"]
        assert isinstance(data, bytes)
        return {"taken": console.type(data)}

    async def take_listener(self, _call: object, params: Mapping[str, object]) -> Answer:
        """The listener of a room, for the umbilical."""
        room = self._complete(params["room"])
        if room.cgroup != params["cgroup"]:
            raise Failure(Code.STALE, f"{params['room']}: that room is gone")
        results = {
            "store": room.facts.store,
            "mayUpdate": room.facts.may_update,
            "uidBase": room.facts.uid_base,
            "uidCount": facts.IDS_PER_ROOM,
        }
        return Answer(results, (os.dup(room.fds[LISTENER]),))

    def handlers(self) -> dict[str, Handler]:
        """The interface, method by method."""
        return {
            "rooms": self.rooms,
            "focus": self.focus,
            "requestFocus": self.request_focus,
            "hushed": self.hushed,
            "start": self.start,
            "stop": self.stop,
            "exec": self.exec,
            "console": self.console,
            "type": self.type,
            "takeListener": self.take_listener,
        }


def kernel(standing: Standing) -> Kernel:
    """What the machine calls this standing of a living cgroup."""
    if not standing.asked:
        return Kernel.AWAKE
    return Kernel.FROZEN if standing.frozen else Kernel.FREEZING


def _refused(room: str, reason: Refusal) -> Failure:
    return Failure(CODES[reason], f"{room[:64]}: {reason.value}")


def _words(value: object) -> tuple[str, ...]:
    """A command line. Raises Failure."""
    assert isinstance(value, list)
    words = tuple(str(word) for word in value)
    if not 1 <= len(words) <= WORDS_MAX or sum(len(word.encode()) for word in words) > WORDS_BYTES_MAX:
        raise Failure(Code.INVALID, f"a command has 1 to {WORDS_MAX} words, of {WORDS_BYTES_MAX} bytes")
    if any("\0" in word for word in words) or not words[0]:
        raise Failure(Code.INVALID, "the program must have a name, and no word a zero byte")
    return words


class Spine(Protocol):
    """What this organ uses of the runtime."""

    generation: int

    @property
    def fds(self) -> Mapping[str, int]: ...

    @property
    def bus(self) -> Bus: ...

    @property
    def kept(self) -> dict[str, int]: ...

    async def keep(self, label: str, fd: int) -> None: ...

    async def drop(self, label: str) -> None: ...

    async def serve(self, handlers: Mapping[str, Handler], events: Events) -> None: ...

    @property
    def schemas(self) -> Schemas: ...


class Bus(Protocol):
    """What this organ may call."""

    @property
    def peers(self) -> Mapping[str, Peer]: ...


def missing_here() -> frozenset[str]:
    """What bay0 says that this ground lacks. Raises OSError, ValueError."""
    with open(layout.ORGANS_JSON, encoding="utf-8") as file:
        return frozenset(json.load(file)["boot"]["missing"])


async def start_what_starts_by_itself(freezer: Freezer, groups: Subtree, integrity: Peer) -> None:
    """Once a boot: rooms for the personas that ask for it; the first of them by name gets the focus."""
    if groups.noted():
        return
    while True:
        try:
            answer = await integrity.call("personas", {})
        except Failure as failure:
            say(f"which personas there are is not known: {failure}")
            await trio.sleep(AGAIN_S)
        else:
            break
    rows = answer["personas"]
    assert isinstance(rows, list)
    first = None
    for row in sorted(rows, key=lambda row: str(row["name"])):
        if not persona.decode(row["manifest"]).autostart:
            continue
        try:
            await freezer.start(None, {"persona": row["name"]})
        except Failure as failure:
            say(f"{row['name']} does not start: {failure}")
        else:
            first = first or str(row["name"])
    groups.note()
    if first is not None and freezer.state.focus is None:
        try:
            await freezer.focus(None, {"persona": first})
        except Failure as failure:
            say(f"{first} does not get the focus: {failure}")


async def main(spine: Spine) -> None:
    """Read the kernel's state, then serve."""
    groups = Subtree(cgroups.path(layout.ROOMS))
    line = BuilderLine(spine.fds[PAIR], spine.generation)
    peers = spine.bus.peers
    rooms = Rooms(
        groups, peers["integrity"], peers["netroom"], line, spine, verity=VERITY not in missing_here()
    )
    unfinished = rooms.take_over(groups.names())
    freezer = Freezer(groups, rooms, spine.schemas.interfaces["freezer"])
    async with trio.open_nursery() as nursery:
        await nursery.start(rooms.run)
        await nursery.start(freezer.run)
        for name in unfinished:
            freezer.happen(focus.Stop(name))
        nursery.start_soon(start_what_starts_by_itself, freezer, groups, peers["integrity"])
        await spine.serve(freezer.handlers(), freezer.events)
