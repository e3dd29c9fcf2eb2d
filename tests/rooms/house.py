"""A spine with three rooms to hand the focus around in, and what the kernel says of them.

All three personas are of one image (linda's: busybox and the client of the umbilical) and differ in their
first program: one forks for ever, one never rests, one talks on the umbilical all the time. What must hold is
read from the kernel's own files, from outside of the container.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bus.envelope import Code
from organs import persona
from spine import paths
from spine.errors import Exit, SpineError
from spine.ground import wire
from spine.ground.port import PortFailure
from spine.image import keys
from spine.persona import build, image
from spine.progress import Progress
from spine.verbs.persona import send
from tests.fire.rig import Overlay, Spine, children_of, number_inside

BODY_OF = "linda"
MIB: Final = 1024**2
# A limit of processes is not on every ground, so this one counts for itself: four chains in which each
# process makes the next and ends, and two dozen children at a time.
FORKING = (
    """export S='sh -c "$S" &';for i in 1 2 3 4;do sh -c "$S" & done;"""
    "while :;do n=0;while [ $n -lt 24 ];do : & n=$((n+1));done;wait;done"
)
BUSY = "while :; do :; done"
TALKING = (
    "n=0;while :;do n=$((n+1));echo $n|umbilical put said;umbilical get said;umbilical list;"
    "umbilical status;done >/dev/null 2>&1"
)


@dataclass(frozen=True)
class Kind:
    """One of the three."""

    name: str
    script: str
    network: bool


KINDS: Final = (Kind("forker", FORKING, True), Kind("spinner", BUSY, False), Kind("talker", TALKING, True))
NAMES: Final = tuple(kind.name for kind in KINDS)
# Far above what anything here takes on a machine that is merely slow.
PATIENCE_S: Final = 90.0
POLL_S: Final = 0.005
# What is said of the rooms changes with each step of a hand-over; the longest is ended after five seconds.
STEP_S: Final = 15.0
# What a caller may be told while processes of the spine die. Anything else is a violation.
MAY_END: Final = frozenset(
    {Code.PEER_DIED, Code.STALE, Code.BUSY, Code.REFUSED, Code.NOT_FOUND, Code.FROZEN, Code.FULL}
)
# Rooms between two states are not settled.
SETTLED: Final = {"running": "thawed", "frozen": "frozen"}


@dataclass(frozen=True)
class Source:
    """What images are made of: the body of one, and its manifest's text."""

    body: bytes
    text: bytes

    @classmethod
    def of(cls, name: str, home: Path) -> Source:
        """Of a persona of the tree, which is built and left in `home`."""
        data = build.build(name, Progress(), out=home).path.read_bytes()
        described, _ = image.described(data)
        _, _, _, text = persona.split(data[-persona.MANIFEST_BYTES :])
        return cls(data[: described.tree.offset + described.tree.length], text)

    def sealed(self, secret: Ed25519PrivateKey, **other: object) -> bytes:
        """A signed image of this body; `other` replaces keys of the manifest."""
        text = persona.canonical({**json.loads(self.text), **other})
        return self.body + image.seal(text, keys.public_bytes(secret), secret.sign)


def images(home: Path) -> dict[str, bytes]:
    """The three images, by name."""
    source, secret = Source.of(BODY_OF, home), keys.persona_key()
    return {
        kind.name: source.sealed(
            secret,
            name=kind.name,
            init=["/bin/sh", "-c", kind.script],
            console=False,
            autostart=False,
            network={"use": kind.network, "inbound": []},
            limits={"memoryBytes": 64 * MIB, "pids": 256, "writableBytes": 4 * MIB},
        )
        for kind in KINDS
    }


