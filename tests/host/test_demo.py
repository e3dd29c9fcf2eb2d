"""The demo: its list is consistent, its judges believe what they see, and it ends well or tells why not."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spine import cli, paths
from spine.demo import run as executor
from spine.demo import steps as demo
from spine.demo.narrate import Kind, Narrator
from spine.demo.picture import COLUMNS, svg
from spine.demo.run import Demo
from spine.demo.steps import Command, Facts, Judge, Seen, Step, Verdict, Way, went_well
from spine.errors import Exit, SpineError
from spine.ground import state
from spine.verbs import demo as verb

ALL = [command for ground in demo.GROUNDS for step in demo.steps(ground) for command in step.commands]


def typed(line: str) -> list[list[str]]:
    """The words of each `./spine` command of a line, up to the shell's next word of its own."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    found: list[list[str]] = []
    words: list[str] | None = None
    for token in lexer:
        if token == "./spine":
            words = []
            found.append(words)
        elif set(token) <= set("|&;<>()"):
            words = None
        elif words is not None:
            words.append(token)
    return found


# The list


@pytest.mark.parametrize("command", ALL, ids=lambda command: command.line[:60])
def test_a_person_could_type_each_command(command: Command) -> None:
    line = demo.filled(command.line, dict.fromkeys(demo.FLIP_FACTS, 0))
    assert "{" not in line.replace("${", "")
    assert bool(typed(line)) == ("./spine" in line)
    for words in typed(line):
        assert words[0] in cli.verbs()
        # An option that the verb does not have is a usage error; --help comes first and ends it well.
        at = words.index("--") if "--" in words else len(words)
        with pytest.raises(SystemExit) as ended:
            cli.main([*words[:at], "--help", *words[at:]])
        assert ended.value.code == 0


@pytest.mark.parametrize("ground", demo.GROUNDS)
def test_the_order_of_a_list(ground: str) -> None:
    listed = demo.steps(ground)
    assert len({step.title for step in listed}) == len(listed)
    flips = [step.flips for step in listed]
    assert flips == [False] * 6 + [True] * (ground == "machine")
    waiting = False
    for step in listed:
        for command in step.commands:
            needed = set(re.findall(r"\{([a-z_]+)\}", command.line))
            assert needed <= (set(demo.FLIP_FACTS) if step.flips else set())
            assert waiting == (command.way is Way.AWAITED or command.line.startswith("./spine call"))
            waiting = (waiting or command.way is Way.BESIDE) and command.way is not Way.AWAITED
        assert not waiting, "a step leaves something behind"


