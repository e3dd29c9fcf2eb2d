"""bay0: PID 1. Mounts, binds, spawns, reaps, restarts, panics; ends the machine in order when asked.

One thread, one loop, standard library only. It governs by exit codes, pipes and one state file; it does not
speak on the bus and never waits for an organ.
Touches: everything below it that has a file of its own in `organs/bay0/` and `organs/kernel/`.
Never: repairs, retries beyond the manifest, or goes on after something it does not understand.
Fails: always as a panic with its reason: the kernel restarts, and the boot counter chooses a slot.

Signals: SIGTERM and SIGINT (also Ctrl-Alt-Del) power off in order, SIGUSR1 reboots in order.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Final, NoReturn

from organs import layout
from organs.bay0 import clock, control, ground, lasting, pace, rings, screen, state, stop, switchboard
from organs.bay0.ahead import Ahead
from organs.bay0.child import Child
from organs.bay0.children import Children, Panic, send
from organs.bay0.loop import Loop, Signals, now_ms
from organs.bay0.report import Report, end_in_panic
from organs.kernel import blocks, cgroups, firmware, mounts, power, realtime
from organs.manifest import Manifest, load

POWER_OFF, REBOOT = "poweroff", "reboot"
SIGNALS: Final[Mapping[int, str]] = {
    signal.SIGTERM: POWER_OFF,
    signal.SIGINT: POWER_OFF,
    signal.SIGUSR1: REBOOT,
}
# Well below the half minute after which hardware watchdogs reset the machine.
WATCHDOG_FEED_MS: Final = 5000
# A wait that no event needs: bounds what one lost wake-up could cost.
TURN_MS_MAX: Final = 60_000
ENTROPY_BYTES: Final = 32
# What is answered where the clock is another system's.
NO_CLOCK: Final[Mapping[str, object]] = {"error": "missing: clock"}


class Bay0:
    """The running system: what `boot` made, and what happens until the end."""

    def __init__(
        self,
        report: Report,
        release: state.Release,
        where: ground.Ground,
        missing: tuple[str, ...],
        manifest: Manifest,
        listeners: Mapping[str, Mapping[str, socket.socket]],
        lasting: Mapping[str, Mapping[str, int]],
        log_group: int,
        ahead: Ahead | None,
    ) -> None:
        self._report, self._release, self._ground, self._missing = report, release, where, missing
        self._policy = manifest.spine
        self._subtrees = [o.subtree for o in manifest.organs.values() if o.subtree is not None]
        self._mounted = [m.device for organ in manifest.organs.values() for m in organ.mounts]
        self._loop = Loop()
        self._signals = Signals((signal.SIGCHLD, *map(signal.Signals, SIGNALS)))
        self._children = Children(
            loop=self._loop,
            report=report,
            manifest=manifest,
            ground=where,
            listeners=listeners,
            lasting=lasting,
            log_group=log_group,
            ahead=ahead,
            on_ask=self._on_ask,
        )
        self._state_file = state.StateFile(layout.ORGANS_JSON)
        self._all_ready_ms: int | None = None
        self._ready = self._healthy = False
        self._stop: tuple[str, stop.State] | None = None
        self._clock = clock.Clock()
        self._clock_refusals: set[clock.Why] = set()
        self._watchdog: power.Watchdog | None = None
        self._watchdog_left_ms = 0
        self._loop.add(self._signals.fd, self._on_signals)
        if where.kind == ground.MACHINE:
            self._own_the_machine()

    def _own_the_machine(self) -> None:
        power.ignore_three_keys()
        self._watchdog = power.Watchdog.open()
        if self._watchdog is None:
            self._missing = (*self._missing, "watchdog")
        for button in power.open_buttons():
            self._loop.add(button, partial(self._on_button, button))

    def _on_button(self, button: int) -> None:
        if power.pressed(button):
            self.end(POWER_OFF)

    def run(self) -> NoReturn:
        """The life of the system. Raises Panic."""
        last_ms = now_ms()
        while True:
            self._loop.turn(self._due_ms())
            now = now_ms()
            # Silence is only what we were there to hear: after a pause of the whole machine (a host that
            # slept, an emulator that was stopped) nobody is blamed for it.
            elapsed_ms = min(now - last_ms, self._policy.heartbeat_ms)
            last_ms = now
            self._children.tick(elapsed_ms)
            self._feed(elapsed_ms)
            self._judge(elapsed_ms)
            self._tick_stop(elapsed_ms)
            self._publish()

    def _due_ms(self) -> int:
        """How long the loop may wait: until the first thing that only time can bring."""
        due = [TURN_MS_MAX]
        if (children := self._children.due_ms()) is not None:
            due.append(children)
        if self._watchdog is not None:
            due.append(self._watchdog_left_ms)
        if self._all_ready_ms is not None and not self._healthy:
            due.append(self._policy.healthy_after_ms - self._all_ready_ms)
        if self._stop is not None:
            due.append(stop.due_ms(self._stop[1], self._stop_deadline_ms()))
        return min(due)

    def _on_signals(self) -> None:
        # Deaths first: an end that is asked for must know who is alive.
        numbers = self._signals.read()
        self._children.reap()
        for number in numbers:
            if number in SIGNALS:
                self.end(SIGNALS[number])

    def _feed(self, elapsed_ms: int) -> None:
        self._watchdog_left_ms -= elapsed_ms
        if self._watchdog is not None and self._watchdog_left_ms <= 0:
            self._watchdog.feed()
            self._watchdog_left_ms = WATCHDOG_FEED_MS

    def _judge(self, elapsed_ms: int) -> None:
        """Ready when all children are; healthy when they stayed so. Each is said once a boot."""
        if not self._children.all_ready():
            self._all_ready_ms = None
            return
        if not self._ready:
            self._ready = True
            self._report.stage("ready")
        self._all_ready_ms = 0 if self._all_ready_ms is None else self._all_ready_ms + elapsed_ms
        if not self._healthy and self._all_ready_ms >= self._policy.healthy_after_ms:
            self._healthy = self._children.changed = True
            self._report.stage("healthy")
            self._children.tell("healthy")

    def _publish(self) -> None:
        if not self._children.changed:
            return
        self._children.changed = False
        zygote, organs = self._children.zygote.facts(), self._children.facts()
        content = state.document(self._release, self._ground, self._missing, self._healthy, zygote, organs)
        if self._state_file.write(content):
            page = screen.page(self._release, self._ground, self._healthy, zygote, organs)
            # Once healthy, whole pages: they are rare, and wipe away what somebody else wrote there.
            self._report.show(page, whole=self._healthy)

    # What organs ask

    def _on_ask(self, child: Child, datagram: bytes, fds: list[int]) -> None:
        asks = child.organ.control.asks if child.organ and child.organ.control else frozenset[str]()
        names = [each.name for each in self._children.all]
        asked = control.decode(datagram, asks, names, development=self._release.development)
        if not isinstance(asked, control.Keep):
            for fd in fds:
                os.close(fd)
        match asked:
            case control.Power(word):
                self._report.say(f"{child.name} asks for {word}")
                self.end(word)
            case control.Probe() as probe:
                # Imported here because a production image does not have the file.
                from organs.bay0 import probes

                send(child, probes.perform(probe, self._children.running()))
            case control.Keep(label):
                if (why := child.keep(label, fds)) is not None:
                    self._report.say(f"{child.name}: {label} is not kept: {why}")
            case control.Drop(label):
                child.drop(label)
            case control.Time(booted_ms):
                send(child, self._on_time(booted_ms))
            case control.Refused(reason):
                self._report.say(f"{child.name}: refused: {reason}")
                send(child, {"error": reason})

    def _on_time(self, booted_ms: int) -> Mapping[str, object]:
        """Set the clock to what a network says, as far as it may. Each refusal is said once until one may."""
        if self._ground.kind != ground.MACHINE:  # INV-TIME-1
            return NO_CLOCK
        now = clock.Now(realtime.wall_ms(), realtime.since_boot_ms())
        self._clock, what = clock.decide(self._clock, self._release.built_ms, booted_ms, now)
        if isinstance(what, clock.Why):
            if what not in self._clock_refusals:
                self._clock_refusals.add(what)
                self._report.say(f"clock: not set: {what.value}")
            return {"error": what.value}
        self._clock_refusals.clear()
        if what.by_ms:
            realtime.move(what.by_ms)
            self._report.say(f"clock: moved by {what.by_ms} ms, as the network says")
        return {"ok": {"movedMs": what.by_ms}}

    # The end

    def end(self, word: str) -> None:
        """Begin the orderly end: "poweroff" or "reboot". The first one asked for counts."""
        if self._stop is None:
            self._report.say(f"ending: {word}")
            self._stop = (word, stop.State())
            for subtree in self._subtrees:
                cgroups.kill_below(subtree)
            self._children.terminate()

    def _stop_deadline_ms(self) -> int:
        return pace.stretched(self._policy.stop_deadline_ms, self._children.factor)

    def _tick_stop(self, elapsed_ms: int) -> None:
        if self._stop is None:
            return
        word, before = self._stop
        after, effect = stop.tick(before, elapsed_ms, self._stop_deadline_ms(), self._children.alive())
        self._stop = (word, after)
        match effect:
            case stop.Effect.KILL_ALL:
                self._report.say("killing what did not end in time")
                self._children.kill()
            case stop.Effect.FINISH:
                self._publish()
                self._finish(word)
            case None:
                pass

    def _finish(self, word: str) -> NoReturn:
        """Nothing of ours runs any more. Let go of the disks, then of the machine."""
        for device in self._mounted:
            held = blocks.in_use(self._ground.devices[device])  # INV-STATE-2
            self._report.stage(f"{device}.{'in-use' if held else 'unmounted'}")
        os.sync()
        self._report.stage(word)
        if self._ground.kind == ground.CONTAINER:
            os._exit(layout.EXIT_REBOOT if word == REBOOT else layout.EXIT_POWER_OFF)
        if self._watchdog is not None:
            self._watchdog.feed()
        power.restart() if word == REBOOT else power.power_off()
        raise Panic(f"the kernel came back from {word}")


def boot(report: Report, ahead: Ahead | None) -> Bay0:
    """From the kernel's hand-over to the first loop turn. Raises what the failing step raises."""
    mounts.early()
    release = state.read_release(layout.RELEASE)
    manifest = load(layout.MANIFEST)
    where = ground.find(
        {d.name for organ in manifest.organs.values() for d in organ.devices}
        | {m.device for organ in manifest.organs.values() for m in organ.mounts}
    )
    machine = where.kind == ground.MACHINE
    report.stand_on(machine=machine)
    log_group = _make_folders(manifest)
    report.keep(rings.Ring(layout.LOGS, "bay0", log_group))
    report.stage("bay0")
    if machine:
        where = _ask_firmware(report, where)
    if machine and (set_ms := clock.at_boot(realtime.wall_ms(), release.built_ms)) is not None:
        realtime.set_to(set_ms)
        report.say("clock: set to when the image was made: the machine has no clock, or a wrong one")
    # Keys and generations of the whole boot come from this pool: wait until it is full.
    os.getrandom(ENTROPY_BYTES)
    report.stage("entropy")
    missing = cgroups.prepare(ahead.pid if ahead is not None else None)
    if missing and machine:
        raise Panic(f"the kernel has no cgroup controller {', '.join(missing)}")
    for organ in manifest.organs.values():
        if organ.subtree is not None:
            cgroups.delegate(organ.subtree, organ.uid, organ.gid)
    with open(layout.SWITCHBOARD, encoding="utf-8") as file:
        listeners = switchboard.bind(switchboard.decode(file.read()), manifest.organs)
    report.stage("bus")
    kept = lasting.make(manifest.organs)
    lacking = (*where.missing, *(f"cgroup.{name}" for name in missing))
    return Bay0(report, release, where, lacking, manifest, listeners, kept, log_group, ahead)


