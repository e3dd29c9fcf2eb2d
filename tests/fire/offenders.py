"""Organs that misbehave: one offends, everybody else goes on. Rounds of it, one offence at a time.

`python -m tests.fire.offenders --seconds 20` first proves the harness on seeded bugs, then runs a round of
each offence and writes docs/evidence/fire-offenders.json; a violation ends it and nothing is written. Needs
root.

The offender is the umbilical, which reads what personas write and so is the organ that would be taken over.
Its main is replaced in the image by one that misbehaves in a thread, with the powers that its stanza grants
and no other; its victim is the gate. Callers put and get over the operator meanwhile. What must hold: PID 1
lives, no organ but the offender is restarted, each of the callers' calls is answered, nothing acknowledged
is lost, and the offence really happened: the offender says in its log how far it came.

One offence has another victim, and says so: an unfinished multi-part message without end is counted by no
limit of libzmq, so that the callee's own memory limit ends the callee. The calls then end typed, and
everybody else lives.

A container ground has no version 2 controllers where version 1 holds them. There the rounds bring the limits
of the manifest themselves, as groups of version 1, which they remove again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from organs.manifest import Organ, load
from spine import paths
from spine.ground.port import schemas
from tests.fire.caller import LATE_S, Caller
from tests.fire.evidence import commit, covered
from tests.fire.rig import (
    MANIFEST,
    Overlay,
    Result,
    Spine,
    answers,
    children_of,
    development,
    number_inside,
    settle,
)

EVIDENCE = paths.ROOT / "docs/evidence/fire-offenders.json"
COVERED = ("organs", "bus", "schemas", "tests/fire")
OFFENDER, VICTIM = "umbilical", "gate"
OFFENDER_FILE = f"organs/{OFFENDER}/organ.py"
# What is not the offence's fault ends like this.
ANSWERED = frozenset({"answered", "NOT_FOUND"})
# What the calls of a victim that was killed may end like.
TYPED = ANSWERED | {"PEER_DIED", "STALE", "BUSY", "DEADLINE"}
CALLERS = 2
PATIENCE_S = 60.0
# The same, and how long an offence goes on, on a spine with a seeded bug: what is waited for does not come.
BUG_PATIENCE_S = 6.0
BUG_SECONDS = 3.0
POLL_S = 0.05
VERSION_1 = Path("/sys/fs/cgroup")

# The offender's main: itself, and the offence beside it in a thread. `count` says how far it came.
BESIDE = """

_honest = main


def _offence() -> None:
    import socket, threading, time
    path = "/run/spine/bus/gate.umbilical"
    said = [0.0]

    def count(number: int) -> None:
        if time.monotonic() > said[0] + 0.2:
            said[0] = time.monotonic()
            say(f"offended {number}")

    time.sleep(0.7)
    say("offended 0")
    number = 0
"""
THREAD = """

async def main(spine: Spine) -> None:
    import threading
    threading.Thread(target=_offence, daemon=True).start()
    await _honest(spine)
"""


@dataclass(frozen=True)
class Offence:
    """What the offender does, as lines of Python; and what must and may come of it."""

    name: str
    code: str
    # Organs that may be restarted beside the offender. Empty is the promise; a name is an honest exception.
    may_die: frozenset[str] = frozenset()
    # The offender must have been ended for it.
    dies: bool = False
    # Limits of the manifest without which there is nothing to be shown.
    needs: tuple[str, ...] = ()
    # From outside: this signal to the offender, again and again.
    signal: int | None = None

    @property
    def outcomes(self) -> frozenset[str]:
        """How the callers' calls may end."""
        return TYPED if self.may_die else ANSWERED

    def overlay(self, base: Overlay) -> dict[str, bytes]:
        """The base with the offender in it."""
        text = base.get(OFFENDER_FILE, (paths.ROOT / OFFENDER_FILE).read_bytes()).decode()
        code = "".join(f"    {line}\n" for line in self.code.strip("\n").splitlines())
        return {**base, OFFENDER_FILE: (text + BESIDE + code + THREAD).encode()}


