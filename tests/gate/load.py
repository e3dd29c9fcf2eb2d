"""Callers of the gate that keep an account outside of the machine that will crash.

Each of several clients sends one request after another to the worker and writes a line before it submits and
one after it was answered. What a request is follows from the seed alone, so the lines hold numbers only, and
whoever reads them can tell for each key which values it may have after a crash.

As a program, `python -m tests.gate.load DIRECTORY SEED CLIENTS STEPS` does that on standard output and ends
with 101 when the worker died, as the organ would.
"""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from organs.gate import store as gate_store
from organs.gate.store import Corrupt, Rotten, Store
from organs.gate.verdict import Delete, Put, Refuse
from organs.gate.worker import Outcome, Stored, Worker

PERSONAS = ("linda", "ben")
KEYS = 5
SIZES = (0, 3, 300, 300, 3000, 9000, 70_000)
DELETES_IN = 6
DIED = 101

State = dict[tuple[str, bytes], bytes]


def operation(seed: str, client: int, step: int) -> Put | Delete:
    """The request a client sends at a step."""
    dice = random.Random(f"{seed}/{client}/{step}")
    persona = dice.choice(PERSONAS)
    # Keys of its own: each key has one writer, so its history is a line.
    key = b"%d-%d" % (client, dice.randrange(KEYS))
    if dice.randrange(DELETES_IN) == 0:
        return Delete(persona=persona, key=key)
    value = f"{seed}/{client}/{step}|".encode() + dice.randbytes(dice.choice(SIZES))
    return Put(persona=persona, key=key, value=value)


def drive(
    directory: Path, seed: str, clients: int, steps: int, write: Callable[[bytes], object]
) -> BaseException | None:
    """Run the clients to the end of their steps, or until the worker dies; what it died of."""
    dead = threading.Event()
    cause: list[BaseException] = []

    def died(error: BaseException) -> None:
        cause.append(error)
        dead.set()

    worker = Worker(directory, died=died, ballast_bytes=64 << 10)
    worker.start()

    def client(number: int) -> None:
        for step in range(steps):
            answered = threading.Event()
            outcomes: list[Outcome] = []

            def answer(
                outcome: Outcome, outcomes: list[Outcome] = outcomes, answered: threading.Event = answered
            ) -> None:
                outcomes.append(outcome)
                answered.set()

            write(b"S %d %d\n" % (number, step))
            worker.submit(operation(seed, number, step), answer)
            while not answered.wait(0.02):
                if dead.is_set():
                    return
            if isinstance(outcomes[0], Refuse):
                write(b"R %d %d %d\n" % (number, step, outcomes[0].code))
            else:
                seq = outcomes[0].seq if isinstance(outcomes[0], Stored) else 0
                write(b"A %d %d %d\n" % (number, step, seq))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not dead.is_set():
        worker.stop()
    return cause[0] if cause else None


@dataclass
class Account:
    """What the lines say: how far each client came."""

    submitted: dict[int, int] = field(default_factory=dict)
    answered: dict[int, int] = field(default_factory=dict)
    refused: set[tuple[int, int]] = field(default_factory=set)
    acknowledged: int = 0
    seq: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, seed: str, lines: Iterable[bytes]) -> Account:
        """The account of whole lines; a line that was cut short by the end of its writer is no line."""
        account = cls()
        for line in lines:
            if not line.endswith(b"\n"):
                continue
            kind, *numbers = line.split()
            client, step = int(numbers[0]), int(numbers[1])
            if kind == b"S":
                account.submitted[client] = step
                continue
            account.answered[client] = step
            if kind == b"R":
                account.refused.add((client, step))
                continue
            account.acknowledged += 1
            persona = operation(seed, client, step).persona
            account.seq[persona] = max(account.seq.get(persona, 0), int(numbers[2]))
        return account


def allowed(
    before: Mapping[tuple[str, bytes], bytes], seed: str, account: Account
) -> dict[tuple[str, bytes], set[bytes | None]]:
    """For each key that was written, the values it may have now: the acknowledged one, and the one that was
    submitted and not answered. None stands for a key that is not there."""
    may: dict[tuple[str, bytes], set[bytes | None]] = {}
    for client, last in account.submitted.items():
        for step in range(last + 1):
            asked = operation(seed, client, step)
            place = (asked.persona, asked.key)
            new = asked.value if isinstance(asked, Put) else None
            held = may.setdefault(place, {before.get(place)})
            if (client, step) in account.refused:
                continue
            if step <= account.answered.get(client, -1):
                may[place] = {new}
            else:
                held.add(new)
    return may


def contents(directory: Path) -> tuple[State, dict[str, int], list[str]]:
    """All that the stores hold, their sequence numbers, and what is wrong with them."""
    state: State = {}
    seqs: dict[str, int] = {}
    wrong: list[str] = []
    for persona in PERSONAS:
        try:
            store = Store.open(directory, persona, examine=True)
        except Corrupt as damage:
            wrong.append(f"{persona}: {damage}")
            # The gate never closes a damaged store; here it would keep the file system busy.
            while gate_store._ABANDONED:
                gate_store._ABANDONED.pop().close()
            continue
        if store is None:
            continue
        store.begin(writes=False)
        keys, more = store.list(b"", 0)
        assert not more
        for key in keys:
            try:
                found = store.get(key)
            except Rotten as rotten:
                wrong.append(f"{persona} {key!r}: {rotten}")
                continue
            assert found is not None
            state[persona, key] = found[0]
        seqs[persona] = store.seq
        store.commit()
        store.close()
    return state, seqs, wrong


def verify(
    directory: Path, before: Mapping[tuple[str, bytes], bytes], seed: str, lines: Iterable[bytes]
) -> tuple[State, Account, list[str]]:
    """The state after a crash, the account, and every way in which the one contradicts the other."""
    account = Account.read(seed, lines)
    state, seqs, wrong = contents(directory)
    may = allowed(before, seed, account)
    for place in may.keys() | before.keys() | state.keys():
        values = may.get(place, {before.get(place)})
        if state.get(place) not in values:
            wrong.append(f"{place}: lost or wrong")
    for persona, seq in account.seq.items():
        if seqs.get(persona, 0) < seq:
            wrong.append(f"{persona}: sequence went back from {seq} to {seqs.get(persona, 0)}")
    return state, account, wrong


def main() -> int:
    """The program."""
    directory, seed, clients, steps = sys.argv[1:]
    cause = drive(Path(directory), seed, int(clients), int(steps), lambda line: os.write(1, line))
    if cause is not None:
        print(f"died: {cause!r}", file=sys.stderr, flush=True)
        os._exit(DIED)
    return 0


if __name__ == "__main__":
    sys.exit(main())
