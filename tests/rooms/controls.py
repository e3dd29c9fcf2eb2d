"""The unprotected place: root in namespaces that are thrown away, with a victim beside it.

What an attack cannot do here it cannot do anywhere on this kernel, so that a room refuses it says nothing.
Touches: namespaces of its own (mount, pid, ipc, uts, net), a tmpfs in them, one empty cgroup, which is
removed at the end. The host's own processes cannot be seen, its mounts are private copies, and the end of the
first process of the pid namespace ends all that was born in it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.rooms.attacks import Answer, Attack, answers

MARK = "spine-victim-7c41"
KEY, PORT = 0x5350494E, 7707
LIMIT_S = 240

SCRIPT = """
set -e
mount -t tmpfs none /mnt
cp "$1" /mnt/attack
cp "$1" /mnt/setuid
chmod 4755 /mnt/setuid
mkdir -m 1777 /mnt/jail /mnt/jail/tmp /mnt/jail/proc /mnt/covered
mount -t proc none /mnt/jail/proc
mount -t tmpfs none /mnt/covered
mount -t tmpfs -o mode=1777 none /tmp
echo secret > /mnt/outside
ip link set lo up
cd /mnt
: > /mnt/made
/mnt/attack victim "$2" /mnt > /mnt/made &
until grep -q ready /mnt/made; do sleep 0.05; done
cat /mnt/made >&2
exec /mnt/attack each
"""


def compiled(source: Path, target: Path) -> Path:
    """A static program from one C file. At a fixed place, so that its first bytes are where attacks look."""
    words = [
        "gcc",
        "-static",
        "-no-pie",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-s",
        "-o",
        str(target),
        str(source),
    ]
    subprocess.run(words, check=True, capture_output=True)
    return target


def unified() -> Path:
    """Where the version 2 tree of cgroups is mounted here."""
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        return next(Path(line.split()[1]) for line in mounts if line.split()[2] == "cgroup2")


def tried(attacks: Sequence[Attack], program: Path, folder: Path) -> dict[str, Answer]:
    """Each attack, unprotected. Raises Misused."""
    script = folder / "world.sh"
    script.write_text(SCRIPT)
    cgroup = unified() / f"spine-attack-{os.getpid()}"
    block = Path("/sys/block/loop0/dev")
    filled = {
        "victim": MARK,
        "mark": MARK,
        "pids": "",
        "folder": "/mnt",
        "port": PORT,
        "key": KEY,
        "spine": "/mnt/outside",
        "covered": "/mnt/covered",
        "disks": block.read_text().strip() if block.exists() else "7:0",
        "cgroup": cgroup,
        "setuid": "/mnt/setuid",
        "jail": "/mnt/jail",
        "outside": "/mnt/outside",
    }
    lines = [(attack.control or attack.words).format(**filled) for attack in attacks]
    spaces = [*("--mount", "--uts", "--ipc", "--net", "--pid", "--fork"), "--kill-child", "--mount-proc"]
    cgroup.mkdir()
    try:
        done = subprocess.run(
            ["unshare", *spaces, "--propagation", "private", "sh", str(script), str(program), MARK],
            input="\n".join(lines) + "\n",
            capture_output=True,
            text=True,
            check=True,
            timeout=LIMIT_S,
        )
    finally:
        cgroup.rmdir()
    made = done.stderr.split("made:", 1)[1].split("\n", 1)[0].split()
    assert len(made) == 8, made
    return dict(zip((attack.name for attack in attacks), answers(done.stdout, len(lines)), strict=True))
