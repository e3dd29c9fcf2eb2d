"""The focus machine, visited whole: with failures, deaths, late answers and restarts at each step."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import pytest

from organs.freezer import focus
from organs.freezer.focus import Act, Effect, Event, Kernel, Phase, Room, State, Step, decide, recover
from organs.freezer.policy import ROOM_INTERVAL_MS, Asked, Refusal, refusal, successor
from tests.explore import Explored, explore
from tests.freezer.world import Decide, Happening, Pair, happenings, stepper

NAMES = ("a", "b", "c")


class Broken(AssertionError):
    """A property does not hold; the message is the property."""


def promises(before: Pair, happening: Happening, after: Pair, effects: tuple[Effect, ...]) -> None:
    """What must hold after each step, whatever happened."""
    if len(after.awake) > 1:
        raise Broken("two rooms are awake")
    state = after.state
    for name, room in after.rooms:
        phase = state.phase(name)
        if room.spoken and not room.killed and (phase is not Phase.RUNNING or not room.awake):
            raise Broken("the umbilical may send to a room that does not run")
        if phase is Phase.FROZEN and (room.awake or room.connected or room.granted):
            raise Broken("a room that is said to be frozen is awake, connected or holds a device")
        if phase is Phase.RUNNING and not room.awake:
            raise Broken("a room that is said to run does not")
    if state.focus is not None and state.phase(state.focus) is Phase.ABSENT:
        raise Broken("the focus is at a room that is not there")
    del before, happening, effects


@functools.cache
def explored(count: int) -> Explored[Pair]:
    """Every reachable pair of machine and world with this many rooms."""
    names = NAMES[:count]
    return explore(
        Pair(State(epoch=1)),
        lambda pair: happenings(pair, names),
        stepper(names, decide),
        promises,
        states_max=2_000_000,
    )


@pytest.mark.proves("INV-FOCUS-1")
@pytest.mark.proves("INV-FOCUS-2")
@pytest.mark.proves("INV-FOCUS-3")
@pytest.mark.parametrize("count", [1, 2, 3])
def test_never_two_awake_and_every_state_has_a_way_on(count: int) -> None:
    seen = explored(count)
    assert len(seen.edges) > 10**count

    def at_rest(pair: Pair) -> bool:
        focused = pair.state.focus
        return pair.state.move is None and (focused is None or pair.state.phase(focused) is Phase.RUNNING)

    stuck = seen.edges.keys() - seen.reaches(at_rest)
    assert not stuck, next(iter(stuck))
    # Every room can still be focused from every state.
    lost = seen.edges.keys() - seen.reaches(lambda pair: pair.state.focus is not None and at_rest(pair))
    assert not lost, next(iter(lost))
    assert {room.phase for pair in seen.edges for _, room in pair.state.rooms} == set(Phase) - {Phase.ABSENT}


def seeded(name: str) -> Decide:
    """A machine with one fault in it."""

    def eager(state: State, event: Event) -> tuple[State, tuple[Effect, ...]]:
        """Takes the asking for a freeze for the freeze."""
        after, effects = decide(state, event)
        if any(isinstance(effect, Act) and effect.step is Step.FREEZE for effect in effects):
            assert after.move is not None
            assert after.move.source is not None
            after, more = decide(after, focus.Froze(after.move.source))
            effects += more
        return after, effects

    def forgiving(state: State, event: Event) -> tuple[State, tuple[Effect, ...]]:
        """Goes on when a room does not freeze in time."""
        if isinstance(event, focus.Late) and event.step is Step.FREEZE and state.move and state.move.source:
            event = focus.Froze(state.move.source)
        return decide(state, event)

    def careless(state: State, event: Event) -> tuple[State, tuple[Effect, ...]]:
        """Takes a network that could not be cut for one that is."""
        if isinstance(event, focus.Failed) and event.step is Step.CUT:
            event = focus.Done(event.step, event.room)
        return decide(state, event)

    def hasty(state: State, event: Event) -> tuple[State, tuple[Effect, ...]]:
        """Takes the killing of a room for its death."""
        after, effects = decide(state, event)
        killed = [effect.room for effect in effects if isinstance(effect, focus.Kill)]
        for room in killed:
            if after.move is not None and after.move.step is Step.CLEAR:
                after, more = decide(after, focus.Died(room))
                effects += tuple(each for each in more if not isinstance(each, focus.Remove))
        return after, effects

    def loose(state: State, event: Event) -> tuple[State, tuple[Effect, ...]]:
        """Lets the umbilical speak while the room is still being frozen."""
        after, effects = decide(state, event)
        return after, tuple(
            focus.Speak(effect.room) if isinstance(effect, focus.Hush) else effect for effect in effects
        )

    return {"eager": eager, "forgiving": forgiving, "careless": careless, "hasty": hasty, "loose": loose}[
        name
    ]


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("eager", "awake"),
        ("forgiving", "awake"),
        ("careless", "connected"),
        ("hasty", "awake"),
        ("loose", "umbilical"),
    ],
)
def test_the_exploration_finds_a_seeded_fault(fault: str, found: str) -> None:
    names = NAMES[:2]
    with pytest.raises(Broken, match=found):
        explore(
            Pair(State(epoch=1)),
            lambda pair: happenings(pair, names),
            stepper(names, seeded(fault)),
            promises,
            states_max=2_000_000,
        )


def run(*events: Event, state: State | None = None) -> tuple[State, list[Effect]]:
    """The machine after these events, and everything it asked for."""
    asked: list[Effect] = []
    state = state or State()
    for event in events:
        state, effects = decide(state, event)
        asked += effects
    return state, asked


def two_rooms() -> State:
    """`a` has the focus, `b` is frozen."""
    state, _ = run(focus.Start("a"), focus.Built("a"), focus.Start("b"), focus.Built("b"))
    return focused(state, "a")


def focused(state: State, room: str) -> State:
    """After a hand-over that meets no trouble."""
    state, _ = decide(state, focus.Focus(room, None, 10**6))
    while (move := state.move) is not None:
        assert move.room is not None
        answer: Event
        match move.step:
            case Step.HUSH:
                answer = focus.Hushed(move.room, state.epoch)
            case Step.FREEZE:
                answer = focus.Froze(move.room)
            case Step.THAW:
                answer = focus.Awoke(move.room)
            case _:
                answer = focus.Done(move.step, move.room)
        state, _ = decide(state, answer)
    return state


def test_a_hand_over_has_this_order() -> None:
    state = two_rooms()
    epoch = state.epoch + 1
    _, asked = run(
        focus.Focus("b", None, 0),
        focus.Hushed("a", epoch),
        focus.Done(Step.REVOKE, "a"),
        focus.Done(Step.CUT, "a"),
        focus.Froze("a"),
        focus.Awoke("b"),
        focus.Done(Step.CONNECT, "b"),
        focus.Done(Step.GRANT, "b"),
        state=state,
    )
    assert asked == [
        focus.Hush("a", epoch),
        Act(Step.REVOKE, "a"),
        Act(Step.CUT, "a"),
        Act(Step.FREEZE, "a"),
        Act(Step.THAW, "b"),
        Act(Step.CONNECT, "b"),
        Act(Step.GRANT, "b"),
        focus.Speak("b"),
        focus.Settled("b", ""),
    ]


def test_a_room_that_does_not_freeze_keeps_the_focus_and_its_blocker_is_named() -> None:
    blocker = focus.Blocker(17, "do_wait_on_locked_page")
    state, asked = run(
        focus.Focus("b", None, 0),
        focus.Hushed("a", two_rooms().epoch + 1),
        focus.Done(Step.REVOKE, "a"),
        focus.Done(Step.CUT, "a"),
        focus.Late(Step.FREEZE, blocker),
        focus.Awoke("a"),
        focus.Done(Step.CONNECT, "a"),
        focus.Done(Step.GRANT, "a"),
        state=two_rooms(),
    )
    assert state.focus == "a"
    assert dict(state.rooms) == {"a": Room(Phase.RUNNING, blocker), "b": Room(Phase.FROZEN)}
    assert Act(Step.THAW, "b") not in asked
    assert asked[-1] == focus.Settled("a", "a: freeze: too late")


def test_a_death_gives_the_focus_to_the_room_that_had_it_before() -> None:
    state, _ = run(focus.Start("c"), focus.Built("c"), state=focused(two_rooms(), "b"))
    state, asked = run(focus.Died("b"), state=state)
    assert asked == [focus.Remove("b"), Act(Step.THAW, "a")]
    # c never had it: when a dies as well, the focus is nobody's.
    state, _ = run(focus.Awoke("a"), focus.Done(Step.CONNECT, "a"), focus.Done(Step.GRANT, "a"), state=state)
    state, asked = run(focus.Died("a"), state=state)
    assert asked == [focus.Remove("a")]
    assert state.focus is None


@pytest.mark.proves("INV-FOCUS-4")
@pytest.mark.parametrize("found", list(itertools.product([None, *Kernel], repeat=3)))
def test_a_restart_takes_the_kernels_word(found: tuple[Kernel | None, ...]) -> None:
    rooms = [(name, kernel) for name, kernel in zip(NAMES, found, strict=True) if kernel is not None]
    state, effects = recover(rooms)
    assert [name for name, _ in state.rooms] == [name for name, _ in rooms]
    assert not any(isinstance(effect, Act) and effect.step is Step.THAW for effect in effects)
    awake = [name for name, kernel in rooms if kernel is not Kernel.FROZEN]
    staying = [name for name in awake if state.phase(name) is not Phase.DYING]
    assert len(staying) == min(1, len(awake))
    assert sorted(effect.room for effect in effects if isinstance(effect, focus.Kill)) == sorted(
        set(awake) - set(staying)
    )
    for name, kernel in rooms:
        if kernel is Kernel.FROZEN:
            assert state.phase(name) is Phase.FROZEN


@pytest.mark.proves("INV-FOCUS-5")
def test_who_may_move_the_focus() -> None:
    """Every combination against the rule in words."""
    for exists, able, moving, person, own, soon in itertools.product([False, True], repeat=6):
        asked = Asked(
            exists=exists,
            able=able,
            moving=moving,
            by_person=person,
            by_focused=own,
            elapsed_ms=ROOM_INTERVAL_MS - soon,
        )
        allowed = exists and able and not moving and (person or (own and not soon))
        assert (refusal(asked) is None) is allowed
    assert refusal(dataclasses.replace(asked, exists=False)) is Refusal.NO_SUCH_ROOM


def test_the_focus_goes_back_to_who_had_it() -> None:
    assert successor(("a", "b", "c"), {"b", "c"}) == "b"
    assert successor(("a",), {"b"}) is None
    assert successor((), {"b"}) is None
