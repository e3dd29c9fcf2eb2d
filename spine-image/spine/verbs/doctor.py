"""`./spine doctor`: what this host can do for the spine, tried and not guessed.

Touches: dpkg's database, /proc, a test guest under KVM, a namespace with a loop mount that ends with its
process; each for seconds at most. Installs and changes nothing, needs no package but Python. Ends with 3
only when the spine cannot run here at all: neither as a machine nor as a container.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from spine import paths
from spine.errors import Exit, SpineError
from spine.ground import accel, cgroups, qemu, state

HELP = "what this host lacks, and the command that mends it"

PASS, WARN, FAIL, SKIP = "PASS", "WARN", "FAIL", "SKIP"
PYTHON_MIN = (3, 11)
# A kernel tree unpacked and built, packages, wheels, images; and the disk that runs.
BUILD_SPACE = 4 << 30
RUN_SPACE = 512 << 20
# QEMU with the guest's 512 MiB; more makes building quicker.
RUN_MEMORY = 900 << 20
TRY_S = 10.0
COLOURS = {PASS: "32", WARN: "33", FAIL: "31", SKIP: "36"}


@dataclass(frozen=True)
class Finding:
    """One line. `fix` is a command, empty where there is nothing to do."""

    verdict: str
    name: str
    text: str
    fix: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


def run(args: argparse.Namespace) -> int:
    """Look at everything, print, judge."""
    checks: list[Callable[[], Finding]] = [
        system, python, packages, space, memory, machine, kvm, container, keys, image, running,
    ]  # fmt: skip
    findings: dict[str, Finding] = {}
    for check in checks:
        findings[check.__name__] = check()
        if not args.json:
            sys.stdout.write(line(findings[check.__name__]))
            sys.stdout.flush()
    able = usable(findings)
    if args.json:
        document = {"ok": able, "checks": [asdict(finding) for finding in findings.values()]}
        sys.stdout.write(json.dumps(document) + "\n")
    return Exit.OK if able else Exit.HOST_NOT_READY


def usable(findings: dict[str, Finding]) -> bool:
    """Whether the spine can run here in one way at least. Pure."""
    if any(findings[name].verdict == FAIL for name in ("system", "python", "space")):
        return False
    return findings["machine"].verdict != FAIL or findings["container"].verdict in (PASS, WARN)


def line(finding: Finding) -> str:
    """A finding for a person."""
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    word = f"\x1b[{COLOURS[finding.verdict]}m{finding.verdict}\x1b[0m" if colour else finding.verdict
    fix = f"\n                fix: {finding.fix}" if finding.fix else ""
    return f"{word}  {finding.name:<10}{finding.text}{fix}\n"


def system() -> Finding:
    """Processor and distribution."""
    if platform.machine() != "x86_64":
        return Finding(FAIL, "system", f"the image is for x86_64, this is {platform.machine()}")
    try:
        fields = dict(
            row.split("=", 1)
            for row in Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
            if "=" in row
        )
    except OSError:
        fields = {}
    name = fields.get("PRETTY_NAME", "an unknown system").strip('"')
    if fields.get("ID", "").strip('"') == "debian" and fields.get("VERSION_ID", "").strip('"') == "12":
        return Finding(PASS, "system", f"{name} on x86_64")
    return Finding(
        WARN, "system", f"{name}: made and tested on Debian 12", "use Debian 12, or a Debian 12 container"
    )


def python() -> Finding:
    """The Python that runs this, which is the one the Python packages are set up with."""
    version = platform.python_version()
    if sys.version_info < PYTHON_MIN:
        wanted = ".".join(map(str, PYTHON_MIN))
        return Finding(FAIL, "python", f"{version}, {wanted} is needed", "use Debian 12 or newer")
    return Finding(PASS, "python", version)


def packages() -> Finding:
    """The Debian packages that the launcher names."""
    wanted = package_groups((paths.ROOT / "spine").read_text(encoding="utf-8"))
    names = sorted({name for group in wanted.values() for name in group})
    try:
        said = subprocess.run(
            ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *names],
            capture_output=True, text=True, check=False, timeout=TRY_S,
        ).stdout  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return Finding(WARN, "packages", "there is no dpkg here; these are needed: " + " ".join(names))
    there = {row.split(" ")[0] for row in said.splitlines() if row.endswith(" installed")}
    lacking = [name for name in names if name not in there]
    if not lacking:
        return Finding(PASS, "packages", f"all {len(names)} are installed")
    sudo = "" if os.geteuid() == 0 else "sudo "
    fix = f"{sudo}apt-get install --no-install-recommends {' '.join(lacking)}"
    return Finding(
        WARN, "packages", f"not installed: {' '.join(lacking)} (each verb installs what it needs)", fix
    )


def package_groups(launcher: str) -> dict[str, list[str]]:
    """The package groups written in the launcher's text: `NAME_packages="..."`. Pure."""
    joined = launcher.replace("\\\n", "")
    groups = {}
    for row in joined.splitlines():
        name, equals, rest = row.partition("_packages=")
        if equals and name.isidentifier() and rest.startswith('"') and rest.endswith('"'):
            groups[name] = rest.strip('"').split()
    return groups


def space() -> Finding:
    """Room where the caches and the disk lie."""
    least, where = min((_free(path), str(path)) for path in (paths.cache(), paths.state(), paths.ROOT))
    text = f"{least / 2**30:.1f} GiB free under {where}"
    if least < RUN_SPACE:
        return Finding(FAIL, "space", f"{text}; {RUN_SPACE >> 20} MiB are needed to run", f"df -h '{where}'")
    if least < BUILD_SPACE:
        return Finding(WARN, "space", f"{text}; building wants {BUILD_SPACE >> 30} GiB", f"df -h '{where}'")
    return Finding(PASS, "space", text)


