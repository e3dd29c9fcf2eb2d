"""The console of a ground: a file that the running spine writes its boot stages and last words to.

Reads that file only. `follow` is how everything waits for a boot: it has a deadline, hears when the process
dies, and fails with the stage that was reached, the likely cause and the last lines.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spine.errors import Exit, SpineError
from spine.ground.stages import MACHINE, Stage, Stages, last_lines, plain

# How often the file is looked at.
LOOK_S = 0.05
LINES_SHOWN = 20

OnStage = Callable[[Stage], None]


def nobody(_stage: Stage) -> None:
    """Hears of stages and does nothing."""


class BootError(SpineError):
    """A boot that failed; `shown` are the last lines of the console, `stages` what was read from it."""

    def __init__(
        self,
        what: str,
        why: str,
        fix: str,
        shown: Sequence[str] = (),
        exit_code: int = Exit.FAILED,
        stages: Stages | None = None,
    ) -> None:
        super().__init__(what, why, fix, exit_code, shown=shown)
        self.stages = stages or Stages()

    def __str__(self) -> str:
        return "\n".join([self.what, self.why, *self.shown])


class Silent(BootError):
    """Not even the kernel spoke: the accelerator is to blame."""


@dataclass(frozen=True)
class Console:
    """One console file. `who` is the machine or the container, for messages."""

    path: Path
    who: str
    alive: Callable[[], bool]
    # Why it died, as far as its ground knows.
    epitaph: Callable[[], str]
    # The stages before bay0's own.
    before: tuple[str, ...] = MACHINE

    def mark(self) -> int:
        """How long it is now, in bytes; a point in time for `since`."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def read(self, since: int = 0) -> bytes:
        """What was written after a mark."""
        try:
            with open(self.path, "rb") as file:
                file.seek(since)
                return file.read()
        except FileNotFoundError:
            return b""

    def text(self, since: int = 0) -> str:
        """The same as plain text."""
        return plain(self.read(since))

    def follow(
        self,
        wanted: str,
        limit_s: float,
        *,
        since: int = 0,
        silent_s: float | None = None,
        on_stage: OnStage = nobody,
    ) -> None:
        """Wait for a stage. BootError: the time is up (124), it died (1); Silent after `silent_s`."""
        began = time.monotonic()
        stages = Stages(self.before)
        at = since
        while True:
            data = self.read(at)
            at += len(data)
            for stage in stages.feed(data):
                on_stage(stage)
                if stage.name == wanted:
                    return
            if data:
                continue
            elapsed = time.monotonic() - began
            if not self.alive() and self.mark() <= at:
                raise self._failed(f"the {self.who} ended before it was {wanted}", stages, Exit.FAILED)
            if elapsed > limit_s:
                what = f"the {self.who} was not {wanted} within {limit_s:.0f} s"
                raise self._failed(what, stages, Exit.TIMEOUT)
            if silent_s is not None and elapsed > silent_s and not stages.spoke():
                raise Silent(f"the kernel was silent for {silent_s:.0f} s", *stages.cause(), stages=stages)
            time.sleep(LOOK_S)

    def wait_text(self, text: str, limit_s: float, *, since: int = 0) -> None:
        """Wait until `text` stands after a mark. BootError as in `follow`."""
        end = time.monotonic() + limit_s
        while True:
            alive = self.alive()
            if text in self.text(since):
                return
            if not alive:
                raise self._failed(
                    f"the {self.who} ended before it said {text!r}", Stages(self.before), Exit.FAILED
                )
            if time.monotonic() > end:
                what = f"the {self.who} did not say {text!r} within {limit_s:.0f} s"
                raise self._failed(what, Stages(self.before), Exit.TIMEOUT)
            time.sleep(LOOK_S)

    def _failed(self, what: str, stages: Stages, code: Exit) -> BootError:
        cause, fix = stages.cause()
        why = f"last stage {stages.reached}: {cause}" if stages.reached else cause
        if code is Exit.FAILED:
            why = f"{self.epitaph()}; {why}"
        return BootError(what, why, fix, last_lines(self.read(), LINES_SHOWN), code, stages)
