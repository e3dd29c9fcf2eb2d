"""The keeper of a container ground: starts bay0 as PID 1 of fresh namespaces, again when it asks to reboot.

Run by container.py as a process of its own (`python -m spine.ground.keeper PLAN`); needs root. It makes the
cgroup, the loop devices and the listening socket of the operator's port, forks the process that becomes
bay0, writes `state.json`, waits, cleans up and writes `ended.json`. Every mount is in the container's own
mount namespace, the loop devices end with their last user, and bay0 and its network (wire.py) die with the
keeper: so whatever ends first, only an empty cgroup and some files can be left, and the next `boot` or `stop`
removes those. What fails is its last line on stderr; a network that this host cannot make is only missing.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spine.ground import calls, cgroups, state

BAY0 = "/usr/bin/bay0"
HOST_NAME = "spine"
PORT_FD = 3
PORT_BACKLOG = 16
# How PID 1 asks for another start.
EXIT_REBOOT = 3
# Shell habit for a command that could not be run; bay0 has no such code.
EXIT_NOT_STARTED = 127
# Killed processes are gone within milliseconds; a device that hangs may hold one.
REMOVE_S = 10.0
# An interpreter's start and a few calls: a tenth of a second.
WIRE_S = 10.0
WIRE_MISSING = "network"
# Nodes every program may expect. bay0 adds what it wants itself.
NODES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9))


@dataclass(frozen=True)
class Plan:
    """What the keeper is told, as JSON: files of the ground, and names of what it cannot offer."""

    directory: str
    sockets: str
    cgroup: str
    root: str
    # What the disk's partitions are on a machine, by name. The spine writes all of them.
    devices: dict[str, str]
    missing: list[str]
    root_hash: str | None = None


def main(plan: Plan) -> int:
    """Keep one container until it powers off; bay0's exit code."""
    os.umask(0o022)
    calls.adopt_orphans()
    # Ctrl-C and hang-ups of the terminal are not for us; to be stopped is, and takes bay0 along.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    where = Path(plan.directory)
    root, _root_fd = calls.loop(plan.root, read_only=True)
    devices = {name: calls.loop(path, read_only=False) for name, path in plan.devices.items()}
    nodes = {name: node for name, (node, _fd) in devices.items()}
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    port = Path(plan.sockets) / "port.sock"
    port.unlink(missing_ok=True)
    listener.bind(str(port))
    port.chmod(0o600)
    listener.listen(PORT_BACKLOG)
    console = os.open(where / "console.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    me = state.Process.of(os.getpid())
    try:
        while True:
            group = cgroups.make(plan.cgroup)
            bay0, go = _spawn(plan, root, nodes, group, listener.fileno(), console)
            process = state.Process.of(bay0)
            wire = _wire(bay0)
            if process is not None:
                state.write(
                    where,
                    state.Ground(
                        kind="container",
                        process=process,
                        disk=Path(plan.devices["persist"]),
                        port=port,
                        console=where / "console.log",
                        missing=(*plan.missing, *([] if wire else [WIRE_MISSING])),
                        keeper=me,
                        wire=state.Process.of(wire.pid) if wire else None,
                    ),
                )
            os.write(go, b"g")
            _, status = os.waitpid(bay0, 0)
            os.close(go)
            if wire is not None:
                wire.kill()
                wire.wait()
            cgroups.remove(group, REMOVE_S)
            code = os.waitstatus_to_exitcode(status)
            if code != EXIT_REBOOT:
                break
        _write_ended(where, code)
        return code
    finally:
        state.forget(where)
        port.unlink(missing_ok=True)


def _wire(bay0: int) -> subprocess.Popen[bytes] | None:
    """A network for the namespace that PID 1 is in; None where this host makes none, which it says."""
    namespace = os.open(f"/proc/{bay0}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        wire = subprocess.Popen(
            [sys.executable, "-P", "-m", "spine.ground.wire", str(namespace), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            pass_fds=[namespace],
        )
    finally:
        os.close(namespace)
    assert wire.stdout is not None
    with wire.stdout as said:
        if select.select([said], [], [], WIRE_S)[0] and said.readline():
            return wire
    wire.kill()
    wire.wait()
    return None


def _spawn(
    plan: Plan, root: str, nodes: dict[str, str], group: Path, port: int, console: int
) -> tuple[int, int]:
    """Fork PID 1 of new namespaces: its process number here, and the descriptor that lets it go on."""
    wait, go = os.pipe2(os.O_CLOEXEC)
    told, tell = os.pipe2(os.O_CLOEXEC)
    between = os.fork()
    if between == 0:
        with _last_words(console):
            os.close(go)
            # In the group before its namespace is made, so that the group is what bay0 sees as the root.
            (group / "cgroup.procs").write_text("0", encoding="ascii")
            calls.unshare(
                calls.CLONE_NEWNS
                | calls.CLONE_NEWUTS
                | calls.CLONE_NEWIPC
                | calls.CLONE_NEWNET
                | calls.CLONE_NEWCGROUP
                | calls.CLONE_NEWPID
            )
            first = os.fork()
            if first == 0:
                with _last_words(console):
                    _become_bay0(plan, root, nodes, port, console, wait)
            os.write(tell, str(first).encode())
            os._exit(0)
    os.close(tell)
    os.close(wait)
    # Its parent ends at once, so that bay0 becomes a child of ours, whose death the kernel tells it.
    os.waitpid(between, 0)
    number = os.read(told, 32)
    os.close(told)
    if not number:
        raise RuntimeError("the namespaces could not be made; see console.log")
    return int(number), go


def _become_bay0(plan: Plan, root: str, nodes: dict[str, str], port: int, console: int, wait: int) -> None:
    if not os.read(wait, 1):
        os._exit(EXIT_NOT_STARTED)  # the keeper is gone
    calls.die_with_parent(signal.SIGKILL)  # INV-HOST-3
    os.setsid()
    socket.sethostname(HOST_NAME)
    calls.mount("none", "/", flags=calls.MS_REC | calls.MS_PRIVATE)
    base = Path(plan.directory) / "root"
    calls.mount(root, str(base), "squashfs", calls.MS_RDONLY | calls.MS_NOSUID | calls.MS_NODEV)
    calls.mount("tmpfs", f"{base}/dev", "tmpfs", calls.MS_NOSUID | calls.MS_NOEXEC, "mode=755,size=64k")
    for name, major, minor in NODES:
        _node(f"{base}/dev/{name}", 0o20666, os.makedev(major, minor))
    for node in nodes.values():
        _node(f"{base}{node}", 0o60600, os.stat(node).st_rdev)
    calls.mount("tmpfs", f"{base}/run", "tmpfs", calls.MS_NOSUID | calls.MS_NODEV, "mode=755")
    os.mkdir(f"{base}/run/spine", 0o755)
    ground = {
        "kind": "container",
        "devices": nodes,
        "portFd": PORT_FD,
        "missing": plan.missing,
        "slot": None,
        "rootHash": plan.root_hash,
    }
    Path(f"{base}/run/spine/ground.json").write_text(json.dumps(ground) + "\n", encoding="utf-8")
    os.chdir(base)
    calls.pivot_root_here()
    for number in range(1, signal.NSIG):
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    null = os.open("/dev/null", os.O_RDONLY)
    # Every source lies above the descriptors it goes to, so none is overwritten before its turn.
    high = [os.dup2(fd, 64 + at) for at, fd in enumerate((null, console, console, port))]
    for at, fd in enumerate(high):
        os.dup2(fd, at, inheritable=True)
    os.closerange(PORT_FD + 1, 1024)
    os.execve(BAY0, [BAY0], {})


def _node(path: str, mode: int, device: int) -> None:
    os.mknod(path, mode, device)
    os.chmod(path, mode & 0o777)


@contextlib.contextmanager
def _last_words(console: int) -> Iterator[None]:
    """In a forked process: whatever goes wrong is said on the console, and the process ends."""
    try:
        yield
    except OSError as error:
        os.write(console, f"spine: keeper: {error}\n".encode())
    finally:
        os._exit(EXIT_NOT_STARTED)


def _write_ended(where: Path, code: int) -> None:
    draft = where / (state.ENDED_FILE + ".new")
    draft.write_text(json.dumps({"code": code}) + "\n", encoding="utf-8")
    draft.rename(where / state.ENDED_FILE)


if __name__ == "__main__":
    sys.exit(main(Plan(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))) & 0xFF)
