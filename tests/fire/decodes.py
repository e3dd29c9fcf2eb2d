"""Hostile decodes: a great many messages that no honest peer sends, each decoded as an organ would.

`python -m tests.fire.decodes --count 240000 --seed 1` first proves the harness on seeded bugs, then
decodes. For each method of the schemas and each struct that travels by itself it makes honest messages,
spoils them, and decodes them in a forked child, so that a decoder that ends its process is counted and not
the end of the harness. Three things are violations: a child that died, an exception that is not
`PeerError`, and a decoder that gave out more than the words that the message's length lets it visit can
hold. Times are CPU time; they are reported, never judged.

After each block it writes docs/evidence/hostile-decodes.json; started again with the same seed on the same
files it goes on where it stopped. A violation ends it: nothing is written then. `--replay N` makes message
N of a seed again.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import mmap
import os
import platform
import random
import resource
import signal
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from bus import wire
from bus.envelope import PeerError
from spine import paths
from spine.ground.port import schemas
from tests.fire.evidence import commit, covered, percentile

EVIDENCE = paths.ROOT / "docs/evidence/hostile-decodes.json"
COVERED = ("bus/wire.py", "bus/envelope.py", "schemas", "tests/fire/decodes.py")
# Messages that one child decodes.
BLOCK = 4000
# CPU time of a block before the child is taken for hung. A block takes about a second.
BLOCK_CPU_S = 120
# Deaths after which there is nothing more to learn.
DEATHS_MAX = 20
# Messages that a seeded bug gets before it must have been noticed.
BUG_COUNT = 2000
# Two of the kernel's limits on what a decoder may give out, by the words it may visit: a word holds 64 bools
# or 8 bytes. An element of a list of structs is a word at least.
ELEMENTS_PER_WORD, BYTES_PER_WORD = 64, 8
WORD = 8
KINDS = ("flip", "pointer", "table", "cut", "splice", "random", "bomb")
WEIGHTS = (6, 6, 2, 2, 2, 2, 1)


@dataclass(frozen=True)
class Subject:
    """A struct that a peer may send, and both ways through its codec."""

    name: str
    fields: tuple[wire.Field, ...]
    encode: Callable[[Mapping[str, object]], bytes]
    decode: Callable[[bytes], dict[str, object]]


def subjects(table: wire.Schemas) -> tuple[Subject, ...]:
    """Parameters and results of each method, and each struct of the umbilical."""
    found = []
    for interface in table.interfaces.values():
        for method in interface.methods.values():
            label = f"{interface.name}.{method.name}"
            found.append(Subject(label, method.params, method.encode_params, method.decode_params))
            found.append(
                Subject(f"{label} results", method.results, method.encode_results, method.decode_results)
            )
    for name, message in table.messages.items():
        found.append(Subject(name, message.fields, message.encode, message.decode))
    return tuple(found)


# --- The messages. One is made of the seed and its number alone, so that it can be made again. ---


@dataclass(frozen=True)
class Hostile:
    """One message, whom it is for, and how it was spoiled. `must_fail`: no honest decoder takes it."""

    subject: Subject
    kind: str
    data: bytes
    must_fail: bool = False


def hostile(of: tuple[Subject, ...], seed: str, number: int) -> Hostile:
    """Message `number` of a seed. Each subject is met equally often."""
    dice = random.Random(f"{seed}.{number}")
    subject = of[number % len(of)]
    kind = dice.choices(KINDS, WEIGHTS)[0]
    honest = bytearray(subject.encode(fields(dice, subject.fields)))
    match kind:
        case "bomb":
            one = amplified(dice, subject)
            if one is not None:
                return one
            kind = "pointer"  # there is no list of structs in it
        case "random":
            size = dice.randrange(65) * WORD
            words = dice.randbytes(size)
            # With a frame of the right length the words themselves are read; without, the frame is.
            framed = struct.pack("<II", 0, size // WORD) + words
            return Hostile(subject, kind, framed if dice.random() < 0.8 else words)
    if kind == "pointer":
        for _ in range(dice.randint(1, 3)):
            at = dice.randrange(1, len(honest) // WORD) * WORD
            honest[at : at + WORD] = struct.pack("<Q", pointer(dice))
    elif kind == "flip":
        for _ in range(dice.randint(1, 8)):
            honest[dice.randrange(len(honest))] ^= 1 << dice.randrange(8)
    elif kind == "table":
        at = dice.choice((0, 4))
        honest[at : at + 4] = struct.pack("<I", dice.choice((dice.randrange(8), dice.getrandbits(32))))
    elif kind == "cut":
        del honest[dice.randrange(len(honest)) :]
    elif kind == "splice":
        other = of[dice.randrange(len(of))]
        donor = other.encode(fields(dice, other.fields))
        at, take = dice.randrange(len(honest) // WORD) * WORD, dice.randrange(len(donor) // WORD) * WORD
        honest[at:] = donor[take:]
        if dice.random() < 0.7:
            honest[0:8] = struct.pack("<II", 0, len(honest) // WORD - 1)
    return Hostile(subject, kind, bytes(honest))


def pointer(dice: random.Random) -> int:
    """A pointer of any kind: forward, backward, to itself, far, of a capability, of any size."""
    offset = dice.choice((dice.randint(-16, 16), dice.randint(-(1 << 29), (1 << 29) - 1)))
    low = (offset & 0x3FFFFFFF) << 2 | dice.randrange(4)
    sizes = dice.choice((dice.getrandbits(3), dice.getrandbits(8), dice.getrandbits(32)))
    return low | sizes << dice.choice((32, 35, 48)) & 0xFFFFFFFFFFFFFFFF


def amplified(dice: random.Random, subject: Subject) -> Hostile | None:
    """A bomb for one of the subject's lists of structs, if it has one."""
    structs = lists_of_structs(subject)
    if not structs:
        return None
    count = dice.choice((500_000, dice.randint(1, 2000), dice.randint(1, (1 << 29) - 1)))
    data = bomb(dice, subject, dice.choice(structs), count)
    return Hostile(subject, "bomb", data, must_fail=count > words_allowed(len(data)))


