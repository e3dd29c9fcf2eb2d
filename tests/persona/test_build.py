"""Personas are built for real: from Debian's packages to a signed image, the same bytes each time."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from spine import paths
from spine.errors import Exit, SpineError
from spine.image import inputs, keys
from spine.persona import build as building
from spine.persona import image, recipe
from spine.progress import Progress

NAMES = ("courier", "linda")
PATIENCE_S = 60


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A persona key of the test's own."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return keys.public_bytes(keys.persona_key())


def fresh(monkeypatch: pytest.MonkeyPatch, where: Path) -> None:
    """A cache in which nothing was built yet; what was downloaded is there."""
    downloads = paths.cache() / "packages"
    downloads.mkdir(parents=True, exist_ok=True)
    cache = where / paths.NAME
    cache.mkdir(parents=True)
    (cache / "packages").symlink_to(downloads)
    monkeypatch.setenv("XDG_CACHE_HOME", str(where))


@contextmanager
def tree(where: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of what a persona is built from, which a test may change."""
    root = where / "tree"
    shutil.copytree(paths.ROOT / "personas", root / "personas")
    (root / "spine-image").mkdir()
    shutil.copy(paths.ROOT / inputs.LOCK, root / inputs.LOCK)
    with monkeypatch.context() as changed:
        changed.setattr(paths, "ROOT", root)
        yield root


def quiet() -> Progress:
    with open(os.devnull, "w") as nowhere:
        return Progress(nowhere)


