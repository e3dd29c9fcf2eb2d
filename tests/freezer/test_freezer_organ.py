"""The freezer's hands: real processes in real cgroups, frozen and thawed by the organ's own code."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from bus.envelope import Code, Failure
from bus.server import Call
from organs.freezer import focus
from organs.freezer.facts import Facts
from organs.freezer.focus import Phase, Step
from organs.freezer.organ import Freezer
from organs.freezer.policy import ROOM_INTERVAL_MS
from organs.freezer.rooms import Room
from organs.kernel import _libc, mounts
from organs.kernel.cgroups import Subtree
from tests.bus.wiring import own_schemas

pytestmark = pytest.mark.container
PATIENCE_S = 60
CALL = Call("operator", 0, 2**62)
MNT_DETACH = 2


def unified() -> Path:
    """Where the v2 tree is mounted here."""
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        return next(Path(line.split()[1]) for line in mounts if line.split()[2] == "cgroup2")


@pytest.fixture
def root() -> Iterator[Path]:
    """A directory for rooms; whatever is left in it is killed."""
    path = unified() / f"freezer-test-{os.getpid()}"
    path.mkdir()
    yield path
    (path / "cgroup.kill").write_text("1")
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    for folder, _, _ in os.walk(path, topdown=False):
        os.rmdir(folder)


def spin(cgroup: Path, processes: int = 1) -> list[int]:
    """Processes that never rest, all of them in a cgroup when this returns."""
    pids: list[int] = []
    for _ in range(processes):
        pid = os.fork()
        if pid == 0:
            try:
                (cgroup / "cgroup.procs").write_text("0")
                while True:
                    pass
            finally:
                os._exit(1)
        pids.append(pid)
    # One that moved itself into a frozen cgroup says nothing more, so its arrival is looked for.
    end = time.monotonic() + PATIENCE_S
    while not set(map(str, pids)) <= set((cgroup / "cgroup.procs").read_text().split()):
        assert time.monotonic() < end
        time.sleep(0.0005)
    return pids


class House:
    """A freezer with a builder that makes rooms of spinning processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.groups = Subtree(str(root))
        self.acts: list[tuple[Step, str]] = []
        self.failing: dict[Step, str] = {}
        # What fails waits for this first.
        self.hold = trio.Event()
        self.hold.set()
        self.freezer = Freezer(self.groups, self, own_schemas().interfaces["freezer"])
        self.unable: Failure | OSError | None = None
        # What is being made waits for this first.
        self.may_build = trio.Event()
        self.may_build.set()
        self.building: list[str] = []
        self.made: dict[str, Room] = {}
        self.started: list[tuple[str, Sequence[str], Sequence[int]]] = []
        self.awake_at_acts: list[tuple[str, ...]] = []

    async def perform(self, step: Step, room: str) -> None:
        """As the freezer's hands do it, who have nothing to lend here."""
        self.acts.append((step, room))
        self.awake_at_acts.append(awake(self.root))
        if self.failing.get(step) == room:
            await self.hold.wait()
            raise Failure(Code.REFUSED, "this one fails")

    def forget(self, name: str) -> None:
        """The room is gone."""
        self.made.pop(name, None)

    def find(self, name: str) -> Room | None:
        """What a test says that the room is."""
        return self.made.get(name)

    async def exec(self, name: str, argv: Sequence[str], fds: Sequence[int]) -> int:
        """Say that it was started."""
        if self.unable is not None:
            raise self.unable
        self.started.append((name, argv, fds))
        return 4711

    async def build(self, room: str) -> None:
        """Processes that would run for ever, in place of a persona's."""
        if self.unable is not None:
            raise self.unable
        self.building.append(room)
        await self.may_build.wait()
        spin(self.root / room, 3)

    def stands(self, name: str) -> bool:
        """Whether the room is confirmed frozen."""
        return self.freezer.state.phase(name) is Phase.FROZEN

    async def until(self, ready: Callable[[], bool]) -> None:
        """Wait for what must come."""
        with trio.fail_after(PATIENCE_S):
            while not ready():
                await trio.sleep(0.001)

    async def rooms(self, *names: str) -> None:
        """Have these rooms made."""
        for name in names:
            self.freezer.happen(focus.Start(name))
            await self.until(partial(self.stands, name))

    async def focus(self, room: str) -> None:
        """As the person does it."""
        with trio.fail_after(PATIENCE_S):
            await self.freezer.focus(CALL, {"persona": room})

    async def focus_at_last(self, room: str) -> None:
        """As the person does it who asks again when a host that does other things made it too late."""
        with trio.fail_after(PATIENCE_S):
            while self.freezer.state.focus != room:
                try:
                    await self.freezer.focus(CALL, {"persona": room})
                except Failure as refused:
                    if not refused.message.endswith("too late"):
                        raise

    async def lines(self) -> dict[str, tuple[bool, int]]:
        """What the umbilical is told now."""
        told = [values["line"] for event, values in self.freezer.present() if event == "line"]
        return {str(line["room"]): (bool(line["open"]), int(line["epoch"])) for line in told}  # type: ignore


