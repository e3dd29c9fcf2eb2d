"""A call on the bus beside what one would use instead of it, the same bytes each way.

Two processes for each contender, one that asks and one that answers, all started before the first round and
asleep while others have theirs. Ours is the whole of it: schemas compiled by the build's compiler, listening
sockets made as bay0 makes them, the client and the server that the organs use, deadlines, checks of who may
call what. The peers check nothing and carry bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

from bus.compile import compile_schemas
from spine import paths
from tests.bench import peers
from tests.bench.bench import Absent, Bench, Program
from tests.bench.figures import Goal, Measured, Missing, Rounds, percentile
from tests.bench.table import OURS, Row

ABOUT = (
    "a call and its answer between two processes, with the same bytes each way; and what the tap and a "
    "caller that floods do to it"
)
PROGRAMS: Final = Path(__file__).parent / "programs"
ZMQ, ZMQ_TRIO, SEQPACKET = "raw pyzmq", "raw pyzmq under trio", "raw AF_UNIX"
DBUS, DBUS_C, GRPC = "D-Bus in Python", "D-Bus in C", "gRPC in Python"
PEERS: Final = (ZMQ, ZMQ_TRIO, SEQPACKET, DBUS, DBUS_C, GRPC)
UNTAPPED, ALONE = "ours without a tap", "ours alone"
GOALS: Final = {ZMQ: Goal(at_most=1.5), DBUS: Goal(at_most=0.6)}
SIZES: Final = {"200B": 200, "16KiB": 16 * 1024, "256KiB": 256 * 1024}
CALLERS: Final = (1, 4, 16)
FULL, QUICK = 2000, 300
"""Calls of one round with 200 bytes; larger ones have fewer."""
SETTLE_S: Final = 0.05
"""Until a flood stands, or has drained."""


def rows(quick: bool) -> Sequence[Row]:
    """The rows."""
    del quick
    found = [
        Row(
            f"call-{name}",
            f"a call, one caller, {name} each way",
            "us",
            PEERS,
            GOALS if size <= 200 else {},
            plot="Round trip of a call over its size in bytes",
            at=float(size),
        )
        for name, size in SIZES.items()
    ]
    for callers in CALLERS:
        found.append(
            Row(
                f"rate-{callers}",
                f"calls per second, {callers} under way at a time, 200B each way",
                "calls/s",
                PEERS,
                plot="Calls per second over calls under way",
                at=float(callers),
            )
        )
        if callers > 1:
            found.append(
                Row(
                    f"call-200B-{callers}",
                    f"a call while {callers} are under way, 200B each way",
                    "us",
                    PEERS,
                )
            )
    return (
        *found,
        Row(
            "tap-idle",
            "a call with a tap that nobody listens to, 200B",
            "us",
            (UNTAPPED,),
            {UNTAPPED: Goal(at_most=1.02)},
        ),
        Row("tap-heard", "a call with a listener to both its ends, 200B", "us", (UNTAPPED,)),
        Row(
            "flood",
            "p99.9 of one caller's calls while another caller keeps 64 under way, 200B",
            "us",
            (ALONE, f"{ZMQ} flooded", f"{DBUS} flooded"),
            {ALONE: Goal(at_most=3)},
            plot="p99.9 of an honest caller while another floods",
        ),
        Row(
            "flood-queue",
            "the same where caller and callee never wait for a processor (SCHED_FIFO)",
            "us",
            (ALONE, f"{ZMQ} flooded"),
            {ALONE: Goal(at_most=3)},
        ),
    )


@dataclass
class Pair:
    """A contender: who asks, who answers. `flood` sends without end, and is stopped at first."""

    caller: Program
    callee: Program
    flood: Program | None = None
    rates: list[float] = field(default_factory=list)

    def latencies(self, calls: int, callers: int, size: int) -> Sequence[float]:
        """Microseconds of each call of a round; the rate of the round is kept."""
        said = self.caller.ask(calls=calls, callers=callers, bytes=size)
        took = cast(list[int], said["ns"])
        self.rates.append(len(took) / (cast(int, said["wall_ns"]) / 1e9))
        return [one / 1000 for one in took]


class Standing:
    """Every contender's processes, started as they are asked for, ended together."""

    def __init__(self, bench: Bench, stack: contextlib.ExitStack) -> None:
        self._bench = bench
        self._stack = stack
        self._made: dict[str, Pair | Missing] = {}
        self._schemas: Path | None = None
        self._daemon: str | Missing | None = None

    def pair(self, name: str) -> Pair | Missing:
        """The contender of this name, or why there is none."""
        if name not in self._made:
            try:
                self._made[name] = self._start(name)
            except Absent as absent:
                self._made[name] = Missing(str(absent))
        return self._made[name]

    def _start(self, name: str) -> Pair:
        match name:
            case "ours" | "ours without a tap" | "ours tapped" | "ours heard" | "ours flooded":
                return self._ours(name)
            case "raw pyzmq":
                return self._simple(["zeromq", "serve"], ["zeromq", "call"])
            case "raw pyzmq flooded":
                return self._simple(["zeromq", "serve"], ["zeromq", "call"], ["zeromq", "flood"])
            case "raw pyzmq under trio":
                return self._simple(["zeromq", "trio", "serve"], ["zeromq", "trio", "call"])
            case "raw AF_UNIX":
                return self._simple(["seqpacket", "serve"], ["seqpacket", "call"])
            case "gRPC in Python":
                return self._simple(["rpc", "serve"], ["rpc", "call"], python=peers.python())
            case "D-Bus in Python" | "D-Bus in Python flooded":
                return self._dbus([str(peers.python()), "-m", "tests.bench.programs.dbus_python"], name)
            case "D-Bus in C":
                return self._dbus([str(_sd_bus())], name)
        raise Absent("there is no such contender")

    def _program(
        self,
        words: Sequence[str | Path],
        cpus: frozenset[int],
        pass_fds: Sequence[int] = (),
    ) -> Program:
        program = Program(words, self._bench.scratch, cpus, pass_fds, self._bench.environment())
        return self._stack.enter_context(program)

    def _simple(
        self, serve: list[str], call: list[str], flood: list[str] | None = None, python: Path | None = None
    ) -> Pair:
        path = str(_folder(self._stack) / "s")

        def words(names: list[str]) -> list[str | Path]:
            module, *rest = names
            return [python or self._bench.python, "-P", "-m", f"tests.bench.programs.{module}", *rest, path]

        callee = self._program(words(serve), self._bench.answering)
        pair = Pair(self._program(words(call), self._bench.asking), callee)
        if flood is not None:
            pair.flood = self._flood(words(flood))
        return pair

    def _flood(self, words: Sequence[str | Path]) -> Program:
        """Stands still until its round."""
        flood = self._program(words, self._bench.both)
        os.kill(flood.pid, signal.SIGSTOP)
        # A process that is stopped does not end when its input is closed.
        self._stack.callback(os.kill, flood.pid, signal.SIGCONT)
        return flood

    def _ours(self, name: str) -> Pair:
        tapped = name in ("ours tapped", "ours heard")
        folder = self._compiled()
        directory = _folder(self._stack)
        listeners = {
            caller: self._listening(directory / f"echo.{caller}", socket.SOCK_STREAM)
            for caller in ("alpha", "beta")
        }
        taps = {
            end: self._listening(directory / f"tap.{end}", socket.SOCK_STREAM) for end in ("echo", "alpha")
        }
        python: list[str | Path] = [self._bench.python, "-P", "-m"]
        program = [*python, "tests.bench.programs.ours"]
        callee = self._program(
            [
                *program,
                "serve",
                folder,
                json.dumps({caller: bound.fileno() for caller, bound in listeners.items()}),
                str(taps["echo"].fileno() if tapped else -1),
            ],
            self._bench.answering,
            [*(bound.fileno() for bound in listeners.values()), taps["echo"].fileno()],
        )
        pair = Pair(
            self._program(
                [
                    *program,
                    "call",
                    folder,
                    str(directory),
                    "alpha",
                    str(taps["alpha"].fileno() if tapped else -1),
                ],
                self._bench.asking,
                [taps["alpha"].fileno()],
            ),
            callee,
        )
        if name == "ours heard":
            heard = [str(directory / f"tap.{end}") for end in taps]
            self._program([*python, "tests.bench.programs.listener", *heard], self._bench.both)
        if name == "ours flooded":
            pair.flood = self._flood([*program, "flood", folder, str(directory), "beta"])
        return pair

    def _listening(self, path: Path, kind: int) -> socket.socket:
        bound = self._stack.enter_context(socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK))
        bound.bind(str(path))
        bound.listen(64)
        return bound

    def _compiled(self) -> Path:
        if self._schemas is None:
            folder = self._bench.folder("schemas")
            (folder / "source").mkdir()
            shutil.copy(paths.ROOT / "schemas/spine.capnp", folder / "source")
            shutil.copy(PROGRAMS / "echo.capnp", folder / "source")
            manifest = folder / "manifest.toml"
            manifest.write_text("[organs.echo]\n[organs.alpha]\n[organs.beta]\n")
            compile_schemas(folder / "source", manifest, folder)
            self._schemas = folder
        return self._schemas

    def _dbus(self, program: list[str], label: str) -> Pair:
        address = self._address()
        name = f"bench.N{len(self._made)}"
        callee = self._program([*program, "serve", address, name], self._bench.answering)
        pair = Pair(self._program([*program, "call", address, name], self._bench.asking), callee)
        if label.endswith("flooded"):
            pair.flood = self._flood([*program, "flood", address, name])
        return pair

    def _address(self) -> str:
        """Of a daemon of our own, which has both processors, for it stands between the two."""
        if self._daemon is None:
            try:
                self._daemon = _daemon(self._bench, self._stack)
            except Absent as absent:
                self._daemon = Missing(str(absent))
        if isinstance(self._daemon, Missing):
            raise Absent(self._daemon.reason)
        return self._daemon


