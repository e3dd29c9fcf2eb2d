"""What every family of rows is given: rounds that alternate, programs that are pinned, a place to work in.

A family is a module of this directory, named in `FAMILIES`, with

    ABOUT: str                                              what it measures, a sentence for the page
    def rows(quick: bool) -> Sequence[Row]                  everything it is going to measure, declared
    def measure(bench: Bench, wanted: frozenset[str]) -> Iterator[tuple[str, Mapping[str, Measured]]]
                                                            what came of each of the rows wanted, by name

Touches: processes that it starts and ends, a scratch directory that goes with it. A contender that fails
becomes `Missing` with its reason, and the others go on; a family that fails leaves its rows missing.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from spine import paths
from spine.progress import Progress
from tests.bench.figures import Measured, Missing, Rounds

FAMILIES: Final = (
    *("bus", "recovery", "store", "verification"),
    *("rooms", "focus", "boot", "memory", "size", "growth"),
)
"""The modules with rows, in the order of the table."""

PATIENCE_S: Final = 60.0
"""How long a program may take for one answer: far above the slowest round, so that only a hang ends here."""
ENDING_S: Final = 5.0
"""How long a program has to end once its input is closed."""


class Absent(Exception):
    """A contender cannot be had, or does not run; the text is the reason, for the table."""


class Program:
    """A program of a contender, asked on its standard input and answering on its output, a JSON line each.

    Its first line is `{"ready": ...}`. It ends when its input is closed. Absent when it does not answer; its
    last words on standard error are the reason.
    """

    def __init__(
        self,
        words: Sequence[str | Path],
        scratch: Path,
        cpus: frozenset[int] = frozenset(),
        pass_fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._said = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 (closed with the program)
        self._buffer = b""
        try:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                pass_fds=pass_fds,
                cwd=paths.ROOT,
                env=dict(os.environ if environment is None else environment),
            )
        except OSError as error:
            self._said.close()
            raise Absent(f"{words[0]}: {error.strerror}") from None
        pin(self._process.pid, cpus)
        try:
            self.ready = self._answer()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def schedule(self, policy: int, priority: int) -> None:
        """How the kernel schedules each of its threads. Raises OSError."""
        for thread in os.listdir(f"/proc/{self.pid}/task"):
            os.sched_setscheduler(int(thread), policy, os.sched_param(priority))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, **question: object) -> dict[str, object]:
        """Its answer to one question."""
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(question).encode() + b"\n")
            stdin.flush()
        except OSError:
            raise Absent(self._last_words()) from None
        return self._answer()

    def _answer(self) -> dict[str, object]:
        stdout = self._process.stdout
        assert stdout is not None
        end = time.monotonic() + PATIENCE_S
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise Absent(f"no answer within {PATIENCE_S:.0f} s")
                more = os.read(stdout.fileno(), 1 << 20)
                if not more:
                    raise Absent(self._last_words())
                self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(ENDING_S)
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else f"it ended with {self._process.returncode}"

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._said.close()


def pin(pid: int, cpus: frozenset[int]) -> None:
    """Keep a process and what it starts to these processors, where the kernel lets us."""
    if cpus:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(pid, cpus)


class Bench:
    """One run."""

    def __init__(self, quick: bool, seed: str, scratch: Path, progress: Progress) -> None:
        self.quick = quick
        self.seed = seed
        self.scratch = scratch
        self.progress = progress
        self.python = Path(sys.executable)
        cpus = sorted(os.sched_getaffinity(0))
        # Whoever asks and whoever answers have a processor each, the last ones: the first takes interrupts.
        self.asking = frozenset(cpus[-1:])
        self.answering = frozenset(cpus[-2:-1] or cpus[-1:])
        self.both = self.asking | self.answering

    def count(self, full: int, quick: int) -> int:
        """How many of something this run makes."""
        return quick if self.quick else full

    def folder(self, name: str) -> Path:
        """A directory of the run's own, new each time."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.scratch))

    def environment(self, **more: str) -> dict[str, str]:
        """For programs that import the tree."""
        return {
            **os.environ,
            "PYTHONPATH": f"{paths.ROOT}:{paths.ROOT / 'spine-image'}",
            "PYTHONDONTWRITEBYTECODE": "",
            **more,
        }

    def alternate(
        self,
        contenders: Mapping[str, Callable[[], Sequence[float]] | Missing],
        rounds: int,
        warm: int = 1,
        notes: Mapping[str, str] | None = None,
    ) -> dict[str, Measured]:
        """Rounds of all in turn, each round beginning with another; those of the warm-up are thrown away.

        A contender is a function that measures one round. One that raises Absent or OSError is missing from
        then on.
        """
        order = [name for name, found in contenders.items() if not isinstance(found, Missing)]
        random.Random(f"{self.seed} {order}").shuffle(order)
        kept: dict[str, list[tuple[float, ...]]] = {name: [] for name in order}
        gone = {name: found for name, found in contenders.items() if isinstance(found, Missing)}
        for number in range(warm + rounds):
            turn = number % len(order)
            for name in order[turn:] + order[:turn]:
                one = contenders[name]
                if name in gone or isinstance(one, Missing):
                    continue
                try:
                    samples = tuple(one())
                except (Absent, OSError) as error:
                    gone[name] = Missing(str(error))
                    continue
                if number >= warm:
                    kept[name].append(samples)
            self.progress.note(f"round {number + 1} of {warm + rounds}")
        said = {} if notes is None else notes
        return {
            name: gone[name] if name in gone else Rounds(tuple(kept[name]), said.get(name, ""))
            for name in contenders
        }


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A directory on the disk that holds the cache, so that what is durable there is durable indeed."""
    base = paths.private(paths.private(paths.cache()) / "bench")
    with tempfile.TemporaryDirectory(prefix="run-", dir=base, ignore_cleanup_errors=True) as directory:
        yield Path(directory)
