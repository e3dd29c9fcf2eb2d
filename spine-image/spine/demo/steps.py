"""What the demo claims, step by step: the commands that show it, and what must be seen for it to hold.

Pure. A command is a line for the shell, run in the root of the tree. `{name}` in it stands for a fact, which
an earlier command told or which was there from the start (`FACTS`). Each command has a judge: it looks at
the exit code and at what was printed and says what is wrong, or what to make of it. Judges believe nothing
that was not printed: a line that they do not find is wrong.
"""

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

# Writers at the same time: each may open a connection while its last one closes, and a room has four.
WRITERS: Final = 2
# Of each writer: a second of load, ten on a slow ground.
RECORDS: Final = 120
# So many are acknowledged before the organ is killed: then there is load.
BEFORE_KILL: Final = 20
# How long a room that has not the focus is watched.
WATCHED_S: Final = 5
# The first build compiles a kernel: ten minutes on two cores, more on a slow host.
BUILD_S: Final = 3600.0
# A boot under TCG on a busy host.
BOOT_S: Final = 600.0
# Far above what any other command takes.
COMMAND_S: Final = 120.0

# A file of the demo, below $XDG_STATE_HOME: what was acknowledged, kept outside of the spine.
ACKNOWLEDGED: Final = "acknowledged"
# What the executor finds out for a step that flips a byte, and before each judge: how many lines the command
# in the background has printed.
FLIP_FACTS: Final = ("byte", "offset")
SO_FAR: Final = "printed"
# Where the disk lives that is spoiled, as the shell says it.
FLIPPED: Final = '"$XDG_STATE_HOME"/flipped'
GROUNDS: Final = ("machine", "container")

Value = str | int | float | tuple[str, ...]
Facts = Mapping[str, Value]


@dataclass(frozen=True)
class Seen:
    """How a command ended and what it printed."""

    code: int
    output: str
    errors: str = ""
    took_s: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """What a judge says. `wrong` is empty when it is as promised; `figures` are facts worth telling."""

    wrong: str = ""
    said: str = ""
    facts: Facts = field(default_factory=dict)
    figures: Facts = field(default_factory=dict)


Judge = Callable[[Seen, Facts], Verdict]


class Way(Enum):
    """How a command is run."""

    ALONE = "to its end"
    BESIDE = "in the background, and on as soon as it has printed some lines"
    AWAITED = "the one in the background is waited for and judged"


@dataclass(frozen=True)
class Command:
    """One line for the shell."""

    line: str
    judge: Judge
    way: Way = Way.ALONE
    limit_s: float = COMMAND_S
    # Of its output, only the lines in which this is found are shown.
    shown: str = ""
    # How many lines one in the background prints before it goes on.
    lines: int = 0


@dataclass(frozen=True)
class Step:
    """One claim."""

    title: str
    claim: str
    commands: tuple[Command, ...]
    # Whether it needs to know where a byte of the root lies: the facts `offset` and `byte`.
    flips: bool = False


def steps(ground: str) -> tuple[Step, ...]:
    """All of the demo on this ground."""
    shared = (_put(), _cut(ground), _organ(), _focus(), _network())
    return (_boot(ground), *shared, _flipped()) if ground == "machine" else (_boot(ground), *shared)


def filled(line: str, facts: Facts) -> str:
    """A command's line with its facts, each quoted for the shell. KeyError: it is not known."""
    return re.sub(r"\{([a-z_]+)\}", lambda found: shlex.quote(str(facts[found[1]])), line)


# ---- the steps ---------------------------------------------------------------------------------------------


def _boot(ground: str) -> Step:
    if ground == "machine":
        claim = (
            "The real image under UEFI, on a disk of the demo's own. QEMU logs what is written to it,\n"
            "so that a power cut can take away what was never flushed."
        )
        return Step("Boot", claim, (_boots("./spine boot --detach --fresh --log-writes", BUILD_S),))
    claim = "The same root and the same PID 1 as in the machine, in namespaces of this kernel."
    return Step("Boot", claim, (_boots("./spine boot --container --detach --fresh", BUILD_S),))


