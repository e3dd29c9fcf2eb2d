"""A room's network is asked what time it is: real namespaces, a real time server behind a real wire."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import trio

from organs.kernel import realtime
from organs.netroom import organ, proposal
from tests.netroom.test_rooms import confined
from tests.netroom.test_sntp import answer, stamp
from tests.netroom.world import Net, Room, net, room, serving

pytestmark = pytest.mark.container

DEADLINE_S = 60
ROUTER = "10.77.0.1"
ROOM = "10.77.0.100"
# The server is right by its own clock, which is this much after ours: nobody has that one by chance.
AHEAD_S = 86_400 * 1000
# What a server in the next namespace can be wrong by on a machine that is busy: half of the way it is given.
WRONG_MS_MAX = proposal.WAY_US_MAX // 2000


@pytest.fixture(name="world")
def _world() -> Iterator[Net]:
    with net() as made:
        yield made


@pytest.fixture(name="linda")
def _linda() -> Iterator[Room]:
    with room("linda") as made:
        yield made


@pytest.fixture(name="short", autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rounds, in shorter steps."""
    monkeypatch.setattr(proposal, "PASS_US", 300_000)


def right(question: bytes) -> bytes | None:
    """What an honest server answers."""
    now = stamp(time.time() + AHEAD_S)
    return answer(nonce=question[40:48], heard=now, answered=now, set_at=bytes(8))


class Server:
    """A time server where the router is; what it was asked, and by whom."""

    def __init__(self, world: Net, says: Callable[[bytes], bytes | None], port: int = 123) -> None:
        def opened() -> socket.socket:
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.bind((ROUTER, port))
            made.setblocking(False)
            return made

        self.says = says
        self.questions: list[tuple[bytes, tuple[str, int]]] = []
        self.socket = trio.socket.from_stdlib_socket(world.outside(opened))

    async def run(self) -> None:
        """Answer for ever."""
        while True:
            question, who = await self.socket.recvfrom(1500)
            self.questions.append((question, who))
            if (said := self.says(question)) is not None:
                await self.socket.sendto(said, who)


@contextlib.asynccontextmanager
async def time_server(world: Net, says: Callable[[bytes], bytes | None] = right) -> AsyncIterator[Server]:
    """A server for a while."""
    server = Server(world, says)
    with server.socket:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run)
            yield server
            nursery.cancel_scope.cancel()


async def until(what: str, true: Callable[[], bool]) -> None:
    """Wait for what another task does."""
    with trio.move_on_after(DEADLINE_S / 2):
        while not true():
            await trio.sleep(0.01)
        return
    raise AssertionError(f"not {what}")


@pytest.mark.proves("INV-TIME-4")
async def test_what_the_network_says_is_proposed_to_bay0(world: Net, linda: Room) -> None:
    """Its router is asked, for the lease names no server: three times, and it is told once."""
    with trio.fail_after(DEADLINE_S):
        async with time_server(world) as server, serving(world) as netroom:
            await netroom.connect(linda)
            await until("proposed", lambda: bool(netroom.asked))
            [asked] = netroom.asked
            booted_ms = realtime.wall_ms() - realtime.since_boot_ms() + AHEAD_S * 1000
            assert asked["ask"] == "time"
            assert isinstance(asked["bootedMs"], int)
            assert abs(asked["bootedMs"] - booted_ms) <= WRONG_MS_MAX
            # It came by the room's own address, and says nothing but its number.
            assert {who for _, who in server.questions} == {(ROOM, 68)}
            assert {question[:40] for question, _ in server.questions} == {b"\x23" + bytes(39)}
            asked_times = len(server.questions)
            assert len({question[40:] for question, _ in server.questions}) == asked_times
            assert proposal.AGREEING_MIN <= asked_times <= proposal.PASSES_MAX
            # Connected again, it is not asked again: the round is over.
            await netroom.cut(linda)
            await netroom.connect(linda)
            await trio.sleep(2 * proposal.PASS_US / 1_000_000)
            assert len(server.questions) == asked_times
            assert len(netroom.asked) == 1


