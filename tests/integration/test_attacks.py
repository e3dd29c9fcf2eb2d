"""From inside a room: every attack of tests/rooms/attacks.py is refused, whatever a room sends the umbilical
survives, and two rooms of one image share no page.

Each attack succeeds where nothing protects: tests/rooms/test_attacks.py. Here one room attacks while another
one, of the same image, holds one of each thing that could be reached; then the roles change for some.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import pytest

from bus.envelope import Code
from organs.umbilical.organ import CONNECTIONS_MAX
from spine import paths
from spine.ground.container import Container
from spine.ground.port import PortFailure, schemas
from tests.bay0.spine import cgroup_root
from tests.integration.live import Live, within
from tests.rooms import frames, inside
from tests.rooms.attacks import ATTACKS, Answer, Attack
from tests.rooms.controls import MARK
from tests.rooms.inside import ALPHA, ATTACK, BETA, NOISE, PIDS, UMBILICAL, Rooms, request

SOCKET = "/run/umbilical"
# What every victim must have made, or the attack on it would be one on nothing.
MADE = ("abstract", "path", "tcp", "sysv-memory", "sysv-queue", "sysv-semaphore", "posix-queue", "file")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("container", marks=pytest.mark.container),
        pytest.param("machine", marks=pytest.mark.machine),
    ],
)
def live(request: pytest.FixtureRequest) -> Live:
    """The spine on each ground in turn, all tests of this module on one before the other."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Live)
    return found


@pytest.fixture(scope="module")
def rooms(live: Live, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rooms]:
    """Two rooms of one image on this ground."""
    with inside.two_rooms(live.kind, tmp_path_factory.mktemp(f"rooms-{live.kind}")) as made:
        yield made


def pids_of(live: Live, name: str) -> list[int]:
    """The processes of a room by the host's numbers. Only of the container can they be seen."""
    if live.kind != "container":
        return []
    assert isinstance(live.ground, Container)
    place = cgroup_root() / live.ground.cgroup
    [file] = place.rglob(f"{name}/cgroup.procs")
    inner = [line for each in file.parent.rglob("cgroup.procs") for line in each.read_text().split()]
    return [int(line) for line in inner]


@contextlib.contextmanager
def victim_in(rooms: Rooms, name: str) -> Iterator[None]:
    """A victim in a room, which has the focus for as long as it takes to make it."""
    rooms.focus(name)
    with rooms.started(name, ATTACK, "victim", MARK, "/tmp", until="ready") as seen:
        assert set(seen[0].removeprefix("made:").split()) == set(MADE)
        yield


@pytest.fixture(scope="module")
def attacked(live: Live, rooms: Rooms) -> Mapping[str, Answer]:
    """How every attack ends that ALPHA makes while BETA, frozen, holds what could be reached."""
    with victim_in(rooms, BETA):
        pids = pids_of(live, BETA)
        rooms.focus(ALPHA)
        answers = rooms.tried(ATTACKS, ALPHA, pids)
    rooms.focus(ALPHA)
    return answers


@pytest.fixture(scope="module")
def missing(live: Live) -> list[str]:
    """What this ground has not got."""
    return cast(list[str], live.boot_facts()["missing"])


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_from_a_room_is_refused(
    missing: list[str], attacked: Mapping[str, Answer], attack: Attack
) -> None:
    answer = attacked[attack.name]
    if answer.reached and attack.needs in missing:
        pytest.skip(f"this ground has no {attack.needs}, which refuses {attack.name}: {answer.said}")
    if attack.conceded:
        assert attack.conceded in (paths.ROOT / "docs/threats.md").read_text()
        assert answer.reached, f"docs/threats.md concedes {attack.name}, which is refused: {answer.said}"
    else:
        assert not answer.reached, f"{attack.name} reached {answer.said}"


def test_after_all_attacks_every_organ_is_as_it_was(live: Live, attacked: Mapping[str, Answer]) -> None:
    assert attacked
    table = live.table()
    assert {name: row["state"] for name, row in table.items() if name != "boot"}
    assert {row["deaths"] for name, row in table.items() if name != "boot"} == {0}