@given(value=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_a_fact_is_one_word_for_the_shell(value: str) -> None:
    assert shlex.split(demo.filled("a {offset} b", {"offset": value})) == ["a", value, "b"]


# The judges

STATUS = """\
root      slot b, a5af20b857541254, verified
network   lo; addresses: none

organ       state        pid  generation        up      memory
gate        ready        459           2     2.7 s   11700 KiB

  room            state      version             CPU  network
  linda           frozen           1       531837 µs  none
"""
RECORDS = "a/1 10.00\nb/1 10.01\na/2 10.05\nb/2 10.50\n"
FACTS: Facts = {"at_kill": 2, demo.SO_FAR: 2, "keys": ("a/1", "b/1"), "spent": 531837, "slot": "b"}
PANIC = "device-mapper: verity: data block 0 is corrupted\nKernel panic - not syncing: dm-verity\n"

GOOD: list[tuple[Judge, Seen]] = [
    (went_well, Seen(0, "anything")),
    (demo.silent, Seen(0, "")),
    (demo.says("hello"), Seen(0, "hello\n")),
    (demo.finds_nothing, Seen(4, "")),
    (demo.booted, Seen(0, "", took_s=1.23)),
    (demo.cut, Seen(0, "and of its 26 writes to the disk the 3 which no\nflush had followed")),
    (demo.killed, Seen(0, 'json: {"pid": 5}')),
    (demo.loaded, Seen(0, RECORDS)),
    (demo.read_back, Seen(0, "a/1\nb/1\n")),
    (demo.gate_restarted, Seen(0, STATUS)),
    (demo.linda_runs, Seen(0, STATUS.replace("frozen", "running"))),
    (demo.linda_stands, Seen(0, STATUS)),
    (demo.linda_stood, Seen(0, STATUS)),
    (demo.addressed, Seen(0, "    inet 10.77.0.100/24 brd 10.77.0.255 scope global eth0\n")),
    (demo.no_network, Seen(0, STATUS)),
    (demo.refused, Seen(1, "", "why: QEMU ended with 0; last stage kernel: the kernel panicked: x")),
    (demo.panicked, Seen(0, PANIC)),
]
BAD: list[tuple[Judge, Seen]] = [
    (went_well, Seen(1, "")),
    (demo.silent, Seen(0, "x")),
    (demo.silent, Seen(1, "")),
    (demo.says("hello"), Seen(0, "hell\n")),
    (demo.says("hello"), Seen(0, "")),
    (demo.says("hello"), Seen(4, "hello\n")),
    (demo.finds_nothing, Seen(0, "hello\n")),
    (demo.finds_nothing, Seen(4, "hello\n")),
    (demo.finds_nothing, Seen(3, "")),
    (demo.booted, Seen(124, "")),
    (demo.cut, Seen(5, "")),
    (demo.killed, Seen(1, "")),
    (demo.loaded, Seen(0, "")),
    (demo.loaded, Seen(1, RECORDS)),
    (demo.loaded, Seen(0, "a/1 10.00\nb/1 10.01\n")),
    (demo.loaded, Seen(0, RECORDS + "umbilical: put: no\n")),
    (demo.read_back, Seen(0, "a/1\n")),
    (demo.read_back, Seen(0, "a/1\nb/1\nb/1\n")),
    (demo.read_back, Seen(0, "b/1\na/1\n")),
    (demo.gate_restarted, Seen(0, STATUS.replace("           2 ", "           1 "))),
    (demo.gate_restarted, Seen(0, STATUS.replace("ready", "waiting"))),
    (demo.linda_runs, Seen(0, STATUS)),
    (demo.linda_stands, Seen(0, "")),
    (demo.linda_stood, Seen(0, STATUS.replace("531837", "531838"))),
    (demo.linda_stood, Seen(0, STATUS.replace("frozen", "running"))),
    (demo.addressed, Seen(124, "    inet 10.77.0.100/24 brd")),
    (demo.addressed, Seen(0, "    inet6 fe80::1/64")),
    (demo.no_network, Seen(0, STATUS.replace("lo;", "lo, eth0;"))),
    (demo.no_network, Seen(0, STATUS.replace("addresses: none", "addresses: 10.0.2.15"))),
    (demo.refused, Seen(0, "", "")),
    (demo.refused, Seen(1, "", "why: QEMU ended with 1")),
    (demo.panicked, Seen(0, PANIC + "spine: stage bay0 100\n")),
    (demo.panicked, Seen(0, "Kernel panic - not syncing: no init")),
    (demo.panicked, Seen(1, "")),
]


@pytest.mark.parametrize(("judge", "seen"), GOOD)
def test_a_judge_that_sees_what_was_promised(judge: Judge, seen: Seen) -> None:
    assert judge(seen, FACTS).wrong == ""


@pytest.mark.parametrize(("judge", "seen"), BAD)
def test_a_judge_that_sees_something_else(judge: Judge, seen: Seen) -> None:
    assert judge(seen, FACTS).wrong


def test_every_judge_of_the_demo_can_say_no() -> None:
    def name(judge: Judge) -> str:
        return str(getattr(judge, "__qualname__", judge))

    assert {name(c.judge) for c in ALL} <= {name(j) for j, _ in BAD} & {name(j) for j, _ in GOOD}


def test_the_figures() -> None:
    assert demo.loaded(Seen(0, RECORDS), FACTS).figures == {"acknowledged": 4, "longestWaitMs": 490}
    assert demo.loaded(Seen(0, RECORDS), FACTS).facts == {"keys": ("a/1", "b/1", "a/2", "b/2")}
    assert demo.linda_stands(Seen(0, STATUS), {}).facts == {"spent": 531837}
    assert demo.no_network(Seen(0, STATUS), {}).facts == {"slot": "b"}
    assert demo.cut(GOOD[5][1], {}).figures == {"writes": 26, "writesLost": 3}


@settings(max_examples=300, deadline=None)
@given(
    judge=st.sampled_from([judge for judge, _ in GOOD]),
    code=st.integers(-64, 255),
    output=st.text(max_size=40) | st.sampled_from([STATUS, RECORDS, PANIC]),
    junk=st.text(max_size=8),
    at=st.integers(0, 200),
)
def test_a_judge_never_trips(judge: Judge, code: int, output: str, junk: str, at: int) -> None:
    seen = Seen(code, output[:at] + junk + output[at:], junk)
    assert isinstance(judge(seen, FACTS), Verdict)


# Running


def play(home: Path, *commands: Command) -> tuple[Demo, str]:
    stream = io.StringIO()
    played = Demo(home, "container", Narrator(stream))
    try:
        played.play([Step("One", "It holds.", commands)])
    finally:
        played.end()
    return played, stream.getvalue()


def test_a_command_is_shown_before_its_output_and_kept(tmp_path: Path) -> None:
    played, told = play(tmp_path, Command("echo $XDG_STATE_HOME; echo loud >&2", went_well))
    assert told == f"\nOne\nIt holds.\n  $ echo $XDG_STATE_HOME; echo loud >&2\n  {tmp_path}\n  loud\n" or (
        told.endswith(f"  loud\n  {tmp_path}\n")
    )
    document = played.report.document()
    assert document["held"] is True
    steps = document["steps"]
    assert isinstance(steps, list)
    assert steps[0]["commands"][0] | {"seconds": 0} == {
        "command": "echo $XDG_STATE_HOME; echo loud >&2",
        "code": 0,
        "seconds": 0,
        "output": f"{tmp_path}\n",
        "held": True,
        "said": "",
    }
    assert json.loads(json.dumps(document)) == document


def test_a_claim_that_does_not_hold_ends_it_with_what_was_seen(tmp_path: Path) -> None:
    after = tmp_path / "after"
    with pytest.raises(SpineError) as broken:
        play(
            tmp_path,
            Command("echo hell; echo why >&2", demo.says("hello")),
            Command(f"touch {after}", went_well),
        )
    assert broken.value.exit_code == Exit.FAILED
    assert broken.value.code == "not-held"
    assert broken.value.shown == ["hell", "why"]
    assert "'hell\\n' instead of 'hello'" in broken.value.why
    assert not after.exists()


def test_only_the_lines_that_matter_are_shown(tmp_path: Path) -> None:
    _, told = play(tmp_path, Command("seq 10", went_well, shown="^7$"))
    assert told.endswith("  7\n  … 9 more lines\n")


def test_one_in_the_background_is_waited_for(tmp_path: Path) -> None:
    kept = f'"$XDG_STATE_HOME"/{demo.ACKNOWLEDGED}'
    writing = f"for i in 1 2 3; do echo a/$i 1.0; done > {kept}; until [ -e go ]; do sleep 0.05; done"
    seen: list[Seen] = []

    def judge(one: Seen, facts: Facts) -> Verdict:
        seen.append(one)
        assert facts[demo.SO_FAR] == 4
        return Verdict()

    _, told = play(
        tmp_path,
        Command(f'cd "$XDG_STATE_HOME"; {writing}; echo a/4 1.0 >> {kept}', went_well, Way.BESIDE, lines=3),
        Command('touch "$XDG_STATE_HOME"/go', went_well),
        Command("wait", judge, Way.AWAITED),
    )
    assert [one.output for one in seen] == ["a/1 1.0\na/2 1.0\na/3 1.0\na/4 1.0\n"]
    assert " &\n" in told


def test_one_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    line = "sh -c 'echo $$ > \"$XDG_STATE_HOME\"/pid; exec sleep 1000' & wait"
    with pytest.raises(SpineError, match="did not hold"):
        play(tmp_path, Command(line, went_well, limit_s=0.5))
    pid = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 30
    while state.Process.of(pid) is not None:
        assert time.monotonic() < end, "it lives on"
        time.sleep(0.05)


def test_a_flood_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "KEPT_CHARS", 1000)
    seen: list[Seen] = []

    def judge(one: Seen, _facts: Facts) -> Verdict:
        seen.append(one)
        return Verdict()

    play(tmp_path, Command("yes | head -n 100000", judge))
    assert len(seen[0].output) <= 1000


