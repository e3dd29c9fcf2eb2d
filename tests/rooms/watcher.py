"""An independent watcher of rooms: which of them may run, moment by moment, as the kernel says.

`python -m tests.rooms.watcher DIRECTORY` watches every cgroup directly below the directory, those
that come and go as well, until its standard input ends. It writes lines of JSON: each change of a room with
its time (CLOCK_MONOTONIC, ns), each violation when it is seen, and a summary at the end. It shares no line
with the freezer: own epoll, own reads of cgroup.events and cgroup.freeze.

A room is *awake* from the moment that it was told to run until the kernel says that all of it is frozen, or
that nothing lives in it. Two awake rooms at one moment are a violation.

Why two readings are not enough: A is read awake, then A freezes and B is thawed, then B is read awake. So
whenever one sweep finds two awake, A is read, B is read, A is read again; and A must have been awake all the
while between its two readings. That is known from cgroup.stat.local (Linux 6.18): its `frozen_usec` counts
how long the cgroup has been *told* to freeze. If A was told to run at both readings and the count stands
still, it was never told to freeze between them; if it was told to freeze, and is not frozen, and the count
went on with the clock, it was never thawed between them. On a kernel without that file only readings that
lie closer together than any hand-over can be are believed.

The second witness is the processor time: a room that is confirmed frozen for `GRACE_S` and stays so gains not
one microsecond of `usage_usec`. The grace is for the kernel's own work: a task calls itself frozen before it
leaves the processor. One that was born into a frozen room has a few microseconds of the kernel's to go before
it stands; so counting begins when no task waits for a processor, and begins anew when one was born or died.

What it sees: every overlap that lasts longer than a sweep (the summary says how long sweeps took, and the
longest time without one), and a shorter one by chance. What it does not see: an overlap that begins and ends
between two sweeps. Notifications do not help there: the kernel holds them back for up to 10 ms and folds
several into one. They are used to notice that more happened than was read: a room that was frozen at two
readings, and was told to freeze for less than the time between them, ran in between (`unseen`).
A room that is being killed is not frozen for a moment although it was told to be: it dies without returning
to its programs, which is `leaving` here, and is not awake unless it was awake when it was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import time
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Final

# A confirmed room's processor time must stand still from then on; far above a task's way to the scheduler.
GRACE_S: Final = 0.05
# How often a frozen room's processor time is read: the kernel sums it up over all processors each time.
USAGE_S: Final = 0.02
# How often the directory is listed. A room is made in no less than some milliseconds, and frozen.
LIST_S: Final = 0.001
# Two readings of one room that belong together, where the kernel has no count to show that they do: a
# hand-over and back is four writes and two answers of the kernel to two epolls.
CLOSE_NS: Final = 300_000
# The same with the count, for a room on its way to be frozen. Within it, it could be frozen and then killed.
BRACKET_NS: Final = 5_000_000
# The count is in microseconds and its clock is read a little before or after ours.
SKEW_NS: Final = 3_000
# A room that ran for less than this between two readings is not told from the time that the readings took.
UNSEEN_NS: Final = 500_000
# Of one kind; the first are enough to know, and a spine without any promise makes thousands.
VIOLATIONS_MAX: Final = 50
# Above every ordinary process, or the rooms that never rest would run while nobody looks. It pauses a little
# after each sweep, so that it leaves most of a processor to the others.
PRIORITY: Final = 1
PAUSE_S: Final = 20e-6


class State(Enum):
    """What a room is doing. The values are what is written."""

    EMPTY = "empty"
    FROZEN = "frozen"  # told to, and so
    LEAVING = "leaving"  # told to, was so, and something of it is dying or being born
    FREEZING = "freezing"  # told to, and not yet
    THAWED = "thawed"


AWAKE: Final = frozenset({State.THAWED, State.FREEZING})


@dataclass(frozen=True, slots=True)
class Reading:
    """What the kernel said. `asked_usec`: how long the room has been told to freeze; None: not known."""

    populated: bool
    frozen: bool
    asked: bool
    asked_usec: int | None = None


def state(reading: Reading, before: State | None) -> State:
    """What a reading means after the state that was seen before it. Pure."""
    if not reading.populated:
        return State.EMPTY
    if not reading.asked:
        return State.THAWED
    if reading.frozen:
        return State.FROZEN
    # Empty and told to freeze is frozen: what is born there is born frozen.
    return State.LEAVING if before in (State.FROZEN, State.LEAVING, State.EMPTY) else State.FREEZING


def awake_between(first: Reading, second: Reading, inner_ns: int, outer_ns: int) -> bool:
    """Whether a room that was awake at two readings was so all the time between them. Pure.

    `inner_ns` passed at least, `outer_ns` at most, from the one count to the other.
    """
    if not (first.populated and second.populated) or first.asked is not second.asked:
        return False
    if first.asked and (first.frozen or second.frozen):
        return False
    if first.asked_usec is None or second.asked_usec is None:
        return outer_ns <= CLOSE_NS
    told_ns = (second.asked_usec - first.asked_usec) * 1000
    if not first.asked:
        return told_ns == 0
    return told_ns + SKEW_NS >= inner_ns and outer_ns <= BRACKET_NS


def stands(task: bytes) -> bool:
    """Whether a task neither runs nor waits for a processor."""
    try:
        with open(b"/proc/" + task + b"/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] != b"R"
    except OSError:
        return False  # it has just gone


class Gone(Exception):
    """The room's cgroup was removed."""