CONNECT = """
def connect():
    one = socket.socket(socket.AF_UNIX)
    try:
        one.connect(path)
    except OSError:
        one.close()
        raise
    return one
"""
# Greeting and READY of a DEALER that says nothing else of itself.
ZMTP = r"""
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
READY = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
"""
DEALER = """
import zmq
from bus.envelope import Envelope, Kind, pack
dealer = zmq.Context().socket(zmq.DEALER)
dealer.set(zmq.RCVHWM, 1)
dealer.connect("ipc://" + path)
def throw(data):
    try:
        dealer.send(data, zmq.DONTWAIT)
        return 1
    except zmq.Again:
        time.sleep(0.0005)
        return 0
"""

OFFENCES = (
    Offence(
        "connections held open until its descriptors are gone, and as many again in flight",
        CONNECT
        + """
left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
held, flying = [], 0
while True:
    try:
        held.append(connect())
    except OSError as error:
        if error.errno == 24 and len(held) > 50:
            try:
                # Sent and not received: no descriptor of ours any more, and still connections.
                socket.send_fds(left, [b"x"], [one.fileno() for one in held[:50]], socket.MSG_DONTWAIT)
                flying += 50
                for one in held[:50]:
                    one.close()
                del held[:50]
            except OSError:
                time.sleep(0.01)
        else:
            time.sleep(0.01)
    count(len(held) + flying)
""",
    ),
    Offence(
        "connections opened and closed as fast as possible",
        CONNECT
        + """
while True:
    with __import__("contextlib").suppress(OSError):
        connect().close()
        number += 1
    count(number)
""",
    ),
    Offence(
        "connections that stop within the handshake or behind it",
        CONNECT
        + ZMTP
        + """
held = []
while True:
    try:
        held.append(connect())
        held[-1].sendall(GREETING + READY if len(held) % 2 else GREETING[: len(held) % 64 + 1])
    except OSError:
        time.sleep(0.01)
    count(len(held))
""",
    ),
    Offence(
        "frames of noise as fast as possible",
        DEALER
        + """
import os
noise = [os.urandom(size) for size in (0, 1, 40, 64, 4000, 60000)]
while True:
    number += throw(noise[number % 6])
    count(number)
""",
    ),
    Offence(
        "calls as fast as possible, no answer read",
        DEALER
        + """
gate = __import__("bus.wire").wire.load("/usr/lib/spine/schemas.cgr").interfaces["gate"]
usage = gate.methods["usage"]
body = usage.encode_params({"persona": "offender"})
while True:
    call = Envelope(kind=Kind.CALL, id=number, generation=number % 2, deadline_ns=2**62,
                    interface=gate.id, ordinal=usage.ordinal, body=body)
    number += throw(pack(call))
    count(number)
""",
    ),
    Offence(
        "a message without end",
        CONNECT
        + ZMTP
        + r"""
frame = b"\x03" + (60000).to_bytes(8, "big") + bytes(60000)
while True:
    try:
        one = connect()
        one.settimeout(2)
        one.sendall(GREETING)
        got = 0
        while got < 64:
            got += len(one.recv(64 - got))
        one.sendall(READY)
        for _ in range(16000):
            one.sendall(frame)
            number += 60000
            count(number)
    except OSError:
        time.sleep(0.05)
""",
        may_die=frozenset({VICTIM}),
        needs=("memory",),
    ),
    Offence(
        "memory without end",
        """
held = []
while True:
    held.append(bytearray(1 << 20))
    for at in range(0, 1 << 20, 4096):
        held[-1][at] = 1
    count(len(held))
    time.sleep(0.002)
""",
        dies=True,
        needs=("memory",),
    ),
    Offence(
        "threads without end",
        """
def idle():
    time.sleep(3600)
while True:
    try:
        threading.Thread(target=idle, daemon=True).start()
        number += 1
    except RuntimeError:
        time.sleep(0.01)
    count(number)
""",
        needs=("pids",),
    ),
    Offence("a processor kept busy", "while True:\n    number += 1\n    count(number)"),
    Offence(
        "words for the log without end", "while True:\n    number += 1\n    say(f'offended {number}' * 20)"
    ),
    Offence("it stands still", "", dies=True, signal=signal.SIGSTOP),
)


