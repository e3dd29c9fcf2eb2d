"""The walls of a room, tried from inside; where it means something, the same act goes through outside.

The numbers in the names of some tests are those of known escapes from containers: see docs/threats.md.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from organs.builder import furnishing
from organs.builder.protocol import Refusal
from organs.builder.verdict import IDS, UID_BASE
from organs.kernel.numbers import NUMBERS
from organs.manifest import CAPABILITIES
from tests.builder.household import BUSYBOX, WRITABLE, Household, Living, probe, tree
from tests.builder.test_builder import loop_of, until_gone

pytestmark = [
    pytest.mark.container,
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
]


@pytest.fixture(name="house", scope="module")
def _house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Household]:
    house = Household(tmp_path_factory.mktemp("walls"), "walls")
    try:
        house.freezer.start()
        yield house
    finally:
        house.close()


@pytest.fixture(name="image", scope="module")
def _image(house: Household) -> Path:
    return house.image(tree(house.folder / "root"), "-all-root")


@pytest.fixture(name="room", scope="module")
def _room(house: Household, image: Path) -> Living:
    """A room without a network, with the second range of ids."""
    return house.begun(image, "walled", 1)


@pytest.fixture(name="online", scope="module")
def _online(house: Household, image: Path) -> Living:
    """A room with a network."""
    return house.begun(image, "online", 2, network=True)


def tried(house: Household, room: Living, *words: str) -> str:
    """What the probe says in the room."""
    done = house.run(room, "probe", *words)
    return done.out.strip() if done.ending == "exit 0" else done.ending


def unwalled(house: Household, *words: str) -> str:
    """What the probe says outside."""
    command = [str(probe(house.folder)), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


@pytest.mark.proves("INV-ROOM-4")
def test_every_process_has_three_descriptors_and_stands_in_the_root(room: Living) -> None:
    for pid in room.pids():
        assert sorted(os.listdir(f"/proc/{pid}/fd")) == ["0", "1", "2"]
        for place in ("cwd", "root"):
            assert os.stat(f"/proc/{pid}/{place}").st_ino == os.stat(f"/proc/{room.pid}/root").st_ino


def test_a_command_has_three_descriptors_too(house: Household, room: Living) -> None:
    # The listing's own descriptor is the fourth.
    assert house.out(room, "ls /proc/self/fd").split() == ["0", "1", "2", "3"]


@pytest.mark.proves("INV-ROOM-6")
@pytest.mark.proves("INV-ROOM-7")
def test_what_the_kernel_says_of_a_process_in_a_room(house: Household, room: Living) -> None:
    mask = sum(1 << CAPABILITIES.index(name) for name in furnishing.CAPABILITIES)
    status = room.status()
    for key, value in {"CapInh": 0, "CapPrm": mask, "CapEff": mask, "CapBnd": mask, "CapAmb": 0}.items():
        assert int(status[key], 16) == value, key
    assert (status["NoNewPrivs"], status["Seccomp"], status["Groups"]) == ("1", "2", "")
    assert status["Uid"].split() == [str(UID_BASE + IDS)] * 4
    assert status["NSpid"].split() == [str(room.pid), "1"]
    ids = Path(f"/proc/{room.pid}/uid_map").read_text().split()
    assert ids == ["0", str(UID_BASE + IDS), str(IDS)]
    own = {name: os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")}
    theirs = {name: os.readlink(f"/proc/{room.pid}/ns/{name}") for name in own}
    apart = {name for name in own if own[name] != theirs[name]}
    assert apart == {"user", "pid", "pid_for_children", "mnt", "net", "ipc", "uts", "cgroup"}
    inside = dict(line.split(":", 1) for line in house.out(room, "cat /proc/self/status").splitlines())
    assert inside["CapEff"].strip() == f"{mask:016x}"
    assert house.out(room, "cat /proc/self/cgroup").splitlines()[-1] == "0::/"
    assert house.out(room, "hostname") == "walled\n"


def test_another_user_of_the_room_has_no_power(house: Household, room: Living) -> None:
    text = house.out(room, "cat /proc/self/status")
    assert "CapEff:\t0000000000000000" not in text
    # `su` gives up root by setuid; groups cannot be dropped in a room, which busybox does not insist on.
    done = house.run(room, "su", "linda", "-c", "cat /proc/self/status; touch /etc/new")
    assert "CapEff:\t0000000000000000" in done.out or "groups" in done.err


@pytest.mark.parametrize("base", [0, 1000, UID_BASE - IDS, UID_BASE + 1, UID_BASE + 16 * IDS, 2**32 - IDS])
@pytest.mark.proves("INV-ROOM-7")
def test_ids_that_are_no_range_are_refused(house: Household, image: Path, base: int) -> None:
    assert "ids must begin" in house.refused(Refusal.INVALID, image, uid_base=base)


# A call that the filter refuses: its arguments, the answer in a room, the answer to root outside ("" is not
# tried there).
CALLS = {
    "mount": ((":none", ":/tmp", ":tmpfs", "0", "0"), errno.EPERM, ""),
    "umount2": ((":/tmp", "2"), errno.EPERM, ""),
    "pivot_root": ((":.", ":."), errno.EPERM, f"no {errno.EBUSY}"),
    "chroot": ((":/",), errno.EPERM, "yes"),
    "unshare": (("0x10000000",), errno.EPERM, "yes"),
    "setns": (("0", "0"), errno.EPERM, f"no {errno.EINVAL}"),
    "clone3": (("0", "0"), errno.ENOSYS, f"no {errno.EINVAL}"),
    "fsopen": ((":tmpfs", "0"), errno.ENOSYS, "yes"),
    "open_tree": (("-100", ":/", "1"), errno.ENOSYS, "yes"),
    "move_mount": (("0", ":", "0", ":", "0"), errno.ENOSYS, ""),
    "mount_setattr": (("0", ":", "0", "0", "0"), errno.ENOSYS, f"no {errno.EINVAL}"),
    "io_uring_setup": (("1", "0"), errno.ENOSYS, f"no {errno.EFAULT}"),
    "keyctl": (("0", "0", "0"), errno.ENOSYS, ""),
    "add_key": ((":user", ":x", ":y", "1", "-3"), errno.ENOSYS, ""),
    "bpf": (("0", "0", "0"), errno.EPERM, ""),
    "perf_event_open": (("0", "0", "0", "0", "0"), errno.EPERM, ""),
    "userfaultfd": (("0",), errno.EPERM, ""),
    "ptrace": (("0", "0", "0", "0"), errno.EPERM, "yes"),
    "process_vm_readv": (("1", "0", "0", "0", "0", "0"), errno.EPERM, ""),
    "pidfd_getfd": (("0", "0", "0"), errno.EPERM, f"no {errno.EBADF}"),
    "kcmp": (("1", "1", "0", "0", "0"), errno.EPERM, ""),
    "open_by_handle_at": (("0", "0", "0"), errno.EPERM, f"no {errno.EFAULT}"),
    "name_to_handle_at": (("-100", ":/", "0", "0", "0"), errno.EPERM, f"no {errno.EFAULT}"),
    "syslog": (("2", "0", "0"), errno.EPERM, ""),
    "reboot": (("0", "0", "0", "0"), errno.EPERM, ""),
    "init_module": (("0", "0", ":"), errno.EPERM, ""),
    "swapon": ((":/tmp", "0"), errno.EPERM, ""),
    "sethostname": ((":x", "1"), errno.EPERM, ""),
    "personality": (("0x0040000",), errno.EINVAL, "yes"),
    "memfd_secret": (("0",), errno.ENOSYS, ""),
}


@pytest.mark.proves("INV-ROOM-8")
@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_escapes_are_made_of_is_answered_with_an_error(
    house: Household, room: Living, name: str
) -> None:
    arguments, refusal, outside = CALLS[name]
    words = ("call", str(NUMBERS[name]), *arguments)
    assert tried(house, room, *words) == f"no {refusal}"
    if outside:
        assert unwalled(house, *words) == outside


@pytest.mark.proves("INV-ROOM-5")
@pytest.mark.parametrize("flag", ["0x10000000", "0x20000", "0x20000000", "0x40000000", "0x2000000", "0x80"])
def test_no_namespace_by_unshare_or_clone(house: Household, room: Living, flag: str) -> None:
    assert tried(house, room, "call", str(NUMBERS["unshare"]), flag) == f"no {errno.EPERM}"
    if flag != "0x80":  # a part of the exit signal
        clone = str(NUMBERS["clone"])
        assert tried(house, room, "call", clone, flag, "0", "0", "0", "0") == f"no {errno.EPERM}"
        # What no kernel looks at does not hide what it does.
        high = hex(1 << 40 | int(flag, 16))
        assert tried(house, room, "call", clone, high, "0", "0", "0", "0") == f"no {errno.EPERM}"


@pytest.mark.proves("INV-ROOM-5")
def test_the_kernel_itself_allows_no_namespace_in_a_room(house: Household, room: Living) -> None:
    kinds = ("user", "pid", "mnt", "net", "ipc", "uts", "time")
    script = "; ".join(f"cat /proc/sys/user/max_{kind}_namespaces" for kind in kinds)
    assert house.out(room, script).split() == ["0"] * len(kinds)
    assert house.run(room, "sh", "-c", "echo 9 >/proc/sys/user/max_user_namespaces").ending == "exit 1"
    # What is counted for root outside as well is a part of what root has.
    outside = int(Path("/proc/sys/user/max_inotify_instances").read_text())
    assert int(house.out(room, "cat /proc/sys/user/max_inotify_instances")) < outside


@pytest.mark.proves("INV-ROOM-8")
def test_the_gate_for_other_architectures_is_shut(house: Household, room: Living) -> None:
    assert tried(house, room, "call", hex(0x4000_0000 | NUMBERS["getpid"])) == "signal 31"
    # Where the kernel has no such gate at all, the processor's own trap ends the program.
    assert tried(house, room, "i386") in ("signal 31", "signal 11")


@pytest.mark.proves("INV-ROOM-8")
def test_families_of_sockets(house: Household, room: Living, online: Living) -> None:
    def families(where: Living) -> set[int]:
        return {
            number
            for number in range(1, 47)
            if tried(house, where, "call", str(NUMBERS["socket"]), str(number), "3", "0") == "yes"
            or tried(house, where, "call", str(NUMBERS["socket"]), str(number), "1", "0") == "yes"
        }

    netlink = int(socket.AF_NETLINK)
    assert families(room) == {int(socket.AF_UNIX), netlink}
    assert families(online) == {int(socket.AF_UNIX), netlink, int(socket.AF_INET), int(socket.AF_INET6)}
    # Audit, xfrm, netfilter, crypto, uevents.
    for protocol in (9, 6, 12, 21, 15):
        words = ("call", str(NUMBERS["socket"]), str(netlink), "3", str(protocol))
        assert tried(house, online, *words) == f"no {errno.EAFNOSUPPORT}"
    # SCTP, DCCP, MPTCP, UDP-Lite.
    for kind, protocol in ((1, 132), (6, 33), (1, 262), (2, 136)):
        words = ("call", str(NUMBERS["socket"]), "2", str(kind), str(protocol))
        assert tried(house, online, *words) == f"no {errno.EAFNOSUPPORT}"
    # Raw and packet sockets take a capability that a room does not have.
    assert tried(house, online, "call", str(NUMBERS["socket"]), "2", "3", "1") == f"no {errno.EPERM}"


@pytest.mark.proves("INV-ROOM-8")
@pytest.mark.parametrize(("name", "at"), [("sendto", 3), ("recvfrom", 3), ("sendmsg", 2), ("recvmsg", 2)])
def test_22_no_byte_out_of_band(house: Household, room: Living, name: str, at: int) -> None:
    words = ["call", str(NUMBERS[name]), "0", "0", "0", "0", "0", "0"]
    plain = tried(house, room, *words)
    assert plain != f"no {errno.EOPNOTSUPP}"
    words[2 + at] = "0x100000001"
    assert tried(house, room, *words) == f"no {errno.EOPNOTSUPP}"
    assert unwalled(house, *words) != f"no {errno.EOPNOTSUPP}"


@pytest.mark.proves("INV-ROOM-8")
def test_no_other_protocol_inside_tcp_or_udp(house: Household, online: Living) -> None:
    assert tried(house, online, "ulp", "6", "31") == f"no {errno.ENOPROTOOPT}"
    assert tried(house, online, "ulp", "17", "100") == f"no {errno.ENOPROTOOPT}"
    # An option beside each goes to the kernel.
    assert tried(house, online, "ulp", "6", "1") == "yes"
    assert tried(house, online, "ulp", "1", "2") == "yes"


@pytest.mark.proves("INV-ROOM-8")
@pytest.mark.parametrize("request_", [0x5412, 0x541C, 0x5423, 1 << 32 | 0x5412, 0xFFFF_FFFF_0000_541C])
def test_6_no_input_is_put_into_a_terminal(house: Household, room: Living, request_: int) -> None:
    words = ("call", str(NUMBERS["ioctl"]), "0", str(request_), ":x")
    assert tried(house, room, *words) == f"no {errno.EPERM}"
    assert unwalled(house, *words) != f"no {errno.EPERM}"


@pytest.mark.proves("INV-ROOM-9")
def test_devices(house: Household, room: Living) -> None:
    for name in ("null", "zero", "full", "random", "urandom", "ptmx"):
        assert tried(house, room, "open", f"/dev/{name}", "2") == "yes", name
    assert sorted(house.out(room, "ls /dev").split()) == sorted(
        [*furnishing.NODES, *furnishing.LINKS, *furnishing.DEV_FOLDERS, "console"]
    )
    assert house.run(room, "touch", "/dev/new").ending == "exit 1"
    assert house.run(room, "mknod", "/tmp/sda", "b", "8", "0").ending == "exit 1"
    assert "Operation not permitted" in house.run(room, "mknod", "/tmp/mem", "c", "1", "1").err


@pytest.mark.proves("INV-ROOM-9")
def test_3_nodes_and_set_id_files_of_an_image_are_worth_nothing(house: Household) -> None:
    root = tree(house.folder / "nodes")
    os.mknod(root / "memory", stat.S_IFCHR | 0o666, os.makedev(1, 1))
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (root / "bin/busybox").chmod(0o6755)
    image = house.image(root)
    room = house.begun(image, "nodes")
    assert tried(house, room, "open", "/memory", "0") == f"no {errno.EACCES}"
    assert tried(house, room, "open", "/null", "0") == f"no {errno.EACCES}"
    done = house.run(room, "su", "linda", "-c", "id -u")
    assert done.out in ("1000\n", "")
    house.remove(room.home)


@pytest.mark.proves("INV-ROOM-9")
def test_the_cgroup_opens_no_other_device_by_any_node(house: Household, room: Living) -> None:
    """A process of root with every capability, in the room's cgroup: the program still says no."""
    for name, device in {"kmsg": (1, 11), "console": (5, 1), "full": (1, 7)}.items():
        node = house.folder / name
        os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(*device))
        child = os.fork()
        if child == 0:
            (room.home / "cgroup.procs").write_text("0")
            try:
                os.open(node, os.O_WRONLY | os.O_NOCTTY)
            except OSError as error:
                os._exit(error.errno or 0)
            os._exit(0)
        wanted = 0 if name in furnishing.NODES else errno.EPERM
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == wanted, name
        # Without the program it opens.
        os.close(os.open(node, os.O_WRONLY | os.O_NOCTTY))


