"""The worker as a caller sees it, without a loop: ask and wait for the answer."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from bus.envelope import Code
from organs.gate import verdict
from organs.gate.verdict import Delete, Get, List, Operation, Put, Refuse, Usage
from organs.gate.worker import Deleted, Found, Listed, Outcome, Stored, Ticket, Used, Worker

# Longer than any healthy device takes; a test that waits this long has failed.
PATIENCE_S = 60.0


class Refused(Exception):
    """The gate said no."""

    def __init__(self, refusal: Refuse) -> None:
        super().__init__(refusal.message)
        self.code: Code = refusal.code
        self.message = refusal.message


class Died(Exception):
    """The worker died before it answered."""


class Asker:
    """A worker on a directory, started and stopped with the `with` block."""

    def __init__(
        self, directory: Path, *, quota_bytes: int = verdict.QUOTA_BYTES, ballast_bytes: int = 64 << 10
    ) -> None:
        self.dead = threading.Event()
        self.cause: BaseException | None = None
        self.worker = Worker(directory, died=self._died, quota_bytes=quota_bytes, ballast_bytes=ballast_bytes)

    def _died(self, cause: BaseException) -> None:
        self.cause = cause
        self.dead.set()

    def __enter__(self) -> Asker:
        self.worker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.worker.stop()
        if self.cause is not None and error is None:
            raise self.cause

    def together(self, operations: Iterable[Operation]) -> list[Outcome]:
        """Ask all at once, wait for all: what waits together is one batch, or two."""
        answers: list[list[Outcome]] = []
        done = threading.Event()
        wanted = list(operations)
        left = len(wanted)
        counting = threading.Lock()

        def waiter(into: list[Outcome]) -> object:
            def answer(outcome: Outcome) -> None:
                nonlocal left
                into.append(outcome)
                with counting:
                    left -= 1
                    if not left:
                        done.set()

            return answer

        # Holding the queue's lock while all are added makes them one batch for sure.
        with self.worker._queue:
            for operation in wanted:
                answers.append([])
                ticket = self.worker.submit(operation, waiter(answers[-1]))  # type: ignore[arg-type] # a closure
                if isinstance(ticket, Refuse):
                    raise Refused(ticket)
        if wanted:
            self._wait(done)
        return [outcome for (outcome,) in answers]

    def _wait(self, done: threading.Event) -> None:
        waited = 0.0
        while not done.wait(0.05):
            waited += 0.05
            if self.dead.is_set():
                raise Died(repr(self.cause))
            if waited > PATIENCE_S:
                raise TimeoutError("no answer")

    def ask(self, operation: Operation) -> Outcome:
        """One request; Refused when the gate says no."""
        (outcome,) = self.together([operation])
        if isinstance(outcome, Refuse):
            raise Refused(outcome)
        return outcome

    def put(self, persona: str, key: bytes, value: bytes) -> int:
        outcome = self.ask(Put(persona=persona, key=key, value=value))
        assert isinstance(outcome, Stored)
        return outcome.seq

    def get(self, persona: str, key: bytes) -> bytes | None:
        with suppress_not_found():
            outcome = self.ask(Get(persona=persona, key=key))
            assert isinstance(outcome, Found)
            return outcome.value
        return None

    def delete(self, persona: str, key: bytes) -> bool:
        outcome = self.ask(Delete(persona=persona, key=key))
        assert isinstance(outcome, Deleted)
        return outcome.existed

    def list(self, persona: str, after: bytes = b"", limit: int = 0) -> tuple[tuple[bytes, ...], bool]:
        outcome = self.ask(List(persona=persona, after=after, limit=limit))
        assert isinstance(outcome, Listed)
        return outcome.keys, outcome.more

    def usage(self, persona: str) -> Used:
        outcome = self.ask(Usage(persona=persona))
        assert isinstance(outcome, Used)
        return outcome


class suppress_not_found(suppress):
    """NOT_FOUND is an answer; every other refusal is not."""

    def __init__(self) -> None:
        super().__init__(Refused)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return isinstance(error, Refused) and error.code is Code.NOT_FOUND


__all__ = ["Asker", "Died", "Refused", "Ticket"]
