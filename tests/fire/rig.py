"""A spine under fire: a container of the development manifest, its killer, its three callers.

The development manifest forgives as many deaths as one likes, restarts without a pause, and finds a hang
sooner; all else is the tree's. Processes are hit from outside, by their real process numbers, at moments
drawn from the seed. What must hold is checked after every blow: the victim answers again, nobody else was
restarted, PID 1 is the same; and at the end of a round: every acknowledged put is there, no call was left
without an end.

When the operator dies, a call ends with its connection, whatever the bus made of it. So a round may spare the
operator: there every end is the bus's own.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

from bus.envelope import Code
from bus.wire import Interface, Method, Schemas, Type
from spine import paths
from spine.errors import SpineError
from spine.ground import state
from spine.ground.container import Container
from spine.ground.port import PortFailure, schemas
from spine.image.build import build
from spine.progress import Progress
from tests.fire.caller import LATE_PORT_HIT_S, LATE_S, Caller

CALLERS = 3
OPERATOR = "operator"
MANIFEST = "organs/manifest.toml"
DECODER = "organs/manifest.py"
PACE = "organs/bay0/pace.py"
DEATHS_MAX = 1_000_000
# A blow in twenty is a hang, one in ten hits two at once.
HANG_SHARE, PAIR_SHARE = 0.05, 0.1
# Between two blows the load runs for a moment.
PAUSE_S_MAX = 0.05
# Far above what a restart takes on a machine that is merely slow.
PATIENCE_S = 120.0
POLL_S = 0.002
# What an organ may say to a stranger's call; each shows that it answers.
SILENT = frozenset({Code.PEER_DIED, Code.DEADLINE, Code.STALE, Code.BUSY})

Overlay = Mapping[str, bytes]


def edited(path: str, edits: Mapping[str, str], overlay: Overlay | None = None) -> bytes:
    """A file of the tree with each of these texts, which must be there once, put in the place of another."""
    text = (overlay or {}).get(path, (paths.ROOT / path).read_bytes()).decode()
    for old, new in edits.items():
        assert text.count(old) == 1, f"{path}: {old!r} is there {text.count(old)} times"
        text = text.replace(old, new)
    return text.encode()


def development() -> dict[str, bytes]:
    """The overlay of the development manifest. The tree's own decoder would refuse so much forgiveness."""
    manifest = (paths.ROOT / MANIFEST).read_text()
    manifest = re.sub(r"^deaths_max = \d+", f"deaths_max = {DEATHS_MAX}", manifest, flags=re.MULTILINE)
    manifest = re.sub(r"^heartbeat_ms = \d+", "heartbeat_ms = 500", manifest, flags=re.MULTILINE)
    return {
        MANIFEST: manifest.encode(),
        DECODER: edited(DECODER, {"DEATHS_MAX_MAX = 16": f"DEATHS_MAX_MAX = {DEATHS_MAX}"}),
        PACE: edited(PACE, {"BACKOFF_MS: Final = (0, 100, 400)": "BACKOFF_MS: Final = (0,)"}),
    }


@dataclass
class Result:
    """What a round came to. Times are milliseconds from the blow to the first answer after it."""

    kills: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0
    killed_ms: list[int] = field(default_factory=list)
    hung_ms: list[int] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)


class Spine:
    """A container ground of its own, from the tree with an overlay."""

    def __init__(self, home: Path, overlay: Overlay) -> None:
        out = home / "out"
        build(out, root_only=True, replace=overlay, progress=Progress())
        self.container = Container(home / "ground")
        root, persist = self.container.provision(out, fresh=True)
        try:
            self.container.start(root, persist)
            self.container.wait_ready()
        except BaseException:
            self.close()
            raise
        self.bay0 = state.Process.of(self.container.pid)

    def close(self) -> None:
        """End it and remove what it kept."""
        self.container.kill()
        shutil.rmtree(self.container.directory, ignore_errors=True)

    def children(self) -> dict[str, dict[str, object]]:
        """bay0's account of the zygote and the organs, by name."""
        assert self.bay0 is not None
        document = json.loads(
            Path(f"/proc/{self.bay0.pid}/root/run/spine/organs.json").read_text(encoding="utf-8")
        )
        return {**document["organs"], "zygote": document["zygote"]}

    def boot_missing(self) -> set[str]:
        """The controllers that bay0 did not find, by name."""
        assert self.bay0 is not None
        document = json.loads(
            Path(f"/proc/{self.bay0.pid}/root/run/spine/organs.json").read_text(encoding="utf-8")
        )
        return {word.removeprefix("cgroup.") for word in document["boot"]["missing"]}

    def alive(self) -> bool:
        """Whether PID 1 still is the process that it was."""
        return self.bay0 is not None and self.bay0.alive()

    def wait_risen(self, name: str, before: Mapping[str, object]) -> None:
        """Wait for a child's next incarnation to be ready."""
        end = time.monotonic() + PATIENCE_S
        while not risen(self.children()[name], before):
            assert time.monotonic() < end, f"{name} did not come back"
            time.sleep(POLL_S)

    def hit(self, inner_pid: int, number: int) -> bool:
        """Send a signal to the child with this number inside; False when it is no longer there."""
        assert self.bay0 is not None
        for pid in children_of(self.bay0.pid):
            try:
                fd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            try:
                if number_inside(pid) == inner_pid:
                    signal.pidfd_send_signal(fd, number)
                    return True
            except ProcessLookupError:
                return False
            finally:
                os.close(fd)
        return False


