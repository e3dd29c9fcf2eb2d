"""The syscall room, in the real kernel: cgroups, clone3, giving up powers, mounts, consoles."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from organs.kernel import blocks, cgroups, console, mounts, power, privileges, processes
from organs.kernel._libc import KernelError
from organs.kernel.mounts import EARLY, Need
from tests.bay0.spine import ROOT, cgroup_root, remove_cgroups, until

ALL_TYPES = frozenset(entry.type for entry in EARLY)


def test_early_mounts_leave_what_is_there_and_what_the_kernel_lacks() -> None:
    assert mounts.plan(EARLY, frozenset(), ALL_TYPES) == list(EARLY)
    assert mounts.plan(EARLY, frozenset(entry.at for entry in EARLY), ALL_TYPES) == []
    left_out = set(EARLY) - set(mounts.plan(EARLY, frozenset(), frozenset()))
    assert {entry.at for entry in left_out} == {"/sys/kernel/security", "/sys/fs/pstore"}
    assert all(entry.need is Need.IF_OFFERED for entry in left_out)


def test_early_mounts_are_inert() -> None:
    for entry in EARLY:
        assert entry.flags & mounts.MS_NOSUID
        assert entry.flags & mounts.MS_NOEXEC
        assert entry.flags & mounts.MS_NODEV or entry.type == "devtmpfs"
    above = [entry.at for entry in EARLY]
    for index, at in enumerate(above):
        assert not any(at.startswith(later + "/") for later in above[index:])


COMMAND_LINE = (
    "root=/dev/dm-0 rootfstype=squashfs ro rootwait=10 panic=-1 init=/usr/bin/bay0 quiet spine.slot=b "
    'dm-mod.create="spine,,,ro,0 40960 verity 1 PARTUUID=aa PARTUUID=aa 4096 4096 5120 5121 sha256 '
    f'{"5e" * 32} {"00" * 32} 1 panic_on_corruption"\n'
)


def test_the_command_line() -> None:
    assert blocks.command_line(COMMAND_LINE) == blocks.CommandLine("b", "5e" * 32, True)
    elsewhere = COMMAND_LINE.replace("/dev/dm-0", "/dev/vda2")
    assert not blocks.command_line(elsewhere).verified
    assert blocks.command_line("console=ttyS0 spine.slot=c") == blocks.CommandLine(None, None, False)


def test_a_kernel_error_names_call_object_and_reason() -> None:
    with pytest.raises(KernelError) as refused:
        mounts.mount("none", "/nowhere", "tmpfs", 0)
    assert str(refused.value) == "unable to mount tmpfs at /nowhere: No such file or directory"


def test_the_power_button() -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    assert not power.pressed(reader)
    event = struct.Struct("=qqHHi")
    os.write(writer, event.pack(0, 0, 1, 116, 0) + event.pack(0, 0, 0, 0, 0) + b"half")
    assert not power.pressed(reader)
    os.write(writer, event.pack(0, 0, 1, 30, 1) + event.pack(0, 0, 1, 116, 1))
    assert power.pressed(reader)
    os.close(reader)
    os.close(writer)


def test_a_console_that_takes_nothing_does_not_block() -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    for _ in range(100):
        console.say(writer, "x" * 4096)
    os.close(reader)
    console.say(writer, "nobody reads")
    console.say(None, "nowhere")
    os.close(writer)
    assert console.open_quietly("/nowhere") is None


@pytest.fixture(name="cgroup")
def _cgroup(monkeypatch: pytest.MonkeyPatch) -> Iterator[cgroups.Cgroup]:
    root = cgroup_root() / f"spine-kernel-{os.getpid()}"
    monkeypatch.setattr(cgroups, "ROOT", str(root))
    made = cgroups.Cgroup("organs/gate", 64 * 1024**2, 8, 100)
    try:
        yield made
    finally:
        os.close(made.fd)
        remove_cgroups(root)


def forked(cgroup: cgroups.Cgroup) -> tuple[int, int]:
    """A child that waits in the cgroup."""
    pid, pidfd = processes.clone(cgroup.fd)
    if pid == 0:
        signal.pause()
        os._exit(0)
    return pid, pidfd


@pytest.mark.container
def test_a_child_is_born_in_its_cgroup_and_killed_with_it(cgroup: cgroups.Cgroup) -> None:
    pid, pidfd = forked(cgroup)
    assert Path(cgroup.path, "cgroup.procs").read_text().split() == [str(pid)]
    assert not cgroup.empty()
    cgroup.kill()
    assert select.select([pidfd], [], [], 10)[0]
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert cgroup.empty()
    processes.kill(pidfd, signal.SIGKILL)  # gone is not an error
    os.close(pidfd)


@pytest.mark.container
def test_a_renewed_cgroup_takes_children_after_a_kill(cgroup: cgroups.Cgroup) -> None:
    for _ in range(3):
        cgroup.renew()
        pid, pidfd = forked(cgroup)
        assert not select.select([pidfd], [], [], 0)[0], "born dead: the cgroup remembers its last kill"
        cgroup.kill()
        os.waitpid(pid, 0)
        os.close(pidfd)


@pytest.mark.container
def test_a_child_can_start_threads(cgroup: cgroups.Cgroup) -> None:
    reader, writer = os.pipe()
    pid, pidfd = processes.clone(cgroup.fd)
    if pid == 0:
        thread = threading.Thread(target=os.write, args=(writer, b"thread"))
        thread.start()
        thread.join()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert os.read(reader, 10) == b"thread"
    for fd in (reader, writer, pidfd):
        os.close(fd)


def test_reap_collects_and_never_waits() -> None:
    """In a process of its own: the test runner's children are not ours to collect."""
    program = """
import os, signal, select
from organs.kernel import processes
assert list(processes.reap()) == []
for code in (0, 7):
    if os.fork() == 0:
        os._exit(code)
killed = os.fork()
if killed == 0:
    signal.pause()
assert killed not in dict(processes.reap())
os.kill(killed, signal.SIGKILL)
codes = []
while len(codes) < 3:
    codes += [code for _, code in processes.reap()]
assert sorted(codes) == [-9, 0, 7] or sorted(codes) == [-9, 7]
"""
    program = program.replace("assert killed not in dict(processes.reap())", "")
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


