"""When the time is asked for, and what is made of the answers: whole rounds, and any answers at all."""

from __future__ import annotations

import itertools
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from organs.netroom import proposal
from organs.netroom.proposal import Ask, Effect, Elapsed, Heard, Network, Propose, State, decide
from organs.netroom.sntp import Kiss, Reply, Times

SERVERS = tuple(IPv4Address(f"10.0.0.{n}") for n in range(1, 9))
ROUTER = IPv4Address("10.0.0.254")
BOOTED_US = 1767225600_000_000
SECOND_US = 1_000_000


def nonces(seed: int) -> tuple[bytes, ...]:
    return tuple(bytes([n]) + seed.to_bytes(7, "big") for n in range(proposal.SERVERS_MAX))


class Asking:
    """A machine, its clock, and servers whose answers a test chooses."""

    def __init__(self, *servers: IPv4Address) -> None:
        self.now_us = 5 * SECOND_US
        self.effects: list[Effect] = []
        self.state, told = decide(State(), Network(servers, ROUTER))
        assert told == ()

    def tick(self) -> list[Ask]:
        """The time is now."""
        self.state, effects = decide(self.state, Elapsed(self.now_us, nonces(self.now_us)))
        self.effects += effects
        return [effect for effect in effects if isinstance(effect, Ask)]

    def next(self) -> list[Ask]:
        """Wait for what is due."""
        self.now_us = max(self.now_us, self.state.due_us)
        return self.tick()

    def answer(self, ask: Ask, said: int | Kiss, *, way_us: int = 0, held_us: int = 0) -> None:
        """A server says that the machine booted so many microseconds later than it did, or a kiss."""
        if isinstance(said, int):
            heard_us = BOOTED_US + said + self.now_us + way_us // 2
            reply = Reply(ask.nonce, Times(heard_us, heard_us + held_us))
        else:
            reply = Reply(ask.nonce, said)
        at_us = self.now_us + way_us + held_us
        self.state, effects = decide(self.state, Heard(ask.server, reply, at_us))
        self.effects += effects

    def proposals(self) -> list[int]:
        return [effect.booted_ms for effect in self.effects if isinstance(effect, Propose)]


def test_who_is_asked() -> None:
    one, two, *_ = SERVERS
    assert proposal.asked_for((one, two, one), ROUTER) == (one, two)
    assert proposal.asked_for(SERVERS, ROUTER) == SERVERS[: proposal.SERVERS_MAX]
    assert proposal.asked_for((), ROUTER) == (ROUTER,)
    assert proposal.asked_for((), None) == ()