@dataclass
class Round:
    """What one offence came to."""

    result: Result = field(default_factory=Result)
    offended: int = 0
    deaths: Counter[str] = field(default_factory=Counter)

    @property
    def violations(self) -> list[str]:
        """What must not have happened."""
        return self.result.violations


class Limits:
    """The manifest's limits where the ground's own cgroups cannot hold them: version 1 groups of ours.

    A new incarnation is born into the zygote's groups of version 1, so a thread moves each into its own.
    """

    FILES: Mapping[str, tuple[str, Callable[[Organ], int]]] = {
        "memory": ("memory.limit_in_bytes", lambda organ: organ.memory_max),
        "pids": ("pids.max", lambda organ: organ.pids_max),
    }

    def __init__(self, spine: Spine) -> None:
        self._spine = spine
        self._groups: list[Path] = []
        self._placed: set[int] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="limits")
        missing = {word.removeprefix("cgroup.") for word in spine.container.missing}
        boot = spine.boot_missing()
        self.held_by_ground = self.FILES.keys() - missing - boot
        self.brought = {c for c in self.FILES.keys() - self.held_by_ground if available(c)}

    def __enter__(self) -> Limits:
        for controller in self.brought:
            file, limit = self.FILES[controller]
            for name, organ in load(str(paths.ROOT / MANIFEST)).organs.items():
                group = VERSION_1 / controller / f"{self._spine.container.cgroup}-{name}"
                group.mkdir()
                self._groups.append(group)
                (group / file).write_text(str(limit(organ)))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._spine.close()  # a group can be removed when nothing lives in it
        for group in self._groups:
            end = time.monotonic() + PATIENCE_S
            while True:
                try:
                    group.rmdir()
                    break
                except OSError:
                    assert time.monotonic() < end, f"{group} cannot be removed"
                    time.sleep(POLL_S)

    @property
    def there(self) -> frozenset[str]:
        """The limits that hold in this round."""
        return frozenset(self.held_by_ground | self.brought)

    def _run(self) -> None:
        while not self._stop.wait(POLL_S):
            with contextlib.suppress(OSError, ValueError):
                self._place()

    def _place(self) -> None:
        names = {int(str(row["pid"] or 0)): name for name, row in self._spine.children().items()}
        assert self._spine.bay0 is not None
        for pid in children_of(self._spine.bay0.pid):
            name = names.get(number_inside(pid))
            if pid not in self._placed and name in load(str(paths.ROOT / MANIFEST)).organs:
                for controller in self.brought:
                    group = VERSION_1 / controller / f"{self._spine.container.cgroup}-{name}"
                    (group / "cgroup.procs").write_text(str(pid))
                self._placed.add(pid)


def available(controller: str) -> bool:
    """Whether version 1 has it and we may make groups there."""
    probe = VERSION_1 / controller / "alpine-spine-probe"
    try:
        probe.mkdir()
    except OSError:
        return False
    probe.rmdir()
    return True


def lacking(offence: Offence) -> list[str]:
    """What this host lacks for a round of the offence; known before a spine is built for it."""
    version_2 = Path("/sys/fs/cgroup/cgroup.controllers")
    offered = version_2.read_text().split() if version_2.exists() else []
    return [name for name in offence.needs if name not in offered and not available(name)]