@pytest.mark.proves("INV-ROOM-10")
def test_24_what_a_room_sees_of_the_kernel(house: Household, room: Living) -> None:
    names = {name for name in house.out(room, "ls /proc").split() if not name.isdigit()}
    for name in sorted(names - furnishing.PROC_KEPT - {"stat", "loadavg"}):
        text = house.out(room, f"if [ -d /proc/{name} ]; then ls -A /proc/{name}; else cat /proc/{name}; fi")
        assert text == "", name
    assert house.out(room, "cat /proc/loadavg") == "0.00 0.00 0.00 1/1 1\n"
    assert house.out(room, "cat /proc/stat").startswith("cpu  0 0 0 0")
    assert house.out(room, "ls -A /sys") == ""
    # It has its own processes, and what it needs.
    assert house.out(room, "cat /proc/1/comm") == "sleep\n"
    assert "MemTotal" in house.out(room, "cat /proc/meminfo")
    for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/net/ipv4/ip_forward", "/proc/sysrq-trigger"):
        done = house.run(room, "sh", "-c", f"echo 1 >{path}")
        assert "Read-only file system" in done.err or "nonexistent" in done.err, path
    assert house.out(room, "ls -A /proc/sys/fs") == ""
    assert house.run(room, "sh", "-c", "mount -o remount,rw /proc/sys").ending == "exit 1"


