"""Rooms and focus: which room runs, and the transaction that hands the focus from one to another.

Pure: an event comes in, the next state and the effects go out; time is an event (`Late`), and so is every
answer of the kernel. The order of a hand-over from A to B is the table `FORWARD`:

    hush A's umbilical, revoke A's devices, cut A's network, freeze A; when the kernel says that A is frozen:
    thaw B; when the kernel says that B runs: connect B's network, grant B its devices. B has the focus.

Asked and confirmed are different phases: FREEZING until the kernel says frozen, THAWING until it says that
the room runs. What fails goes back the way it came; a room that cannot go back is killed, because a room is
expendable and the promise is not.
Never: thaws a room while another may be awake, believes an answer to something it did not ask, reads a clock.
After a restart of the freezer the kernel's state is the truth (`recover`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, assert_never

from organs.freezer.policy import PERSON, Asked, Refusal, refusal, successor


class Phase(Enum):
    """Where a room is in its life. The values are what `freezer.rooms` says."""

    ABSENT = "absent"
    BUILDING = "building"  # asked to be made; born frozen
    FROZEN = "frozen"  # confirmed: every process of it stands still
    THAWING = "thawing"  # asked to run
    RUNNING = "running"  # confirmed
    FREEZING = "freezing"  # asked to freeze
    DYING = "dying"  # killed, not yet gone
    STUCK = "stuck"  # killed, and still there after its deadline; its blocker is named


# A room in one of these may execute. Killed ones too: until the kernel says gone, we do not know.
AWAKE: Final = frozenset({Phase.THAWING, Phase.RUNNING, Phase.FREEZING, Phase.DYING, Phase.STUCK})


@dataclass(frozen=True, slots=True)
class Blocker:
    """The process that keeps a room from freezing or ending, and what it waits for in the kernel."""

    pid: int
    wchan: str


@dataclass(frozen=True, slots=True)
class Room:
    """One room. `blocker` is what last kept it from freezing; forgotten when it freezes."""

    phase: Phase
    blocker: Blocker | None = None


class Step(Enum):
    """What a hand-over waits for."""

    HUSH = "hush the umbilical"
    REVOKE = "revoke devices"
    CUT = "cut the network"
    FREEZE = "freeze"
    CLEAR = "wait until killed rooms are gone"
    THAW = "thaw"
    CONNECT = "connect the network"
    GRANT = "grant devices"


# What follows on what. CLEAR stands beside: it is where a hand-over waits whose source had to be killed.
FORWARD: Final[Mapping[Step, Step]] = {
    Step.HUSH: Step.REVOKE,
    Step.REVOKE: Step.CUT,
    Step.CUT: Step.FREEZE,
    Step.FREEZE: Step.THAW,
    Step.CLEAR: Step.THAW,
    Step.THAW: Step.CONNECT,
    Step.CONNECT: Step.GRANT,
}
LEAVING: Final = frozenset({Step.HUSH, Step.REVOKE, Step.CUT, Step.FREEZE, Step.CLEAR})

# How long a step may take, in milliseconds. The first is how long a persona may take to come to rest and is
# meant to be felt by nobody; a freeze of a thousand processes takes tens of milliseconds, of one that is
# stuck in the kernel for ever; the network's answer comes from another organ, which may be restarting.
DEADLINE_MS: Final[Mapping[Step, int]] = {
    Step.HUSH: 100,
    Step.REVOKE: 500,
    Step.CUT: 2000,
    Step.FREEZE: 1000,
    Step.CLEAR: 2000,
    Step.THAW: 1000,
    Step.CONNECT: 5000,
    Step.GRANT: 500,
}
# Making a room: mounts, namespaces, a file system's superblock.
BUILD_DEADLINE_MS: Final = 15_000
# Each room holds a cgroup, a loop device, a range of ids and a listener.
ROOMS_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Move:
    """A hand-over under way. `back`: something failed (`why`), and this is the way back."""

    source: str | None
    target: str | None
    step: Step
    back: bool = False
    why: str = ""

    @property
    def room(self) -> str | None:
        """The room that the step is done to."""
        return self.source if self.step in LEAVING else self.target


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything the freezer knows. `rooms` is sorted by name and holds no absent room."""

    rooms: tuple[tuple[str, Room], ...] = ()
    focus: str | None = None
    move: Move | None = None
    # Rooms that had the focus, latest first.
    recent: tuple[str, ...] = ()
    # Numbers the hushings, so that a late answer to an old one is not taken for a new one's.
    epoch: int = 0

    def phase(self, name: str) -> Phase:
        """The phase of a room, ABSENT when there is none of that name."""
        return next((room.phase for each, room in self.rooms if each == name), Phase.ABSENT)


# Events


@dataclass(frozen=True, slots=True)
class Start:
    """A room is wanted."""

    room: str