def lists_of_structs(subject: Subject) -> list[wire.Field]:
    """Those fields of it that are lists of structs."""
    return [f for f in subject.fields if f.type.element is not None and f.type.element.kind == "struct"]


def bomb(dice: random.Random, subject: Subject, bombed: wire.Field, count: int) -> bytes:
    """A list of structs that take no room: one word in the message, as many elements as one likes."""
    assert bombed.type.element is not None
    values = fields(dice, subject.fields) | {f.name: [] for f in lists_of_structs(subject)}
    data = bytearray(subject.encode(values | {bombed.name: [value(dice, bombed.type.element)]}))
    for at in range(WORD, len(data), WORD):
        (word,) = struct.unpack_from("<Q", data, at)
        if word & 3 == 1 and word >> 32 & 7 == 7:  # a list of structs, with a tag in front
            tag = at + WORD + (word >> 2 & 0x3FFFFFFF) * WORD
            if data[tag : tag + 4] != struct.pack("<I", 1 << 2):
                continue  # a number that looks like a pointer: no tag of one struct is there
            struct.pack_into("<Q", data, at, word & 0xFFFFFFFF | 7 << 32)
            struct.pack_into("<Q", data, tag, count << 2)
            return bytes(data)
    raise AssertionError(f"{subject.name}: a list of structs without a pointer to it")


def fields(dice: random.Random, of: tuple[wire.Field, ...]) -> dict[str, object]:
    """A value for each field."""
    return {f.name: value(dice, f.type) for f in of}


def value(dice: random.Random, type_: wire.Type) -> object:
    """An honest value of a type."""
    limits = type_.integer_range
    if limits is not None:
        return dice.choice((*limits, 0, dice.randint(*limits)))
    match type_.kind:
        case "bool":
            return dice.random() < 0.5
        case "float32" | "float64":
            return float(dice.randint(-9, 9))
        case "text":
            return "".join(dice.choices("aé\U0001f980\0 /", k=dice.randrange(20)))
        case "data":
            return dice.randbytes(dice.randrange(40))
        case "enum":
            return dice.choice(type_.names)
        case "list":
            assert type_.element is not None
            return [value(dice, type_.element) for _ in range(dice.randrange(5))]
        case "struct":
            return fields(dice, type_.fields)
    return None


# --- One decode and its verdict. ---


@dataclass
class Report:
    """What a number of messages came to."""

    outcomes: Counter[str] = field(default_factory=Counter)
    times_us: dict[str, Counter[int]] = field(default_factory=lambda: {kind: Counter() for kind in KINDS})
    violations: list[str] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """Another block's."""
        self.outcomes.update(other.outcomes)
        for kind, times in other.times_us.items():
            self.times_us[kind].update(times)
        self.violations += other.violations

    def document(self) -> dict[str, object]:
        """For JSON, which has texts for keys."""
        return {
            "outcomes": dict(sorted(self.outcomes.items())),
            "histogramsUs": {
                kind: {str(us): times[us] for us in sorted(times)} for kind, times in self.times_us.items()
            },
            "violations": self.violations,
        }

    @staticmethod
    def read(document: Mapping[str, dict[str, int]], histograms: Mapping[str, Mapping[str, int]]) -> Report:
        """The same from its two parts."""
        report = Report(Counter(document))
        for kind, times in histograms.items():
            report.times_us[kind].update({int(us): count for us, count in times.items()})
        return report


