"""A running bay0 for a test: started with a manifest of the test's choosing, looked at from outside.

Everything is read where the kernel or bay0 keeps it (the state file, cgroups, /proc), by polling with a
deadline; nothing waits a fixed time.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from spine.image.root import BAY0

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
# A loaded build machine is slow; nothing here depends on being fast.
DEADLINE_S = 30.0

SPINE = """
[spine]
heartbeat_ms = 100
heartbeats_missed_max = 10
start_deadline_ms = 3000
stop_deadline_ms = 1500
deaths_max = 3
healthy_stretch_ms = 30000
healthy_after_ms = 200
"""

T = TypeVar("T")


def stanza(name: str, uid: int, extra: str = "", *, mounts: str = "[]", devices: str = "[]") -> str:
    """One organ of a test's manifest."""
    return f"""
[organs.{name}]
summary = "{name} of a test"
image = "development"
uid = {uid}
gid = {uid}
capabilities = []
syscalls = ["base", "memory", "threads", "clock", "wait", "descriptors", "bus", "files-read"]
memory_max = "64 MiB"
pids_max = 8
nofile_max = 128
mounts = {mounts}
devices = {devices}
{extra}
"""


OPERATOR = stanza(
    "operator",
    2003,
    'control = { asks = ["reboot", "poweroff", "probe"], told = [] }',
    devices='[{ name = "port", mode = "rw" }]',
)
GATE = stanza("gate", 2001, mounts='[{ device = "persist", at = "/persist", type = "ext4" }]')
INTEGRITY = stanza(
    "integrity",
    2002,
    'control = { asks = ["reboot"], told = ["healthy"] }',
    devices='[{ name = "boot-a", mode = "rw" }]',
)


def until(what: str, ask: Callable[[], T | None]) -> T:
    """Ask again and again until there is an answer; fail after a deadline."""
    end = time.monotonic() + DEADLINE_S
    while True:
        try:
            if answer := ask():
                return answer
        except (FileNotFoundError, ProcessLookupError, IndexError, json.JSONDecodeError):
            pass
        assert time.monotonic() < end, f"it never happened: {what}"
        time.sleep(0.005)


def cgroup_root() -> Path:
    """Where this host has cgroup v2."""
    mixed = Path("/sys/fs/cgroup/unified")
    return mixed if mixed.is_dir() else Path("/sys/fs/cgroup")


class Spine:
    """One bay0. `pid` is its pid as this host counts."""

    def __init__(
        self, folder: Path, cgroup: Path, process: subprocess.Popen[bytes], pid: int, port: str
    ) -> None:
        self.folder, self.cgroup, self.process, self.pid, self.port = folder, cgroup, process, pid, port

    def state(self) -> dict[str, dict[str, object]]:
        """organs.json as it is now."""
        document: dict[str, dict[str, object]] = json.loads(
            (Path(f"/proc/{self.pid}/root") / "run/spine/organs.json").read_text()
        )
        return document

    def child(self, name: str) -> dict[str, object]:
        """What organs.json says of one child."""
        state = self.state()
        facts = state["zygote"] if name == "zygote" else state["organs"][name]
        assert isinstance(facts, dict)
        return facts

    def wait_ready(self, name: str, generation: int = 1) -> int:
        """Wait until this or a later incarnation is ready; its generation."""

        def ready() -> int | None:
            facts = self.child(name)
            now = facts["generation"]
            assert isinstance(now, int)
            return now if facts["state"] == "ready" and now >= generation else None

        return until(f"{name} ready in generation {generation}", ready)

    def host_pid(self, name: str) -> int:
        """The pid of a child as this host counts."""
        group = self.cgroup / (name if name == "zygote" else f"organs/{name}")
        return until(f"{name} in its cgroup", lambda: int((group / "cgroup.procs").read_text().split()[0]))

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """A signal to a child, from outside."""
        os.kill(self.host_pid(name), number)

    def log(self, name: str) -> str:
        """What bay0 kept of a child's log."""
        folder = Path(f"/proc/{self.pid}/root/run/spine/log")
        files = [folder / f"{name}.log.1", folder / f"{name}.log"]
        return "".join(f.read_text(errors="replace") for f in files if f.exists())

    def console(self) -> str:
        """What bay0 said on its console."""
        return (self.folder / "console").read_text(errors="replace")

    def ask(self, **message: object) -> dict[str, object]:
        """Let the stand-in operator ask bay0; its answer ({} when there is none to come)."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(DEADLINE_S)
            client.connect(self.port)
            client.sendall(json.dumps(message).encode() + b"\n")
            data = b""
            while part := client.recv(4096):
                data += part
            answer: dict[str, object] = json.loads(data) if data else {}
            return answer

    def end(self) -> int:
        """Wait for bay0's end; its exit code."""
        return self.process.wait(DEADLINE_S)