def awake(root: Path) -> tuple[str, ...]:
    """The rooms that the kernel does not call frozen."""
    return tuple(
        sorted(
            path.parent.name
            for path in root.glob("*/cgroup.events")
            if "frozen 0" in (text := path.read_text()) and "populated 1" in text
        )
    )


@contextlib.asynccontextmanager
async def housed(root: Path) -> AsyncIterator[House]:
    """A living freezer; its rooms outlive it."""
    house = House(root)
    async with trio.open_nursery() as nursery:
        await nursery.start(house.freezer.run)
        yield house
        nursery.cancel_scope.cancel()
    house.groups.close()


async def test_the_focus_moves_and_the_other_stands_still(root: Path) -> None:
    async with housed(root) as house:
        await house.rooms("linda", "courier")
        assert awake(root) == ()
        await house.focus("linda")
        assert awake(root) == ("linda",)
        assert await house.lines() == {"linda": (True, 0), "courier": (False, 0)}
        hand_over: list[tuple[bool, int]] = []

        async def umbilical() -> None:
            await house.until(lambda: house.freezer.state.move is not None)
            hand_over.append((await house.lines())["linda"])
            await house.freezer.hushed(CALL, {"room": "linda", "epoch": hand_over[0][1]})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(umbilical)
            await house.focus("courier")
        assert awake(root) == ("courier",)
        (told,) = hand_over
        assert told[0] is False
        assert told[1] > 0
        assert await house.lines() == {"linda": (False, 0), "courier": (True, 0)}
        assert [step for step, room in house.acts if room == "linda"][-2:] == [Step.REVOKE, Step.CUT]
        # Never two awake, and during a hand-over the network is cut while linda still runs.
        assert all(len(found) <= 1 for found in house.awake_at_acts)
        before = house.groups.cpu_usec("linda")
        courier = house.groups.cpu_usec("courier")
        await house.until(lambda: house.groups.cpu_usec("courier") > courier + 20_000)
        assert house.groups.cpu_usec("linda") == before
        answer = await house.freezer.rooms(CALL, {})
        method = own_schemas().interfaces["freezer"].methods["rooms"]
        decoded = method.decode_results(method.encode_results(answer))
        assert decoded["focus"] == "courier"
        assert isinstance(decoded["rooms"], list)
        assert [(room["name"], room["state"]) for room in decoded["rooms"]] == [
            ("courier", "running"),
            ("linda", "frozen"),
        ]


async def test_a_network_that_cannot_be_cut_keeps_the_focus_where_it_is(root: Path) -> None:
    async with housed(root) as house:
        await house.rooms("linda", "courier")
        await house.focus("linda")
        house.failing = {Step.CUT: "linda"}
        with pytest.raises(Failure, match="this one fails") as refused:
            await house.focus("courier")
        assert refused.value.code is Code.REFUSED
        assert awake(root) == ("linda",)
        house.failing = {Step.CONNECT: "courier"}
        with pytest.raises(Failure, match="courier: connect the network"):
            await house.focus("courier")
        assert awake(root) == ("linda",)
        assert (await house.lines())["linda"][0] is True


