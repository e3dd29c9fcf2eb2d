"""Runs the demo's commands as a person would type them, and judges what was printed.

Touches: one directory of its own, in which everything lives that the commands make (XDG_STATE_HOME), and the
processes it starts. A command that takes too long is ended with all that it started; whatever happens, what
was booted is stopped, unless it is to be kept. Fails: a claim that does not hold is a SpineError that shows
what was seen.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from spine import paths
from spine.demo.narrate import Kind, Narrator
from spine.demo.steps import ACKNOWLEDGED, SO_FAR, Command, Facts, Seen, Step, Value, Way, filled
from spine.errors import Exit, SpineError
from spine.ground import gpt, state
from spine.ground.console import LOOK_S

# In the first block of the root, which every boot reads: behind the superblock of SquashFS.
FLIPPED_BYTE: Final = 96
# A command that was told to end ends its own things first.
END_S: Final = 60.0
# How much of what a command printed is remembered.
KEPT_CHARS: Final = 1 << 20
TOLD_CHARS: Final = 4096
SHOWN_LINES: Final = 12


@dataclass
class Report:
    """What came of it so far; `document` is for scripts."""

    ground: str
    home: Path
    steps: list[dict[str, object]] = field(default_factory=list)
    figures: dict[str, Value] = field(default_factory=dict)
    held: bool = False
    after_boot_s: float = 0.0

    def document(self) -> dict[str, object]:
        """The object of `--json`."""
        return {
            "ground": self.ground,
            "stateHome": str(self.home),
            "held": self.held,
            "secondsAfterBoot": self.after_boot_s,
            "figures": self.figures,
            "steps": self.steps,
        }


class Demo:
    """One demo in one directory."""

    def __init__(self, home: Path, ground: str, narrator: Narrator) -> None:
        self.home = home
        self.report = Report(ground, home)
        self._narrator = narrator
        self._environment = {**os.environ, "XDG_STATE_HOME": str(home)}
        self._acknowledged = home / ACKNOWLEDGED
        self._facts: dict[str, Value] = {}
        self._beside: _Running | None = None

    def play(self, steps: Iterable[Step]) -> None:
        """All steps, in order. SpineError at the first claim that does not hold."""
        booted_at = None
        for step in steps:
            self._narrator.tell(Kind.TITLE, step.title)
            self._narrator.tell(Kind.CLAIM, step.claim)
            if step.flips:
                disk = self.home / paths.NAME / "machine/disk.img"
                self._facts |= flip(disk, str(self._facts["slot"]))
            told: list[dict[str, object]] = []
            self.report.steps.append({"title": step.title, "claim": step.claim, "commands": told})
            for command in step.commands:
                self._command(step, command, told)
            booted_at = booted_at or time.monotonic()
            self.report.after_boot_s = round(time.monotonic() - booted_at, 1)
        self.report.held = True

    def end(self) -> None:
        """End what still runs in the background."""
        if self._beside is not None:
            self._beside.end()
            self._beside = None

    def stop(self) -> None:
        """Stop what the demo booted, wherever it is. Never raises for what does not run."""
        for home in (self.home, self.home / "flipped"):
            for kind in state.KINDS:
                if state.read(home / paths.NAME / kind) is None:
                    continue
                prefix = "" if home == self.home else f"XDG_STATE_HOME={home} "
                line = f"{prefix}./spine stop --{kind}"
                self._narrator.tell(Kind.COMMAND, line)
                _Running(line, self._environment, self._narrator, "^$").wait(END_S * 2)

    def throw_away(self) -> None:
        """Remove all that was made here."""
        for name in (paths.NAME, "flipped"):
            shutil.rmtree(self.home / name, ignore_errors=True)
        self._acknowledged.unlink(missing_ok=True)

    def _command(self, step: Step, command: Command, told: list[dict[str, object]]) -> None:
        line = filled(command.line, self._facts)
        self._narrator.tell(Kind.COMMAND, line + (" &" if command.way is Way.BESIDE else ""))
        seen = self._seen(command, line)
        if seen is None:
            told.append({"command": f"{line} &", "held": True})
            return
        self._facts[SO_FAR] = _count(self._acknowledged)
        verdict = command.judge(seen, self._facts)
        told.append(
            {
                "command": line,
                "code": seen.code,
                "seconds": round(seen.took_s, 2),
                "output": seen.output[:TOLD_CHARS],
                "held": not verdict.wrong,
                "said": verdict.wrong or verdict.said,
            }
        )
        if verdict.wrong:
            self._narrator.tell(Kind.WRONG, verdict.wrong)
            raise self._broken(step, line, verdict.wrong, seen)
        if verdict.said:
            self._narrator.tell(Kind.HELD, verdict.said)
        self._facts |= verdict.facts
        for name, value in verdict.figures.items():
            # The first boot may have built; each further one has a figure of its own.
            self.report.figures[name if name not in self.report.figures else f"{name}Again"] = value

    def _seen(self, command: Command, line: str) -> Seen | None:
        """How it ended; None for one that goes on in the background."""
        if command.way is Way.AWAITED:
            assert self._beside is not None
            seen = self._beside.wait(command.limit_s)
            self._beside = None
            return Seen(seen.code, self._acknowledged.read_text(encoding="utf-8"), seen.errors, seen.took_s)
        running = _Running(line, self._environment, self._narrator, command.shown)
        if command.way is Way.ALONE:
            return running.wait(command.limit_s)
        self._beside = running
        end = time.monotonic() + command.limit_s
        while running.alive() and _count(self._acknowledged) < command.lines:
            if time.monotonic() > end:
                break
            time.sleep(LOOK_S)
        return None

    def _broken(self, step: Step, line: str, wrong: str, seen: Seen) -> SpineError:
        shown = [row for row in (seen.output + seen.errors).splitlines() if row.strip()][-SHOWN_LINES:]
        return SpineError(
            f"the step {step.title!r} did not hold",
            f"{line}: {wrong}",
            f"XDG_STATE_HOME={self.home} ./spine log; again and left running: ./spine demo --keep",
            Exit.FAILED,
            "not-held",
            shown=shown,
        )


def flip(disk: Path, slot: str) -> Facts:
    """Where the byte lies that is to be changed on a copy of this disk, and what to write there."""
    offset = gpt.read(disk)[f"slot-{slot}"].start + FLIPPED_BYTE
    with open(disk, "rb") as file:
        file.seek(offset)
        other = file.read(1)[0] ^ 1
    return {"offset": offset, "byte": f"\\{other:03o}"}


def _count(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes().count(b"\n")
    return 0


class _Running:
    """One line in a shell of its own session; what it prints is shown as it comes, and kept."""

    def __init__(self, line: str, environment: Mapping[str, str], narrator: Narrator, shown: str) -> None:
        self._narrator, self._shown, self._hidden = narrator, re.compile(shown), 0
        self._began = time.monotonic()
        self._child = subprocess.Popen(
            ["/bin/sh", "-c", line],
            cwd=paths.ROOT,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._output: list[str] = []
        self._errors: list[str] = []
        assert self._child.stdout is not None
        assert self._child.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=(self._child.stdout, self._output, Kind.OUTPUT)),
            threading.Thread(target=self._read, args=(self._child.stderr, self._errors, Kind.PROGRESS)),
        ]
        for reader in self._readers:
            reader.start()

    def alive(self) -> bool:
        """Whether it still runs."""
        return self._child.poll() is None

    def wait(self, limit_s: float) -> Seen:
        """How it ended. One that takes longer is ended, with exit code 124."""
        try:
            code = self._child.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.end()
            code = Exit.TIMEOUT
        except BaseException:
            self.end()
            raise
        for reader in self._readers:
            reader.join(END_S)
        if self._hidden:
            self._narrator.tell(Kind.OUTPUT, f"… {self._hidden} more lines")
        took_s = time.monotonic() - self._began
        return Seen(int(code), "".join(self._output), "".join(self._errors), took_s)

    def end(self) -> None:
        """End it, gently first: an interrupted boot ends what it started. Then all that is left of it."""
        self._signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(END_S)
        # Also where the shell has ended: what it ran in the background did not hear the first.
        self._signal(signal.SIGKILL)
        self._child.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, number)

    def _read(self, stream: IO[str], kept: list[str], kind: Kind) -> None:
        size = 0
        with stream:
            for line in stream:
                size += len(line)
                if size <= KEPT_CHARS:
                    kept.append(line)
                if kind is Kind.OUTPUT and not self._shown.search(line.rstrip("\n")):
                    self._hidden += 1
                elif size <= KEPT_CHARS:
                    self._narrator.tell(kind, line.rstrip("\n"))