def memory() -> Finding:
    """Memory that programs may still take."""
    rows = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free = next(int(row.split()[1]) << 10 for row in rows if row.startswith("MemAvailable:"))
    text = f"{free >> 20} MiB available"
    if free < RUN_MEMORY:
        return Finding(
            WARN, "memory", f"{text}; the machine takes {RUN_MEMORY >> 20} MiB", "./spine boot --container"
        )
    return Finding(PASS, "memory", text)


def machine() -> Finding:
    """QEMU and its firmware."""
    if shutil.which(accel.QEMU) is None:
        return _uninstalled("machine", "QEMU", "qemu-system-x86")
    try:
        code, _ = qemu.firmware()
    except SpineError:
        return _uninstalled("machine", "its UEFI firmware", "ovmf")
    return Finding(PASS, "machine", f"QEMU with {code}")


def kvm() -> Finding:
    """KVM, by running a guest."""
    if shutil.which(accel.QEMU) is None:
        return Finding(SKIP, "kvm", "QEMU is not installed")
    verdict = accel.kvm(again=True)
    if verdict.works:
        return Finding(PASS, "kvm", "a test guest ran")
    fix = "./spine boot --accel tcg   (what ./spine boot does by itself)"
    if "may not be opened" in verdict.reason and accel.KVM.stat().st_mode & 0o060 == 0o060:
        fix = f"sudo usermod -aG {accel.KVM.group()} $USER   (then log in again)"
    return Finding(WARN, "kvm", f"{verdict.reason}; TCG is used", fix)


def container() -> Finding:
    """Namespaces, a version 2 cgroup, a loop device and SquashFS, by using them."""
    if os.geteuid() != 0:
        return Finding(SKIP, "container", "this ground needs root", "sudo ./spine doctor")
    try:
        group = cgroups.make(f"alpine-spine-doctor-{os.getpid()}")
    except SpineError as error:
        return Finding(WARN, "container", f"{error.what}: {error.why}", error.fix)
    lacking = cgroups.lacking(group)
    cgroups.remove(group, TRY_S)
    if shutil.which("mksquashfs") is None:
        return Finding(SKIP, "container", "squashfs-tools is not installed, so a mount was not tried")
    with tempfile.TemporaryDirectory(prefix="spine-doctor-") as scratch:
        made = _try("mksquashfs", "/proc/self/status", f"{scratch}/root", "-quiet", "-no-progress")
        os.mkdir(f"{scratch}/at")
        spaces = ("--mount", "--pid", "--fork", "--net", "--ipc", "--uts", "--cgroup")
        mounted = made or _try(
            "unshare", *spaces, "mount", "-t", "squashfs", "-o", "loop,ro", f"{scratch}/root", f"{scratch}/at"
        )
    if mounted:
        return Finding(
            WARN,
            "container",
            f"namespaces with a SquashFS loop mount: {mounted}",
            "use the machine: ./spine boot",
        )
    if lacking:
        text = f"works, without limits on {', '.join(lacking)}: version 1 cgroups hold those controllers"
        return Finding(WARN, "container", text, "boot the host with systemd.unified_cgroup_hierarchy=1")
    return Finding(PASS, "container", "namespaces, cgroups, loop devices and SquashFS work")


def keys() -> Finding:
    """Modes of the private keys."""
    directory = paths.data() / "keys"
    if not directory.is_dir():
        return Finding(SKIP, "keys", "none yet: the first build makes one")
    for path in (directory, *sorted(directory.iterdir())):
        seen = path.lstat()
        if seen.st_mode & 0o077 or seen.st_uid != os.geteuid():
            return Finding(
                WARN,
                "keys",
                f"{path} is not only yours (mode {seen.st_mode & 0o777:o})",
                f"chmod go= '{path}'",
            )
    return Finding(PASS, "keys", f"{directory} is private")


def image() -> Finding:
    """The last build's report."""
    try:
        report = json.loads((paths.out() / "report.json").read_text(encoding="utf-8"))
        total, budget = int(report["sizes"]["total"]), int(report["sizes"]["budget"])
    except FileNotFoundError:
        return Finding(SKIP, "image", "not built yet", "./spine build")
    except (OSError, ValueError, KeyError, TypeError):
        return Finding(WARN, "image", f"{paths.out() / 'report.json'} cannot be read", "./spine build")
    text = f"{total / 1e6:.1f} MB of {budget / 1e6:.0f} MB, root {str(report.get('rootHash', '?'))[:16]}"
    if total > budget:
        return Finding(WARN, "image", f"{text}: over the budget", "./spine build --json")
    return Finding(PASS, "image", text)


def running() -> Finding:
    """The ground that runs now."""
    try:
        ground = state.running()
    except SpineError:
        return Finding(SKIP, "running", "nothing runs", "./spine boot --detach")
    return Finding(PASS, "running", f"the {ground.kind}, process {ground.process.pid}")


def _uninstalled(name: str, what: str, package: str) -> Finding:
    # The launcher can install it where we are root or sudo is there; otherwise somebody else has to.
    verdict = WARN if os.geteuid() == 0 or shutil.which("sudo") else FAIL
    return Finding(
        verdict, name, f"{what} is not installed", f"apt-get install --no-install-recommends {package}"
    )


def _free(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _try(*words: str) -> str:
    """Why a command did not work; empty when it did."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=TRY_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = (done.stderr.strip() or f"{words[0]} ended with {done.returncode}").splitlines()
    return said[-1] if done.returncode else ""