@pytest.fixture(name="dead_end")
def _dead_end(tmp_path: Path) -> Iterator[Path]:
    """A file system whose server never answers: who looks into it sleeps and cannot be frozen."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("no /dev/fuse here")
    server = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    path = tmp_path / "dead-end"
    path.mkdir()
    mounts.mount("fuse", str(path), "fuse", 0, f"fd={server},rootmode=40000,user_id=0,group_id=0")
    yield path
    _libc.check(_libc.umount2(bytes(path), MNT_DETACH), "unmount", path)
    os.close(server)


def entangle(cgroup: Path, path: Path) -> int:
    """A process of the room that waits for the file system."""
    pid = os.fork()
    if pid == 0:
        try:
            (cgroup / "cgroup.procs").write_text("0")
            os.listdir(path)
        finally:
            os._exit(1)
    return pid


@pytest.mark.proves("INV-FOCUS-2")
async def test_what_does_not_freeze_is_named_and_the_focus_stays(root: Path, dead_end: Path) -> None:
    async with housed(root) as house:
        await house.rooms("linda", "courier")
        await house.focus("linda")
        pid = entangle(root / "linda", dead_end)
        await house.until(lambda: house.groups.blocker("linda") is not None)
        with pytest.raises(Failure, match="linda: freeze: too late") as refused:
            await house.focus("courier")
        assert refused.value.code is Code.REFUSED
        assert awake(root) == ("linda",)
        rooms = dict(house.freezer.state.rooms)
        assert rooms["linda"].phase is Phase.RUNNING
        assert rooms["linda"].blocker == focus.Blocker(pid, "fuse_get_req")
        # Freed, it freezes.
        os.kill(pid, signal.SIGKILL)
        await house.until(lambda: house.groups.blocker("linda") is None)
        await house.focus_at_last("courier")
        assert awake(root) == ("courier",)


async def test_what_cannot_go_back_is_killed(root: Path, dead_end: Path) -> None:
    """courier was woken, gets no network, and does not freeze again: it dies before linda runs."""
    async with housed(root) as house:
        await house.rooms("linda", "courier")
        await house.focus("linda")
        house.failing = {Step.CONNECT: "courier"}
        house.hold = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(refused_focus, house, "courier"))
            await house.until(lambda: house.acts[-1] == (Step.CONNECT, "courier"))
            entangle(root / "courier", dead_end)
            await house.until(lambda: house.groups.blocker("courier") is not None)
            house.hold.set()
        assert awake(root) == ("linda",)
        assert house.freezer.state.focus == "linda"
        assert house.freezer.state.phase("courier") is Phase.ABSENT
        assert all(len(found) <= 1 for found in house.awake_at_acts)


async def refused_focus(house: House, room: str) -> None:
    """A wish that is not granted."""
    with pytest.raises(Failure):
        await house.focus(room)


async def test_the_death_of_the_focused_room_wakes_the_one_before(root: Path) -> None:
    async with housed(root) as house:
        await house.rooms("linda", "courier")
        await house.focus("linda")
        await house.focus("courier")
        (root / "courier/cgroup.kill").write_text("1")
        await house.until(lambda: house.freezer.state.focus == "linda")
        assert awake(root) == ("linda",)
        assert not (root / "courier").exists()


async def test_a_killed_frozen_room_goes_without_running(root: Path) -> None:
    async with housed(root) as house:
        await house.rooms("linda", "courier")
        await house.focus("linda")
        (root / "courier/cgroup.kill").write_text("1")
        await house.until(lambda: house.freezer.state.phase("courier") is Phase.ABSENT)
        assert awake(root) == ("linda",)


async def test_a_restarted_freezer_finds_what_it_left(root: Path) -> None:
    async with housed(root) as house:
        await house.rooms("linda", "courier")
        await house.focus("linda")
    async with housed(root) as again:
        await again.until(lambda: again.freezer.state.focus == "linda")
        assert awake(root) == ("linda",)
        assert again.freezer.state.phase("courier") is Phase.FROZEN
        await again.focus("courier")
        assert awake(root) == ("courier",)
    # It dies between asking for a freeze and hearing of it.
    (root / "courier/cgroup.freeze").write_text("1")
    async with housed(root) as third:
        await third.until(lambda: third.freezer.state.move is None)
        assert awake(root) == ()
        assert third.freezer.state.focus is None
        await third.focus("linda")
        assert awake(root) == ("linda",)


@pytest.mark.parametrize("unable", [Failure(Code.CORRUPT, "this image is not it"), OSError(28, "no room")])
async def test_a_room_that_cannot_be_built_leaves_nothing(root: Path, unable: Failure | OSError) -> None:
    async with housed(root) as house:
        house.unable = unable
        with pytest.raises(Failure) as refused:
            await house.freezer.start(CALL, {"persona": "linda"})
        assert refused.value.code is (unable.code if isinstance(unable, Failure) else Code.REFUSED)
        await house.until(lambda: not house.freezer.state.rooms)
        assert not list(root.glob("*/"))
        for wish in ("focus", "requestFocus", "stop", "console", "type", "takeListener", "exec"):
            params = {"persona": "linda", "room": "linda", "argv": ["a"]}
            with pytest.raises(Failure) as refused:
                await house.freezer.handlers()[wish](CALL, params)
            # Who asks for another is looked at first: nobody granted anything to a room that is not there.
            assert refused.value.code is (Code.FORBIDDEN if wish == "requestFocus" else Code.NOT_FOUND)
        house.unable = None
        await house.freezer.start(CALL, {"persona": "linda"})
        assert house.freezer.state.phase("linda") is Phase.FROZEN


@pytest.mark.parametrize("populated", [False, True])
async def test_a_room_that_is_stopped_while_it_is_made_is_not_there_afterwards(
    root: Path, *, populated: bool
) -> None:
    async with housed(root) as house:
        house.may_build = trio.Event()
        ends: list[object] = []

        async def start() -> None:
            with pytest.raises(Failure, match="stopped while it was made") as refused:
                await house.freezer.start(CALL, {"persona": "linda"})
            ends.append(refused.value.code)

        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(start)
                await house.until(lambda: house.building == ["linda"])
                if populated:
                    spin(root / "linda")
                await house.freezer.stop(CALL, {"persona": "linda"})
                assert house.freezer.state.rooms == ()
                assert not (root / "linda").exists()
            assert ends == [Code.REFUSED]
            # At once another by the same name, which nothing of the first one disturbs.
            house.may_build.set()
            await house.freezer.start(CALL, {"persona": "linda"})
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert house.building == ["linda", "linda"]
        assert house.freezer.state.phase("linda") is Phase.FROZEN
        assert len((root / "linda/cgroup.procs").read_text().split()) == 3


async def test_a_room_is_stopped_before_it_was_begun_with(root: Path) -> None:
    async with housed(root) as house:
        house.freezer.happen(focus.Start("linda"))
        with trio.fail_after(PATIENCE_S):
            await house.freezer.stop(CALL, {"persona": "linda"})
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert house.freezer.state.rooms == ()
        assert not list(root.glob("*/"))


async def test_a_cgroup_that_is_in_the_way_is_cleared(root: Path) -> None:
    async with housed(root) as house:
        (root / "linda").mkdir()
        spin(root / "linda")
        with pytest.raises(Failure), trio.fail_after(PATIENCE_S):
            await house.freezer.start(CALL, {"persona": "linda"})
        await house.until(lambda: not house.freezer.state.rooms)
        with trio.fail_after(PATIENCE_S):
            await house.freezer.start(CALL, {"persona": "linda"})
        assert house.freezer.state.phase("linda") is Phase.FROZEN


async def test_what_the_builder_still_put_into_a_cgroup_goes_with_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Subtree.remove
    late: list[int] = []

    def remove(groups: Subtree, name: str) -> None:
        if not late:
            late.extend(spin(root / name))
        real(groups, name)

    monkeypatch.setattr(Subtree, "remove", remove)
    async with housed(root) as house:
        await house.rooms("linda")
        with trio.fail_after(PATIENCE_S):
            await house.freezer.stop(CALL, {"persona": "linda"})
        assert len(late) == 1
        await house.until(lambda: not (root / "linda").exists())


async def test_rooms_are_started_and_stopped_once(root: Path) -> None:
    async with housed(root) as house:
        with trio.fail_after(PATIENCE_S):
            await house.freezer.start(CALL, {"persona": "linda"})
            with pytest.raises(Failure) as refused:
                await house.freezer.start(CALL, {"persona": "linda"})
            assert refused.value.code is Code.BUSY
            for name in ("", "Linda", "../linda", "l" * 16, "linda.x"):
                with pytest.raises(Failure) as refused:
                    await house.freezer.start(CALL, {"persona": name})
                assert refused.value.code is Code.INVALID
            await house.focus("linda")
            await house.freezer.stop(CALL, {"persona": "linda"})
        assert house.freezer.state.rooms == ()
        assert not list(root.glob("*/"))
        names = [f"room{number}" for number in range(focus.ROOMS_MAX)]
        await house.rooms(*names)
        with pytest.raises(Failure) as refused:
            await house.freezer.start(CALL, {"persona": "onemore"})
        assert refused.value.code is Code.FULL


def made(*, dies_unfocused: bool = False, may_focus: bool = False) -> Room:
    """What the hands know of a complete room."""
    known = Facts(
        slot=0,
        version=1,
        store="linda@00",
        inbound=None,
        console=False,
        dies_unfocused=dies_unfocused,
        may_focus=may_focus,
        may_update=False,
    )
    return Room(facts=known, cgroup=1, fds={})


@pytest.mark.proves("INV-FOCUS-6")
async def test_a_room_that_must_not_wait_frozen_dies_when_it_loses_the_focus(root: Path) -> None:
    async with housed(root) as house:
        await house.rooms("linda", "courier")
        house.made = {"linda": made(dies_unfocused=True), "courier": made()}
        # It had no focus that it could lose.
        await house.focus("courier")
        assert house.freezer.state.phase("linda") is Phase.FROZEN
        await house.focus("linda")
        await house.focus("courier")
        await house.until(lambda: house.freezer.state.phase("linda") is Phase.ABSENT)
        assert awake(root) == ("courier",)
        assert house.freezer.state.focus == "courier"


@pytest.mark.proves("INV-FOCUS-7")
async def test_only_who_was_granted_it_passes_the_focus_on(root: Path) -> None:
    async with housed(root) as house:
        await house.rooms("linda", "courier")
        house.made = {"linda": made(may_focus=True), "courier": made()}
        await house.focus("courier")
        wish = {"room": "courier", "persona": "linda"}
        with pytest.raises(Failure, match="not granted") as refused:
            await house.freezer.request_focus(CALL, wish)
        assert refused.value.code is Code.FORBIDDEN
        assert awake(root) == ("courier",)
        await house.focus("linda")
        await trio.sleep(ROOM_INTERVAL_MS / 1000)
        await house.freezer.request_focus(CALL, {"room": "linda", "persona": "courier"})
        await house.until(lambda: house.freezer.state.focus == "courier")


@pytest.mark.proves("INV-FOCUS-8")
async def test_a_person_waits_for_a_hand_over_and_comes_before_a_room(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(focus.DEADLINE_MS, Step.HUSH, PATIENCE_S * 1000)
    async with housed(root) as house:
        await house.rooms("a", "b", "c")
        house.made = {name: made(may_focus=True) for name in "abc"}
        await house.focus("a")
        came: list[str | None] = []

        async def person(room: str) -> None:
            await house.focus(room)
            came.append(house.freezer.state.focus)

        async def umbilical() -> None:
            for epoch in range(1, 5):
                await house.until(lambda epoch=epoch: house.freezer.state.epoch == epoch)  # type: ignore[misc]
                await house.freezer.hushed(CALL, {"room": house.freezer.state.focus, "epoch": epoch})

        async with trio.open_nursery() as nursery:
            for room in "bcab":
                nursery.start_soon(person, room)
                await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(Failure, match="moving already") as failure:
                await house.freezer.request_focus(CALL, {"room": "a", "persona": "c"})
            assert failure.value.code is Code.BUSY
            assert came == []
            await umbilical()
        assert came == ["b", "c", "a", "b"]


async def test_a_wish_that_waits_in_vain_moves_nothing(root: Path) -> None:
    """Who asks for the room that ends is told so, and who stopped asking is not served."""
    async with housed(root) as house:
        await house.rooms("a", "b")
        await house.focus("a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.focus, "b")
            await house.until(lambda: house.freezer.state.move is not None)
            with trio.move_on_after(0.01) as gone:
                await house.freezer.focus(CALL, {"persona": "a"})
            assert gone.cancelled_caught
        assert house.freezer.state.focus == "b"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.focus, "a")
            await house.until(lambda: house.freezer.state.move is not None)
            nursery.start_soon(partial(house.freezer.stop, CALL, {"persona": "b"}))
            with pytest.raises(Failure) as failure:
                await house.focus("b")
            assert failure.value.code in (Code.NOT_FOUND, Code.BUSY)
        assert house.freezer.state.focus == "a"


class WithStreams(Call):
    """A call with four descriptors beside it."""

    @property
    def fds(self) -> tuple[int, ...]:
        """Ours, which nobody uses."""
        return 0, 1, 2, 2


async def test_a_program_is_started_in_the_focused_room_only(root: Path) -> None:
    async with housed(root) as house:
        await house.rooms("linda", "courier")
        house.made = {"linda": made(), "courier": made()}
        await house.focus("linda")
        ours = WithStreams("operator", 0, 2**62)
        assert await house.freezer.exec(ours, {"persona": "linda", "argv": ["a", "b"]}) == {"pid": 4711}
        assert house.started == [("linda", ("a", "b"), (0, 1, 2, 2))]
        for name, argv, call, code in (
            ("courier", ["a"], ours, Code.FROZEN),
            ("linda", [], ours, Code.INVALID),
            ("linda", [""], ours, Code.INVALID),
            ("linda", ["a", "b\0"], ours, Code.INVALID),
            ("linda", ["a"] * 300, ours, Code.INVALID),
            ("linda", ["a" * 40000], ours, Code.INVALID),
            ("linda", ["a"], CALL, Code.INVALID),
        ):
            with pytest.raises(Failure) as refused:
                await house.freezer.exec(call, {"persona": name, "argv": argv})
            assert refused.value.code is code
        assert len(house.started) == 1
        # What the kernel refuses is the end of this call, not of the freezer.
        house.unable = OSError(24, "Too many open files")
        with pytest.raises(Failure, match="Too many open files") as refused:
            await house.freezer.exec(ours, {"persona": "linda", "argv": ["a"]})
        assert refused.value.code is Code.REFUSED


async def test_many_hand_overs_never_leave_two_awake(root: Path) -> None:
    """Hand-overs as fast as they go, with the kernel read at each act."""
    names = ("a", "b", "c")
    async with housed(root) as house:
        await house.rooms(*names)
        for turn in range(60):
            await house.focus(names[(turn * turn + turn // 7) % 3])
            assert len(awake(root)) == 1
        assert all(len(found) <= 1 for found in house.awake_at_acts)


async def test_a_hand_over_does_not_wait_for_a_notice_that_the_kernel_holds_back(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells of one cgroup once in ten milliseconds. Here it never tells."""
    silent, other = os.pipe()
    monkeypatch.setattr(Subtree, "fileno", lambda _: silent)
    try:
        async with housed(root) as house:
            await house.rooms("a", "b")
            for turn in range(20):
                await house.focus_at_last("ab"[turn % 2])
                assert awake(root) == ("ab"[turn % 2],)
    finally:
        os.close(silent)
        os.close(other)