def round_of(
    home: Path,
    offence: Offence,
    seconds: float,
    seed: str,
    overlay: Overlay | None = None,
    patience_s: float = PATIENCE_S,
) -> Round:
    """A fresh spine with the offender in it, calls meanwhile, and the reckoning.

    `patience_s`: how long the offence may take to begin, or to end the offender where it must.
    """
    found = Round()
    spine = Spine(home, offence.overlay(development() if overlay is None else overlay))
    try:
        with Limits(spine) as limits:
            found.result.violations += [f"no limit of {n}" for n in offence.needs if n not in limits.there]
            if not found.violations:
                _watch(spine, offence, seconds, seed, patience_s, found)
    finally:
        spine.close()
    return found


def _watch(
    spine: Spine, offence: Offence, seconds: float, seed: str, patience_s: float, found: Round
) -> None:
    table, result = schemas(), found.result
    before = spine.children()
    callers = [
        Caller(f"honest{number}", spine.container.port_path, table, f"{seed}.{number}", LATE_S)
        for number in range(CALLERS)
    ]
    for caller in callers:
        caller.start()
    try:
        end = time.monotonic() + seconds
        # An offence may take a while to begin on a busy host; the time runs from then on.
        patience = time.monotonic() + patience_s
        while time.monotonic() < end and spine.alive():
            if offence.signal is not None:
                found.offended += spine.hit(int(str(spine.children()[OFFENDER]["pid"] or 0)), offence.signal)
            time.sleep(POLL_S * 4)
            found.offended = max(found.offended, furthest(spine))
            begun = found.offended > 0 and (not offence.dies or restarts(spine, before)[OFFENDER] > 0)
            if not begun and time.monotonic() < patience:
                end = time.monotonic() + seconds
    finally:
        for caller in callers:
            caller.stop()
    if not spine.alive():
        result.violations.append("PID 1 is gone")
        return
    found.deaths = restarts(spine, before)
    if not found.offended:
        result.violations.append("the offence did not happen")
    if offence.dies and not found.deaths[OFFENDER]:
        result.violations.append("the offender was never ended")
    allowed = offence.may_die | {OFFENDER}
    for name in sorted(found.deaths.keys() - allowed):
        result.violations.append(f"{name} was restarted {found.deaths[name]} times")
    for name in sorted(spine.children()):
        until = time.monotonic() + PATIENCE_S
        while name not in allowed and not answers(spine, table, name):
            if time.monotonic() > until:
                result.violations.append(f"{name} does not answer any more")
                break
            time.sleep(POLL_S)
    settle(spine, callers, result, patience_s=PATIENCE_S if offence.may_die else 0)
    for how in sorted(result.ends.keys() - offence.outcomes):
        result.violations.append(f"{result.ends[how]} calls ended {how}")
    if not result.ends["answered"]:
        result.violations.append("no call was answered")


def restarts(spine: Spine, before: Mapping[str, Mapping[str, object]]) -> Counter[str]:
    """How often each child was started again."""
    now = spine.children()
    made = {n: int(str(now[n]["generation"])) - int(str(row["generation"])) for n, row in before.items()}
    return Counter({name: number for name, number in made.items() if number})


def furthest(spine: Spine) -> int:
    """How far the offender says it came."""
    assert spine.bay0 is not None
    most = 0
    for suffix in (".log", ".log.1"):
        with contextlib.suppress(OSError):
            log = Path(f"/proc/{spine.bay0.pid}/root/run/spine/log/{OFFENDER}{suffix}")
            for word in re.findall(rb"offended (\d+)", log.read_bytes()):
                most = max(most, int(word[:15]))
    return most


# --- Seeded bugs: spines on which an offence hits somebody else. ---


@dataclass(frozen=True)
class Bug:
    """A spine that breaks the promise, the offence that shows it, and what the harness says then."""

    name: str
    offence: str
    edit: Callable[[Overlay], dict[str, bytes]]
    noticed: str


def _few_descriptors(base: Overlay) -> dict[str, bytes]:
    """The gate has fewer descriptors than its callers can open connections."""
    text = base[MANIFEST].decode()
    stanza = text.index("[organs.gate]")
    at = text.index("nofile_max", stanza)
    end = text.index("\n", at)
    return {**base, MANIFEST: (text[:at] + "nofile_max = 128" + text[end:]).encode()}