def _put() -> Step:
    claim = (
        "linda is a persona: a signed image, a room to run in, records of her own. She keeps one record;\n"
        "the command returns when it is on the disk."
    )
    return Step(
        "Put",
        claim,
        (
            Command("./spine persona install linda", went_well, limit_s=BUILD_S, shown="signature|It is"),
            Command("./spine persona start linda", went_well),
            Command("./spine focus linda", went_well),
            Command("./spine exec linda -- sh -c 'echo hello | umbilical put greeting'", silent),
        ),
    )


def _cut(ground: str) -> Step:
    boot = "./spine boot --detach" if ground == "machine" else "./spine boot --container --detach"
    return Step(
        "Power cut",
        "The power goes at once, without a word to anybody. linda starts by herself at boot, and has what\n"
        "she stored. courier, another persona, asks for the same name and finds nothing.",
        (
            Command("./spine powercut", cut),
            _boots(boot, BOOT_S),
            Command("./spine exec linda -- umbilical get greeting", says("hello")),
            Command("./spine persona install courier", went_well, limit_s=BUILD_S, shown="signature|It is"),
            Command("./spine persona start courier", went_well),
            Command("./spine exec --focus courier -- umbilical get greeting", finds_nothing),
        ),
    )


def _organ() -> Step:
    writer = (
        f"for i in $(seq {RECORDS}); do k=$w/$i; echo $k | umbilical put $k && read up rest </proc/uptime "
        "&& echo $k $up; done"
    )
    kept = f'"$XDG_STATE_HOME"/{ACKNOWLEDGED}'
    writers = " ".join("abcdefgh"[:WRITERS])
    return Step(
        "An organ killed under load",
        f"{WRITERS} writers at once; in the middle of it the gate, which keeps all records, is killed. Each\n"
        "key that was acknowledged is written down here, outside, and read back.",
        (
            Command("./spine focus linda", went_well),
            Command(
                f"./spine exec linda -- sh -c 'for w in {writers}; do ({writer}) & done; wait' > {kept}",
                went_well,
                Way.BESIDE,
                lines=BEFORE_KILL,
            ),
            Command("./spine call operator.probe name=kill organ=gate signal=9", killed),
            Command("wait", loaded, Way.AWAITED),
            Command(
                f"cut -d' ' -f1 {kept} | "
                "./spine exec linda -- sh -c 'while read k; do umbilical get $k; done'",
                read_back,
                shown="^$",
            ),
            Command("./spine status", gate_restarted, shown="^(organ|gate) "),
        ),
    )


def _focus() -> Step:
    return Step(
        "Focus",
        "Only the persona that a person looks at runs. linda computes without end; when courier gets the\n"
        f"focus, the kernel's counter of her processor time stands still, here for {WATCHED_S} seconds.",
        (
            Command(
                "./spine exec linda -- sh -c 'while :; do :; done </dev/null >/dev/null 2>&1 &'", went_well
            ),
            Command("./spine status", linda_runs, shown="^[* ] (room|linda) "),
            Command("./spine focus courier", went_well),
            Command("./spine status", linda_stands, shown="^[* ] (room|linda) "),
            Command(f"sleep {WATCHED_S}", went_well),
            Command("./spine status", linda_stood, shown="^[* ] (room|linda) "),
        ),
    )


def _network() -> Step:
    return Step(
        "Network",
        "A network exists only inside a room. courier, who has the focus, has an address from DHCP; the\n"
        "spine itself has no card and no address.",
        (
            Command(
                "./spine exec courier -- sh -c 'until ip addr show eth0 | grep \"inet \"; do sleep 1; done'",
                addressed,
            ),
            Command("./spine status", no_network, shown="^network "),
        ),
    )


