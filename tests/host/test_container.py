"""The container ground with a stand-in for bay0: what PID 1 is given, and that nothing is left behind."""

import json
import os
import re
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from spine import paths
from spine.errors import Exit, SpineError
from spine.ground import cgroups, state
from spine.ground.console import BootError
from spine.ground.container import GATE_UID, PAIRS, Container, make_persist
from spine.image import disk as image

HERE = Path(__file__).resolve().parent
READY_S = 30.0

pytestmark = pytest.mark.container


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a root made of the stand-in only, and an empty persist."""
    made = tmp_path_factory.mktemp("parts")
    tree = made / "tree"
    for name in ("usr/bin", "proc", "sys", "dev", "run", "tmp", "persist"):
        (tree / name).mkdir(parents=True)
    command = ["gcc", "-static", "-Os", "-o", str(tree / "usr/bin/bay0"), str(HERE / "standin.c")]
    subprocess.run(command, check=True)
    subprocess.run(
        ["mksquashfs", tree, made / "root.squashfs", "-quiet", "-no-progress", "-all-root"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    make_persist(made / "persist.img")
    return made


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    """A container that does not run yet."""
    made = Container(tmp_path / "container")
    yield made
    made.kill()


def start(
    container: Container, parts: Path, pairs: Mapping[str, Path] | None = None, root: Path | None = None
) -> None:
    container.start(root or parts / "root.squashfs", parts / "persist.img", pairs=pairs)
    seen(container)
    container.console.follow("ready", READY_S)


def seen(container: Container) -> None:
    """Remember the network that it has now."""
    ground = state.read(container.directory)
    if ground is not None and ground.wire is not None:
        WIRES.append(ground.wire)


# Every network that a container here had, so that none outlives it.
WIRES: list[state.Process] = []


def left(container: Container, parts: Path) -> list[str]:
    """What the container has left on this host, except its own files."""
    found = [f"wire {wire.pid}" for wire in WIRES if wire.alive()]
    mount = cgroups.mounted(Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
    if mount and (Path(mount) / container.cgroup).exists():
        found.append("cgroup")
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if str(parts) in backing.read_text(encoding="utf-8"):
                found.append(str(backing))
        except OSError:
            continue  # it ended while we looked
    if str(parts) in Path("/proc/self/mountinfo").read_text(encoding="utf-8"):
        found.append("mount")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            where = os.readlink(process / "root")
        except OSError:
            continue
        if str(container.directory).encode() in b" ".join(words) or where.startswith(str(parts)):
            found.append(f"process {process.name} {words}")
    return found


def wait_for_end(process: state.Process) -> None:
    """Until a process that is not our child has ended."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        assert not process.alive() or select.select([fd], [], [], READY_S)[0]
    finally:
        os.close(fd)


def test_what_pid_1_is_given(container: Container, parts: Path) -> None:
    start(container, parts)
    said = container.console.text().splitlines()
    assert "pid 1" in said
    assert [line for line in said if line.startswith("fd ")] == ["fd 0", "fd 1", "fd 2", "fd 3"]
    assert "host spine" in said
    assert "root refused" in said
    ground = json.loads(next(line for line in said if line.startswith("ground ")).removeprefix("ground "))
    assert ground["kind"] == "container"
    assert ground["portFd"] == 3
    assert ground["slot"] is None
    assert ground["rootHash"] is None
    assert {"dm-verity", "slot-a", "slot-b", "boot-a", "boot-b", "watchdog"} <= set(ground["missing"])
    assert list(ground["devices"]) == ["persist", "personas"]
    nodes = {line.removeprefix("dev ") for line in said if line.startswith("dev ")}
    loops = {Path(node).name for node in ground["devices"].values()}
    assert nodes == {"null", "zero", "full", "random", "urandom", *loops}


def test_every_namespace_is_its_own(container: Container, parts: Path) -> None:
    start(container, parts)
    for name in ("cgroup", "ipc", "mnt", "net", "pid", "uts"):
        assert os.readlink(f"/proc/{container.pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}"), name
    assert container.cgroup in Path(f"/proc/{container.pid}/cgroup").read_text(encoding="ascii")