def test_what_is_mounted_in_a_room(room: Living) -> None:
    seen: dict[str, tuple[str, set[str]]] = {}
    for line in Path(f"/proc/{room.pid}/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if not fields[4].startswith("/proc/"):
            seen[fields[4]] = (
                after.split()[0],
                set(fields[5].split(",")) & {"ro", "nosuid", "nodev", "noexec"},
            )
    wanted: dict[str, tuple[str, set[str]]] = {
        "/": ("overlay", {"nosuid", "nodev"}),
        "/dev": ("tmpfs", {"ro", "nosuid", "noexec"}),
        "/dev/pts": ("devpts", {"nosuid", "noexec"}),
        "/dev/shm": ("tmpfs", {"nosuid", "nodev", "noexec"}),
        "/dev/console": ("devpts", {"nosuid", "noexec"}),
        "/proc": ("proc", {"nosuid", "nodev", "noexec"}),
        "/run": ("tmpfs", {"nosuid", "nodev"}),
        "/sys": ("tmpfs", {"ro", "nosuid", "nodev", "noexec"}),
        "/tmp": ("tmpfs", {"nosuid", "nodev"}),
    }
    assert seen == wanted


def test_what_a_room_writes_is_its_own_and_bounded(house: Household, room: Living, image: Path) -> None:
    before = image.read_bytes()
    assert house.out(room, "echo x >/bin/new; echo y >>/etc/passwd; cat /bin/new") == "x\n"
    done = house.run(room, "dd", "if=/dev/zero", "of=/big", "bs=1M", f"count={WRITABLE // 1024**2 + 1}")
    assert "No space left on device" in done.err
    assert house.run(room, "rm", "/big").ending == "exit 0"
    assert image.read_bytes() == before


@pytest.mark.proves("INV-ROOM-2")
def test_two_rooms_of_one_image_share_no_page(
    house: Household, image: Path, room: Living, online: Living
) -> None:
    """Reading in one makes nothing resident in the other; one device cannot be mounted twice."""
    path = "root/bin/probe"
    for each in (room, online):
        # Not what its own programs have run already.
        os.posix_fadvise(fd := os.open(f"/proc/{each.pid}/{path}", os.O_RDONLY), 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    assert house.out(room, "cat /bin/probe | id -u") == "0\n"
    with open(f"/proc/{room.pid}/{path}", "rb") as file:
        file.read()
    assert resident(f"/proc/{room.pid}/{path}") > 0
    assert resident(f"/proc/{online.pid}/{path}") == 0
    made, device = house.device(image)
    one = house.room(device, "one")
    reason = house.refused(Refusal.KERNEL, device, name="two")
    assert "Device or resource busy" in reason
    folder = loop_of(device)
    os.close(device)
    house.release(made)
    assert (folder / "loop").exists(), "the room holds its device"
    house.remove(one.home)
    until_gone(folder)


def resident(path: str) -> int:
    """How many pages of a file are in memory, as mincore tells of a mapping that nobody has touched."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
    size = os.stat(path).st_size
    pages = (ctypes.c_ubyte * -(-size // 4096))()
    with open(path, "rb") as file:
        at = libc.mmap(None, size, 1, 2, file.fileno(), 0)
    assert libc.mincore(ctypes.c_void_p(at), ctypes.c_size_t(size), pages) == 0
    libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(size))
    return sum(page & 1 for page in pages)


def test_a_network_is_handed_over_in_the_room_with_one(
    house: Household, online: Living, room: Living
) -> None:
    assert list(room.holds) == ["listener", "netns", "route", "console"]
    assert list(online.holds) == ["listener", "netns", "route", "console", "filter", "dhcp", "resolv"]
    own = os.stat(f"/proc/{online.pid}/ns/net").st_ino
    assert os.fstat(online.holds["netns"]).st_ino == own
    with socket.socket(fileno=os.dup(online.holds["dhcp"])) as dhcp:
        assert dhcp.getsockname() == ("0.0.0.0", 68)
        assert dhcp.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST)
    for name, protocol in (("route", 0), ("filter", 12)):
        with socket.socket(fileno=os.dup(online.holds[name])) as opened:
            assert (opened.family, opened.proto) == (socket.AF_NETLINK, protocol)
    os.write(online.holds["resolv"], b"nameserver 192.0.2.1\n")
    assert house.out(online, "cat /etc/resolv.conf") == "nameserver 192.0.2.1\n"
    for act in ("echo x >/etc/resolv.conf", "rm /etc/resolv.conf", "mv /etc/passwd /etc/resolv.conf"):
        assert house.run(online, "sh", "-c", act).ending == "exit 1", act
    os.ftruncate(online.holds["resolv"], 0)
    assert house.out(online, "cat /etc/resolv.conf") == ""
    assert "00000000:00000000" not in house.out(online, "cat /proc/net/route")


@pytest.mark.proves("INV-ROOM-3")
@pytest.mark.parametrize("name", [*furnishing.MOUNT_POINTS, "etc"])
@pytest.mark.parametrize("kind", ["absolute", "relative", "file"])
def test_3_4_5_an_image_that_puts_something_in_the_way_is_refused(
    house: Household, tmp_path: Path, name: str, kind: str
) -> None:
    root = tree(tmp_path / "root", places=False)
    (root / "there").mkdir()
    if kind == "file":
        (root / name).write_text("x")
    else:
        (root / name).symlink_to("/" if kind == "absolute" else "there")
    made, device = house.device(house.image(root, "-all-root"))
    folder = loop_of(device)
    assert house.refused(Refusal.IMAGE, device, network=True) == f"its /{name} is no directory"
    os.close(device)
    house.release(made)
    until_gone(folder)


@pytest.mark.proves("INV-ROOM-3")
@pytest.mark.parametrize(
    "target", ["/run/umbilical", "/proc/1/root/etc/shadow", "../../../../etc/passwd", "gone"]
)
def test_a_link_in_the_place_of_resolv_conf_is_replaced(
    house: Household, tmp_path: Path, target: str
) -> None:
    root = tree(tmp_path / "root")
    (root / "etc/resolv.conf").symlink_to(target)
    room = house.begun(house.image(root, "-all-root"), "resolved", network=True)
    os.write(room.holds["resolv"], b"ours\n")
    assert house.out(room, "cat /etc/resolv.conf; stat -c %F /etc/resolv.conf") == "ours\nregular file\n"
    house.remove(room.home)


def test_what_is_no_image_is_refused_by_name(house: Household, tmp_path: Path) -> None:
    path = tmp_path / "noise"
    path.write_bytes(os.urandom(64 * 4096))
    assert "no SquashFS" in house.refused(Refusal.IMAGE, path)


def test_a_bare_image_gets_its_places(house: Household, tmp_path: Path) -> None:
    room = house.begun(house.image(tree(tmp_path / "root", places=False), "-all-root"), "bare")
    assert set(house.out(room, "ls /").split()) == {"bin", *furnishing.MOUNT_POINTS}
    house.remove(room.home)


def test_a_first_program_that_is_not_there_ends_the_room(house: Household, image: Path) -> None:
    room = house.room(image, "none", init=("/bin/absent", "x"))
    room.thaw()
    assert "/bin/absent: No such file or directory" in room.console("directory")
    house.remove(room.home)


def test_a_deep_tree_and_many_files(house: Household, tmp_path: Path) -> None:
    root = tree(tmp_path / "root")
    here = os.getcwd()
    os.chdir(root)
    for _ in range(1000):
        os.mkdir("d")
        os.chdir("d")
    os.chdir(here)
    (root / "many").mkdir()
    for number in range(100_000):
        os.close(os.open(root / f"many/{number}", os.O_CREAT | os.O_WRONLY))
    room = house.begun(house.image(root, "-all-root"), "vast")
    assert house.out(room, "set -- /many/*; echo $#") == "100000\n"
    house.remove(room.home)
    subprocess.run(["rm", "-rf", root], check=True)


def test_2_a_room_cannot_reach_the_program_of_the_spine(house: Household, room: Living) -> None:
    assert house.out(room, "ls -l /proc/1/exe").split()[-1] == "/bin/busybox"
    assert os.path.realpath("/proc/self/exe") not in Path(f"/proc/{room.pid}/maps").read_text()


def test_15_an_abstract_socket_of_the_machine_is_not_reached(house: Household, room: Living) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("\0spine-test-abstract")
        listening.listen()
        assert "spine-test-abstract" in Path("/proc/net/unix").read_text()
        assert "spine-test-abstract" not in house.out(room, "cat /proc/net/unix")


def test_a_room_sees_only_itself(house: Household, room: Living, online: Living) -> None:
    listed = house.out(room, "ps").splitlines()[1:]
    assert all(line.split()[0].isdigit() for line in listed)
    assert {"1"} <= {line.split()[0] for line in listed}
    assert len(listed) < 8
    assert house.run(room, "kill", "-0", str(online.pid)).ending == "exit 1"