def test_a_rooms_own_things_are_reached_from_within(rooms: Rooms) -> None:
    """The same attacks on a victim in the room itself: where they are refused, it is the room's doing."""
    own = {"process-seen", "process-signal", "unix-abstract", "unix-path", "tcp-loopback", "sysv-memory"}
    own |= {"sysv-queue", "sysv-semaphore", "posix-queue", "secret-of-another"}
    attacks = [attack for attack in ATTACKS if attack.name in own]
    assert len(attacks) == len(own)
    with victim_in(rooms, ALPHA):
        answers = rooms.tried(attacks, ALPHA, [])
    assert not {name: answer.said for name, answer in answers.items() if not answer.reached}


@pytest.mark.container
@pytest.mark.proves("INV-ROOM-2")
def test_two_rooms_of_one_image_share_no_page(container: Live, rooms: Rooms) -> None:
    if rooms.ground != "container":
        pytest.skip("the page map of the machine is not for its host to read")
    with victim_in(rooms, BETA):
        rooms.focus(ALPHA)
        with rooms.started(ALPHA, NOISE, "hold", SOCKET, until="held"):
            sets = {
                name: set().union(*(frames.of(pid) for pid in pids_of(container, name)))
                for name in (ALPHA, BETA)
            }
    assert min(map(len, sets.values())) > 50
    assert not sets[ALPHA] & sets[BETA]


@pytest.mark.container
@pytest.mark.proves("INV-ROOM-7")
@pytest.mark.proves("INV-ROOM-20")
def test_two_rooms_have_no_user_in_common(container: Live, rooms: Rooms) -> None:
    if rooms.ground != "container":
        pytest.skip("the processes of the machine are not for its host to read")
    ranges = []
    for name in (ALPHA, BETA):
        pid = pids_of(container, name)[0]
        [row] = Path(f"/proc/{pid}/uid_map").read_text().splitlines()
        first, outer, count = map(int, row.split())
        assert (first, count) == (0, 65536)
        assert outer > 0
        assert row == Path(f"/proc/{pid}/gid_map").read_text().rstrip("\n")
        ranges.append(range(outer, outer + count))
    assert not set(ranges[0]) & set(ranges[1])


# ---- what a room may send the umbilical --------------------------------------------------------------------


def table_of(*sizes: int, count: int | None = None) -> bytes:
    """A segment table that announces these sizes, in words."""
    words = struct.pack(f"<{1 + len(sizes)}I", (len(sizes) if count is None else count) - 1, *sizes)
    return words + bytes(-len(words) % 8)


