"""`./spine boot`: build what is missing, boot, show the stages, end at the console of the focused persona.

Touches: the image (through the builder), the ground's directory in the state directory, one QEMU or keeper
process. Leaves the ground running when it returns, also after ctrl-C; a boot that fails or is interrupted
before it was ready is ended and its console kept for `./spine log`.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bus.envelope import Code
from spine import paths
from spine.errors import Exit, SpineError
from spine.ground import accel, disk, state
from spine.ground.console import LOOK_S, BootError, Silent
from spine.ground.container import Container
from spine.ground.port import PortFailure
from spine.ground.qemu import SILENT_S, Hardware, Machine
from spine.ground.stages import Stage
from spine.image import kernel
from spine.progress import Progress
from spine.room import console
from spine.room.lease import Lease

if TYPE_CHECKING:
    from spine.image.enrolment import Variable

HELP = "build what is missing and boot the spine: in QEMU, or in a container"


# How long a boot takes on an ordinary host, for the progress line.
ESTIMATE_S = {"kvm": 5.0, "tcg": 25.0}
# How long the persona that starts by itself may take to have the focus: integrity has read the disk, a room
# is made, a hand-over done. Tried: half a minute on an emulated machine whose host is busy.
FOCUS_S = 90.0
# A reboot from elsewhere is waited for this long: no longer than an emulated one takes, thrice.
SILENCE_S = 90.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("--detach", action="store_true", help="return when it is ready, leave it running")
    parser.add_argument(
        "--container", action="store_true", help="namespaces of this kernel, no QEMU (needs root)"
    )
    parser.add_argument(
        "--accel", choices=("auto", "kvm", "tcg"), default="auto", help="how QEMU runs the guest"
    )
    parser.add_argument(
        "--profile",
        choices=kernel.PROFILES,
        default="qemu",
        help="pc: the image for real machines, in QEMU with their devices",
    )
    parser.add_argument("--fresh", action="store_true", help="start with an empty disk: forget all state")
    parser.add_argument(
        "--fresh-data",
        action="store_true",
        help="start with an empty persist: forget what personas stored, keep those that are installed",
    )
    parser.add_argument("--display", action="store_true", help="show the machine's screen in a window")
    parser.add_argument(
        "--secure-boot",
        action="store_true",
        help="a firmware that starts what your db key signed, and no more",
    )
    parser.add_argument(
        "--log-writes",
        action="store_true",
        help="log what the machine writes, so that ./spine powercut can lose what it did not flush",
    )
    parser.add_argument(
        "--no-restart", action="store_true", help="a machine that resets itself ends, and why is told"
    )


def run(args: argparse.Namespace) -> int:
    """Boot."""
    _check(args)
    progress = Progress()
    kind = "container" if args.container else "machine"
    where = state.directory(kind)
    began = time.monotonic()
    with state.locked(where):
        running = Container.attach(where) if args.container else Machine.attach(where)
        if running is not None:
            _refuse_changes(args, running.pid, kind)
            progress.say(f"the {kind} runs already (process {running.pid})")
        else:
            running = _container(args, where, progress) if args.container else _machine(args, where, progress)
            state.make_current(kind)
            progress.say(f"ready after {time.monotonic() - began:.1f} s")
            if args.detach:
                _say_who(running, progress)
    if args.json:
        document = {"ground": {"kind": kind, "pid": running.pid, "accel": getattr(running, "accel", "")}}
        sys.stdout.write(json.dumps(document) + "\n")
        sys.stdout.flush()
    suffix = " --container" if args.container else ""
    if args.detach:
        progress.say(f"next: ./spine status   ./spine call   ./spine log   ./spine stop{suffix}")
        return Exit.OK
    return _stay(running, progress, suffix)


def _check(args: argparse.Namespace) -> None:
    if args.container and (args.log_writes or args.no_restart or args.secure_boot or args.profile != "qemu"):
        raise SpineError(
            "--log-writes, --no-restart, --secure-boot and --profile are for the machine",
            "a container has the host's kernel, no firmware and no reset; a power cut needs no log there",
            "./spine boot --container",
            Exit.USAGE,
        )


def _say_who(running: Machine | Container, progress: Progress) -> None:
    """Who can be spoken to. A persona that starts by itself is waited for: the next command finds it."""
    with Lease(running) as lease:
        if persona := _focused(lease):
            progress.say(f"{persona} has the focus")


def _machine(args: argparse.Namespace, where: Path, progress: Progress) -> Machine:
    how, why_not = accel.choose(args.accel)
    _build(progress, root_only=False, profile=args.profile)
    paths.private(where)
    disk_path = where / "disk.img"
    with progress.stage("disk"):
        kept = (disk.PERSONAS,) if args.fresh_data else disk.KEPT
        image = paths.out(args.profile) / "spine.img"
        done = disk.prepare(image, disk_path, fresh=args.fresh, kept=kept)
        renewed = f"system renewed, {' and '.join(kept)} kept"
        progress.done({"refreshed": renewed, "new": "new, empty", "kept": "as it was"}[done])
    if why_not:
        progress.say(f"KVM is not used: {why_not}; TCG takes a little longer")
    machine = Machine(where)
    try:
        # Only where we chose KVM ourselves may we take it back.
        silent_s = SILENT_S if how == "kvm" and args.accel == "auto" else None
        try:
            _power_on(machine, disk_path, how, args, silent_s, progress)
        except Silent:
            machine.kill()
            reason = f"the kernel was silent for {SILENT_S:.0f} s"
            accel.remember(accel.Verdict(False, reason))
            progress.say(f"KVM is given up: {reason}; once more with TCG")
            _power_on(machine, disk_path, "tcg", args, None, progress)
    except BaseException:
        machine.kill()
        raise
    return machine


def _power_on(
    machine: Machine,
    disk_path: Path,
    how: str,
    args: argparse.Namespace,
    silent_s: float | None,
    progress: Progress,
) -> None:
    with progress.stage(f"booting the machine ({how})", ESTIMATE_S[how]):
        machine.start(
            disk_path,
            accel=how,
            hardware=Hardware.NVME if args.profile == "pc" else Hardware.VIRTIO,
            display=args.display,
            logged=args.log_writes,
            no_reboot=args.no_restart,
            enroll=_owner_keys() if args.secure_boot else (),
        )
        machine.wait_ready(silent_s=silent_s, on_stage=_Shown(progress))


def _owner_keys() -> "list[Variable]":
    from spine.image import enrolment, keys

    return [enrolment.variable(role, keys.boot_key(role).certificate) for role in keys.Role]


def _container(args: argparse.Namespace, where: Path, progress: Progress) -> Container:
    if os.geteuid() != 0:
        raise SpineError(
            "the container ground needs root",
            f"it makes namespaces, mounts and a cgroup; you are uid {os.geteuid()}",
            "sudo ./spine boot --container   (or without root: ./spine boot)",
            Exit.HOST_NOT_READY,
        )
    _build(progress, root_only=True)
    container = Container(where)
    try:
        root, persist = container.provision(paths.out(), fresh=args.fresh, fresh_data=args.fresh_data)
        pairs = container.pairs(paths.out(), fresh=args.fresh)
        with progress.stage("booting the container"):
            container.start(root, persist, pairs=pairs)
            container.wait_ready(on_stage=_Shown(progress))
    except BaseException:
        container.kill()
        raise
    return container


class _Shown:
    """Shows each stage as it passes, with the time since the start."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._began = time.monotonic()

    def __call__(self, stage: Stage) -> None:
        elapsed = time.monotonic() - self._began
        name = "operator answers" if stage.name == "port" else stage.name
        self._progress.say(f"  {elapsed:6.1f} s  {name}")