@pytest.mark.proves("INV-NET-5")
async def test_a_room_that_is_cut_asks_nobody(world: Net, linda: Room) -> None:
    with trio.fail_after(DEADLINE_S):
        async with time_server(world, lambda _: None) as server, serving(world) as netroom:
            await netroom.connect(linda)
            await until("asked", lambda: bool(server.questions))
            await netroom.cut(linda)
            before = len(server.questions)
            await trio.sleep(3 * proposal.PASS_US / 1_000_000)
            assert len(server.questions) == before < proposal.PASSES_MAX
            # The round goes on where it was, and comes to nothing.
            await netroom.connect(linda)
            await until("asked again", lambda: len(server.questions) == proposal.PASSES_MAX)
            await trio.sleep(2 * proposal.PASS_US / 1_000_000)
            assert len(server.questions) == proposal.PASSES_MAX
            assert netroom.asked == []


async def test_a_server_that_says_never_is_not_asked_again(world: Net, linda: Room) -> None:
    def deny(question: bytes) -> bytes:
        return answer(nonce=question[40:48], stratum=0, reference=b"DENY")

    with trio.fail_after(DEADLINE_S):
        async with time_server(world, deny) as server, serving(world) as netroom:
            await netroom.connect(linda)
            await until("asked", lambda: bool(server.questions))
            await trio.sleep(3 * proposal.PASS_US / 1_000_000)
            assert len(server.questions) == 1
            assert netroom.asked == []


@pytest.mark.proves("INV-TIME-5")
async def test_nonsense_and_what_answers_no_question_is_dropped(world: Net, linda: Room) -> None:
    """A server that guesses numbers, sends noise, and answers right only from another port."""

    def wrong(_question: bytes) -> bytes:
        return answer(nonce=bytes(8), heard=stamp(time.time()), answered=stamp(time.time()), set_at=bytes(8))

    with trio.fail_after(DEADLINE_S):
        async with time_server(world, wrong) as server, serving(world) as netroom:
            elsewhere = Server(world, right, port=1123)
            with elsewhere.socket:
                await netroom.connect(linda)
                for number in range(1, proposal.PASSES_MAX + 1):
                    await until("asked", lambda n=number: len(server.questions) == n)  # type: ignore[misc]
                    question, who = server.questions[-1]
                    for noise in (b"", b"x", bytes(48), bytes(1500)):
                        await server.socket.sendto(noise, who)
                    # The filter lets in only what came from where it was asked.
                    await elsewhere.socket.sendto(right(question) or b"", who)
                await trio.sleep(2 * proposal.PASS_US / 1_000_000)
                assert netroom.asked == []
                # The address was not disturbed by any of it.
                assert linda.addresses() == [f"{ROOM}/24"]


async def test_where_there_is_no_clock_nobody_is_asked_any_more(
    world: Net, linda: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposal, "ROUND_US", 300_000)
    with trio.fail_after(DEADLINE_S):
        async with time_server(world) as server, serving(world) as netroom:
            await netroom.connect(linda)
            # One that was taken, or refused for another reason, is followed by the next.
            netroom.answer = {"error": "one is heard an hour"}
            await until("proposed", lambda: len(netroom.asked) == 2)
            netroom.answer = {"error": organ.NO_CLOCK}
            await until("proposed", lambda: len(netroom.asked) == 3)
            before = len(server.questions)
            await trio.sleep(3 * proposal.PASS_US / 1_000_000)
            assert (len(netroom.asked), len(server.questions)) == (3, before)


@pytest.mark.proves("INV-PRIV-2")
async def test_with_the_powers_of_its_stanza_it_can_ask(world: Net, linda: Room) -> None:
    """Its own process, with its capability and its filter of system calls; it is told nothing of the time."""
    with trio.fail_after(DEADLINE_S):
        async with time_server(world):
            said = await trio.to_thread.run_sync(confined, world, linda, "--time")
            [asked] = [line for line in said if isinstance(line, dict) and "ask" in line]
            assert asked["ask"] == "time"
            booted_ms = realtime.wall_ms() - realtime.since_boot_ms() + AHEAD_S * 1000
            assert abs(asked["bootedMs"] - booted_ms) <= WRONG_MS_MAX


async def test_a_network_without_a_server_is_a_network(world: Net, linda: Room) -> None:
    """The router says that nobody is there, which is nothing to us."""
    with trio.fail_after(DEADLINE_S):
        async with serving(world) as netroom:
            await netroom.connect(linda)
            await trio.sleep((proposal.PASSES_MAX + 1) * proposal.PASS_US / 1_000_000)
            assert netroom.asked == []
            assert linda.addresses() == [f"{ROOM}/24"]