def random_frames(seed: int, number: int, size: int) -> bytes:
    """Frames of one size whose table is right and whose words are anything."""
    dice = random.Random(seed)
    return b"".join(table_of(size // 8 - 1) + dice.randbytes(size - 8) for _ in range(number))


@contextlib.contextmanager
def unharmed(live: Live, rooms: Rooms) -> Iterator[None]:
    """The umbilical is the same incarnation after it, holds no more than before, and serves the rooms.

    Under emulation a hand-over takes seconds: there the other room is asked where a test does so itself.
    """
    rooms.focus(ALPHA)
    before, held = live.table()["umbilical"], descriptors(live)
    yield
    for name in (BETA, ALPHA) if live.kind == "container" else (ALPHA,):
        rooms.focus(name)
        assert name in rooms.exec(name, UMBILICAL, "status")
    after = live.table()["umbilical"]
    assert {key: after[key] for key in ("pid", "generation", "deaths", "state")} == {
        key: before[key] for key in ("pid", "generation", "deaths", "state")
    }
    within("it holds no descriptor more than before", lambda: descriptors(live) <= held, 60)


def descriptors(live: Live) -> int:
    """How many descriptors the umbilical holds, as bay0 reads it of the kernel."""
    seen = cast(dict[str, list[str]], live.probe("process", "umbilical"))
    return len(seen["fds"])


def counter(live: Live, room: str, name: str) -> int:
    """A counter of the room's line."""
    [line] = [
        one
        for one in cast(list[dict[str, int | str]], live.call("umbilical.links")["links"])
        if one["room"] == room
    ]
    return int(line[name])


CLOSED = {
    "no table": b"\xff" * 64,
    "a segment too many": table_of(*[1] * 64, count=65),
    "the largest segment": table_of(2**32 - 1),
    "many segments, together too large": table_of(*[2**20] * 63),
    "a word over the limit": table_of((1024 * 1024 + 64 * 1024) // 8 + 1),
    "a pointer out of the message": table_of(1) + struct.pack("<iHH", 1000, 8, 8),
    "a list out of the message": table_of(3) + struct.pack("<iHHQQ", 0, 1, 1, 0, 0xFFFFFFFF00000001),
    "a pointer to itself": table_of(2) + struct.pack("<iHHiHH", 0, 0, 1, -4, 0, 1),
    "no words at all": table_of(0),
    "a verb that is none": request().replace(struct.pack("<QQ", 1, 4), struct.pack("<QQ", 1, 0xFFFF)),
}


@pytest.mark.parametrize("name", CLOSED)
def test_what_is_no_message_ends_its_own_connection(live: Live, rooms: Rooms, name: str) -> None:
    with unharmed(live, rooms):
        before = counter(live, ALPHA, "refused")
        said = rooms.exec(ALPHA, NOISE, "talk", SOCKET, "30", stdin=CLOSED[name])
        assert said.split("\n")[-2] == "closed"
        assert counter(live, ALPHA, "refused") == before + 1


def test_random_words_are_closed_or_answered(live: Live, rooms: Rooms) -> None:
    with unharmed(live, rooms):
        said = rooms.exec(
            ALPHA, NOISE, "scatter", SOCKET, "128", "0.2", stdin=random_frames(7, 100, 128), code=None
        )
        *answers, counts, _ = said.split("\n")[:-1]
        assert re.fullmatch(r"pieces 100 closed \d+", counts)
        for answer in filter(None, answers):
            response = schemas().messages["umbilical.Response"].decode(bytes.fromhex(answer))
            assert response["code"] != "internal"


def test_a_half_sent_message_does_not_hold_the_hand_over(live: Live, rooms: Rooms) -> None:
    whole = request(verb="put", key=b"half", value=bytes(100_000))
    with unharmed(live, rooms):
        before = counter(live, ALPHA, "refused")
        with rooms.started(ALPHA, NOISE, "hold", SOCKET, until="held", stdin=whole[:50_000]):
            rooms.focus(BETA)
            assert BETA in rooms.exec(BETA, UMBILICAL, "status")
            assert counter(live, ALPHA, "refused") == before, "a room that stands still is not late"
            rooms.focus(ALPHA)
            within("closed, late", lambda: counter(live, ALPHA, "refused") == before + 1, 60)
        rooms.exec(ALPHA, UMBILICAL, "get", "half", code=4)


def test_a_flood_of_connections_fills_the_rooms_own_share(live: Live, rooms: Rooms) -> None:
    with unharmed(live, rooms):
        said = rooms.exec(ALPHA, NOISE, "flood", SOCKET, "300", "60")
        made, refused, closed = map(int, re.findall(r"\d+", said.split("\n")[0]))
        assert made + refused == 300
        assert made - closed == CONNECTIONS_MAX
        rooms.focus(BETA)
        assert BETA in rooms.exec(BETA, UMBILICAL, "status")


def test_connections_that_a_frozen_room_keeps_are_no_other_rooms(live: Live, rooms: Rooms) -> None:
    with unharmed(live, rooms), contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS_MAX):
            stack.enter_context(rooms.started(ALPHA, NOISE, "hold", SOCKET, until="held"))
        assert counter(live, ALPHA, "connections") == CONNECTIONS_MAX
        rooms.exec(ALPHA, UMBILICAL, "status", code=None)
        rooms.focus(BETA)
        rooms.exec(BETA, UMBILICAL, "list")


@pytest.mark.parametrize("data", [request(), bytes(4), b"\xff" * 8], ids=["whole", "half", "wrong"])
def test_descriptors_that_come_along_are_not_kept(live: Live, rooms: Rooms, data: bytes) -> None:
    with unharmed(live, rooms):
        said = rooms.exec(ALPHA, NOISE, "descriptors", SOCKET, "253", "40", stdin=data)
        assert re.match(r"sent [1-9]", said)


def test_descriptors_beside_half_a_message_are_not_held_until_it_is_whole(live: Live, rooms: Rooms) -> None:
    with unharmed(live, rooms):
        held = descriptors(live)
        # A put of a megabyte that never ends: the connection stays open for as long as that may take.
        half = table_of(2**17)
        with rooms.started(ALPHA, NOISE, "descriptors", SOCKET, "253", "2", until="sent 2", stdin=half):
            assert descriptors(live) <= held + 1


def test_who_never_reads_waits_in_his_own_memory(live: Live, rooms: Rooms) -> None:
    with unharmed(live, rooms):
        said = rooms.exec(ALPHA, NOISE, "deaf", SOCKET, stdin=request(verb="list", limit=1000))
        sent = int(said.split("\n")[0].removeprefix("sent "))
        assert said.split("\n")[-2] == "open"
        assert sent < 64 << 20


# ---- images that lie about their own directories -----------------------------------------------------------

PLACES = (
    "dev",
    "proc",
    "sys",
    "run",
    "tmp",
    "etc",
    "dev/null",
    "dev/pts",
    "run/umbilical",
    "etc/resolv.conf",
)
# The spine takes no other image of a version that it had, also after the persona was removed.
VERSIONS = itertools.count(1)
TRICKS = {"up": "../../../../../../tmp/spine-trick", "absolute": "/usr/bin", "itself": "itself"}


@pytest.mark.proves("INV-ROOM-3")
@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("place", PLACES)
def test_an_image_with_a_link_where_the_spine_mounts_is_refused_or_harmless(
    live: Live, rooms: Rooms, tmp_path: Path, place: str, trick: str
) -> None:
    if live.kind != "container":
        pytest.skip("the container shows it: the code is the same, and each takes a hand-over")
    before = live.table()
    data = inside.squashed(tmp_path, {place: TRICKS[trick]})
    name = "trick"
    rooms.persona("install", str(inside.persona_file(tmp_path, name, data, next(VERSIONS))))
    try:
        rooms.persona("start", name, code=None)
        if name in rooms.rooms():
            rooms.focus(name)
            looks = [attack for attack in ATTACKS if attack.name.startswith(("foreign-", "spine-", "write-"))]
            answers = rooms.tried(looks, name, [])
            assert not {known: answer.said for known, answer in answers.items() if answer.reached}
    finally:
        rooms.persona("stop", name, code=None)
        rooms.persona("remove", name)
        rooms.focus(ALPHA)
    assert not Path("/tmp/spine-trick").exists()
    after = live.table()
    assert {known: row["deaths"] for known, row in after.items()} == {
        known: row["deaths"] for known, row in before.items()
    }


# ---- names and words that a person, or a script of his, may give ------------------------------------------

NAMES = (
    "",
    ".",
    "..",
    "../x",
    "-x",
    "a" * 100,
    f"{ALPHA}\0",
    f"{ALPHA}/x",
    f"{ALPHA}/../{BETA}",
    "cgroup.procs",
)
NAMED: dict[str, dict[str, object]] = {
    "operator.exec": {"persona": "", "argv": [ATTACK]},
    "freezer.focus": {"persona": ""},
    "freezer.start": {"persona": ""},
    "freezer.stop": {"persona": ""},
    "integrity.remove": {"name": ""},
}
COMMANDS: dict[str, list[str]] = {
    "no words": [],
    "no name": [""],
    "too many words": [ATTACK] * 129,
    "a word too long": ["x" * 8193],
    "words too long together": [ATTACK, *["y" * 1000] * 9],
    "a zero byte": [ATTACK, "a\0b"],
}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_name_is_refused_by_every_call_that_takes_one(live: Live, rooms: Rooms, name: str) -> None:
    assert rooms
    before = live.table()
    for method, params in NAMED.items():
        key = next(iter(params))
        with pytest.raises(PortFailure) as refused:
            live.call(method, **{**params, key: name})
        assert refused.value.failure.code in (Code.NOT_FOUND, Code.INVALID), method
    assert live.table().keys() == before.keys()
    assert {each: row["pid"] for each, row in live.table().items()} == {
        each: row["pid"] for each, row in before.items()
    }


@pytest.mark.parametrize("which", COMMANDS)
def test_what_is_no_command_is_refused(live: Live, rooms: Rooms, which: str) -> None:
    rooms.focus(ALPHA)
    with pytest.raises(PortFailure) as refused:
        live.call("operator.exec", persona=ALPHA, argv=COMMANDS[which])
    assert refused.value.failure.code is Code.INVALID


def test_a_room_cannot_have_more_processes_than_its_manifest_says(missing: list[str], rooms: Rooms) -> None:
    """However they are asked for: by a bomb inside, or by ./spine exec outside."""
    if "cgroup.pids" in missing:
        pytest.skip("this ground has no cgroup.pids")
    [attack] = [attack for attack in ATTACKS if attack.name == "many-processes"]
    answer = rooms.tried([attack], ALPHA, [])["many-processes"]
    made = re.search(r"after (\d+) processes", answer.said)
    assert made is not None
    assert int(made[1]) < PIDS