def _flipped() -> Step:
    there = f"{FLIPPED}/alpine-spine/machine"
    return Step(
        "A flipped byte",
        "On a copy of the disk one bit of the root is changed: the kernel refuses the block, and panics\n"
        "before any program of the spine has run.",
        (
            Command(f"mkdir -p {there}", went_well),
            Command(f'cp --sparse=always "$XDG_STATE_HOME"/alpine-spine/machine/disk.* {there}', went_well),
            Command(
                f"printf {{byte}} | dd of={there}/disk.img bs=1 seek={{offset}} conv=notrunc status=none",
                went_well,
            ),
            Command(f"XDG_STATE_HOME={FLIPPED} ./spine boot --detach --no-restart", refused, limit_s=BOOT_S),
            Command(
                f"XDG_STATE_HOME={FLIPPED} ./spine log | grep -E 'verity: |panic - |spine: stage'", panicked
            ),
            Command(f"rm -r {FLIPPED}", went_well),
        ),
        flips=True,
    )


def _boots(line: str, limit_s: float) -> Command:
    return Command(line, booted, limit_s=limit_s)


# ---- the judges --------------------------------------------------------------------------------------------


def went_well(seen: Seen, _facts: Facts) -> Verdict:
    """Exit code 0."""
    return Verdict(f"exit code {seen.code} instead of 0" if seen.code else "")


def silent(seen: Seen, facts: Facts) -> Verdict:
    """Exit code 0, and nothing printed."""
    if seen.output:
        return Verdict("something was printed where nothing was to be")
    return went_well(seen, facts)


def says(text: str) -> Judge:
    """Exit code 0, and exactly this line."""

    def judge(seen: Seen, facts: Facts) -> Verdict:
        if seen.code == 0 and seen.output != f"{text}\n":
            return Verdict(f"{seen.output[:80]!r} instead of {text!r}")
        return went_well(seen, facts)

    return judge


# As the client in the room says that there is no such key.
NOT_FOUND: Final = 4


def finds_nothing(seen: Seen, _facts: Facts) -> Verdict:
    """The client in the room says that there is no such key."""
    if seen.code != NOT_FOUND or seen.output:
        return Verdict(f"exit code {seen.code} instead of {NOT_FOUND}, which says that there is no such key")
    return Verdict(said="not there: each persona has records of its own")


def booted(seen: Seen, facts: Facts) -> Verdict:
    """It is ready."""
    verdict = went_well(seen, facts)
    return verdict if verdict.wrong else Verdict(figures={"bootS": round(seen.took_s, 1)})


def cut(seen: Seen, facts: Facts) -> Verdict:
    """The power is gone; on the machine with how many writes."""
    verdict = went_well(seen, facts)
    found = re.search(r"of its (\d+) writes to the disk the (\d+) ", seen.output)
    if verdict.wrong or found is None:
        return verdict
    return Verdict(figures={"writes": int(found[1]), "writesLost": int(found[2])})


RECORD: Final = re.compile(r"([a-h]/\d+) (\d+\.\d+)")


def killed(seen: Seen, facts: Facts) -> Verdict:
    """Done; how much had been acknowledged by then."""
    return Verdict(went_well(seen, facts).wrong, facts={"at_kill": facts[SO_FAR]})


def loaded(seen: Seen, facts: Facts) -> Verdict:
    """Some were acknowledged after the kill; the longest time in which a writer got no acknowledgement."""
    keys: list[str] = []
    last: dict[str, float] = {}
    gap_s = 0.0
    for line in seen.output.splitlines():
        found = RECORD.fullmatch(line)
        if found is None:
            return Verdict(f"{line[:80]!r} is no acknowledgement")
        writer, at_s = found[1][0], float(found[2])
        gap_s = max(gap_s, at_s - last.get(writer, at_s))
        last[writer] = at_s
        keys.append(found[1])
    if seen.code:
        return Verdict(f"exit code {seen.code} instead of 0")
    if len(keys) <= int(str(facts["at_kill"])):
        return Verdict(f"none was acknowledged after the {len(keys)} of before the kill")
    unknown = WRITERS * RECORDS - len(keys)
    return Verdict(
        said=f"{len(keys)} acknowledged, {unknown} not, as the gate died; "
        f"the longest that a writer waited was {gap_s * 1000:.0f} ms",
        facts={"keys": tuple(keys)},
        figures={"acknowledged": len(keys), "longestWaitMs": round(gap_s * 1000)},
    )


