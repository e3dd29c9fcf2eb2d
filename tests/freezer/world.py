"""A small world around the pure machine: what the kernel, the netroom and the umbilical would hold.

The machine's own state is what it believes; this is what is. The exploration visits the pair of both, so that
a machine that believes too early is found. A property is about the world, never about the belief.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property

from organs.freezer import focus
from organs.freezer.focus import Act, Blocker, Effect, Event, Kernel, Phase, State, Step

BLOCKER = Blocker(4711, "nfs_wait")
SOON, LATER = 0, 10**6
ACTS = (Step.REVOKE, Step.CUT, Step.CONNECT, Step.GRANT)

Decide = Callable[[State, Event], tuple[State, tuple[Effect, ...]]]


@dataclass(frozen=True, slots=True)
class Truth:
    """One room as it is. `asked`: cgroup.freeze holds 1; `frozen`: cgroup.events says so."""

    asked: bool = True
    frozen: bool = True
    connected: bool = False
    granted: bool = False
    spoken: bool = False  # the umbilical may send to it
    killed: bool = False

    @property
    def awake(self) -> bool:
        """Whether a process of it may execute, or was asked to. A frozen process dies without executing."""
        return not (self.asked and self.frozen)


@dataclass(frozen=True)
class Pair:
    """What the machine believes and what is. `pending`: acts and builds asked for and not answered."""

    state: State
    rooms: tuple[tuple[str, Truth], ...] = ()
    pending: frozenset[tuple[Step | None, str]] = frozenset()

    @cached_property
    def _hash(self) -> int:
        return hash((self.state, self.rooms, self.pending))

    def __hash__(self) -> int:
        # An exploration asks for it several times, and it is most of the work.
        return self._hash

    def truth(self, name: str) -> Truth | None:
        """The room as it is, None when there is none."""
        return dict(self.rooms).get(name)

    @property
    def awake(self) -> list[str]:
        """The rooms that may execute."""
        return [name for name, room in self.rooms if room.awake]


@dataclass(frozen=True, slots=True)
class Happening:
    """One thing that can happen: a change of the world, and the event by which the machine learns of it.

    `event` None: the freezer is killed and started again.
    """

    event: Event | None
    world: Pair


def perform(world: Pair, effects: tuple[Effect, ...]) -> Pair:
    """The world once these effects are asked for."""
    rooms, pending = dict(world.rooms), set(world.pending)
    for effect in effects:
        match effect:
            case focus.Build(name):
                rooms[name] = Truth()
                pending.add((None, name))
            case focus.Hush(name, _) if name in rooms:
                rooms[name] = replace(rooms[name], spoken=False)
            case focus.Speak(name) if name in rooms:
                rooms[name] = replace(rooms[name], spoken=True)
            case Act(Step.FREEZE, name) if name in rooms:
                rooms[name] = replace(rooms[name], asked=True)
            case Act(Step.THAW, name) if name in rooms:
                rooms[name] = replace(rooms[name], asked=False)
            case Act(step, name):
                pending.add((step, name))
            case focus.Kill(name):
                rooms[name] = replace(rooms[name], killed=True)
            case focus.Remove(name):
                rooms.pop(name, None)
                pending = {each for each in pending if each[1] != name}
    return Pair(world.state, tuple(sorted(rooms.items())), frozenset(pending))


def happenings(pair: Pair, names: tuple[str, ...]) -> Iterator[Happening]:
    """Everything that can happen now, failures and deaths among them."""
    rooms, state = dict(pair.rooms), pair.state

    def change(name: str, **fields: bool) -> Pair:
        changed = {**rooms, name: replace(rooms[name], **fields)}
        return Pair(state, tuple(sorted(changed.items())), pair.pending)

    def answered(act: tuple[Step | None, str], world: Pair | None = None) -> Pair:
        world = world or pair
        return Pair(state, world.rooms, world.pending - {act})

    for name in names:
        room = rooms.get(name)
        if room is None:
            if state.phase(name) is Phase.ABSENT:
                yield Happening(focus.Start(name), pair)
            continue
        # The kernel does what it was asked for, or says nothing for ever.
        if room.asked and not room.frozen:
            yield Happening(focus.Froze(name), change(name, frozen=True))
        if not room.asked and room.frozen:
            yield Happening(focus.Awoke(name), change(name, frozen=False))
        gone = Pair(
            state,
            tuple(each for each in pair.rooms if each[0] != name),
            frozenset(each for each in pair.pending if each[1] != name),
        )
        yield Happening(focus.Died(name), gone)
        yield Happening(focus.Stop(name), pair)
        for by in (None, *names):
            for elapsed_ms in (SOON, LATER) if by == state.focus else (LATER,):
                yield Happening(focus.Focus(name, by, elapsed_ms), pair)
        # An answer to the present hushing, and a late one to the one before.
        yield Happening(focus.Hushed(name, state.epoch), pair)
        yield Happening(focus.Hushed(name, state.epoch - 1), pair)
    for step, name in pair.pending:
        if step is None:
            yield Happening(focus.Built(name), answered((step, name)))
            yield Happening(focus.NotBuilt(name), answered((step, name)))
            continue
        field = "granted" if step in (Step.GRANT, Step.REVOKE) else "connected"
        # Devices and network are alike to the machine; with three rooms the network stands for both.
        seen = len(names) < 3 or field == "connected"
        worked = answered(
            (step, name), change(name, **{field: step in (Step.GRANT, Step.CONNECT)}) if seen else pair
        )
        yield Happening(focus.Done(step, name), worked)
        # A failed act may have been done all the same.
        yield Happening(focus.Failed(step, name, ""), worked)
        yield Happening(focus.Failed(step, name, ""), answered((step, name)))
    move = state.move
    if move is not None:
        act = (move.step, move.room or "")
        yield Happening(focus.Late(move.step, BLOCKER), answered(act) if act in pair.pending else pair)
        if move.step in (Step.FREEZE, Step.THAW) and move.room is not None:
            yield Happening(focus.Failed(move.step, move.room, ""), pair)
    yield Happening(None, pair)


def reading(pair: Pair) -> list[tuple[str, Kernel]]:
    """What a restarted freezer reads."""
    return [
        (name, Kernel.AWAKE if not room.asked else Kernel.FROZEN if room.frozen else Kernel.FREEZING)
        for name, room in pair.rooms
    ]


def _bits(room: Truth | None) -> tuple[bool, ...]:
    if room is None:
        return ()
    return (room.asked, room.frozen, room.connected, room.granted, room.spoken, room.killed)


@cache
def canonical(pair: Pair, names: tuple[str, ...]) -> Pair:
    """The same pair with its unbounded and its meaningless parts taken out.

    The machine compares epochs and never branches on a reason or a blocker, and which name a room has makes
    no difference: rooms are renamed in the order of what there is to tell them apart.
    """
    state = pair.state
    move = replace(state.move, why="") if state.move else None
    phases = dict(state.rooms)

    def rank(name: str) -> tuple[object, ...]:
        room, truth = phases.get(name), pair.truth(name)
        return (
            name not in phases and truth is None,
            state.focus != name,
            move is None or move.source != name,
            move is None or move.target != name,
            state.recent.index(name) if name in state.recent else len(names),
            room.phase.value if room else "",
            _bits(truth),
            sorted(step.value if step else "" for step, each in pair.pending if each == name),
        )

    new = dict(zip(sorted(names, key=rank), names, strict=True))
    renamed = replace(
        state,
        rooms=tuple(sorted((new[name], focus.Room(room.phase)) for name, room in state.rooms)),
        focus=new[state.focus] if state.focus else None,
        move=replace(
            move,
            source=new[move.source] if move.source else None,
            target=new[move.target] if move.target else None,
        )
        if move
        else None,
        recent=tuple(new[name] for name in state.recent),
        epoch=1,
    )
    return Pair(
        renamed,
        tuple(sorted((new[name], room) for name, room in pair.rooms)),
        frozenset((step, new[name]) for step, name in pair.pending),
    )


def stepper(
    names: tuple[str, ...], decide: Decide
) -> Callable[[Pair, Happening], tuple[Pair, tuple[Effect, ...]]]:
    """One step of the pair under a machine."""

    def step(before: Pair, happening: Happening) -> tuple[Pair, tuple[Effect, ...]]:
        world = happening.world
        if happening.event is None:
            # What was asked for and not done is forgotten; the umbilical hears the new freezer and is silent.
            rooms = tuple((name, replace(room, spoken=False)) for name, room in world.rooms)
            world = Pair(State(), rooms)
            state, effects = focus.recover(reading(world))
        else:
            state, effects = decide(world.state, happening.event)
            if not effects and world is before and state == before.state:
                return before, effects
        after = perform(Pair(state, world.rooms, world.pending), effects)
        return canonical(after, names), effects

    return step
