"""Reads from the machine's serial output how far its boot has come.

Pure: bytes in, stages out. The stages are `firmware`, `boot loader`, `kernel`, then those that bay0 reports
(`spine: stage NAME MS`) up to `ready` and `healthy`. A second pass through the firmware is a restart. Lines
are taken as they come; an unfinished one waits for its rest.
"""

import re
from dataclasses import dataclass, field

# A line longer than this is cut there: serial output is the guest's, and a guest may be broken.
LINE_MAX = 4096

MACHINE = ("firmware", "boot loader", "kernel")

_ESCAPES = re.compile(rb"\x1b(?:\[[0-9;?=]*[A-Za-z]|[()][A-Z0-9]|.)")
_STAGE = re.compile(r"spine: stage ([a-z0-9_.-]{1,64}) (\d{1,12})\b")
_FIRMWARE = re.compile(r"BdsDxe|UEFI|EDK II|TianoCore")
_LOADER = re.compile(r"BdsDxe: starting (?!.*Shell)|systemd-boot|Boot in \d|EFI stub")
_KERNEL = re.compile(r"^\[ *\d+\.\d+\]|Linux version")
_PANIC = re.compile(r"Kernel panic - not syncing: (.*)")

# What usually keeps a machine from getting past a stage, and what to do about it.
CAUSES = {
    "": (
        "the firmware never said a word: the accelerator does not run the guest",
        "./spine boot --accel tcg",
    ),
    "firmware": ("the firmware found nothing to start on the disk", "./spine build; ./spine boot --fresh"),
    "boot loader": ("the kernel did not start, or was never chosen", "./spine build; ./spine boot --fresh"),
    "kernel": ("the kernel found no root, or bay0 did not start", "./spine build; ./spine boot --fresh"),
    "ready": ("bay0 is ready but the operator's port does not answer", "./spine log"),
}
CAUSE_IN_BAY0 = ("bay0 is waiting for what comes after this stage", "./spine log")


@dataclass(frozen=True)
class Stage:
    """One stage that passed; `ms` is what bay0 reported, None where nobody measured."""

    name: str
    ms: int | None = None


@dataclass
class Stages:
    """The reader of one stream of output; a container has none of the stages before bay0."""

    before: tuple[str, ...] = MACHINE
    reached: str = ""
    restarts: int = 0
    panic: str = ""
    _rest: bytes = b""
    _seen: set[str] = field(default_factory=set)

    def feed(self, data: bytes) -> list[Stage]:
        """What the new bytes tell, in order; each stage once for each pass through the firmware."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-LINE_MAX:]
        found: list[Stage] = []
        for line in lines:
            found += self._line(plain(line[:LINE_MAX]))
        return found

    def cause(self) -> tuple[str, str]:
        """(why the boot went no further, the command that may mend it)."""
        if self.panic:
            return f"the kernel panicked: {self.panic}", "./spine log"
        return CAUSES.get(self.reached, CAUSE_IN_BAY0)

    def spoke(self) -> bool:
        """Whether at least the kernel said something."""
        return self.reached not in ("", "firmware", "boot loader")

    def _line(self, line: str) -> list[Stage]:
        panic = _PANIC.search(line)
        if panic:
            self.panic = panic[1].strip()
        stage = _STAGE.search(line)
        if stage:
            return self._pass([*self.before, stage[1]], int(stage[2]))
        if _KERNEL.search(line):
            return self._pass([*self.before], None)
        if _FIRMWARE.search(line) and self.reached not in ("", "firmware", "boot loader"):
            self.restarts += 1
            self.reached = ""
            self._seen.clear()
        if _LOADER.search(line):
            return self._pass([*self.before[:2]], None)
        return self._pass([*self.before[:1]], None) if _FIRMWARE.search(line) else []

    def _pass(self, names: list[str], ms: int | None) -> list[Stage]:
        if not names:
            return []
        new = [name for name in names if name not in self._seen]
        self._seen.update(new)
        if names[-1] in new:
            self.reached = names[-1]
        return [Stage(name, ms if name == names[-1] else None) for name in new]


def plain(data: bytes) -> str:
    """Text without the terminal's control sequences."""
    return _ESCAPES.sub(b"", data).decode("utf-8", errors="replace").replace("\r", "").replace("\0", "")


def last_lines(data: bytes, count: int = 20) -> list[str]:
    """The last lines that hold something, as plain text."""
    lines = [line.rstrip() for line in plain(data).split("\n")]
    return [line for line in lines if line.strip()][-count:]
