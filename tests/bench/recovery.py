"""How long a killed organ is away, and what its callers feel; beside a tiny service under s6 and runit.

Ours is the whole spine in the container ground: bay0 sees the death, its zygote forks the next incarnation
with everything imported, the callers' bus sends their calls again. Theirs is a supervisor and a Python
program that opens a socket, once as small as can be and once with what an organ imports. The supervisors wait
a second between two starts, so each service is left alone that long before it is killed: that wait is not
counted.

Needs root. Touches: a container ground of its own in the scratch directory, processes that it ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from bus.wire import Method
from spine import paths
from spine.ground.port import Port, PortFailure, schemas
from tests.bench import peers
from tests.bench.bench import ENDING_S, Absent, Bench
from tests.bench.figures import Goal, Measured, Missing
from tests.bench.store import KEYS, VALUE
from tests.bench.table import OURS, Row
from tests.fire.rig import SILENT, Spine, children_of, development, harmless, number_inside

ABOUT = "the time from a kill -9 to the first answer of the next incarnation, and a call that was under way"
ORGANS: Final = ("gate", "freezer", "integrity")
S6, RUNIT = "s6, tiny Python", "runit, tiny Python"
S6_LIKE, RUNIT_LIKE = "s6, Python with our imports", "runit, Python with our imports"
QUIET = "ours, nobody killed"
S6_PACKAGES: Final = ("s6", "libs6-2.11", "libskarnet2.13", "libexecline2.9", "execline")
AFTER_START_S: Final = 1.1
"""Both supervisors keep a second between two starts of a service."""
LIVES_S: Final = 0.2
"""An organ runs that long before it is killed, so that it is not still starting."""
PATIENCE_S: Final = 30.0
AGAIN_S: Final = 0.0005
"""Between two tries to connect to a service that is not there yet."""


NOTES: Final = {
    S6: "s6-supervise waits a second after a death, whatever came before it",
    S6_LIKE: "s6-supervise waits a second after a death, whatever came before it",
}


def rows(quick: bool) -> Sequence[Row]:
    """The rows."""
    del quick
    return (
        Row(
            "gate",
            "killed to answering again, the gate",
            "ms",
            (S6, RUNIT, S6_LIKE, RUNIT_LIKE),
            absolute=Goal(at_most=20),
            plot="From kill -9 to the first answer",
        ),
        *(
            Row(name, f"killed to answering again, the {name}", "ms", absolute=Goal(at_most=20))
            for name in ORGANS
            if name != "gate"
        ),
        Row("felt", "the longest of a caller's idempotent calls while the gate is killed", "ms", (QUIET,)),
        Row("put", "a durable put of 200 bytes from the host, by the operator's port and the gate", "ms"),
    )


def measure(bench: Bench, wanted: frozenset[str]) -> Iterator[tuple[str, Mapping[str, Measured]]]:
    """Measure."""
    if os.geteuid() != 0:
        raise Absent("the container ground needs root")
    with contextlib.ExitStack() as stack:
        table = schemas()
        # Deaths without end are forgiven and the first restart is without a pause, as a first death's is.
        spine = Spine(bench.folder("spine"), development())
        stack.callback(spine.close)
        port = stack.enter_context(spine.container.port())
        rounds = bench.count(9, 2)
        for name in ORGANS:
            if name in wanted:
                method, body = harmless(table.interfaces[name])
                contenders: dict[str, Callable[[], Sequence[float]] | Missing] = {
                    OURS: _killed(spine, port, name, method, body, bench.count(5, 2))
                }
                if name == "gate":
                    contenders |= _services(bench, stack)
                yield name, bench.alternate(contenders, rounds, notes=NOTES)
        if "felt" in wanted:
            method, body = harmless(table.interfaces["gate"])
            yield (
                "felt",
                bench.alternate(
                    {
                        OURS: _felt(spine, port, method, body, kill=True),
                        QUIET: _felt(spine, port, method, body, kill=False),
                    },
                    rounds,
                ),
            )
        if "put" in wanted:
            yield "put", bench.alternate({OURS: _puts(port, bench.count(200, 50))}, rounds)


def _pid(spine: Spine, name: str) -> int:
    """The real number of an organ that runs."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        now = spine.children()[name]
        if now["state"] == "ready":
            for pid in children_of(spine.container.pid):
                if number_inside(pid) == int(str(now["pid"])):
                    return pid
        time.sleep(0.01)
    raise Absent(f"{name} does not run")