def _build(progress: Progress, *, root_only: bool, profile: str = "qemu") -> None:
    from spine.image.build import build

    build(paths.out(profile), root_only=root_only, profile=profile, progress=progress)


def _refuse_changes(args: argparse.Namespace, pid: int, kind: str) -> None:
    started = (args.fresh, args.fresh_data, args.display, args.log_writes, args.no_restart, args.secure_boot)
    if any(started) or args.accel != "auto" or args.profile != "qemu":
        suffix = " --container" if args.container else ""
        raise SpineError(
            f"the {kind} runs already",
            f"it is process {pid}, and options other than --detach are for the start",
            f"./spine stop{suffix}, then the same command again",
            Exit.REFUSED,
        )


def _stay(running: Machine | Container, progress: Progress, suffix: str) -> int:
    """The console of whoever has the focus, and of the next one; the spine's own when none has one."""
    try:
        while persona := _heard(running, _focused, ""):
            leave = "Ctrl-]" if os.isatty(sys.stdin.fileno()) else "ctrl-C"
            progress.say(f"this is the console of {persona}; {leave} leaves it, and all of it running")
            if _heard(running, _console_of(persona), "ended") == "left":
                sys.stdout.write("\n")
                return _left(progress, suffix)
            if running.alive():
                progress.say(f"{persona} has no console any more")
                time.sleep(LOOK_S)
        return _watch(running, progress, suffix)
    except KeyboardInterrupt:
        return _left(progress, suffix)