def test_the_byte_that_is_flipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(range(256)))

    def table(_path: Path) -> dict[str, object]:
        return {"slot-b": type("Partition", (), {"start": 10, "size": 200})}

    monkeypatch.setattr("spine.ground.gpt.read", table)
    assert executor.flip(disk, "b") == {"offset": 106, "byte": "\\153"}
    assert 0o153 == 106 ^ 1


# Telling


def test_a_telling_obeys_no_control_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for no_colour, expected in (("1", "  ✓ a[2Jb\n"), ("", "\x1b[32m  ✓ a[2Jb\x1b[0m\n")):
        monkeypatch.setenv("NO_COLOR", no_colour)
        stream = Terminal()
        Narrator(stream).tell(Kind.HELD, "a\x1b[2Jb")
        assert stream.getvalue() == expected


@given(lines=st.lists(st.tuples(st.sampled_from(Kind), st.text(max_size=300)), max_size=20))
def test_a_picture_is_well_formed_whatever_was_told(lines: Sequence[tuple[Kind, str]]) -> None:
    narrator = Narrator(io.StringIO())
    for kind, text in lines:
        narrator.tell(kind, text)
    drawn = svg(narrator.lines, "a < b & c")
    assert drawn == svg(narrator.lines, "a < b & c")
    found = ElementTree.fromstring(drawn).findall("{http://www.w3.org/2000/svg}text")
    shown = [text for kind, text in narrator.lines if kind is not Kind.PROGRESS and text]
    assert len(found) >= len(shown) + 1
    assert all(len(row.text or "") <= COLUMNS for row in found)