def read_back(seen: Seen, facts: Facts) -> Verdict:
    """Each acknowledged key has its value, which is its name."""
    keys = facts["keys"]
    assert isinstance(keys, tuple)
    found = seen.output.split()
    lost = sorted(set(keys) - set(found))
    if lost:
        return Verdict(f"{len(lost)} acknowledged records are lost: {', '.join(lost[:5])}")
    if tuple(found) != keys:
        return Verdict("what was read back is not what was stored")
    return Verdict(said=f"{len(found)} of {len(keys)} read back, none lost", figures={"readBack": len(found)})


def gate_restarted(seen: Seen, _facts: Facts) -> Verdict:
    """The gate is in its second life."""
    found = re.search(r"^gate +(\w+) +\d+ +(\d+) ", seen.output, re.MULTILINE)
    if found is None or found.groups() != ("ready", "2"):
        return Verdict("the gate is not ready in its second generation")
    return Verdict(said="the gate is in its second generation")


def _spent(seen: Seen, state: str) -> tuple[str, int]:
    """(what is wrong, the processor time of linda in µs)."""
    found = re.search(r"^[* ] linda +(\w+) +\d+ +(\d+) µs ", seen.output, re.MULTILINE)
    if found is None:
        return "there is no room of linda", 0
    if found[1] != state:
        return f"linda is {found[1]} and not {state}", 0
    return "", int(found[2])


def linda_runs(seen: Seen, _facts: Facts) -> Verdict:
    """linda has the processor."""
    wrong, _ = _spent(seen, "running")
    return Verdict(wrong)


def linda_stands(seen: Seen, _facts: Facts) -> Verdict:
    """linda stands still, and had worked before."""
    wrong, spent = _spent(seen, "frozen")
    return Verdict(wrong, facts={"spent": spent})


def linda_stood(seen: Seen, facts: Facts) -> Verdict:
    """Not a microsecond more."""
    wrong, spent = _spent(seen, "frozen")
    if wrong:
        return Verdict(wrong)
    used = spent - int(str(facts["spent"]))
    if used:
        return Verdict(f"linda used {used} µs of processor time without the focus")
    return Verdict(said=f"0 µs of processor time in {WATCHED_S} s", figures={"unfocusedUsec": used})


def addressed(seen: Seen, facts: Facts) -> Verdict:
    """The room has an address."""
    found = re.search(r"\binet (\d+\.\d+\.\d+\.\d+/\d+)\b", seen.output)
    if seen.code or found is None:
        return Verdict(went_well(seen, facts).wrong or "there is no address")
    return Verdict(figures={"address": found[1]})


def no_network(seen: Seen, _facts: Facts) -> Verdict:
    """The spine has loopback and no address. Also which slot runs."""
    if re.search(r"^network +lo; addresses: none$", seen.output, re.MULTILINE) is None:
        return Verdict("the spine has an interface or an address")
    slot = re.search(r"^root +slot ([ab]),", seen.output, re.MULTILINE)
    return Verdict(facts={"slot": slot[1]} if slot else {})


def refused(seen: Seen, _facts: Facts) -> Verdict:
    """The machine ended before it was ready, and the kernel panicked."""
    if seen.code != 1 or "the kernel panicked" not in seen.errors:
        return Verdict("the machine did not end in a panic of the kernel")
    return Verdict(said="it never ran")


def panicked(seen: Seen, _facts: Facts) -> Verdict:
    """The kernel's words; none of bay0's."""
    if "Kernel panic" not in seen.output or "verity" not in seen.output:
        return Verdict("the console does not show that dm-verity made the kernel panic")
    if "spine: stage" in seen.output:
        return Verdict("PID 1 ran before the panic")
    return Verdict(said="no program of the spine ran")