def test_one_server_is_asked_three_times() -> None:
    asking = Asking()
    for number in range(3):
        assert asking.proposals() == []
        [ask] = asking.next()
        assert ask.server == ROUTER
        asking.answer(ask, number * 1000, way_us=20_000, held_us=300)
    assert asking.proposals() == [BOOTED_US // 1000 + 1]
    # The next is not due before bay0 would hear it.
    assert asking.state.due_us - asking.now_us > 3600 * SECOND_US
    assert asking.state == State(servers=(ROUTER,), due_us=asking.state.due_us)
    assert asking.tick() == []
    assert len(asking.next()) == 1


def test_what_a_cut_swallows_does_not_make_a_round_void() -> None:
    asking = Asking()
    for number in range(proposal.PASSES_MAX):
        assert asking.proposals() == []
        [ask] = asking.next()
        if number >= proposal.PASSES_MAX - proposal.AGREEING_MIN:
            asking.answer(ask, 0)
    assert asking.proposals() == [BOOTED_US // 1000]


def test_three_servers_that_agree_are_asked_once_and_the_last_decides_when() -> None:
    asking = Asking(*SERVERS[:3])
    asks = asking.next()
    for ask in asks[:2]:
        asking.answer(ask, 0)
        assert asking.proposals() == []
    asking.answer(asks[2], 300_000)
    assert asking.proposals() == [BOOTED_US // 1000]


def test_a_server_that_is_silent_is_waited_for_and_then_not() -> None:
    asking = Asking(*SERVERS[:4])
    for ask in asking.next()[:3]:
        asking.answer(ask, 0)
    assert asking.proposals() == []
    assert asking.next() == []
    assert asking.proposals() == [BOOTED_US // 1000]


@pytest.mark.proves("INV-TIME-4")
def test_two_servers_that_contradict_each_other_propose_nothing() -> None:
    asking = Asking(*SERVERS[:2])
    for _ in range(proposal.PASSES_MAX):
        honest, liar = asking.next()
        asking.answer(honest, 0)
        asking.answer(liar, 3600 * SECOND_US)
    assert asking.next() == []
    assert asking.proposals() == []
    assert asking.state == State(servers=SERVERS[:2], due_us=asking.now_us + proposal.AGAIN_US)


@pytest.mark.proves("INV-TIME-4")
@pytest.mark.parametrize(
    ("way_us", "good"),
    [(0, True), (proposal.WAY_US_MAX, True), (proposal.WAY_US_MAX + 2, False), (-2, False)],
)
def test_an_answer_that_took_long_is_none(way_us: int, good: bool) -> None:
    asking = Asking(*SERVERS[:3])
    for ask in asking.next():
        asking.answer(ask, 0, way_us=way_us)
    assert bool(asking.proposals()) is good


@pytest.mark.proves("INV-TIME-5")
def test_an_answer_to_another_question_changes_nothing() -> None:
    asking = Asking(*SERVERS[:3])
    asks = asking.next()
    before = asking.state
    asking.answer(Ask(asks[0].server, asks[1].nonce), 0)  # of another server
    asking.answer(Ask(SERVERS[5], asks[0].nonce), 0)  # by somebody else
    asking.answer(Ask(asks[0].server, bytes(8)), 0)  # guessed
    asking.answer(Ask(asks[0].server, bytes(8)), Kiss.DENY)
    assert asking.state == before
    asking.answer(asks[0], 0)
    after = asking.state
    asking.answer(asks[0], 0)  # twice
    assert asking.state == after
    # After its pass it is too late.
    again = asking.next()
    assert {ask.server for ask in again} == set(SERVERS[:3])
    asking.answer(asks[1], 0)
    assert asking.state.booted_us == after.booted_us


def test_a_kiss_is_honoured() -> None:
    asking = Asking(*SERVERS[:4])
    rate, deny, other, good = asking.next()
    asking.answer(rate, Kiss.RATE)
    asking.answer(deny, Kiss.DENY)
    asking.answer(other, Kiss.OTHER)
    asking.answer(good, 0)
    for _ in range(proposal.PASSES_MAX - 1):
        assert [ask.server for ask in asking.next()] == [other.server, good.server]
    assert asking.next() == []
    # In the next round who said "less often" is asked again; who said "never" is not, on no network.
    assert [ask.server for ask in asking.next()] == [rate.server, other.server, good.server]
    asking.state, _ = decide(asking.state, Network((deny.server,), ROUTER))
    assert asking.next() == []
    assert asking.state.due_us == asking.now_us + proposal.AGAIN_US


def test_rooms_that_come_and_go_have_nobody_asked_more_often() -> None:
    asking = Asking(*SERVERS[:3])
    asks = asking.next()
    asking.answer(asks[0], 0)
    before = asking.state
    for _ in range(10):
        asking.state, effects = decide(asking.state, Network(SERVERS[:3], ROUTER))
        assert (asking.state, effects) == (before, ())
        assert asking.tick() == []
    # Another network: nothing that was heard counts there, and it is not asked sooner.
    asking.state, _ = decide(asking.state, Network(SERVERS[4:6], None))
    assert asking.state == State(servers=SERVERS[4:6], due_us=before.due_us)
    asking.answer(asks[1], 0)
    assert asking.state.booted_us == ()
    assert asking.tick() == []
    asking.state, _ = decide(replace(asking.state, due_us=0), Network((), None))
    assert asking.next() == []


def test_who_said_never_is_remembered_within_a_limit() -> None:
    asking = Asking()
    for number in range(proposal.SHUNNED_MAX + 4):
        server = IPv4Address(0x0A010000 + number)
        asking.state, _ = decide(replace(asking.state, due_us=0), Network((server,), None))
        [ask] = asking.tick()
        asking.answer(ask, Kiss.DENY)
    assert len(asking.state.shunned) == proposal.SHUNNED_MAX
    assert asking.state.shunned[-1] == server


ERRORS = st.integers(-100_000, 100_000)
LIES = st.integers(-(10**16), 10**16)


@pytest.mark.proves("INV-TIME-4")
@given(st.lists(ERRORS, min_size=1, max_size=12), st.lists(LIES, max_size=12), st.randoms())
def test_fewer_liars_than_honest_answers_move_nothing(
    honest: list[int], lies: list[int], random: object
) -> None:
    lies = lies[: len(honest) - 1]
    answers = [*honest, *lies]
    random.shuffle(answers)  # type: ignore[attr-defined]  # hypothesis' own
    found = proposal.proposed(tuple(answers))
    if len(honest) >= proposal.AGREEING_MIN:
        assert found is not None
    if found is not None:
        assert min(honest) <= found <= max(honest)


@pytest.mark.proves("INV-TIME-4")
@given(st.lists(LIES, max_size=12))
def test_what_is_proposed_has_a_majority(answers: list[int]) -> None:
    found = proposal.proposed(tuple(answers))
    if found is not None:
        near = [each for each in answers if abs(each - found) <= proposal.APART_US_MAX]
        assert len(near) >= proposal.AGREEING_MIN
        assert len(near) * 2 > len(answers)


STEPS = st.lists(
    st.tuples(st.integers(0, 20 * 60 * SECOND_US), st.integers(0, 12), LIES | st.sampled_from(Kiss)),
    max_size=60,
)


@given(STEPS)
def test_whatever_happens_few_questions_are_asked(steps: list[tuple[int, int, int | Kiss]]) -> None:
    """Any waits, any answers, any changes of network: the rate and the size of the state are bounded."""
    asking = Asking(*SERVERS[:4])
    asked: dict[IPv4Address, list[int]] = {}
    sent: list[Ask] = []
    for wait_us, choice, said in steps:
        asking.now_us += wait_us
        for ask in asking.tick():
            asked.setdefault(ask.server, []).append(asking.now_us)
            sent.append(ask)
        assert asking.state.due_us > asking.now_us
        if choice < 8 and sent:
            asking.answer(sent[-1 - choice % min(4, len(sent))], said)
        elif choice > 10:
            asking.state, _ = decide(asking.state, Network(SERVERS[choice % 4 : choice % 4 + 3], ROUTER))
        state = asking.state
        assert len(state.questions) <= proposal.SERVERS_MAX
        assert len(state.booted_us) <= proposal.SERVERS_MAX * proposal.PASSES_MAX
        assert len(state.hushed) <= proposal.SERVERS_MAX * proposal.PASSES_MAX
    for times in asked.values():
        assert all(later - earlier >= proposal.PASS_US for earlier, later in itertools.pairwise(times))