def words_allowed(message_bytes: int) -> int:
    """How many words of a message may be visited, as INV-BUS-5 promises; never asked of the bus itself."""
    return message_bytes // 2 + 64


def given_out(item: object) -> tuple[int, int]:
    """How many elements of lists, and how many bytes, a decoded value holds."""
    elements = octets = 0
    waiting = [item]
    while waiting:
        match waiting.pop():
            case bytes(data):
                octets += len(data)
            case str(text):
                octets += len(text.encode())
            case list(items):
                elements += len(items)
                waiting += items
            case dict(named):
                waiting += named.values()
    return elements, octets


def judge(one: Hostile, report: Report) -> None:
    """Decode and say what became of it."""
    began = time.thread_time_ns()
    try:
        values = one.subject.decode(one.data)
    except PeerError:
        values = None
    except Exception as error:
        report.violations.append(f"{type(error).__name__} of {one.subject.name} ({one.kind})")
        return
    took_us = (time.thread_time_ns() - began) // 1000
    report.times_us[one.kind][took_us] += 1
    report.outcomes[f"{one.kind} {'refused' if values is None else 'decoded'}"] += 1
    if values is None:
        return
    elements, octets = given_out(values)
    words = words_allowed(len(one.data))
    if elements > ELEMENTS_PER_WORD * words or octets > BYTES_PER_WORD * words or one.must_fail:
        report.violations.append(
            f"{len(one.data)} bytes became {elements} elements and {octets} bytes ({one.subject.name})"
        )


# --- Blocks, each in a child. ---


def block(seed: str, first: int, count: int, seeded: Callable[[], None] | None = None) -> Report:
    """`count` messages from number `first` on. What ends the child is a violation, and the others go on."""
    of = subjects(schemas())
    deadly: list[int] = []
    died: list[str] = []
    while True:
        report, ending, at = _child(of, seed, range(first, first + count), frozenset(deadly), seeded)
        if report is not None:
            report.violations += died
            return report
        one = hostile(of, seed, at)
        died.append(f"message {at} ended its decoder, {ending} ({one.subject.name}, {one.kind})")
        deadly.append(at)
        if len(deadly) >= DEATHS_MAX:
            return Report(violations=died)


def _child(
    of: tuple[Subject, ...],
    seed: str,
    numbers: range,
    skipped: frozenset[int],
    seeded: Callable[[], None] | None,
) -> tuple[Report | None, str, int]:
    """The child's report; or None, how it ended, and the message it was at."""
    with mmap.mmap(-1, WORD) as at:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            _decode_all(of, seed, numbers, skipped, seeded, at, writing)
        os.close(writing)
        with open(reading, encoding="utf-8") as pipe:
            said = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status == 0:
            document = json.loads(said)
            report = Report.read(document["outcomes"], document["histogramsUs"])
            report.violations += document["violations"]
            return report, "", 0
        ending = signal.Signals(-status).name if status < 0 else f"exit code {status}"
        return None, ending, struct.unpack("<Q", at[:WORD])[0]


def _decode_all(
    of: tuple[Subject, ...],
    seed: str,
    numbers: range,
    skipped: frozenset[int],
    seeded: Callable[[], None] | None,
    at: mmap.mmap,
    writing: int,
) -> NoReturn:
    """The child's life. It is a fork of whoever tests, so it ends here and nowhere else."""
    code = 1
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (BLOCK_CPU_S, BLOCK_CPU_S))
        if seeded is not None:
            seeded()
        # An abort speaks for itself by its signal; its words would only fill the screen.
        faulthandler.disable()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        report = Report()
        for number in numbers:
            if number not in skipped:
                at[:WORD] = struct.pack("<Q", number)
                judge(hostile(of, seed, number), report)
        with open(writing, "w", encoding="utf-8") as pipe:
            json.dump(report.document(), pipe)
        code = 0
    finally:
        os._exit(code)


# --- Seeded bugs: decoders that are wrong in one way, which the harness must notice. ---


def _limit_lifted() -> None:
    """Cap'n Proto's own limit, 64 MiB whatever the message's length."""
    wire.traversal_words = lambda message_bytes: 8 << 20  # noqa: ARG005


def _readers_are_printed() -> None:
    """Somebody logs what arrived: repr() of a reader of hostile bytes ends the process."""
    read = wire._Struct.read

    def printing(self: wire._Struct, reader: object) -> dict[str, object]:
        repr(reader)
        return read(self, reader)

    wire._Struct.read = printing  # type: ignore[method-assign]


