"""What every verb says when it cannot do what was asked: three lines and an exit code.

Touches nothing. A `SpineError` is a finished message to a person: what happened, why, and the command that
mends it; `cli.py` prints it (three lines, or one JSON object) and ends with its exit code. Anything else
that escapes a verb is a defect and is reported as one.
"""

import enum
from collections.abc import Sequence


class Exit(enum.IntEnum):
    """The exit codes of every verb; scripts may rely on them."""

    OK = 0
    FAILED = 1
    USAGE = 2
    HOST_NOT_READY = 3
    NO_SUCH_THING = 4
    REFUSED = 5
    LOSS = 6
    TIMEOUT = 124
    INTERRUPTED = 130


# The word of an error in `--json`, where the raiser gives none of its own.
CODE_WORDS = {
    Exit.FAILED: "failed",
    Exit.USAGE: "usage",
    Exit.HOST_NOT_READY: "host-not-ready",
    Exit.NO_SUCH_THING: "no-such-thing",
    Exit.REFUSED: "refused",
    Exit.LOSS: "loss",
    Exit.TIMEOUT: "timeout",
    Exit.INTERRUPTED: "interrupted",
}


class SpineError(Exception):
    """A failure told to a person: what, why, and the command that fixes it."""

    def __init__(
        self,
        what: str,
        why: str,
        fix: str,
        exit_code: int = Exit.FAILED,
        code: str | None = None,
        shown: Sequence[str] = (),
    ) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix
        self.exit_code = int(exit_code)
        # Lines of a log that a person wants to see with the message.
        self.shown = list(shown)
        self.code = code or CODE_WORDS.get(Exit(exit_code), "failed")

    def lines(self) -> str:
        """The three lines for standard error, after those of a log; each on one line whatever it holds."""
        return "".join(f"  | {line}\n" for line in self.shown) + "".join(
            f"{label} {_one_line(text)}\n"
            for label, text in (("spine:", self.what), ("  why:", self.why), ("  fix:", self.fix))
        )

    def document(self) -> dict[str, dict[str, object]]:
        """The same as an object for `--json`."""
        parts: dict[str, object] = {"code": self.code, "what": self.what, "why": self.why, "fix": self.fix}
        if self.shown:
            parts["shown"] = self.shown
        return {"error": parts}


def _one_line(text: str) -> str:
    return " ".join(text.split())