def _ask_firmware(report: Report, where: ground.Ground) -> ground.Ground:
    """The ground with what the firmware says of itself; what was wrong in its variables is said."""
    seen = firmware.visit()
    for note in seen.notes:
        report.say(f"firmware: {note}")
    return replace(where, secure_boot=seen.secure_boot)


def _make_folders(manifest: Manifest) -> int:
    """The folders of the run; the group that may read logs (the organ that may probe, else root only)."""
    os.makedirs(layout.RUN, exist_ok=True)
    os.makedirs(layout.LOGS, exist_ok=True)
    groups = [o.gid for o in manifest.organs.values() if o.control and "probe" in o.control.asks]
    group = groups[0] if groups else 0
    os.chown(layout.LOGS, 0, group)
    os.chmod(layout.LOGS, 0o750)
    return group


def main(ahead: Ahead | None = None) -> NoReturn:
    """PID 1, with the zygote's interpreter that was started before this module was read."""
    report = Report()

    def defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, Panic):
            end_in_panic(report, str(error))
        last = traceback.extract_tb(trace)[-1:] if trace else []
        where = "".join(f" at {frame.filename}:{frame.lineno}" for frame in last)
        end_in_panic(report, f"{kind.__name__}: {error}{where}")

    # The one place where every way out of PID 1 ends, so that none is silent.
    sys.excepthook = defect
    os.umask(0o022)
    boot(report, ahead).run()


if __name__ == "__main__":
    main()