@pytest.mark.proves("INV-PERSONA-24")
@pytest.mark.parametrize("name", [*NAMES, "painter"])
def test_two_builds_are_the_same_to_the_byte(
    name: str, key: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for turn, mask in (("one", 0o022), ("another", 0o077)):
        with monkeypatch.context() as changed:
            fresh(changed, tmp_path / turn)
            before = os.umask(mask)
            try:
                built = building.build(name, quiet(), out=tmp_path / turn / "out")
            finally:
                os.umask(before)
        made.append(built.path.read_bytes())
    assert made[0] == made[1]
    assert image.check(made[0], [key]).name == name


@pytest.mark.parametrize("name", NAMES)
def test_what_is_in_it(name: str, key: bytes, tmp_path: Path) -> None:
    built = building.build(name, quiet(), out=tmp_path)
    assert built.key == key
    listed = subprocess.run(
        ["unsquashfs", "-lln", "-d", "", built.path], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    rows = {
        line.split()[5] if len(line.split()) > 5 else "/": line.split() for line in listed if line.strip()
    }
    assert {row[1] for row in rows.values()} == {"0/0"}, "everything is root's"
    assert {row[3] for row in rows.values()} == {"2026-01-01"}
    modes = {path: row[0] for path, row in rows.items()}
    assert modes["/usr/bin/umbilical"] == "-rwxr-xr-x"
    assert modes["/sbin/init"] == "-rwxr-xr-x"
    assert modes["/bin/sh"].startswith("l")
    assert {"/dev", "/proc", "/run", "/sys", "/tmp", "/etc", "/root"} <= modes.keys()
    assert not [mode for mode in modes.values() if set(mode) & set("sStTbcp")]
    assert ("/etc/resolv.conf" in modes) == built.persona.network.use
    assert not [path for path in modes if path.startswith(("/dev/", "/proc/", "/run/", "/usr/share/man"))]
    # No interpreter and no library comes along.
    assert built.persona.length < 2 * 1024 * 1024


@pytest.mark.usefixtures("key")
def test_it_needs_no_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole build as a plain user: another uid and not one capability."""
    mine = building.build("linda", quiet(), out=tmp_path / "mine").path.read_bytes()
    fresh(monkeypatch, tmp_path / "cache")
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom spine.persona.build import build\n"
        "from spine.progress import Progress\nassert os.geteuid() == 1000\n"
        "assert 'CapEff:\\t0000000000000000' in Path('/proc/self/status').read_text()\n"
        "build('linda', Progress(), out=Path(sys.argv[1]))\n"
    )
    plain = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
    done = subprocess.run(
        [*plain, sys.executable, "-P", "-c", code, tmp_path / "theirs"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "theirs/linda.persona").read_bytes() == mine


@pytest.mark.proves("INV-PERSONA-21")
@pytest.mark.usefixtures("key")
def test_a_file_of_the_persona_that_is_a_link_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tree(tmp_path, monkeypatch) as root:
        init = root / "personas/linda/init"
        init.unlink()
        for target in ("/etc/passwd", "persona.toml", "../courier/init"):
            init.symlink_to(target)
            with pytest.raises(SpineError, match="cannot be taken") as refused:
                building.build("linda", quiet(), out=tmp_path)
            assert refused.value.exit_code == Exit.REFUSED
            init.unlink()
        init.mkdir()
        with pytest.raises(SpineError, match="cannot be taken"):
            building.build("linda", quiet(), out=tmp_path)
        init.rmdir()
        os.mkfifo(init)
        with pytest.raises(SpineError, match="cannot be taken"):
            building.build("linda", quiet(), out=tmp_path)
        init.unlink()
        with pytest.raises(SpineError, match="cannot be taken"):
            building.build("linda", quiet(), out=tmp_path)
    assert not list(tmp_path.glob("*.persona"))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('programs = ["umbilical"]', 'programs = ["nothing"]', "there is no program nothing"),
        ('init = ["/sbin/init"]', 'init = ["/sbin/other"]', "has no first process"),
        ('mode = "0755"', 'mode = "0644"', "has no first process"),
        ('packages = ["busybox-static"]', 'packages = ["bash"]', "persona.lock cannot be used"),
        ('"/sbin/init" = {', '"/bin/busybox/init" = {', "lies below /bin/busybox"),
        ('"/bin/sh" = "busybox"', '"/bin" = "busybox"', "is something else"),
    ],
)
@pytest.mark.usefixtures("key")
def test_what_does_not_fit_together_is_refused(
    old: str, new: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tree(tmp_path, monkeypatch) as root:
        file = root / "personas/linda/persona.toml"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))
        with pytest.raises(SpineError, match=says) as refused:
            building.build("linda", quiet(), out=tmp_path)
        assert refused.value.exit_code == Exit.REFUSED


@pytest.mark.usefixtures("key")
def test_a_package_that_is_not_the_locked_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tree(tmp_path, monkeypatch) as root:
        lock = root / "personas/linda/persona.lock"
        text = lock.read_text()
        start = text.index('sha256 = "') + 10
        lock.write_text(text[:start] + "0" * 64 + text[start + 64 :])
        with pytest.raises(SpineError, match="is not what the lock says") as refused:
            building.build("linda", quiet(), out=tmp_path)
        assert refused.value.exit_code == Exit.REFUSED
        assert "./spine persona build linda --relock" in refused.value.fix


@pytest.mark.usefixtures("key")
def test_a_lock_is_made_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tree(tmp_path, monkeypatch) as root:
        lock = root / "personas/linda/persona.lock"
        lock.unlink()
        with pytest.raises(SpineError, match="cannot be used") as refused:
            building.build("linda", quiet(), out=tmp_path)
        assert refused.value.fix == "./spine persona build linda --relock"
        building.build("linda", quiet(), relock=True, out=tmp_path)
        [package] = building.decode_lock(recipe.load("linda"), lock.read_text())
        assert package.name == "busybox-static"
        first = (tmp_path / "linda.persona").read_bytes()
        building.build("linda", quiet(), out=tmp_path)
        assert (tmp_path / "linda.persona").read_bytes() == first


@contextmanager
def room(name: str, where: Path, *, session: bool = True) -> Iterator[int]:
    """The persona's own files in a room of the test's; our end of its console.

    Its first process is process 1 and uid 0 of a user namespace, with no power but the one to enter the room.
    `session`: the console is the terminal of its session, as the spine has it.
    """
    built = building.build(name, quiet(), out=where)
    inside = where / "room"
    subprocess.run(["unsquashfs", "-q", "-d", inside, built.path], check=True, capture_output=True)
    for node in ("null", "tty", "console"):
        (inside / "dev" / node).touch()
    ours, console = pty.openpty()
    enter = " && ".join(
        (
            f"{inside}/bin/busybox ip link set lo up",
            f"mount -t proc proc {inside}/proc",
            *(f"mount --bind /dev/{node} {inside}/dev/{node}" for node in ("null", "tty")),
            f"mount --bind {os.ttyname(console)} {inside}/dev/console",
            f"exec {'setsid --ctty ' if session else ''}"
            "setpriv --no-new-privs --bounding-set=-all,+sys_chroot --inh-caps=-all "
            f"chroot {inside} {' '.join(built.persona.init)}",
        )
    )
    spaces = ["--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount", "--uts", "--net"]
    with subprocess.Popen(
        ["unshare", *spaces, "sh", "-c", enter], stdin=console, stdout=console, stderr=console
    ) as child:
        try:
            yield ours
            assert child.poll() is None, "the first process ended"
        finally:
            child.kill()
            os.close(ours)
            os.close(console)


@pytest.mark.container
@pytest.mark.usefixtures("key")
@pytest.mark.parametrize("session", [True, False])
def test_the_first_process_keeps_a_shell_and_takes_in_orphans(tmp_path: Path, session: bool) -> None:
    with room("linda", tmp_path, session=session) as console:
        os.write(console, b"(sleep 0.1 &) ; echo first $$; exit\n")
        _until(console, b"\nfirst ", 1)
        # The shell ended; there is another one, and the orphan is not left as a zombie.
        os.write(console, b"sleep 0.3; echo zombies $(grep -l '^State:.Z' /proc/[0-9]*/status | wc -l)\n")
        _until(console, b"zombies 0", 1)
        os.write(console, b"tty; umbilical status; echo code $?\n")
        said = _until(console, b"code 3", 1)
        assert b"/dev/console" in said
        assert b"umbilical: status: /run/umbilical cannot be reached" in said
        assert b"job control turned off" not in said
        os.write(console, b"echo so far; sleep 1000\n")
        _until(console, b"\nso far", 1)
        time.sleep(0.2)  # until the sleep has begun; ctrl-C before that would only end the line
        os.write(console, b"\x03")
        os.write(console, b"echo on it goes\n")
        _until(console, b"\non it goes", 1)


@pytest.mark.container
@pytest.mark.usefixtures("key")
def test_the_courier_serves_its_page(tmp_path: Path) -> None:
    with room("courier", tmp_path) as console:
        for port in (8080, 8081):
            ask = f"until wget -qO- http://127.0.0.1:{port}/; do sleep 0.1; done; echo got {port}\n"
            os.write(console, ask.encode())
            assert b"courier is here" in _until(console, f"\ngot {port}".encode(), 1)


def _until(terminal: int, wanted: bytes, times: int) -> bytes:
    end, said = time.monotonic() + PATIENCE_S, b""
    os.set_blocking(terminal, False)
    while said.count(wanted) < times:
        assert time.monotonic() < end, said
        try:
            said += os.read(terminal, 4096)
        except BlockingIOError:
            time.sleep(0.01)
    return said
