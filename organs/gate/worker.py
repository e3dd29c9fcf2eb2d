"""The one thread that touches the device, and group commit.

Requests wait in a bounded queue. The thread takes all that wait, groups them by persona, runs each persona's
in one transaction, and answers them when COMMIT has returned: one sync of the device pays for all.

Touches: the stores of one directory, each through one connection, at most CONNECTIONS_MAX open at a time.
Never: answers before the commit; says that something failed when it may have happened; goes on after a failed
write or sync, since the kernel forgets such an error once told and later syncs would lie.
Fails: the first error that is not a typed answer ends the thread. The requests it held stay unanswered, the
owner is told once, and must end the process.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final, assert_never

from bus.envelope import Code
from organs.gate import verdict
from organs.gate.ballast import Ballast
from organs.gate.store import Corrupt, Full, OverQuota, Rotten, Store, count, sweep
from organs.gate.verdict import Delete, Get, List, Operation, Put, Refuse, Usage
from organs.gate.writeahead import Fold

# Stores open at once. Each holds a page cache, three descriptors and a log.
CONNECTIONS_MAX: Final = 8
# Without a request for this long the logs are folded into their files; then nothing is written any more.
IDLE_S: Final = 0.5
# Free pages a store may keep for its next puts; more is given back when idle (1 MiB).
FREE_PAGES_KEPT: Final = 256


@dataclass(frozen=True, slots=True)
class Stored:
    """A put is durable under this number."""

    seq: int


@dataclass(frozen=True, slots=True)
class Found:
    """A value that was put, with the number it was put under."""

    value: bytes
    seq: int


@dataclass(frozen=True, slots=True)
class Deleted:
    """A delete is durable; whether there was something."""

    existed: bool


@dataclass(frozen=True, slots=True)
class Listed:
    """Keys in byte order, and whether more follow."""

    keys: tuple[bytes, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class Used:
    """What a persona occupies."""

    bytes: int
    keys: int
    quota_bytes: int


Outcome = Stored | Found | Deleted | Listed | Used | Refuse


class _State(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    ABANDONED = "abandoned"


class Ticket:
    """One request from its admission to its answer."""

    __slots__ = ("answer", "operation", "state")

    def __init__(self, operation: Operation, answer: Callable[[Outcome], None]) -> None:
        self.operation = operation
        self.answer = answer
        self.state = _State.WAITING


class Worker:
    """The thread and its queue. `submit` and `abandon` may be called from any thread."""

    def __init__(
        self,
        directory: Path,
        *,
        died: Callable[[BaseException], None],
        quota_bytes: int = verdict.QUOTA_BYTES,
        ballast_bytes: int | None = None,
    ) -> None:
        self._directory = directory
        self._died = died
        self._quota_bytes = quota_bytes
        self._ballast_bytes = ballast_bytes
        # A lock for the queue and one to sleep on, which is held but for the moment between a call and the
        # waking. threading.Condition makes a lock for each wait and wakes nobody sooner.
        self._queue = threading.RLock()
        self._called = threading.Lock()
        self._called.acquire()
        self._sleeping = False
        self._waiting: deque[Ticket] = deque()
        self._waiting_bytes = 0
        self._stopping = False
        # Below: the thread's own.
        self._stores: OrderedDict[str, Store] = OrderedDict()
        self._examined: set[str] = set()
        self._corrupt: dict[str, str] = {}
        self._untidy: set[str] = set()
        self._littered: set[str] = set()
        self._unsettled: Store | None = None
        self.commits = 0
        # Daemon: after a failure it must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="gate-worker", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the transactions that run, fold and close the stores, end the thread. Waits for it."""
        with self._queue:
            self._stopping = True
            self._wake()
        self._thread.join()

    def submit(self, operation: Operation, answer: Callable[[Outcome], None]) -> Ticket | Refuse:
        """Queue a request. `answer` is called once, on the worker's thread, or never when the worker dies."""
        with self._queue:
            admitted = verdict.admit_queued(operation, len(self._waiting), self._waiting_bytes)
            if isinstance(admitted, Refuse):
                return admitted
            ticket = Ticket(operation, answer)
            self._waiting.append(ticket)
            self._waiting_bytes += verdict.queued_bytes(operation)
            self._wake()
            return ticket

    def _wake(self) -> None:
        if self._sleeping:
            self._sleeping = False
            self._called.release()

    def abandon(self, ticket: Ticket) -> None:
        """Nobody waits for the answer any more. What has not begun is not done."""
        with self._queue:
            if ticket.state is _State.WAITING:
                ticket.state = _State.ABANDONED

    def damaged(self) -> dict[str, str]:
        """The stores that were found damaged since the start, and what was seen."""
        return dict(self._corrupt)

    # The thread.

    def _run(self) -> None:
        try:
            self._live()
        # Nobody is answered after it; the owner raises it in the main thread, and the process ends.
        except BaseException as error:  # INV-GATE-9
            for store in self._stores.values():
                store.abandon()
            self._died(error)

    def _live(self) -> None:
        sweep(self._directory)
        if self._ballast_bytes is None:
            self._ballast = Ballast(self._directory)
        else:
            self._ballast = Ballast(self._directory, self._ballast_bytes)
        self._ballast.take()
        while (batch := self._next_batch()) is not None:
            groups: dict[str, list[Ticket]] = {}
            for ticket in batch:
                groups.setdefault(ticket.operation.persona, []).append(ticket)
            for persona, tickets in groups.items():
                for ticket, outcome in zip(tickets, self._serve(persona, tickets), strict=True):
                    ticket.answer(outcome)
                # What was answered is durable in the log. While it is folded the next requests gather.
                self._settle(persona)
            if not batch:
                self._tidy()
        for persona in list(self._stores):
            self._close(persona)
        self._ballast.close()

    def _next_batch(self) -> list[Ticket] | None:
        """All that wait; nothing when there was no request for a while; None when asked to stop."""
        with self._queue:
            asleep = self._sleeping = not self._waiting and not self._stopping
        # Without an unfolded log there is nothing to do later: wait without a timer.
        called = asleep and self._called.acquire(timeout=IDLE_S if self._untidy else -1)
        with self._queue:
            if asleep and not called:
                if not self._sleeping:
                    self._called.acquire()  # called in the moment when the time was up
                self._sleeping = False
            if self._stopping:
                return None
            batch = [ticket for ticket in self._waiting if ticket.state is _State.WAITING]
            for ticket in batch:
                ticket.state = _State.RUNNING
            self._waiting.clear()
            self._waiting_bytes = 0
            return batch

    def _serve(self, persona: str, tickets: list[Ticket]) -> list[Outcome]:
        """The outcomes of one persona's requests, all durable when this returns."""
        operations = [ticket.operation for ticket in tickets]
        try:
            return self._together(persona, operations)
        except Full:
            # Nothing of the transaction was written. Each for itself then, so that one that needs room does
            # not take the others with it.
            return [self._alone(persona, operation) for operation in operations]
        except Corrupt as damage:
            return self._quarantine(persona, str(damage), operations)

    def _quarantine(self, persona: str, why: str, operations: list[Operation]) -> list[Outcome]:
        # The file stays as it is, for whoever can mend or replace it; this persona alone is out of service.
        self._corrupt.setdefault(persona, why)
        if (store := self._stores.pop(persona, None)) is not None:
            self._untidy.discard(persona)
            store.abandon()
        return [Refuse(Code.CORRUPT, f"the store is damaged: {self._corrupt[persona]}")] * len(operations)

    def _together(self, persona: str, operations: list[Operation]) -> list[Outcome]:
        if persona in self._corrupt:
            raise Corrupt(self._corrupt[persona])
        puts = any(isinstance(operation, Put) for operation in operations)
        # Without the reserve no put may take any room; room may have come back meanwhile.
        if puts and not self._ballast.take():
            raise Full("the reserve is not in place")
        store = self._store(persona, create=puts)
        if isinstance(store, Refuse):
            return [store if isinstance(o, Put) else _absent(o, self._quota_bytes) for o in operations]
        if store is None:
            return [_absent(operation, self._quota_bytes) for operation in operations]
        writes = any(isinstance(operation, Put | Delete) for operation in operations)
        try:
            if writes and persona in self._littered:
                store.fold()
                self._littered.discard(persona)
            store.begin(writes=writes)
            outcomes = [_apply(store, operation) for operation in operations]
            store.commit()  # INV-GATE-2
        except (Full, Corrupt):
            store.rollback()
            # What did not fit lies behind the commits in the log. It is emptied before anything else is
            # written, so that no half of a commit is ever found behind a whole one.
            self._littered.add(persona)
            raise
        if writes:
            self.commits += 1
            self._untidy.add(persona)
            self._unsettled = store
        return outcomes

    def _alone(self, persona: str, operation: Operation) -> Outcome:
        """One request on a device without room."""
        try:
            return self._together(persona, [operation])[0]
        except Corrupt as damage:
            return self._quarantine(persona, str(damage), [operation])[0]
        except Full as full:
            if not isinstance(operation, Delete):
                self._reclaim(persona)
                return Refuse(Code.FULL, "the device is full; nothing was written")
            reason = full
        self._ballast.give()
        try:
            return self._together(persona, [operation])[0]  # INV-GATE-3
        except Full:
            return Refuse(Code.FULL, f"the device is full; nothing was deleted: {reason}")
        except Corrupt as damage:
            return self._quarantine(persona, str(damage), [operation])[0]
        finally:
            self._reclaim(persona)

    def _reclaim(self, persona: str) -> None:
        """After the device was full: give back what can be given back, then take the reserve again."""
        store = self._stores.get(persona)
        if store is not None:
            try:
                self._fold(store)
                while store.trim():
                    pass
            except Full:
                pass  # the log keeps what is durable; the next delete tries again
            except Corrupt as damage:
                self._quarantine(persona, str(damage), [])
        self._ballast.take()

    def _settle(self, persona: str) -> None:
        """After a commit: fold the log when it is long enough."""
        store, self._unsettled = self._unsettled, None
        if store is None or self._stores.get(persona) is not store:
            return
        try:
            if (due := store.fold_due()) is not Fold.LATER:
                self._fold(store, due)
        except Corrupt as damage:
            self._quarantine(persona, str(damage), [])

    def _fold(self, store: Store, how: Fold = Fold.EMPTY) -> None:
        """Fold a log into its file, with the reserve's room if it needs that."""
        try:
            store.fold(how)
        except Full:
            self._ballast.give()
            try:
                store.fold()
            except Full:
                return
            finally:
                self._ballast.take()

    def _tidy(self) -> None:
        """Nobody asks: fold every log, give back room that is not needed."""
        for persona in list(self._untidy):
            store = self._stores[persona]
            self._untidy.discard(persona)
            try:
                self._fold(store)
                while store.free_pages() > FREE_PAGES_KEPT:
                    if self._waiting:
                        self._untidy.add(persona)
                        break
                    store.trim()
            except Full:
                pass
            except Corrupt as damage:
                self._quarantine(persona, str(damage), [])
        self._ballast.take()

    def _store(self, persona: str, *, create: bool) -> Store | Refuse | None:
        """The persona's open store; None when it has none and none is to be made."""
        if (store := self._stores.get(persona)) is not None:
            self._stores.move_to_end(persona)
            return store
        while len(self._stores) >= CONNECTIONS_MAX:
            self._close(next(iter(self._stores)))
        store = Store.open(
            self._directory, persona, examine=persona not in self._examined, quota_bytes=self._quota_bytes
        )
        if store is None and create:
            if isinstance(refusal := verdict.admit_store(count(self._directory)), Refuse):
                return refusal
            store = Store.create(self._directory, persona, quota_bytes=self._quota_bytes)
        if store is not None:
            self._examined.add(persona)
            self._stores[persona] = store
        return store

    def _close(self, persona: str) -> None:
        store = self._stores.pop(persona)
        self._untidy.discard(persona)
        try:
            store.close()
            self._littered.discard(persona)
        except Full:
            pass  # the log keeps what is durable
        except Corrupt as damage:
            self._corrupt.setdefault(persona, str(damage))


def _apply(store: Store, operation: Operation) -> Outcome:
    match operation:
        case Put(key=key, value=value):
            try:
                return Stored(store.put(key, value))
            except OverQuota as over:
                return over.refusal
        case Get(key=key):
            try:
                found = store.get(key)
            except Rotten as rotten:
                return Refuse(Code.CORRUPT, str(rotten))
            return Refuse(Code.NOT_FOUND, "no such key") if found is None else Found(*found)
        case Delete(key=key):
            return Deleted(store.delete(key))
        case List(after=after, limit=limit):
            keys, more = store.list(after, limit)
            return Listed(tuple(keys), more)
        case Usage():
            return Used(store.used_bytes(), store.keys, store.quota_bytes)
        case _:
            assert_never(operation)


def _absent(operation: Operation, quota_bytes: int) -> Outcome:
    """What a persona that never put anything is answered."""
    match operation:
        case Put():
            raise AssertionError("a put makes a store")
        case Get():
            return Refuse(Code.NOT_FOUND, "no such key")
        case Delete():
            return Deleted(False)
        case List():
            return Listed((), False)
        case Usage():
            return Used(0, 0, quota_bytes)
        case _:
            assert_never(operation)