@contextlib.contextmanager
def loop_device(file: Path, *options: str) -> Iterator[str]:
    """A loop device over a file."""
    made = subprocess.run(
        ["losetup", "--find", "--show", *options, str(file)], capture_output=True, text=True, check=True
    )
    device = made.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def lay_extra(
    extra: Path, manifest: str, pairs: list[list[str]], fds: list[list[str]], image: str, bay0: bytes
) -> None:
    """What the image has and this host's /usr has not: the organs, the library, the program."""
    packages = extra / "lib/python3/dist-packages"
    shutil.copytree(ROOT / "organs", packages / "organs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(HERE / "standin_runtime.py", packages / "organs/runtime.py")
    if image == "production":
        (packages / "organs/bay0/probes.py").unlink()
    library = extra / "lib/spine"
    library.mkdir()
    (library / "manifest.toml").write_text(manifest)
    (library / "switchboard.json").write_text(json.dumps({"pairs": pairs, "fds": fds}))
    (library / "release.json").write_text(
        json.dumps({"name": "Alpine-Spine", "version": "0.1.0", "image": image, "built": 1767225600})
    )
    program = extra / "bin/bay0"
    program.parent.mkdir()
    program.write_bytes(bay0)
    program.chmod(0o755)


@contextlib.contextmanager
def running(
    folder: Path,
    *organs: str,
    pairs: list[list[str]] | None = None,
    fds: list[list[str]] | None = None,
    devices: Mapping[str, str] | None = None,
    spine: str = SPINE,
    image: str = "development",
    bay0: bytes = BAY0,
) -> Iterator[Spine]:
    """Run bay0 with these stanzas; what is left of it afterwards is killed, and nothing of it stays."""
    extra, root = folder / "extra", folder / "root"
    root.mkdir()
    lay_extra(extra, spine + "".join(organs), pairs or [], fds or [], image, bay0)
    cgroup = cgroup_root() / f"spine-test-{os.getpid()}-{folder.name}"
    cgroup.mkdir()
    port_path = f"/tmp/spine-test-{os.getpid()}.port"
    with socket.socket(socket.AF_UNIX) as port, open(folder / "console", "wb") as console:
        port.bind(port_path)
        port.listen(8)
        plan = {
            "cgroup": str(cgroup),
            "root": str(root),
            "extra": str(extra),
            "pid": str(folder / "pid"),
            "port": port.fileno(),
            "ground": {
                "kind": "container",
                "devices": dict(devices or {}),
                "portFd": 3,
                "missing": ["dm-verity"],
                "slot": None,
                "rootHash": None,
            },
        }
        (folder / "plan").write_text(json.dumps(plan))
        process = subprocess.Popen(
            [sys.executable, str(HERE / "enter.py"), str(folder / "plan")],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            pass_fds=[port.fileno()],
        )
        try:
            pid = until("bay0 started", lambda: int((folder / "pid").read_text()))
            yield Spine(folder, cgroup, process, pid, port_path)
        finally:
            sys.stdout.write((folder / "console").read_text(errors="replace"))
            (cgroup / "cgroup.kill").write_text("1")
            process.wait(DEADLINE_S)
            remove_cgroups(cgroup)
            os.unlink(port_path)


def remove_cgroups(path: Path) -> None:
    """Remove a cgroup and all below it, once they are empty."""
    until("the cgroup is empty", lambda: "populated 0" in (path / "cgroup.events").read_text())
    for below in sorted((p for p in path.rglob("*") if p.is_dir()), reverse=True):
        below.rmdir()
    path.rmdir()