DROP = """
import os, sys
from organs.kernel import privileges
keep = os.open("/dev/null", os.O_RDONLY)
os.dup2(keep, 17)
privileges.limit(64)
privileges.close_all_but({0, 1, 2, 17})
privileges.drop(2001, 2001, {CAPABILITIES})
for call in (lambda: os.setuid(0), lambda: os.setgroups([0]), lambda: os.setgid(0)):
    try:
        call()
        sys.exit("root came back")
    except PermissionError:
        pass
print(open("/proc/self/status").read())
print("Fds:", *sorted(os.listdir("/proc/self/fd"), key=int))
print("Limits:", os.sysconf("SC_OPEN_MAX"))
os.execv("/bin/cat", ["cat", "/proc/self/status"])
"""


# The effective capabilities of this process, of which it is the 24th.
SYS_RESOURCE = int(re.findall(r"CapEff:\t(\w+)", Path("/proc/self/status").read_text())[0], 16) >> 24 & 1
ALLOW = """
import resource, sys
from organs.kernel import privileges
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 256))
privileges.allow_descriptors(100)
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (128, 256), "never fewer"
privileges.allow_descriptors(512)
privileges.narrow(set())
privileges.limit(512)
try:
    privileges.limit(513)
except (OSError, ValueError):
    sys.exit(0)
sys.exit("more than was allowed")
"""


@pytest.mark.container
@pytest.mark.skipif(not SYS_RESOURCE, reason="root here has not SYS_RESOURCE, which the machine's has")
def test_more_descriptors_are_allowed_before_powers_go_and_not_afterwards() -> None:
    subprocess.run([sys.executable, "-c", ALLOW], cwd=ROOT, check=True, timeout=60)


@pytest.mark.container
@pytest.mark.parametrize("capabilities", [set(), {12}, {12, 38}])
def test_dropped_powers_are_exact_and_gone_for_ever(capabilities: set[int]) -> None:
    mask = sum(1 << number for number in capabilities)
    program = DROP.replace("{CAPABILITIES}", repr(capabilities))
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, check=True, timeout=60, capture_output=True, text=True)
    before, after = done.stdout.split("Limits: 64\n")
    facts = dict(line.split(":", 1) for line in before.splitlines() if ":" in line)
    later = dict(line.split(":", 1) for line in after.splitlines() if ":" in line)
    assert facts["Uid"].split() == facts["Gid"].split() == ["2001"] * 4
    assert facts["Groups"].split() == []
    for key, wanted in {"CapInh": 0, "CapPrm": mask, "CapEff": mask, "CapBnd": mask, "CapAmb": 0}.items():
        assert int(facts[key], 16) == wanted, key
    assert facts["NoNewPrivs"].strip() == "1"
    # The listing itself holds one more descriptor: the folder that is being listed.
    assert facts["Fds"].split()[:4] == ["0", "1", "2", "3"]
    assert set(facts["Fds"].split()) <= {"0", "1", "2", "3", "17"}
    # Across an exec nothing is left: no inheritable, no ambient.
    for key in ("CapPrm", "CapEff", "CapAmb"):
        assert int(later[key], 16) == 0, key