@dataclass(frozen=True, slots=True)
class Built:
    """The builder made the room; it is frozen."""

    room: str


@dataclass(frozen=True, slots=True)
class NotBuilt:
    """The builder could not make the room, or took too long."""

    room: str


@dataclass(frozen=True, slots=True)
class Stop:
    """A room is to end."""

    room: str


@dataclass(frozen=True, slots=True)
class Focus:
    """The focus is wanted for a room, by another room or by PERSON."""

    room: str
    by: str | None
    elapsed_ms: int


@dataclass(frozen=True, slots=True)
class Hushed:
    """The umbilical has nothing under way for the room any more."""

    room: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Done:
    """REVOKE, CUT, CONNECT or GRANT was done to the room."""

    step: Step
    room: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A step could not be done to the room. What it did by then is not known."""

    step: Step
    room: str
    why: str


@dataclass(frozen=True, slots=True)
class Froze:
    """The kernel says: the room is frozen now."""

    room: str


@dataclass(frozen=True, slots=True)
class Awoke:
    """The kernel says: the room runs now."""

    room: str


@dataclass(frozen=True, slots=True)
class Died:
    """The kernel says: no process is left in the room."""

    room: str


@dataclass(frozen=True, slots=True)
class Late:
    """The deadline of the present step has passed. `blocker` is who keeps the room, where that is known."""

    step: Step
    blocker: Blocker | None


Event = (
    Start | Built | NotBuilt | Stop | Focus | Hushed | Done | Failed | Froze | Awoke | Died | Late
)  # fmt: skip


# Effects


@dataclass(frozen=True, slots=True)
class Build:
    """Have the room made, frozen."""

    room: str


@dataclass(frozen=True, slots=True)
class Hush:
    """Ask the umbilical to come to rest with the room."""

    room: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Act:
    """Do REVOKE, CUT, FREEZE, THAW, CONNECT or GRANT to the room."""

    step: Step
    room: str


@dataclass(frozen=True, slots=True)
class Kill:
    """End every process of the room."""

    room: str


@dataclass(frozen=True, slots=True)
class Remove:
    """The room is gone: forget what was kept for it."""

    room: str


@dataclass(frozen=True, slots=True)
class Speak:
    """The room runs and has the focus: the umbilical may serve it again."""

    room: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The focus that was asked for just now does not move."""

    reason: Refusal


@dataclass(frozen=True, slots=True)
class Settled:
    """A hand-over ended: `focus` has it now. `why` is empty when that is what was asked for."""

    focus: str | None
    why: str


Effect = Build | Hush | Act | Kill | Remove | Speak | Refused | Settled


class Kernel(Enum):
    """What the kernel says of a room's cgroup: what was asked of it, and whether that is so."""

    FROZEN = "asked to freeze, and frozen"
    FREEZING = "asked to freeze, not yet frozen"
    AWAKE = "not asked to freeze"


def decide(state: State, event: Event) -> tuple[State, tuple[Effect, ...]]:
    """The next state after an event, and what to do. An event that cannot matter any more changes nothing."""
    turn = _Turn(state)
    turn.happen(event)
    return turn.result()


def recover(found: Iterable[tuple[str, Kernel]]) -> tuple[State, tuple[Effect, ...]]:
    """The state of a freezer that was restarted, from what the kernel says of each room's cgroup.

    A room that was being frozen is frozen to the end; then nobody has the focus. The room that is awake gets
    all that the focus gives: a hand-over stopped half-way either had not left it or had arrived. Two awake
    rooms cannot be found unless somebody else wrote to the cgroups: then one stays.
    """
    turn = _Turn(State())
    phases = {Kernel.FROZEN: Phase.FROZEN, Kernel.FREEZING: Phase.FREEZING, Kernel.AWAKE: Phase.RUNNING}
    turn.rooms = {name: Room(phases[kernel]) for name, kernel in found}
    awake = sorted(name for name, room in turn.rooms.items() if room.phase in AWAKE)
    # One that runs stays before one that was to freeze.
    awake.sort(key=lambda name: turn.rooms[name].phase is Phase.FREEZING)
    for extra in awake[1:]:
        turn.kill(extra)  # INV-FOCUS-4
    if awake and turn.rooms[awake[0]].phase is Phase.RUNNING:
        turn.enter(Move(None, awake[0], Step.CONNECT, back=True, why="the freezer was restarted"))
    elif awake:
        turn.enter(Move(awake[0], None, Step.FREEZE, why="the freezer was restarted"))
    return turn.result()


