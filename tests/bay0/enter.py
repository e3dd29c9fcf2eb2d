"""Start bay0 as PID 1 of fresh namespaces on a root made of this tree: the ground of the tests of bay0.

A program of its own (`python enter.py PLAN`), so that the test process keeps its namespaces. The root is a
memory filesystem over the host's /usr, read-only; everything it mounts ends with its mount namespace.
It ends with bay0's exit code.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import stat
import sys
from pathlib import Path

NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEWPID, NEWNET = 0x20000000, 0x40000000
MS_RDONLY, MS_REMOUNT, MS_REC, MS_PRIVATE = 1, 32, 0x4000, 0x40000
MNT_DETACH = 2
SYS_PIVOT_ROOT = 155
PR_SET_PDEATHSIG = 1

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, at: str, kind: str | None, flags: int, data: str = "") -> None:
    encoded = kind.encode() if kind else None
    check(
        libc.mount(source.encode(), at.encode(), encoded, ctypes.c_ulong(flags), data.encode()), f"mount {at}"
    )


def make_root(plan: dict[str, object], root: Path) -> None:
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", str(root), "tmpfs", 0, "mode=0755")
    for name in ("usr", "proc", "sys", "dev", "run", "tmp", "persist", "etc"):
        (root / name).mkdir()
    for name in ("bin", "lib", "lib64", "sbin"):
        if os.path.islink(f"/{name}"):
            (root / name).symlink_to(os.readlink(f"/{name}"))
    # overlayfs separates its layers with colons, and the host's /usr lies below ours.
    mount("overlay", str(root / "usr"), "overlay", MS_RDONLY, f"lowerdir={plan['extra']}:/usr")
    for name in ("ld.so.cache", "localtime"):
        if os.path.exists(f"/etc/{name}"):
            shutil.copy(f"/etc/{name}", root / "etc" / name)
    mount("tmpfs", str(root / "dev"), "tmpfs", 0, "mode=0755")
    devices = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9)}
    for name, (major, minor) in devices.items():
        os.mknod(root / "dev" / name, stat.S_IFCHR | 0o666, os.makedev(major, minor))
        os.chmod(root / "dev" / name, 0o666)
    ground = plan["ground"]
    assert isinstance(ground, dict)
    for node in ground["devices"].values():
        os.mknod(root / node.lstrip("/"), stat.S_IFBLK | 0o600, os.stat(node).st_rdev)
    mount("tmpfs", str(root / "run"), "tmpfs", 0, "mode=0755")
    (root / "run/spine").mkdir()
    (root / "run/spine/ground.json").write_text(json.dumps(ground))
    mount("tmpfs", str(root), None, MS_REMOUNT | MS_RDONLY)


def enter(plan: dict[str, object], root: Path) -> None:
    make_root(plan, root)
    os.chdir(root)
    check(libc.syscall(SYS_PIVOT_ROOT, b".", b"."), "pivot_root")
    check(libc.umount2(b".", MNT_DETACH), "umount the old root")
    os.chdir("/")
    port = int(str(plan["port"]))
    os.dup2(port, 3)
    if port != 3:
        os.close(port)
    os.execve("/usr/bin/bay0", ["/usr/bin/bay0"], {"HOME": "/", "TERM": "linux"})


def main() -> int:
    plan = json.loads(Path(sys.argv[1]).read_text())
    Path(plan["cgroup"], "cgroup.procs").write_text("0")
    check(libc.unshare(NEWCGROUP | NEWUTS | NEWIPC | NEWPID | NEWNET), "unshare")
    pid = os.fork()
    if pid == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        try:
            # Not before the fork: pivot_root would move this program's root as well.
            check(libc.unshare(NEWNS), "unshare the mount namespace")
            enter(plan, Path(plan["root"]))
        finally:
            os._exit(99)
    Path(plan["pid"] + ".new").write_text(str(pid))
    os.rename(plan["pid"] + ".new", plan["pid"])
    os.close(int(plan["port"]))
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main())
