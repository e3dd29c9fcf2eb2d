"""What runs: one record per ground, believed only while its process is the one that was written down.

Touches: `state.json` in the directory of a ground, `current` in the state directory, /proc/PID/stat to
read. Never signals anything. A record that is gone, broken or of a dead process means "does not run".
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from spine import paths
from spine.errors import Exit, SpineError

KINDS = ("machine", "container")
FILE = "state.json"
ENDED_FILE = "ended.json"
# How PID 1 of a container says that it panicked.
EXIT_PANIC = 70


@dataclass(frozen=True)
class Process:
    """A process by its number and its start time, so that a number used again is not taken for it."""

    pid: int
    start: int

    @classmethod
    def of(cls, pid: int) -> "Process | None":
        """The process that has this number now; None when none has, or when it is dead but not yet reaped."""
        try:
            text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        except OSError:
            return None
        # The command's name may hold spaces and brackets; what follows its last bracket does not.
        fields = text[text.rindex(")") + 2 :].split()
        return None if fields[0] in "ZX" else cls(pid, int(fields[19]))

    def alive(self) -> bool:
        """Whether it still is the process of that number."""
        return Process.of(self.pid) == self


@dataclass(frozen=True)
class Ground:
    """A running ground. `process` is QEMU's or bay0's. A container has a `keeper`, which watches bay0, and
    a `wire`, which is its network, where the host can make one.
    """

    kind: str
    process: Process
    disk: Path
    port: Path
    console: Path
    accel: str = ""
    missing: tuple[str, ...] = ()
    keeper: Process | None = None
    wire: Process | None = None


def directory(kind: str) -> Path:
    """Where a ground keeps its files; not made here."""
    return paths.state() / kind


def write(where: Path, ground: Ground) -> None:
    """Put the record down, whole or not at all."""
    document = asdict(ground)
    for key in ("disk", "port", "console"):
        document[key] = str(document[key])
    new = where / (FILE + ".new")
    new.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    new.rename(where / FILE)


def read(where: Path) -> Ground | None:
    """The ground that runs out of this directory, or None."""
    try:
        found = json.loads((where / FILE).read_text(encoding="utf-8"))
        ground = Ground(
            kind=str(found["kind"]),
            process=Process(int(found["process"]["pid"]), int(found["process"]["start"])),
            disk=Path(found["disk"]),
            port=Path(found["port"]),
            console=Path(found["console"]),
            accel=str(found["accel"]),
            missing=tuple(map(str, found["missing"])),
            keeper=_process(found["keeper"]),
            wire=_process(found["wire"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return ground if ground.process.alive() else None


def _process(found: dict[str, object] | None) -> Process | None:
    """As it was written. KeyError, TypeError, ValueError when it was not."""
    return Process(int(str(found["pid"])), int(str(found["start"]))) if found else None


def ended(where: Path) -> int | None:
    """How bay0 ended for good in a container: 0 power-off, 70 panic, below 0 a signal; None: it did not."""
    try:
        return int(json.loads((where / ENDED_FILE).read_text(encoding="utf-8"))["code"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def forget(where: Path) -> None:
    """Remove the record."""
    (where / FILE).unlink(missing_ok=True)


def make_current(kind: str) -> None:
    """Verbs that name no ground mean this one, while it runs."""
    base = paths.private(paths.state())
    (base / "current.new").write_text(kind, encoding="ascii")
    (base / "current.new").rename(base / "current")


def current() -> str:
    """The kind that was booted last."""
    try:
        kind = (paths.state() / "current").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return KINDS[0]
    return kind if kind in KINDS else KINDS[0]


def running(kind: str | None = None) -> Ground:
    """The ground of this kind, or the current one, or the only one; SpineError (4) when none runs."""
    preferred = current()
    order = sorted(KINDS, key=lambda name: name != preferred) if kind is None else [kind]
    for name in order:
        ground = read(directory(name))
        if ground:
            return ground
    flag = " --container" if order[0] == "container" else ""
    code = ended(directory(order[0]))
    raise SpineError(
        f"no {kind or 'spine'} runs",
        f"the {order[0]} that ran last panicked (see ./spine log)"
        if code == EXIT_PANIC
        else f"nothing that lives is recorded under {paths.state()}",
        f"./spine boot --detach{flag}",
        Exit.NO_SUCH_THING,
    )


@contextlib.contextmanager
def locked(where: Path) -> Iterator[None]:
    """Only one ./spine starts or stops a ground at a time; SpineError (5) when another is at it."""
    paths.private(where)
    with open(where / "lock", "w", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SpineError(
                f"another ./spine is starting or stopping the {where.name}",
                f"it holds {where / 'lock'}",
                "wait for it, then run the same command again",
                Exit.REFUSED,
            ) from error
        os.set_inheritable(file.fileno(), False)
        yield