def risen(now: Mapping[str, object], before: Mapping[str, object]) -> bool:
    """Whether a later incarnation is ready."""
    return now["state"] == "ready" and int(str(now["generation"])) > int(str(before["generation"]))


def children_of(pid: int) -> list[int]:
    """The processes whose parent this is."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text(errors="replace")
            except OSError:
                continue
            if int(stat[stat.rindex(")") + 2 :].split()[1]) == pid:
                found.append(int(entry.name))
    return found


def number_inside(pid: int) -> int:
    """A process's number in its own pid namespace."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return 0
    return next(int(line.split()[-1]) for line in status.splitlines() if line.startswith("NSpid:"))


class Killer:
    """Hits the children of bay0 and looks what becomes of them."""

    def __init__(self, spine: Spine, table: Schemas, seed: str, result: Result, spared: Set[str]) -> None:
        self._spine, self._table, self._result, self._spared = spine, table, result, spared
        self._dice = random.Random(seed)

    def blow(self) -> None:
        """One blow and its consequences."""
        time.sleep(self._dice.random() * PAUSE_S_MAX)
        before = self._spine.children()
        count = 2 if self._dice.random() < PAIR_SHARE else 1
        victims = self._dice.sample(sorted(before.keys() - self._spared), count)
        hang = self._dice.random() < HANG_SHARE
        number = signal.SIGSTOP if hang else signal.SIGKILL
        at = time.monotonic()
        hit = [v for v in victims if self._spine.hit(int(str(before[v]["pid"])), number)]
        for victim in hit:
            self._result.kills[f"{victim} {'hang' if hang else 'kill'}"] += 1
        for victim in hit:
            if self._comes_back(victim, before[victim]):
                took = self._result.hung_ms if hang else self._result.killed_ms
                took.append(round((time.monotonic() - at) * 1000))
        self._others(before, set(hit))
        if not self._spine.alive():
            self._result.violations.append("PID 1 is gone")

    def _comes_back(self, name: str, before: Mapping[str, object]) -> bool:
        """Wait for the next incarnation to be ready and to answer."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end and self._spine.alive():
            now = self._spine.children()[name]
            if risen(now, before) and answers(self._spine, self._table, name):
                return True
            time.sleep(POLL_S)
        self._result.violations.append(f"{name} did not come back: {self._spine.children()[name]}")
        return False

    def _others(self, before: Mapping[str, Mapping[str, object]], hit: set[str]) -> None:
        for name, now in self._spine.children().items():
            if name not in hit and now["generation"] != before[name]["generation"]:
                self._result.violations.append(f"{name} was restarted when {sorted(hit)} were hit")


def answers(spine: Spine, table: Schemas, name: str) -> bool:
    """Whether a child answers a call. One that the host cannot call answers by being ready."""
    interface = table.interfaces.get(name)
    if interface is None:
        return True
    try:
        with spine.container.port() as port:
            if not interface.host_port:
                method, body = harmless(interface)
                port.call_raw(method, body)
    except PortFailure as failure:
        return failure.failure.code not in SILENT
    except SpineError:
        return False
    return True


def harmless(interface: Interface) -> tuple[Method, bytes]:
    """A call of the operator's that changes nothing, with empty parameters."""
    method = next(m for m in interface.methods.values() if OPERATOR in m.callers and m.idempotent)
    return method, method.encode_params({field.name: empty(field.type) for field in method.params})


def empty(type_: Type) -> object:
    """The least value of a type."""
    values: dict[str, object] = {"text": "", "data": b"", "list": [], "bool": False, "void": None}
    return 0 if type_.integer_range is not None else values[type_.kind]


def settle(spine: Spine, callers: list[Caller], result: Result, patience_s: float = 0) -> None:
    """The end of a round: everything acknowledged is there, and nothing that nobody put.

    `patience_s`: how long the gate may be away, for rounds that go on killing it.
    """
    for caller in callers:
        account = caller.account
        end = time.monotonic() + patience_s
        with spine.container.port() as port:
            for key, may in account.keys.items():
                while True:
                    try:
                        found: object = port.call("gate.get", {"persona": caller.name, "key": key})["value"]
                    except PortFailure as failure:
                        if failure.failure.code in SILENT and time.monotonic() < end:
                            continue
                        if failure.failure.code is not Code.NOT_FOUND:
                            raise
                        found = None
                    break
                if found not in may:
                    account.violations.append(f"{caller.name}: {key.decode()} lost what was acknowledged")
        result.ends.update(account.ends)
        result.acknowledged += account.acknowledged
        result.violations += account.violations


def round_of(
    home: Path, kills: int, seed: str, overlay: Overlay, *, spare_port: bool, stop_at_first: bool = False
) -> Result:
    """A fresh spine, `kills` blows at least under load, and the reckoning."""
    result = Result()
    late_s = LATE_S if spare_port else LATE_PORT_HIT_S
    spine = Spine(home, overlay)
    try:
        table = schemas()
        callers = [
            Caller(f"fire{number}", spine.container.port_path, table, f"{seed}.{number}", late_s)
            for number in range(CALLERS)
        ]
        for caller in callers:
            caller.start()
        try:
            killer = Killer(spine, table, seed, result, {OPERATOR} if spare_port else set())
            while sum(result.kills.values()) < kills and not result.violations:
                killer.blow()
                if stop_at_first and any(caller.account.violations for caller in callers):
                    break
        finally:
            for caller in callers:
                caller.stop()
        settle(spine, callers, result)
        if not spine.alive():
            result.violations.append("PID 1 is gone")
        if not spine.container.stop():
            result.violations.append(f"the stop was not orderly: {spine.container.exit_code}")
    finally:
        spine.close()
    return result