DAEMON_CONFIG: Final = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>session</type><listen>unix:path={path}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/>
<allow own="*"/></policy></busconfig>
"""
DAEMON_PACKAGES: Final = ("dbus-bin", "dbus-daemon", "libdbus-1-3", "libapparmor1", "libexpat1")


def _daemon(bench: Bench, stack: contextlib.ExitStack) -> str:
    program, environment = peers.program("dbus-daemon", *DAEMON_PACKAGES)
    folder = _folder(stack)
    config = folder / "config.xml"
    config.write_text(DAEMON_CONFIG.format(path=folder / "s"))
    # It says its address when it listens; a line of JSON makes it a program like the others.
    script = (
        f'"{program}" --config-file="{config}" --nofork --nopidfile --print-address & P=$!; '
        f'while [ ! -S "{folder}/s" ]; do kill -0 $P || exit 1; sleep 0.01; done; echo "{{}}"; '
        "cat >/dev/null; kill $P; wait $P"
    )
    silent = f"exec 3>&1; {script}".replace("--print-address &", "3>&- >/dev/null &")
    stack.enter_context(
        Program(
            ["/bin/sh", "-c", silent], bench.scratch, bench.both, (), {**bench.environment(), **environment}
        )
    )
    return f"unix:path={folder}/s"


def _sd_bus() -> Path:
    flags = ["-lsystemd"]
    if not Path("/usr/include/systemd/sd-bus.h").exists():
        root = peers.unpacked("libsystemd-dev")
        library = next((p for p in Path("/usr/lib").glob("*/libsystemd.so.0")), None)
        if library is None:
            raise Absent("libsystemd.so.0 is not installed")
        flags = [f"-I{root}/usr/include", str(library)]
    return peers.compiled(PROGRAMS / "dbus_c.c", "dbus-c", *flags)


def _folder(stack: contextlib.ExitStack) -> Path:
    """A directory whose name is short enough for a socket's path."""
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))


