"""The container: the same root and the same bay0 as PID 1 of fresh namespaces, on this kernel. Needs root.

For quick tests and for trying it out: up in about a second, no QEMU. What a machine has and this has not
(verity, boot loader, watchdog, ...) is listed in `missing`, never pretended. Touches one directory of its
own, a socket directory, one cgroup and the keeper process it starts (keeper.py says how nothing can be left
behind).
"""

import contextlib
import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from spine import paths
from spine.errors import Exit, SpineError
from spine.ground import calls, cgroups, disk, gpt, keeper, state
from spine.ground.console import LOOK_S, BootError, Console, OnStage, nobody
from spine.ground.port import HELLO_S, Port
from spine.ground.stages import Stage, last_lines

# From the first process to an operator that answers: about a second; other work may run beside.
READY_S = 60.0
# bay0 gives its organs 5 s to stop, widened up to eightfold where the imports were slow.
STOP_S = 50.0
KILL_S = 10.0
# A loop device ends with its last user; the kernel unmounts behind the back of who was killed.
LOOP_S = 30.0
# The gate's filesystem, made here when no disk image was built.
PERSIST_BYTES = 64 * 1024 * 1024
GATE_UID = 2001
# The personas' partition, as large as on the disk. All zeros is an empty one.
PERSONAS_BYTES = 64 * 1024 * 1024

# The two slots and their boot volumes.
PAIRS = ("slot-a", "slot-b", "boot-a", "boot-b")

# A machine's features that no container has: nobody checks the root's blocks, nothing counts boots, there is
# no hardware to reset a stuck PID 1, and the screen and the crash store are the host's.
NEVER_HERE = ("boot-loader", "clock", "dm-verity", "pstore", "screen", "watchdog")