def _one_exception_is_forgotten() -> None:
    """A decoder that expects only what capnp documents."""

    def decode(self: wire._Struct, body: bytes) -> dict[str, object]:
        try:
            with self._from_bytes(body, wire.traversal_words(len(body)), wire.NESTING_MAX) as reader:
                return self.read(reader)
        except (ValueError, RuntimeError) as error:
            raise PeerError(str(error)) from None

    wire._Struct.decode = decode  # type: ignore[method-assign]


BUGS: dict[str, tuple[Callable[[], None], str]] = {
    "no limit to what is visited": (_limit_lifted, "became"),
    "a hostile reader is printed": (_readers_are_printed, "ended its decoder, SIGABRT"),
    "an exception that is not expected": (_one_exception_is_forgotten, "Exception of"),
}


def noticed(name: str, seed: str) -> tuple[int, list[str]]:
    """How often the harness noticed a seeded bug, and what it said first."""
    seeded, word = BUGS[name]
    found = [said for said in block(seed, 0, BUG_COUNT, seeded).violations if word in said]
    return len(found), found[:1]


# --- The campaign. ---


class Evidence:
    """What was decoded so far, and the file that says so."""

    def __init__(self, seed: str, command: str) -> None:
        self.seed, self.command, self.covered = seed, command, covered(COVERED)
        self.done = 0
        self.report = Report()
        self.caught: dict[str, int] = {}

    def resume(self, path: Path) -> None:
        """Go on from a file of the same seed about the same files."""
        try:
            old = json.loads(path.read_text())
        except FileNotFoundError:
            return
        if (old["seed"], old["covered"]["sha256"]) != (self.seed, self.covered):
            return
        self.done, self.caught = old["counts"]["decodes"], old["seededBugsNoticed"]
        self.report = Report.read(old["outcomes"], old["histogramsUs"])

    def write(self, path: Path) -> None:
        """All of it."""
        everything = Counter[int]()
        for times in self.report.times_us.values():
            everything.update(times)
        outcomes = self.report.outcomes
        document = {
            "what": "hostile messages for the parameters and results of each method and each struct of the "
            "umbilical, decoded in forked children; each must end in a refusal or in values within limits",
            "commit": commit(COVERED),
            "seed": self.seed,
            "command": self.command,
            "counts": {
                "decodes": self.done,
                "decoded": sum(n for name, n in outcomes.items() if name.endswith(" decoded")),
                "refused": sum(n for name, n in outcomes.items() if name.endswith(" refused")),
                "deaths": 0,
                "otherExceptions": 0,
                "overTheLimit": 0,
            },
            "structs": len(subjects(schemas())),
            "seededBugsNoticed": self.caught,
            "cpuUs": {
                name: {
                    "p50": percentile(times, 0.5),
                    "p99": percentile(times, 0.99),
                    "max": max(times, default=0),
                }
                for name, times in (("all", everything), *self.report.times_us.items())
            },
            **self.report.document(),
            "covered": {"files": list(COVERED), "sha256": self.covered},
            "ground": {"kernel": platform.release(), "python": platform.python_version()},
        }
        del document["violations"]  # there are none, or nothing is written
        path.write_text(json.dumps(document, indent=1) + "\n")


def campaign(evidence: Evidence, path: Path, count: int, say: Callable[[str], None]) -> list[str]:
    """Decode until there were so many; what went wrong."""
    for name in BUGS:
        if name not in evidence.caught:
            often, said = noticed(name, evidence.seed)
            say(f"seeded bug, {name}: {said[0] if said else 'MISSED'}")
            if not said:
                return [f"the harness missed: {name}"]
            evidence.caught[name] = often
    while evidence.done < count:
        size = min(BLOCK, count - evidence.done)
        report = block(evidence.seed, evidence.done, size)
        if report.violations:
            return report.violations
        evidence.report.add(report)
        evidence.done += size
        evidence.write(path)
    say(f"{evidence.done} decodes, nothing died")
    return []


def main() -> int:
    """The campaign, or one message again."""
    parser = argparse.ArgumentParser(description="decode hostile messages")
    parser.add_argument("--count", type=int, default=240_000)
    parser.add_argument("--seed", default="1")
    parser.add_argument(
        "--replay", type=int, metavar="N", help="decode message N of the seed, here, and show it"
    )
    arguments = parser.parse_args()

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if arguments.replay is not None:
        one = hostile(subjects(schemas()), arguments.seed, arguments.replay)
        say(f"{one.subject.name}, {one.kind}: {one.data.hex()}")
        report = Report()
        judge(one, report)
        say(json.dumps(report.document()))
        return 0
    command = f"python -m tests.fire.decodes --count {arguments.count} --seed {arguments.seed}"
    evidence = Evidence(arguments.seed, command)
    evidence.resume(EVIDENCE)
    wrong = campaign(evidence, EVIDENCE, arguments.count, say)
    for line in wrong:
        say(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