def _ask(port: Port, method: Method, body: bytes) -> None:
    """A call that the organ itself answers, if only with a no. Absent when somebody answers in its place."""
    try:
        port.call_raw(method, body)
    except PortFailure as failure:
        if failure.failure.code in SILENT:
            raise Absent(f"{method.interface_name}: {failure.failure}") from None


def _killed(
    spine: Spine, port: Port, name: str, method: Method, body: bytes, times: int
) -> Callable[[], Sequence[float]]:
    def one() -> Sequence[float]:
        took = []
        for _ in range(times):
            time.sleep(LIVES_S)
            pid = _pid(spine, name)
            began = time.perf_counter()
            os.kill(pid, signal.SIGKILL)
            # Idempotent: the bus holds it until the next incarnation is there.
            _ask(port, method, body)
            took.append((time.perf_counter() - began) * 1000)
        return took

    return one


def _felt(
    spine: Spine, port: Port, method: Method, body: bytes, *, kill: bool
) -> Callable[[], Sequence[float]]:
    """The longest of a round of calls, one after the other, with a death in the middle."""

    def one() -> Sequence[float]:
        pid = _pid(spine, "gate")
        timer = threading.Timer(LIVES_S, os.kill, (pid, signal.SIGKILL if kill else 0))
        timer.start()
        longest, end = 0.0, time.monotonic() + 2 * LIVES_S
        while time.monotonic() < end:
            began = time.perf_counter()
            _ask(port, method, body)
            longest = max(longest, (time.perf_counter() - began) * 1000)
        timer.join()
        return (longest,)

    return one


def _puts(port: Port, calls: int) -> Callable[[], Sequence[float]]:
    def one() -> Sequence[float]:
        took = []
        for number in range(calls):
            began = time.perf_counter()
            port.call("gate.put", {"persona": "bench", "key": b"%d" % (number % KEYS), "value": VALUE})
            took.append((time.perf_counter() - began) * 1000)
        return took

    return one


def _services(
    bench: Bench, stack: contextlib.ExitStack
) -> dict[str, Callable[[], Sequence[float]] | Missing]:
    found: dict[str, Callable[[], Sequence[float]] | Missing] = {}
    service = str(Path(__file__).parent / "programs/service.py")
    tiny, alike = ["/usr/bin/python3", "-I", service], [str(bench.python), "-P", service]
    for name, words, extra, program in (
        (S6, tiny, [], ("s6-supervise", *S6_PACKAGES)),
        (RUNIT, tiny, [], ("runsv", "runit")),
        (S6_LIKE, alike, ["imports"], ("s6-supervise", *S6_PACKAGES)),
        (RUNIT_LIKE, alike, ["imports"], ("runsv", "runit")),
    ):
        try:
            found[name] = _service(bench, stack, words, extra, program)
        except Absent as absent:
            found[name] = Missing(str(absent))
    return found


def _service(
    bench: Bench, stack: contextlib.ExitStack, words: list[str], extra: list[str], program: tuple[str, ...]
) -> Callable[[], Sequence[float]]:
    """A service under a supervisor, and a round of killing it once."""
    supervisor, environment = peers.program(program[0], *program[1:])
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
    path, pid_file, script = directory / "s", directory / "pid", directory / "service/run"
    script.parent.mkdir()
    said = " ".join(f"'{word}'" for word in [*words, str(path), *extra])
    script.write_text(f"#!/bin/sh\necho $$ >'{pid_file}'\nexec {said}\n")
    script.chmod(0o755)
    process = subprocess.Popen(
        [supervisor, script.parent],
        env={**bench.environment(), **environment},
        cwd=paths.ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    stack.callback(_ended, process)
    _answer(path)

    def one() -> Sequence[float]:
        time.sleep(AFTER_START_S)
        pid = int(pid_file.read_text())
        began = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        _answer(path)
        return ((time.perf_counter() - began) * 1000,)

    return one


def _answer(path: Path) -> None:
    """Until the service answers. Absent when it does not."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            with contextlib.suppress(OSError):
                asking.connect(str(path))
                asking.sendall(b"?")
                if asking.recv(1) == b"?":
                    return
        time.sleep(AGAIN_S)
    raise Absent("the service does not answer")


def _ended(process: subprocess.Popen[bytes]) -> None:
    """Both supervisors end their service and themselves when told to end."""
    process.terminate()
    try:
        process.wait(ENDING_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