class Container:
    """One container ground with its files in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.console = Console(directory / "console.log", "container", self.alive, self._epitaph, before=())
        self._sockets: Path | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._keeper: state.Process | None = None

    @classmethod
    def attach(cls, directory: Path) -> "Container | None":
        """The container that runs out of this directory, whoever started it; None when none does."""
        ground = state.read(directory)
        if ground is None or ground.kind != "container":
            return None
        container = cls(directory)
        container._sockets, container._keeper = ground.port.parent, ground.keeper
        return container

    @property
    def pid(self) -> int:
        """The host's process number of bay0, which changes with a reboot. SpineError (4) when none runs."""
        ground = state.read(self.directory)
        if ground is None:
            raise SpineError(
                "no container runs",
                f"{self.directory} has none",
                "./spine boot --container --detach",
                Exit.NO_SUCH_THING,
            )
        return ground.process.pid

    @property
    def personas(self) -> Path:
        """The partition of the personas."""
        return self.directory / "personas.img"

    @property
    def sockets(self) -> Path:
        """The directory of `port.sock`; made when it is not there."""
        if self._sockets is None:
            self._sockets = paths.sockets(self.directory)
        return self._sockets

    @property
    def port_path(self) -> Path:
        """The unix socket of the operator's port."""
        return self.sockets / "port.sock"

    @property
    def tap_path(self) -> Path:
        """The same socket: here it has any number of clients."""
        return self.port_path

    @property
    def cgroup(self) -> str:
        """The name of its control group, below the root of the version 2 hierarchy."""
        return f"alpine-spine-{hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:12]}"

    @property
    def missing(self) -> tuple[str, ...]:
        """What this ground cannot offer; empty when it does not run."""
        ground = state.read(self.directory)
        return ground.missing if ground else ()

    @property
    def wire(self) -> int | None:
        """The process that is its network, in whose namespace the router is; None where there is none."""
        ground = state.read(self.directory)
        return ground.wire.pid if ground and ground.wire else None

    @property
    def exit_code(self) -> int | None:
        """How bay0 ended for good: 0 power-off, 70 panic, below 0 a signal; None while it runs or reboots."""
        return state.ended(self.directory)

    def provision(self, out: Path, *, fresh: bool = False, fresh_data: bool = False) -> tuple[Path, Path]:
        """The files to start from, out of what was built: root and persist.

        `persist` and the personas are kept from the last time unless `fresh`, the personas also with
        `fresh_data`. Not while it runs. SpineError (3) when nothing was built.
        """
        paths.private(self.directory)
        root, image = out / "root.squashfs", out / "spine.img"
        if not root.is_file():
            raise SpineError(
                "there is no root to start", f"{root} is not there", "./spine build", Exit.HOST_NOT_READY
            )
        persist = self.directory / "persist.img"
        if fresh:
            self.personas.unlink(missing_ok=True)
        if fresh or fresh_data or not persist.is_file():
            table = gpt.read(image) if image.is_file() else {}
            if "persist" in table:
                disk.extract(image, table["persist"], persist)
            else:
                make_persist(persist)
        return root, persist

    def pairs(self, out: Path, *, fresh: bool = False) -> dict[str, Path]:
        """The slots and their boot volumes; none when there is no disk. Not while it runs.

        They are as the machine's disk was built, then as the spine left them; anew when `fresh`, and when the
        disk was built anew.
        """
        paths.private(self.directory)
        image = out / "spine.img"
        table = gpt.read(image) if image.is_file() else {}
        found = {name: self.directory / f"{name}.img" for name in PAIRS if name in table}
        if not found:
            return found
        note, stamp = self.directory / "pairs.json", json.dumps(disk.stamp(image))
        kept = not fresh and note.is_file() and note.read_text(encoding="utf-8") == stamp
        if not kept or not all(path.is_file() for path in found.values()):
            note.unlink(missing_ok=True)
            for name, path in found.items():
                disk.extract(image, table[name], path)
            # Last: a start that was cut short extracts them again.
            note.write_text(stamp, encoding="utf-8")
        return found

    def start(
        self,
        root: Path,
        persist: Path,
        *,
        pairs: Mapping[str, Path] | None = None,
        root_hash: str | None = None,
    ) -> None:
        """Start bay0; returns when the process is there, before it is ready. SpineError (1, 3, 5).

        `pairs` has the files of slots and boot volumes, which the spine writes.
        """
        pairs = pairs or {}
        if os.geteuid() != 0:
            raise SpineError(
                "the container ground needs root",
                f"it makes namespaces, mounts and a cgroup; you are uid {os.geteuid()}",
                "sudo ./spine boot --container   (or without root: ./spine boot)",
                Exit.HOST_NOT_READY,
            )
        if state.read(self.directory) is not None:
            raise SpineError(
                "the container runs already",
                f"bay0 is process {self.pid}",
                "./spine stop --container",
                Exit.REFUSED,
            )
        self.clean()
        paths.private(self.directory)
        (self.directory / "root").mkdir(exist_ok=True)
        if not self.personas.is_file():
            with open(self.personas, "wb") as empty:
                empty.truncate(PERSONAS_BYTES)
        (self.directory / state.ENDED_FILE).unlink(missing_ok=True)
        self.console.path.write_bytes(b"")
        plan = keeper.Plan(
            directory=str(self.directory.absolute()),
            sockets=str(self.sockets.absolute()),
            cgroup=self.cgroup,
            root=str(root.absolute()),
            devices={
                name: str(path.absolute())
                for name, path in {"persist": persist, "personas": self.personas, **pairs}.items()
            },
            missing=[*NEVER_HERE, *(name for name in PAIRS if name not in pairs)],
            root_hash=root_hash,
        )
        file = self.directory / "plan.json"
        file.write_text(json.dumps(asdict(plan), indent=1) + "\n", encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": f"{paths.ROOT / 'spine-image'}:{paths.ROOT}"}
        with open(self.directory / "keeper.log", "wb") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "spine.ground.keeper", str(file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=environment,
                start_new_session=True,
            )
        self._keeper = state.Process.of(self._child.pid)
        while state.read(self.directory) is None:
            if not self.alive():
                said = last_lines((self.directory / "keeper.log").read_bytes(), 1)
                why = said[0] if said else self._epitaph()
                shown = last_lines(self.console.read())
                raise BootError("the container did not start", why, "./spine doctor", shown)
            time.sleep(LOOK_S)

    def alive(self) -> bool:
        """Whether the ground is there: bay0 runs, or is about to be started again."""
        if self._child is not None and self._child.poll() is not None:
            return False
        return self._keeper is not None and self._keeper.alive()

    def wait_ready(
        self, deadline_s: float | None = None, *, since: int = 0, on_stage: OnStage = nobody
    ) -> None:
        """Wait until bay0 says ready and the operator answers a hello. BootError (124; 1: bay0 ended)."""
        limit_s = READY_S if deadline_s is None else deadline_s
        end = time.monotonic() + limit_s
        self.console.follow("ready", limit_s, since=since, on_stage=on_stage)
        with self.port(max(1.0, end - time.monotonic())):
            on_stage(Stage("port"))

    def port(self, deadline_s: float | None = None) -> Port:
        """A connection to the operator's port."""
        return Port(self.port_path, deadline_s=HELLO_S if deadline_s is None else deadline_s, shared=True)

    def stop(self, deadline_s: float = STOP_S) -> bool:
        """Ask bay0 to shut down (SIGTERM), end everything after the deadline; True when it was orderly."""
        ground = state.read(self.directory)
        orderly = False
        if ground is not None and _signal(ground.process, signal.SIGTERM):
            orderly = self._wait_end(deadline_s) and self.exit_code == 0
        self.kill()
        return orderly

    def kill(self) -> None:
        """End everything at once. Harmless when it is dead."""
        if self.alive() and self._keeper is not None:
            # bay0 dies with its keeper, and its pid namespace with bay0.
            _signal(self._keeper, signal.SIGKILL)
            self._wait_end(KILL_S)
        self.clean()

    def power_cut(self) -> None:
        """The power goes: kill all, and in the same breath stop the gate's file system without its journal.

        What was not yet on its device is gone. What the device had taken and not flushed stays, unlike after
        `Machine.power_cut`; so does all that was written to other files. SpineError (1, 5, 124), OSError.
        """
        group, gate = self._group(), list[str]()
        if group is not None:
            with contextlib.suppress(FileNotFoundError):
                gate = (group / "organs/gate/cgroup.procs").read_text(encoding="ascii").split()
        if group is None or not gate:
            raise SpineError(
                "the power cannot be cut honestly",
                "the gate does not run, so nobody holds the file system that is to lose what was not synced",
                "./spine status --container; then ./spine powercut --container",
                Exit.REFUSED,
            )
        persist = os.open(f"/proc/{gate[0]}/root/persist", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            device = os.fstat(persist).st_dev
            if device == os.stat(f"/proc/{gate[0]}/root").st_dev:
                raise SpineError(
                    "the power cannot be cut honestly",
                    "the gate is closed, so nobody holds the file system that is to lose what was not synced",
                    "./spine status --container   (says what is wrong with the data)",
                    Exit.REFUSED,
                )
            # The kill comes first: nobody may live to be told that a sync went well which did not.
            (group / "cgroup.kill").write_text("1", encoding="ascii")
            calls.shut_down_ext4(persist)
        finally:
            os.close(persist)
        self.kill()
        # Only then is there one file system on the file at the next boot, and not two.
        end = time.monotonic() + LOOP_S
        while calls.loop_lasts(os.minor(device)):
            if time.monotonic() > end:
                raise BootError(
                    f"the device of the gate's file system was still there after {LOOP_S:.0f} s",
                    "something keeps the file system open",
                    "losetup -a   (when it is gone: ./spine boot --container)",
                    exit_code=Exit.TIMEOUT,
                )
            time.sleep(LOOK_S)

    def wait_exit(self, deadline_s: float) -> int | None:
        """Wait until it has ended for good; how (see `exit_code`). SpineError (124)."""
        if not self._wait_end(deadline_s):
            raise BootError(
                f"bay0 did not end within {deadline_s:.0f} s",
                "it is alive",
                "./spine stop --container",
                exit_code=Exit.TIMEOUT,
            )
        return self.exit_code

    def clean(self) -> None:
        """Remove what a container that was not stopped may have left: its cgroup, sockets and record."""
        if os.geteuid() != 0:
            return
        mount = cgroups.mounted(Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
        if mount is not None and not cgroups.remove(Path(mount) / self.cgroup, KILL_S):
            raise SpineError(
                "processes of the container do not end",
                f"they are in the cgroup {self.cgroup}, hung in the kernel",
                "./spine stop --container   (again, later)",
                Exit.TIMEOUT,
            )
        state.forget(self.directory)
        for name in ("port.sock", "port.lock"):
            (self.sockets / name).unlink(missing_ok=True)
        if self.sockets != self.directory:
            with contextlib.suppress(OSError):
                self.sockets.rmdir()
            self._sockets = None

    def _group(self) -> Path | None:
        """Its cgroup, while it has one."""
        mount = cgroups.mounted(Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
        group = Path(mount) / self.cgroup if mount is not None else None
        return group if group is not None and group.is_dir() else None

    def _wait_end(self, deadline_s: float) -> bool:
        if self._child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(deadline_s)
        elif self._keeper is not None:
            with contextlib.suppress(ProcessLookupError):
                fd = os.pidfd_open(self._keeper.pid)
                try:
                    if self._keeper.alive():
                        select.select([fd], [], [], deadline_s)
                finally:
                    os.close(fd)
        return not self.alive()

    def _epitaph(self) -> str:
        code = self.exit_code
        if code == state.EXIT_PANIC:
            return "bay0 panicked"
        return "the keeper was ended" if code is None else f"bay0 ended with {code}"


def make_persist(path: Path) -> None:
    """An empty filesystem for the gate, as the image builder makes it. SpineError."""
    new = path.with_suffix(".new")
    try:
        with open(new, "wb") as file:
            file.truncate(PERSIST_BYTES)
        owner = f"root_owner={GATE_UID}:{GATE_UID}"
        _run("mkfs.ext4", "-q", "-F", "-E", owner, str(new))
        # mkfs leaves the root directory open to all.
        _run("debugfs", "-w", "-R", "set_inode_field <2> mode 040700", str(new))
        new.rename(path)
    finally:
        new.unlink(missing_ok=True)


def _run(*words: str) -> None:
    program = words[0]
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    try:
        subprocess.run(
            words, check=True, stdin=subprocess.DEVNULL, capture_output=True, env={**os.environ, "PATH": path}
        )
    except FileNotFoundError as error:
        raise SpineError(
            f"{program} is not installed",
            "the gate's filesystem is made with it",
            "apt-get install --no-install-recommends e2fsprogs",
            Exit.HOST_NOT_READY,
        ) from error
    except subprocess.CalledProcessError as error:
        said = last_lines(error.stderr, 1)
        raise SpineError(f"{program} failed", said[0] if said else "without a word", "df -h") from error


def _signal(process: state.Process, number: int) -> bool:
    """Send a signal to exactly this process; False when it is gone."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if not process.alive():
            return False
        signal.pidfd_send_signal(fd, number)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