class Watching:
    """The watcher in its process, and what it said so far."""

    def __init__(self, root: Path) -> None:
        self.violations: list[str] = []
        self.summary: dict[str, int] = {}
        self.unseen = 0
        self._lines: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.rooms.watcher", str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=paths.ROOT,
            env={"PYTHONPATH": str(paths.ROOT)},
        )
        self._begun = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self._begun.wait(PATIENCE_S), "the watcher did not begin"

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            self._begun.set()
            self._lines.append(line)
            if said["kind"] == "violation":
                around = "".join(self._lines[-CONTEXT_LINES:])
                self.violations.append(f"watcher: {said['what']}: {line}{around}")
            elif said["kind"] == "summary":
                self.summary = {key: said[key] for key in said if key not in ("kind", "at")}
        self._begun.set()

    def end(self) -> None:
        """End it; everything that it saw has been heard then."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._reader.join(PATIENCE_S)
            self._process.wait(PATIENCE_S)
        finally:
            self._process.kill()
            self._process.wait()
        if not self.summary:
            self.violations.append("the watcher ended before its time")


# How many of its last lines go with a violation.
CONTEXT_LINES: Final = 12


@dataclass
class Kernel:
    """What the kernel says of the rooms, from outside."""

    root: Path

    @classmethod
    def of(cls, pid: int) -> Kernel:
        """The rooms of the container whose bay0 this is."""
        with open("/proc/self/mounts", encoding="utf-8") as mounts:
            unified = next(line.split()[1] for line in mounts if line.split()[2] == "cgroup2")
        with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
            path = next(line[3:].strip() for line in file if line.startswith("0::"))
        return cls(Path(unified + path).parent / "rooms")

    def rooms(self) -> dict[str, str]:
        """Each room: `thawed`, `frozen`, `empty` or `moving`."""
        found = {}
        for folder in sorted(self.root.iterdir()):
            if folder.is_dir():
                try:
                    found[folder.name] = self._room(folder)
                except OSError:
                    continue  # removed meanwhile
        return found

    @staticmethod
    def _room(folder: Path) -> str:
        events = (folder / "cgroup.events").read_text()
        asked = (folder / "cgroup.freeze").read_text().strip() == "1"
        if "populated 0" in events:
            return "empty"
        if asked is not ("frozen 1" in events):
            return "moving"
        return "frozen" if asked else "thawed"


@dataclass
class Ends:
    """How calls ended, counted, and what was wrong with the ends."""

    counts: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def count(self, how: str) -> None:
        """One more."""
        self.counts[how] = self.counts.get(how, 0) + 1


class House:
    """A spine of its own with the three rooms, and a person's tools."""

    def __init__(self, home: Path, overlay: Overlay, made: Mapping[str, bytes]) -> None:
        self.spine = Spine(home, overlay)
        self.ends = Ends()
        try:
            assert self.spine.bay0 is not None
            self.kernel = Kernel.of(self.spine.bay0.pid)
            with self.spine.container.port() as port:
                for name in NAMES:
                    send(port, made[name], name)
            # What bay0 keeps for the freezer is among its own descriptors; there is no room yet.
            self._held = self.held()
        except BaseException:
            self.spine.close()
            raise

    def call(self, name: str, **params: object) -> dict[str, object] | None:
        """One call over a connection of its own, to its typed end. None: it did not end well."""
        try:
            with self.spine.container.port(PATIENCE_S) as port:
                answer = port.call(name, params)
        except PortFailure as failure:
            code = failure.failure.code
            self.ends.count(f"{name} {code.name}")
            if code not in MAY_END:
                self.ends.violations.append(
                    f"{name} {params} was told {code.name}: {failure.failure.message}"
                )
        except SpineError as error:
            # The operator died under it: that is an end of what went over it. Silence is none.
            self.ends.count(f"{name} connection ended")
            if error.exit_code == Exit.TIMEOUT:
                self.ends.violations.append(f"{name} {params} has no end: {error}")
        else:
            self.ends.count(f"{name} answered")
            return answer
        return None

    def run(self, name: str, *argv: str) -> str | None:
        """Run a program in a room to its end; how it ended, or None when that cannot be told."""
        begun = self.call("operator.exec", persona=name, argv=list(argv))
        return None if begun is None else self.drained(begun["session"])

    def drained(self, session: object, *, once: bool = False) -> str | None:
        """How the program of a session ended. `once`: "" when it has not by now."""
        while True:
            answer = self.call("operator.drain", session=session, waitMs=0 if once else 1000)
            if answer is None:
                return None
            if (ended := str(answer["ended"])) or once:
                return ended

    def disagreement(self) -> str:
        """What the freezer says against what the kernel says; "" when they agree and nothing is moving."""
        answer = self.call("freezer.rooms")
        if answer is None:
            return "the freezer does not answer"
        rows = answer["rooms"]
        assert isinstance(rows, list)
        said = {row["name"]: str(row["state"]) for row in rows}
        kernel = self.kernel.rooms()
        wanted = {name: SETTLED.get(state, "") for name, state in said.items()}
        running = [name for name, state in said.items() if state == "running"]
        focus = [answer["focus"]] if answer["focus"] else []
        if wanted == kernel and running == focus and len(running) <= 1:
            return ""
        return f"freezer: {said}, focus {focus}; kernel: {kernel}"

    def kill(self, inner_pid: int) -> dict[str, str] | None:
        """End a child of bay0; the rooms as its death left them. None when it was not there."""
        assert self.spine.bay0 is not None
        for pid in children_of(self.spine.bay0.pid):
            try:
                fd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            try:
                if number_inside(pid) == inner_pid:
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
                    assert select.select([fd], [], [], PATIENCE_S)[0], "a killed process does not end"
                    return self.kernel.rooms()
            except ProcessLookupError:
                return None
            finally:
                os.close(fd)
        return None

    def settle(self) -> None:
        """Wait until freezer and kernel agree. That they do not is a violation."""
        end = time.monotonic() + PATIENCE_S
        before, since = "", time.monotonic()
        while wrong := self.disagreement():
            now = time.monotonic()
            if wrong != before:
                before, since = wrong, now
            if now - since > STEP_S or now > end:
                self.ends.violations.append(f"not settled: {wrong}")
                return
            time.sleep(POLL_S)

    def focus(self) -> str:
        """Who has it, when it is settled; "" for nobody."""
        self.settle()
        return next((name for name, state in self.kernel.rooms().items() if state == "thawed"), "")

    def furnish(self) -> None:
        """See that there are all three rooms."""
        end = time.monotonic() + PATIENCE_S
        while missing := [name for name in NAMES if name not in self.kernel.rooms()]:
            if time.monotonic() > end:
                self.ends.violations.append(f"no room for {missing}")
                return
            self.call("freezer.start", persona=missing[0])
            self.settle()
            if self.ends.violations:
                return

    def held(self) -> int:
        """How many descriptors bay0 has."""
        assert self.spine.bay0 is not None
        return len(os.listdir(f"/proc/{self.spine.bay0.pid}/fd"))

    def nothing_left(self) -> None:
        """Without a room bay0 holds no more than before there was one. That it does is a violation."""
        end = time.monotonic() + PATIENCE_S
        while self.kernel.rooms() or self.held() > self._held:
            if time.monotonic() > end:
                self.ends.violations.append(
                    f"left over: {self.kernel.rooms()}, and {self.held() - self._held} descriptors at bay0"
                )
                return
            time.sleep(POLL_S)

    def serves(self) -> None:
        """The room that has the focus is entered, is heard, and has its network. That not is a violation."""
        end = time.monotonic() + PATIENCE_S
        while (name := self.focus()) and not self.ends.violations:
            said = {argv[0]: self.run(name, *argv) for argv in self._proofs(name)}
            if set(said.values()) == {"exit 0"}:
                return
            if time.monotonic() > end:
                self.ends.violations.append(f"{name} is not served: {said}")
            time.sleep(POLL_S)

    def _proofs(self, name: str) -> list[tuple[str, ...]]:
        """Programs that end well in a room that has all that it should have."""
        proofs: list[tuple[str, ...]] = [("umbilical", "status")]
        if self.spine.container.wire and next(kind.network for kind in KINDS if kind.name == name):
            proofs.append(("sh", "-c", f"echo | nc -w 2 {wire.ROUTER.ip} {wire.ECHO_PORT}"))
        return proofs