def _left(progress: Progress, suffix: str) -> int:
    progress.say(f"left running; next: ./spine status   ./spine exec   ./spine stop{suffix}")
    return Exit.OK


def _console_of(persona: str) -> Callable[[Lease], str]:
    return lambda lease: console.view(lease, persona, sys.stdin.fileno(), sys.stdout.fileno())


def _heard(running: Machine | Container, ask: Callable[[Lease], str], ended: str) -> str:
    """What the spine answers, however often parts of it start anew meanwhile; `ended` when it is no more."""
    while True:
        try:
            with Lease(running) as lease:
                return ask(lease)
        except SpineError:
            if not _back(running):
                return ended


def _back(running: Machine | Container) -> bool:
    """Wait until the operator answers again; False: the spine has ended. SpineError when it stays silent."""
    end = time.monotonic() + SILENCE_S
    while True:
        # Whoever shut it down did so a moment before we see that it is gone.
        time.sleep(LOOK_S)
        if not running.alive():
            return False
        try:
            with running.port():
                return True
        except SpineError:
            if time.monotonic() > end:
                raise


def _focused(lease: Lease) -> str:
    """The persona with the focus, once those that start by themselves have started.

    Empty: nobody has it, or one that has no console.
    """
    end = time.monotonic() + FOCUS_S
    manifests: dict[str, dict[str, bool]] | None = None
    while True:
        try:
            if manifests is None:
                rows = _rows(lease.port().call("integrity.personas")["personas"])
                # One that is damaged on the disk has no manifest to show.
                manifests = {row["name"]: json.loads(row["manifest"]) for row in rows if row["manifest"]}
            if focus := str(lease.port().call("freezer.rooms")["focus"]):
                # One that was removed while it runs may have a console; to ask for it tells.
                return focus if manifests.get(focus, {}).get("console", True) else ""
            if not any(manifest["autostart"] for manifest in manifests.values()):
                return ""
        except PortFailure as failure:
            # Just after a boot integrity reads the whole disk, and an emulated one keeps it from answering.
            if failure.failure.code not in (Code.DEADLINE, Code.PEER_DIED):
                raise
        if time.monotonic() > end:
            return ""
        time.sleep(LOOK_S)


def _rows(value: object) -> list[dict[str, str]]:
    assert isinstance(value, list)
    return value


def _watch(running: Machine | Container, progress: Progress, suffix: str) -> int:
    at = running.console.mark()
    if running.alive():
        progress.say("no persona shows a console; this is the spine's own. ctrl-C leaves it running")
        progress.say(
            f"next, elsewhere: ./spine persona install linda   ./spine status   ./spine stop{suffix}"
        )
    while running.alive():
        text = running.console.text(at)
        at = running.console.mark()
        sys.stderr.write(text)
        sys.stderr.flush()
        time.sleep(LOOK_S)
    code = running.exit_code
    if code:
        raise BootError(
            "the spine ended",
            "bay0 panicked" if code == state.EXIT_PANIC else f"exit code {code}",
            f"./spine log{suffix}",
        )
    progress.say("the spine has shut down")
    return Exit.OK