def measure(bench: Bench, wanted: frozenset[str]) -> Iterator[tuple[str, Mapping[str, Measured]]]:
    """Measure."""
    with contextlib.ExitStack() as stack:
        standing = Standing(bench, stack)
        # Ours as on a machine of a release: no tap is there.
        for name, size in SIZES.items():
            if f"call-{name}" in wanted:
                calls = max(60, bench.count(FULL, QUICK) * 200 // max(200, size // 8))
                yield f"call-{name}", _calls(bench, standing, calls, 1, size)[0]
        for callers in CALLERS:
            names = {f"rate-{callers}", f"call-200B-{callers}"} & wanted
            if names:
                took, rates = _calls(bench, standing, bench.count(FULL, QUICK), callers, 200)
                for name in sorted(names):
                    yield name, rates if name.startswith("rate") else took
        yield from _taps(bench, standing, wanted)
        if "flood" in wanted:
            yield "flood", _flooded(bench, standing)
        if "flood-queue" in wanted:
            yield "flood-queue", _flooded(bench, standing, first=True)


def _calls(
    bench: Bench, standing: Standing, calls: int, callers: int, size: int
) -> tuple[dict[str, Measured], dict[str, Measured]]:
    """Latencies and rates of all."""
    rounds, warm = bench.count(9, 3), 1
    pairs = {name: standing.pair(name) for name in (OURS, *PEERS)}
    for pair in pairs.values():
        if isinstance(pair, Pair):
            pair.rates.clear()

    took = bench.alternate(
        {
            name: _latencies(pair, calls, callers, size) if isinstance(pair, Pair) else pair
            for name, pair in pairs.items()
        },
        rounds,
        warm,
        NOTES,
    )
    rates: dict[str, Measured] = {}
    for name, pair in pairs.items():
        found = took[name]
        if isinstance(found, Rounds) and isinstance(pair, Pair):
            rates[name] = Rounds(tuple((rate,) for rate in pair.rates[warm:]), found.note)
        else:
            rates[name] = found
    return took, rates


NOTES: Final = {
    ZMQ: "ROUTER and DEALER, blocking",
    ZMQ_TRIO: "the same sockets, waited for as trio waits",
    SEQPACKET: "SOCK_SEQPACKET, blocking, packets of 64 KiB",
    DBUS: "dbus-fast at both ends, over dbus-daemon",
    DBUS_C: "sd-bus at both ends, over dbus-daemon",
    GRPC: "grpcio at both ends, over a unix socket",
}


def _taps(
    bench: Bench, standing: Standing, wanted: frozenset[str]
) -> Iterator[tuple[str, Mapping[str, Measured]]]:
    if "tap-idle" in wanted:
        yield "tap-idle", _tapped_afresh(bench)
    if "tap-heard" in wanted:
        pairs = {OURS: standing.pair("ours heard"), UNTAPPED: standing.pair(OURS)}
        yield "tap-heard", bench.alternate(_asked(pairs, bench.count(FULL, QUICK)), bench.count(15, 5))


def _tapped_afresh(bench: Bench) -> dict[str, Measured]:
    """Each contender's processes are started many times: two of one program differ by more than a tap."""
    kept: dict[str, list[tuple[float, ...]]] = {OURS: [], UNTAPPED: []}
    for _ in range(bench.count(10, 3)):
        with contextlib.ExitStack() as stack:
            again = Standing(bench, stack)
            pairs = {OURS: again.pair("ours tapped"), UNTAPPED: again.pair(OURS)}
            found = bench.alternate(_asked(pairs, bench.count(400, QUICK)), bench.count(10, 4))
        for label, measured in found.items():
            if isinstance(measured, Missing):
                return found
            kept[label] += measured.samples
    return {label: Rounds(tuple(rounds)) for label, rounds in kept.items()}


def _asked(
    pairs: Mapping[str, Pair | Missing], calls: int
) -> dict[str, Callable[[], Sequence[float]] | Missing]:
    return {
        label: pair if isinstance(pair, Missing) else _latencies(pair, calls) for label, pair in pairs.items()
    }


def _latencies(pair: Pair, calls: int, callers: int = 1, size: int = 200) -> Callable[[], Sequence[float]]:
    return lambda: pair.latencies(calls, callers, size)


def _scheduled(pair: Pair, policy: int, priority: int) -> None:
    for program in (pair.caller, pair.callee):
        program.schedule(policy, priority)


def _flooded(bench: Bench, standing: Standing, *, first: bool = False) -> dict[str, Measured]:
    """`first`: caller and callee get a processor before the flood, so that only the queue is waited for."""
    # One in a thousand needs more than a thousand, in a quick run too.
    calls, rounds = bench.count(2000, 1200), bench.count(5, 2)

    def tail(pair: Pair, flood: bool) -> Callable[[], Sequence[float]]:
        def one() -> Sequence[float]:
            assert pair.flood is not None
            if first:
                _scheduled(pair, os.SCHED_FIFO, 1)
            os.kill(pair.flood.pid, signal.SIGCONT if flood else signal.SIGSTOP)
            time.sleep(SETTLE_S)
            try:
                return (percentile(pair.latencies(calls, 1, 200), 0.999),)
            finally:
                os.kill(pair.flood.pid, signal.SIGSTOP)
                if first:
                    _scheduled(pair, os.SCHED_OTHER, 0)

        return one

    labels = {OURS: "ours flooded", ALONE: "ours flooded", f"{ZMQ} flooded": f"{ZMQ} flooded"}
    if not first:
        # Over a daemon it is two who answer.
        labels[f"{DBUS} flooded"] = f"{DBUS} flooded"
    contenders: dict[str, Callable[[], Sequence[float]] | Missing] = {}
    for label, name in labels.items():
        pair = standing.pair(name)
        contenders[label] = pair if isinstance(pair, Missing) else tail(pair, label != ALONE)
    return bench.alternate(contenders, rounds)