class Room:
    """One cgroup and what was seen of it."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._fds: dict[str, int] = {}
        try:
            for name in ("cgroup.events", "cgroup.freeze", "cpu.stat", "cgroup.threads"):
                self._fds[name] = os.open(path / name, os.O_RDONLY | os.O_CLOEXEC)
            with contextlib.suppress(FileNotFoundError):
                self._fds["cgroup.stat.local"] = os.open(
                    path / "cgroup.stat.local", os.O_RDONLY | os.O_CLOEXEC
                )
        except OSError:
            self.close()
            raise Gone from None
        self.state: State | None = None
        self.since_ns = 0
        # The last time that it was frozen, and how long it had been told to by then.
        self.told: tuple[int, int] | None = None
        # What it had used when all its tasks stood, which those were, and when that was last compared.
        self.used: tuple[int, bytes] | None = None
        self.used_ns = 0

    @property
    def events(self) -> int:
        """The descriptor that the kernel marks."""
        return self._fds["cgroup.events"]

    def close(self) -> None:
        """Let go of it."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def _text(self, name: str, size: int = 256) -> bytes:
        try:
            return os.pread(self._fds[name], size, 0)
        except OSError:
            raise Gone from None

    def look(self) -> Reading:
        """What it is now, without the count."""
        events = self._text("cgroup.events")
        return Reading(
            b"populated 1" in events, b"frozen 1" in events, self._text("cgroup.freeze")[:1] == b"1"
        )

    def asked_usec(self) -> int | None:
        """How long it has been told to freeze, all in all."""
        if "cgroup.stat.local" not in self._fds:
            return None
        return int(self._text("cgroup.stat.local").split()[1])

    def tasks(self) -> bytes:
        """The numbers of its tasks."""
        return self._text("cgroup.threads", 65536)

    def used_usec(self) -> int:
        """Its processor time."""
        words = self._text("cpu.stat", 1024).split()
        return int(words[words.index(b"usage_usec") + 1])