def test_a_long_command_goes_on_in_the_next_row() -> None:
    words = " ".join(f"word{number}" for number in range(60))
    drawn = ElementTree.fromstring(svg([(Kind.COMMAND, f"  $ {words}")], "x"))
    rows = [row.text or "" for row in drawn.findall("{http://www.w3.org/2000/svg}text")][1:]
    assert len(rows) > 2
    assert " ".join(" ".join(rows).split()) == f"$ {words}"


# The verb


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the verb's demo lives."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return tmp_path / paths.NAME / "demo"


Fake = Callable[..., None]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Other steps in place of the demo's."""

    def put(*commands: Command) -> None:
        monkeypatch.setattr(verb, "steps", lambda _ground: (Step("One", "It holds.", commands),))

    return put


def test_it_ends_with_one_object(home: Path, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake(Command("echo x", went_well))
    assert cli.main(["demo", "--container", "--json"]) == Exit.OK
    seen = capsys.readouterr()
    document = json.loads(seen.out)
    assert (document["held"], document["ground"], document["stateHome"]) == (True, "container", str(home))
    assert "  $ echo x\n  x\n" in seen.err


def test_what_did_not_hold_is_told_with_exit_code_1(
    home: Path, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(Command("echo hell", demo.says("hello")))
    assert cli.main(["demo", "--json"]) == Exit.FAILED
    document = json.loads(capsys.readouterr().out)
    assert document["held"] is False
    assert document["error"]["code"] == "not-held"
    assert cli.main(["demo"]) == Exit.FAILED
    seen = capsys.readouterr()
    assert [line[:6] for line in seen.err.splitlines()] == ["  | he", "spine:", "  why:", "  fix:"]
    assert "✗ 'hell\\n' instead of 'hello'" in seen.out
    assert home.is_dir()


def test_two_at_once_are_refused(home: Path, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake(Command("touch never", went_well))
    with state.locked(home):
        assert cli.main(["demo"]) == Exit.REFUSED
    assert capsys.readouterr().err.startswith("spine: another demo is running\n")


def test_one_that_was_kept_is_left_alone(home: Path, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake(Command("touch never", went_well))
    where = home / paths.NAME / "machine"
    where.mkdir(parents=True)
    process = state.Process.of(os.getpid())
    assert process is not None
    ground = state.Ground("machine", process, where, where, where)
    state.write(where, ground)
    assert cli.main(["demo"]) == Exit.REFUSED
    assert f"XDG_STATE_HOME={home} ./spine stop --machine" in capsys.readouterr().err
    # One that died is not in the way.
    state.write(where, replace(ground, process=replace(process, start=0)))
    fake(Command("true", went_well))
    assert cli.main(["demo"]) == Exit.OK
    assert not where.exists()


def test_a_path_is_shown_as_it_is_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert verb.shown(tmp_path / "me/a b/c") == "~/'a b/c'"
    assert verb.shown(Path("/a b")) == "'/a b'"


def test_the_picture(home: Path, fake: Fake, tmp_path: Path) -> None:
    fake(Command("echo x", went_well))
    assert cli.main(["demo", "--picture", str(tmp_path / "demo.svg")]) == Exit.OK
    assert ">  x</text>" in (tmp_path / "demo.svg").read_text(encoding="utf-8")
    assert home.is_dir()