def test_it_has_a_card_and_a_network_behind_it(container: Container, parts: Path) -> None:
    start(container, parts)
    assert container.wire is not None
    assert "network" not in container.missing
    enter = ["nsenter", "--net", "--target"]
    card = subprocess.run(
        [*enter, str(container.pid), "ip", "-brief", "link"], capture_output=True, text=True, check=True
    )
    assert [line.split()[0].split("@")[0] for line in card.stdout.splitlines()] == ["lo", "eth0"]
    router = subprocess.run(
        [*enter, str(container.wire), "ip", "-brief", "-4", "address"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.split()[2:] for line in router.stdout.splitlines() if "wire0" in line] == [["10.77.0.1/24"]]
    # It is a network of its own: nothing of the host's is there.
    assert os.readlink(f"/proc/{container.wire}/ns/net") != os.readlink("/proc/self/ns/net")


def test_a_host_that_cannot_make_a_network_has_a_ground_without(
    container: Container, parts: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # A module of that name stands in its way.
    broken = tmp_path / "broken"
    shutil.copytree(paths.ROOT / "spine-image/spine", broken / "spine-image/spine")
    (broken / "spine-image/spine/ground/wire.py").write_text("raise OSError('not on this host')\n")
    monkeypatch.setattr(paths, "ROOT", broken)
    start(container, parts)
    assert container.wire is None
    assert "network" in container.missing
    assert container.stop(READY_S)


def test_slots_and_boot_volumes_are_devices_that_can_be_written(
    container: Container, parts: Path, tmp_path: Path
) -> None:
    pairs = {name: tmp_path / f"{name}.img" for name in ("slot-b", "boot-a")}
    for path in pairs.values():
        path.write_bytes(bytes(1 << 20))
    start(container, parts, pairs)
    assert {"slot-a", "boot-b"} == set(PAIRS) & set(container.missing)
    for name in pairs:
        [node] = re.findall(f'"{name}": "/dev/(loop[0-9]+)"', container.console.text())
        assert Path(f"/sys/block/{node}/ro").read_text(encoding="ascii") == "0\n"


def built(out: Path, fill: bytes) -> Path:
    """An `out` with a disk whose partitions begin with `fill` and their names."""
    out.mkdir(exist_ok=True)
    image.write_disk(out / "spine.img", {name: fill + name.encode() for name in PAIRS})
    return out


def begins(path: Path, length: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(length)


def test_slots_and_boot_volumes_are_kept_until_the_disk_is_built_anew(
    container: Container, tmp_path: Path
) -> None:
    out = built(tmp_path / "out", b"1 ")
    pairs = container.pairs(out)
    assert set(pairs) == set(PAIRS)
    for name, path in pairs.items():
        assert begins(path, 8) == b"1 " + name.encode()
        assert path.stat().st_size == image.partition(name).size
        path.write_bytes(b"used")
    assert container.pairs(out) == pairs
    assert {begins(path, 4) for path in pairs.values()} == {b"used"}
    container.pairs(out, fresh=True)
    assert begins(pairs["slot-a"], 8) == b"1 slot-a"
    pairs["boot-b"].write_bytes(b"used")
    container.pairs(built(out, b"2 "))
    assert begins(pairs["boot-b"], 8) == b"2 boot-b"
    # One that is gone is no reason to mix it with three that are not of its kind.
    for name in ("slot-a", "boot-a"):
        pairs[name].write_bytes(b"used")
    pairs["boot-a"].unlink()
    container.pairs(out)
    assert [begins(pairs[name], 8) for name in ("slot-a", "boot-a")] == [b"2 slot-a", b"2 boot-a"]


def test_without_a_disk_there_are_no_slots(container: Container, tmp_path: Path) -> None:
    assert container.pairs(tmp_path) == {}


@pytest.mark.proves("INV-HOST-3")
def test_a_stop_leaves_nothing(container: Container, parts: Path) -> None:
    start(container, parts)
    assert left(container, parts)
    assert container.stop(READY_S)
    assert container.exit_code == 0
    assert left(container, parts) == []
    assert state.read(container.directory) is None


@pytest.mark.proves("INV-HOST-3")
def test_a_bay0_that_dies_leaves_nothing(container: Container, parts: Path) -> None:
    for number, code in ((signal.SIGUSR2, 70), (signal.SIGKILL, -9)):
        start(container, parts)
        os.kill(container.pid, number)
        assert container.wait_exit(READY_S) == code
        assert left(container, parts) == []
        assert not container.alive()


@pytest.mark.proves("INV-HOST-3")
def test_a_keeper_that_dies_takes_all_along(container: Container, parts: Path) -> None:
    start(container, parts)
    ground = state.read(container.directory)
    assert ground is not None
    assert ground.keeper is not None
    os.kill(ground.keeper.pid, signal.SIGKILL)
    wait_for_end(ground.process)
    # The kernel has ended processes, mounts and devices; the empty cgroup goes at the next start or stop.
    wait_for_end(WIRES[-1])
    container.kill()
    assert left(container, parts) == []
    start(container, parts)


@pytest.mark.proves("INV-HOST-3")
def test_without_a_gate_there_is_nothing_to_cut(container: Container, parts: Path) -> None:
    start(container, parts)
    with pytest.raises(SpineError) as refused:
        container.power_cut()
    assert refused.value.exit_code == Exit.REFUSED
    assert container.alive()


def test_a_start_that_fails_leaves_nothing(container: Container, parts: Path, tmp_path: Path) -> None:
    (tmp_path / "none").write_bytes(b"no filesystem" * 400)
    # Whether it ends before or after it was seen running is a matter of chance.
    with pytest.raises(BootError) as raised:
        start(container, parts, root=tmp_path / "none")
    assert any("mount" in line for line in raised.value.shown)
    assert container.exit_code == 127
    assert left(container, parts) == []
    with pytest.raises(BootError, match="did not start"):
        container.start(tmp_path / "not there", parts / "persist.img")
    assert left(container, parts) == []


def test_a_reboot_is_the_same_ground_anew(container: Container, parts: Path) -> None:
    start(container, parts)
    first, mark = container.pid, container.console.mark()
    os.kill(first, signal.SIGUSR1)
    container.console.follow("ready", READY_S, since=mark)
    assert container.pid != first
    # The network of the one before is gone, and there is another.
    assert not WIRES[-1].alive()
    seen(container)
    assert WIRES[-1].alive()
    assert container.alive()
    assert container.exit_code is None
    assert container.stop(READY_S)
    assert left(container, parts) == []


def test_another_process_finds_and_stops_it(container: Container, parts: Path) -> None:
    start(container, parts)
    other = Container.attach(container.directory)
    assert other is not None
    assert other.pid == container.pid
    with pytest.raises(SpineError, match="runs already") as raised:
        Container(container.directory).start(parts / "root.squashfs", parts / "persist.img")
    assert raised.value.exit_code == Exit.REFUSED
    assert other.stop(READY_S)
    assert Container.attach(container.directory) is None
    assert left(container, parts) == []


def test_the_made_persist_is_the_gates_alone(parts: Path, tmp_path: Path) -> None:
    said = subprocess.run(
        ["/usr/sbin/debugfs", "-R", "stat <2>", parts / "persist.img"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "Mode:  0700" in said
    assert f"User:  {GATE_UID}   Group:  {GATE_UID}" in said
    assert not list(tmp_path.glob("*.new"))


def test_a_stranger_in_the_mount_table_is_no_hierarchy() -> None:
    line = "30 24 0:26 / /sys/fs/cgroup/a\\040b rw - cgroup2 cgroup2 rw\n"
    assert cgroups.mounted(line) == "/sys/fs/cgroup/a b"
    assert cgroups.mounted("31 24 0:27 / /x rw shared:1 - cgroup cgroup rw,cgroup2\n") is None
    assert cgroups.mounted("") is None