class Watcher:
    """All rooms of a directory."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._rooms: dict[str, Room] = {}
        self._marks = select.epoll()
        self._listed_ns = 0
        self._swept_ns = 0
        self._overlap: frozenset[str] = frozenset()
        self.counts = {
            "sweeps": 0,
            "changes": 0,
            "rooms": 0,
            "suspicions": 0,
            "unseen": 0,
            "violations": 0,
            "frozenSpansCompared": 0,
            "longestWithoutSweepUsec": 0,
        }

    def sweep(self) -> None:
        """Look at every room once."""
        marked = {fd for fd, _ in self._marks.poll(0)}
        now = time.monotonic_ns()
        if self._swept_ns:
            gap = (now - self._swept_ns) // 1000
            self.counts["longestWithoutSweepUsec"] = max(self.counts["longestWithoutSweepUsec"], gap)
        self._swept_ns = now
        self.counts["sweeps"] += 1
        if now - self._listed_ns > LIST_S * 1e9:
            self._list()
            self._listed_ns = now
        for room in list(self._rooms.values()):
            try:
                self._look(room, marked=room.events in marked)
            except Gone:
                self._forget(room)
        awake = [room for room in self._rooms.values() if room.state in AWAKE]
        if len(awake) > 1:
            self._suspect(awake)
        else:
            self._overlap = frozenset()

    def _list(self) -> None:
        with os.scandir(self._root) as entries:
            names = {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
        for name in names - self._rooms.keys():
            with contextlib.suppress(Gone):
                room = Room(self._root / name)
                self._marks.register(room.events, select.EPOLLPRI)
                self._rooms[name] = room
                self.counts["rooms"] += 1
        for name in self._rooms.keys() - names:
            self._forget(self._rooms[name])

    def _forget(self, room: Room) -> None:
        self._say("change", room=room.name, was=room.state.value if room.state else None, now="gone")
        self._marks.unregister(room.events)
        room.close()
        del self._rooms[room.name]

    def _look(self, room: Room, *, marked: bool) -> None:
        seen = state(room.look(), room.state)
        now = time.monotonic_ns()
        if seen is not room.state:
            self.counts["changes"] += 1
            self._say("change", room=room.name, was=room.state.value if room.state else None, now=seen.value)
            room.state, room.since_ns, room.used = seen, now, None
            if seen is not State.FROZEN:
                room.told = None
        if seen is not State.FROZEN:
            return
        if (marked or room.told is None) and (asked_usec := room.asked_usec()) is not None:
            self._ran_unseen(room, asked_usec)
        if now - room.used_ns > USAGE_S * 1e9 and now - room.since_ns > GRACE_S * 1e9:
            self._compare(room)

    def _ran_unseen(self, room: Room, asked_usec: int) -> None:
        """A room that was frozen at the last reading and is so at this one: was it told to run between?"""
        now = time.monotonic_ns()
        if room.told is not None:
            at, before = room.told
            awake_ns = now - at - (asked_usec - before) * 1000
            if awake_ns > UNSEEN_NS:
                self.counts["unseen"] += 1
                room.since_ns, room.used = now, None
                self._say("unseen", room=room.name, awakeUsec=awake_ns // 1000)
        room.told = (now, asked_usec)

    def _compare(self, room: Room) -> None:
        """The second witness."""
        before = room.used
        used_usec, tasks = room.used_usec(), room.tasks()
        if (asked_usec := room.asked_usec()) is not None:
            self._ran_unseen(room, asked_usec)
        room.used_ns = time.monotonic_ns()
        if before is None or room.used is None or tasks != before[1]:
            room.used = (used_usec, tasks) if all(map(stands, tasks.split())) else None
            if room.used is not None and room.used_usec() != used_usec:
                room.used = None  # it came to a stand between the two looks
        elif room.look().frozen:
            self.counts["frozenSpansCompared"] += 1
            if used_usec != before[0]:
                gained = used_usec - before[0]
                self._violation(f"{room.name} was frozen and used {gained} us", gained=gained)
                room.used = (used_usec, tasks)

    def _suspect(self, awake: list[Room]) -> None:
        """A sweep found two awake rooms: at one moment?"""
        self.counts["suspicions"] += 1
        first, second, *_ = awake
        try:
            before = first.look()
            begin = time.monotonic_ns()
            asked = first.asked_usec()
            inner = time.monotonic_ns()
            other = second.look()
            inner = time.monotonic_ns() - inner
            asked_again = first.asked_usec()
            outer = time.monotonic_ns() - begin
            after = first.look()
        except Gone:
            return
        one, two = (
            Reading(each.populated, each.frozen, each.asked, count)
            for each, count in ((before, asked), (after, asked_again))
        )
        names = frozenset((first.name, second.name))
        if (
            state(one, first.state) in AWAKE
            and state(two, first.state) in AWAKE
            and state(other, second.state) in AWAKE
            and awake_between(one, two, inner, outer)
            and names != self._overlap
        ):
            self._overlap = names
            self._violation(
                f"{first.name} and {second.name} were awake at one moment",
                first=[asdict(one), asdict(two)],
                second=asdict(other),
                bracketNs=outer,
            )

    def _violation(self, what: str, **facts: object) -> None:
        self.counts["violations"] += 1
        if self.counts["violations"] <= VIOLATIONS_MAX:
            self._say("violation", what=what, **facts)

    def _say(self, kind: str, **facts: object) -> None:
        say(kind, **facts)

    def close(self) -> None:
        """Let go of everything."""
        for room in self._rooms.values():
            room.close()
        self._marks.close()


def say(kind: str, **facts: object) -> None:
    """One line."""
    line = json.dumps({"kind": kind, "at": time.monotonic_ns(), **facts}) + "\n"
    os.write(1, line.encode())


def main(root: Path) -> None:
    """Watch until standard input ends."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    watcher = Watcher(root)
    ended = select.poll()
    ended.register(0, select.POLLIN | select.POLLHUP)
    began, look_again = time.monotonic(), 0.0
    say("begun")
    while True:
        watcher.sweep()
        time.sleep(PAUSE_S)
        if (now := time.monotonic()) > look_again:
            if ended.poll(0):
                break
            look_again = now + 0.05
    watcher.close()
    say("summary", seconds=round(time.monotonic() - began, 1), **watcher.counts)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