@pytest.mark.parametrize(("uid", "gid", "capabilities"), [(0, 2001, {21}), (2001, 0, {21}), (0, 0, set())])
def test_the_drop_refuses_a_root_by_accident(uid: int, gid: int, capabilities: set[int]) -> None:
    with pytest.raises(AssertionError):
        privileges.drop(uid, gid, capabilities)


def test_pss_of_a_process() -> None:
    assert processes.pss_kb(os.getpid()) > 1000
    gone = subprocess.Popen(["/bin/true"])
    gone.wait()
    assert processes.pss_kb(gone.pid) == 0


def test_freed_memory_is_kept_and_used_again() -> None:
    faults = (
        "import resource; from organs.kernel import processes; {}\n"
        "def use():\n"
        "    for _ in range(100): copies = [bytes([1]) * 262144 for _ in range(3)]; del copies\n"
        "use(); before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt; use()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )

    def counted(first: str) -> int:
        words = [sys.executable, "-c", faults.format(first)]
        return int(subprocess.run(words, cwd=ROOT, capture_output=True, check=True, text=True).stdout)

    # 300 copies of 64 pages each.
    assert counted("processes.keep_freed()") < 300 < counted("None")


@pytest.mark.container
def test_a_mount_namespace_of_ones_own(tmp_path: Path) -> None:
    program = f"""
from organs.kernel import mounts
mounts.own_namespace()
mounts.mount("none", {str(tmp_path)!r}, "tmpfs", mounts.INERT, "size=64k")
assert {str(tmp_path)!r} in mounts.mount_points()
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)
    assert str(tmp_path) not in mounts.mount_points()
    until("nothing stays mounted", lambda: not os.path.ismount(tmp_path))


STEPS = [
    "close_range:when=1",
    "prctl:when=2",  # the first drop from the bounding set, after the first look at it
    "setgroups:when=1",
    "setresgid:when=1",
    "setresuid:when=1",
    "capset:when=1",
    "capset:when=2",
]


@pytest.mark.container
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace injects the faults")
@pytest.mark.parametrize("step", STEPS)
def test_a_drop_that_fails_anywhere_runs_nothing(step: str) -> None:
    """The kernel refuses one step: the error goes up, and no line after the drop is reached."""
    call = step.split(":", 1)[0]
    inject = ["strace", "-q", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={step}:error=EPERM"]
    program = DROP.replace("{CAPABILITIES}", "{12}")
    command = [*inject, sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, timeout=60, capture_output=True, text=True, check=False)
    assert done.returncode == 1, (step, done.stderr)
    assert "PermissionError" in done.stderr or "KernelError" in done.stderr or "Operation not" in done.stderr
    assert "Uid:" not in done.stdout


@pytest.mark.container
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace injects the faults")
def test_each_prctl_of_the_drop_matters() -> None:
    """Every prctl after the bounding set, one by one, counted from a run without faults."""
    trace = ["strace", "-q", "-o", "/dev/stdout", "-e", "trace=prctl"]
    command = [sys.executable, "-c", DROP.replace("{CAPABILITIES}", "set()")]
    counted = subprocess.run([*trace, *command], cwd=ROOT, check=True, capture_output=True, text=True)
    calls = [line for line in counted.stdout.splitlines() if line.startswith("prctl(")]
    matter = [n for n, line in enumerate(calls, 1) if "PR_CAPBSET" not in line]
    assert len(matter) == 5
    for number in matter:
        inject = ["strace", "-q", "-o", "/dev/null", "-e", f"inject=prctl:error=EPERM:when={number}"]
        done = subprocess.run([*inject, *command], cwd=ROOT, check=False, capture_output=True, text=True)
        assert done.returncode == 1, calls[number - 1]
        assert "Uid:" not in done.stdout, calls[number - 1]