class _Turn:
    """One decision in the making."""

    def __init__(self, state: State) -> None:
        self.rooms = dict(state.rooms)
        self.focus, self.move, self.recent, self.epoch = state.focus, state.move, state.recent, state.epoch
        self.effects: list[Effect] = []

    def result(self) -> tuple[State, tuple[Effect, ...]]:
        state = State(
            rooms=tuple(sorted(self.rooms.items(), key=lambda item: item[0])),
            focus=self.focus,
            move=self.move,
            recent=self.recent,
            epoch=self.epoch,
        )
        return state, tuple(self.effects)

    def phase(self, name: str | None) -> Phase:
        return self.rooms[name].phase if name in self.rooms else Phase.ABSENT

    def become(self, name: str, phase: Phase, blocker: Blocker | None = None) -> None:
        # Who kept it from freezing stays known until it freezes.
        known = self.rooms[name].blocker if name in self.rooms else None
        self.rooms[name] = Room(phase, None if phase is Phase.FROZEN else blocker or known)

    def happen(self, event: Event) -> None:
        match event:
            case Start(room):
                if room not in self.rooms and len(self.rooms) < ROOMS_MAX:
                    self.become(room, Phase.BUILDING)
                    self.effects.append(Build(room))
            case Built(room):
                if self.phase(room) is Phase.BUILDING:
                    self.become(room, Phase.FROZEN)
            case NotBuilt(room):
                if self.phase(room) is Phase.BUILDING:
                    self.kill(room)
            case Stop(room):
                self._stop(room)
            case Focus(room, by, elapsed_ms):
                self._wish(room, by, elapsed_ms)
            case Hushed(room, epoch):
                if self._is_at(Step.HUSH, room) and epoch == self.epoch:
                    self._next()
            case Done(step, room):
                if self._is_at(step, room) and step not in (Step.FREEZE, Step.THAW):
                    self._next()
            case Failed(step, room, why):
                if self._is_at(step, room):
                    self._fail(f"{room}: {step.value}: {why}", None)
            case Froze(room):
                if self._is_at(Step.FREEZE, room) and self.phase(room) is Phase.FREEZING:
                    self.become(room, Phase.FROZEN)
                    self._next()
            case Awoke(room):
                if self._is_at(Step.THAW, room) and self.phase(room) is Phase.THAWING:
                    self.become(room, Phase.RUNNING)
                    self._next()
            case Late(step, blocker):
                if self.move is not None and self.move.step is step:
                    self._late(self.move, blocker)
            case Died(room):
                if room in self.rooms:
                    self._died(room)
            case _:
                assert_never(event)

    def _is_at(self, step: Step, room: str) -> bool:
        """Whether the hand-over waits for this step of this room. A killed room answers by dying only."""
        move = self.move
        return move is not None and move.step is step and move.room == room and not self._dying(room)

    def _dying(self, room: str | None) -> bool:
        return self.phase(room) in (Phase.DYING, Phase.STUCK)

    # The way of a hand-over

    def enter(self, move: Move) -> None:
        """Stand at a step of a hand-over and ask for what it needs."""
        self.move = move
        room = move.room
        match move.step:
            case Step.HUSH:
                assert room is not None
                self.epoch += 1
                self.effects.append(Hush(room, self.epoch))
            case Step.FREEZE:
                assert room is not None
                self.become(room, Phase.FREEZING)
                self.effects.append(Act(Step.FREEZE, room))
            case Step.CLEAR | Step.THAW:
                self._thaw(move)
            case Step.REVOKE | Step.CUT | Step.CONNECT | Step.GRANT:
                assert room is not None
                self.effects.append(Act(move.step, room))
            case _:
                assert_never(move.step)

    def _thaw(self, move: Move) -> None:
        """The only place that wakes a room."""
        target = move.target
        if any(room.phase in AWAKE for name, room in self.rooms.items() if name != target):  # INV-FOCUS-1
            self.move = replace(move, step=Step.CLEAR)
        elif target is not None and self.phase(target) in (Phase.FROZEN, Phase.FREEZING):
            self.move = replace(move, step=Step.THAW)
            self.become(target, Phase.THAWING)
            self.effects.append(Act(Step.THAW, target))
        elif target is not None and not move.back and self.phase(move.source) is Phase.FROZEN:
            self.enter(Move(None, move.source, Step.THAW, back=True, why=f"{target} is gone"))
        else:
            self._settle(None, move.why or f"{target} is gone")

    def _next(self) -> None:
        assert self.move is not None
        if self.move.step is Step.GRANT:
            self._settle(self.move.target, self.move.why)
        else:
            self.enter(replace(self.move, step=FORWARD[self.move.step]))

    def _settle(self, focus: str | None, why: str) -> None:
        self.move, self.focus = None, focus
        if focus is not None:
            self.recent = (focus, *(name for name in self.recent if name != focus))
            self.effects.append(Speak(focus))  # INV-FOCUS-3
        self.effects.append(Settled(focus, why))

    # What goes wrong on it

    def _late(self, move: Move, blocker: Blocker | None) -> None:
        if move.step is Step.HUSH:
            self._next()  # it had its time
        elif move.step is Step.CLEAR:
            for name, room in self.rooms.items():
                if room.phase is Phase.DYING:
                    self.become(name, Phase.STUCK, blocker)
        elif not self._dying(move.room):
            self._fail(f"{move.room}: {move.step.value}: too late", blocker)

    def _fail(self, why: str, blocker: Blocker | None) -> None:
        """The present step cannot be done. Forward: go back. On the way back: kill what cannot go back."""
        move = self.move
        assert move is not None
        why = move.why or why
        match move.step:
            case Step.REVOKE | Step.CUT | Step.FREEZE:
                assert move.source is not None
                if blocker is not None:
                    self.become(move.source, self.phase(move.source), blocker)
                if move.back:
                    self.kill(move.source)
                    self.enter(replace(move, step=Step.CLEAR, why=why))
                else:
                    self._back_to(move.source, why)  # INV-FOCUS-2
            case Step.THAW:
                assert move.target is not None
                if move.back:
                    self.kill(move.target)
                    self.enter(Move(move.target, None, Step.CLEAR, back=True, why=why))
                else:
                    self.enter(Move(move.target, move.source, Step.FREEZE, back=True, why=why))
            case Step.CONNECT | Step.GRANT:
                if move.back:
                    # It had the focus before; it keeps it without what it cannot get, and the caller is told.
                    self.move = replace(move, why=why)
                    self._next()
                else:
                    self.enter(Move(move.target, move.source, Step.REVOKE, back=True, why=why))
            case Step.HUSH | Step.CLEAR:
                raise AssertionError(f"nothing fails at {move.step.value}")
            case _:
                assert_never(move.step)

    def _back_to(self, room: str, why: str) -> None:
        """The room keeps the focus: undo what was done to take it. All of it can be done twice."""
        step = Step.THAW if self.phase(room) in (Phase.FREEZING, Phase.FROZEN) else Step.CONNECT
        self.enter(Move(None, room, step, back=True, why=why))

    # Wishes and deaths

    def _wish(self, room: str, by: str | None, elapsed_ms: int) -> None:
        asked = Asked(
            exists=room in self.rooms,
            able=self.phase(room) is Phase.FROZEN or (room == self.focus and not self._dying(room)),
            moving=self.move is not None,
            by_person=by is PERSON,
            by_focused=by is not PERSON and by == self.focus,
            elapsed_ms=elapsed_ms,
        )
        if (reason := refusal(asked)) is not None:
            self.effects.append(Refused(reason))
        elif room == self.focus:
            self.effects.append(Settled(room, ""))
        elif self.focus is None or self._dying(self.focus):
            self.enter(Move(self.focus, room, Step.THAW))
        else:
            self.enter(Move(self.focus, room, Step.HUSH))

    def kill(self, room: str) -> None:
        """End a room. It counts as awake until the kernel says that it is gone."""
        if not self._dying(room):
            self.become(room, Phase.DYING)
            self.effects.append(Kill(room))

    def _stop(self, room: str) -> None:
        if room not in self.rooms:
            return
        self.kill(room)
        move = self.move
        if move is not None and room == move.source and move.step in LEAVING:
            self.enter(replace(move, step=Step.CLEAR))
        # A target waits for its death where it stands: see `_died`.

    def _died(self, room: str) -> None:
        was_focus, was_moving = self.focus == room, self.move is not None
        del self.rooms[room]
        self.recent = tuple(name for name in self.recent if name != room)
        self.effects.append(Remove(room))
        if was_focus:
            self.focus = None
        move = self.move
        if move is not None:
            if room == move.source:
                self.move = move = replace(move, source=None)
                if move.step in LEAVING:
                    self.enter(replace(move, step=Step.CLEAR))
            elif room == move.target:
                self._target_died(move)
            elif move.step is Step.CLEAR:
                self.enter(move)
        if self.move is None and self.focus is None and (was_focus or was_moving):
            self._follow()

    def _target_died(self, move: Move) -> None:
        why = move.why or f"{move.target} died"
        source = move.source if move.source in self.rooms else None
        if move.step not in LEAVING:
            # On the way back the source is a room that failed, or nobody.
            if source is not None and not move.back and self.phase(source) is Phase.FROZEN:
                self._back_to(source, why)
            else:
                self._settle(None, why)
        elif move.step is Step.CLEAR or move.back or source is None:
            self.move = replace(move, target=None, why=why)
            if move.step is Step.CLEAR:
                self.enter(self.move)
        else:
            self._back_to(source, why)  # INV-FOCUS-2

    def _follow(self) -> None:
        """Nobody has the focus because of a death: the policy says whose it is now."""
        able = {name for name, room in self.rooms.items() if room.phase is Phase.FROZEN}
        if (name := successor(self.recent, able)) is not None:
            self.enter(Move(None, name, Step.THAW))