def _hangs_are_forgiven(base: Overlay) -> dict[str, bytes]:
    """bay0 takes silence for life, for longer than the harness waits."""
    text = re.sub(r"heartbeat_ms = \d+", "heartbeat_ms = 10000", base[MANIFEST].decode())
    text = re.sub(r"heartbeats_missed_max = \d+", "heartbeats_missed_max = 2", text)
    return {**base, MANIFEST: text.encode()}


BUGS = (
    Bug(
        "a gate with fewer descriptors than its callers",
        OFFENCES[0].name,
        _few_descriptors,
        "gate was restarted",
    ),
    Bug("a hang that nobody finds", "it stands still", _hangs_are_forgiven, "never ended"),
)


def offence_named(name: str) -> Offence:
    """The offence of this name."""
    return next(offence for offence in OFFENCES if offence.name == name)


def notices(home: Path, bug: Bug, seed: str) -> list[str]:
    """What the harness says of a seeded bug; nothing when it was missed."""
    overlay = bug.edit(development())
    found = round_of(home, offence_named(bug.offence), BUG_SECONDS, seed, overlay, BUG_PATIENCE_S)
    return [said for said in found.violations if bug.noticed in said]


# --- The campaign. ---


def campaign(path: Path, seconds: float, seed: str, command: str, say: Callable[[str], None]) -> list[str]:
    """A round of each offence; what went wrong."""
    hashed = covered(COVERED)
    caught: dict[str, str] = {}
    rows: list[dict[str, object]] = []
    calls = 0
    with tempfile.TemporaryDirectory() as home:
        for bug in BUGS:
            said = notices(Path(home), bug, seed)
            say(f"seeded bug, {bug.name}: {said[0] if said else 'MISSED'}")
            if not said:
                return [f"the harness missed: {bug.name}"]
            caught[bug.name] = said[0]
        for offence in OFFENCES:
            if absent := lacking(offence):
                return [f"{offence.name}: this host has no controller for {', '.join(absent)}"]
            found = round_of(Path(home), offence, seconds, seed)
            if found.violations:
                return [f"{offence.name}: {said}" for said in found.violations]
            rows.append(
                {
                    "offence": offence.name,
                    "offended": found.offended,
                    "mayDie": sorted(offence.may_die),
                    "restarts": dict(sorted(found.deaths.items())),
                    "acknowledgedPuts": found.result.acknowledged,
                    "ends": dict(sorted(found.result.ends.items())),
                }
            )
            calls += sum(found.result.ends.values())
            say(f"{offence.name}: {found.offended}; restarts {dict(found.deaths)}; {dict(found.result.ends)}")
    document = {
        "what": "the umbilical misbehaves in one way at a time, with the powers of its stanza, towards the "
        "gate; two callers put and get over the operator meanwhile. Nobody but the offender (and who is "
        "named in mayDie) may be restarted, every call must be answered (or end typed where mayDie names its "
        "callee), every acknowledged put be found. On the container ground with a development manifest",
        "commit": commit(COVERED),
        "seed": seed,
        "command": command,
        "counts": {
            "offences": len(rows),
            "calls": calls,
            "callsWithoutAnEnd": 0,
            "acknowledgedPutsLost": 0,
            "deathsOfPid1": 0,
        },
        "seededBugsNoticed": caught,
        "rounds": rows,
        "covered": {"directories": list(COVERED), "sha256": hashed},
        "ground": {"kernel": platform.release()},
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    return []


def main() -> int:
    """The campaign."""
    parser = argparse.ArgumentParser(description="organs that misbehave")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each offence goes on")
    parser.add_argument("--seed", default="1")
    arguments = parser.parse_args()

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    command = f"python -m tests.fire.offenders --seconds {arguments.seconds:g} --seed {arguments.seed}"
    wrong = campaign(EVIDENCE, arguments.seconds, arguments.seed, command, say)
    for line in wrong:
        say(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
