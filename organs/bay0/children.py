"""The children: carries out what the restart policy decides, and tells it what happens.

Every child goes through the same policy: the zygote, which bay0 starts itself, and the organs, which the
zygote makes. Descriptors, datagrams and signals come in; starts and kills go out.
Touches: cgroup.kill, the children's pipes, the line to the zygote (`organs/bay0/line.py`).
Never: waits for a child; believes what an old incarnation said; starts one beside another.
Fails: Panic, with its reason, when the policy says so. OSError where the kernel refuses PID 1 itself.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Mapping
from typing import Final

from organs import layout
from organs.bay0 import control, pace, request, restart
from organs.bay0.ahead import Ahead
from organs.bay0.child import Child, close, ending
from organs.bay0.ground import Ground
from organs.bay0.line import Answer, Line, Over, start_zygote
from organs.bay0.loop import Loop, now_ms
from organs.bay0.report import Report
from organs.bay0.request import Made, Request
from organs.bay0.restart import Effect, Event, Phase
from organs.bay0.rings import Ring
from organs.bay0.state import ChildFacts
from organs.kernel import processes, rights
from organs.kernel.cgroups import Cgroup
from organs.manifest import CPU_WEIGHT, Manifest

ZYGOTE: Final = "zygote"
# The zygote shares its libraries with all organs; its own heap is what is counted here.
ZYGOTE_MEMORY_MAX, ZYGOTE_PIDS_MAX = 256 * 1024**2, 4
# Signs of life read at once. More than one is there only when PID 1 itself was held up.
STATUS_BYTES_MAX: Final = 64
# How much of a dead child's log goes into the reason of a panic.
LAST_WORDS_BYTES, LAST_WORDS_LINES = 1024, 6
# What an organ says last of its data: one line, which it is handed back when it is started without them.
BAD_CHARS_MAX: Final = 200
# While a dead child's cgroup is not empty yet and no death of ours will say when.
LINGER_POLL_MS: Final = 20

OnAsk = Callable[[Child, bytes, list[int]], None]
# With a datagram of an organ comes one descriptor or none; the kernel closes what is more than this.
ASK_DESCRIPTORS_MAX: Final = 2


class Panic(Exception):
    """The system cannot go on; the message is the reason."""


class Children:
    """The zygote and the organs. `on_ask` gets an organ's control datagrams, with descriptors."""

    def __init__(
        self,
        *,
        loop: Loop,
        report: Report,
        manifest: Manifest,
        ground: Ground,
        listeners: Mapping[str, Mapping[str, socket.socket]],
        lasting: Mapping[str, Mapping[str, int]],
        log_group: int,
        ahead: Ahead | None,
        on_ask: OnAsk,
    ) -> None:
        self._loop, self._report, self._ground, self._ahead = loop, report, ground, ahead
        self._policy, self._on_ask = manifest.spine, on_ask
        self._listeners, self._lasting = listeners, lasting
        self.factor = pace.SCALE_MAX  # until the zygote has shown how fast this ground is
        self._limits = pace.limits(self._policy, self.factor)
        self.stopping = False
        self.changed = True
        cgroup = Cgroup(ZYGOTE, ZYGOTE_MEMORY_MAX, ZYGOTE_PIDS_MAX, CPU_WEIGHT)
        self.zygote = Child(ZYGOTE, None, cgroup, Ring(layout.LOGS, ZYGOTE, log_group))
        self.organs: dict[str, Child] = {}
        for organ in manifest.organs.values():
            cgroup = Cgroup(f"organs/{organ.name}", organ.memory_max, organ.pids_max, organ.cpu_weight)
            self.organs[organ.name] = Child(
                organ.name, organ, cgroup, Ring(layout.LOGS, organ.name, log_group)
            )
        self._line = Line(loop)
        # Deaths reaped before the zygote's answer named the pid.
        self._early: dict[int, int] = {}
        self._staged: set[str] = set()

    @property
    def all(self) -> tuple[Child, ...]:
        """Every child, the zygote first."""
        return (self.zygote, *self.organs.values())

    def all_ready(self) -> bool:
        """Whether every child says that it answers."""
        return all(child.state.phase is Phase.READY for child in self.all)

    def alive(self) -> int:
        """How many children are not confirmed gone."""
        return sum(child.pid is not None or child.ended is not None or child.lost for child in self.all)

    def running(self) -> dict[str, tuple[int, int]]:
        """Name -> (pid, pidfd) of every living child."""
        return {c.name: (c.pid, c.pidfd) for c in self.all if c.pid is not None and c.pidfd is not None}

    def facts(self) -> dict[str, ChildFacts]:
        """What others may know of the organs."""
        return {name: child.facts() for name, child in self.organs.items()}

    # Time

    def tick(self, elapsed_ms: int) -> None:
        """Let time pass for every child. Raises Panic."""
        for child in self.all:
            self._settle(child)
            if self.stopping:
                continue
            may_start = child is self.zygote or self._zygote_answers()
            self._apply(child, restart.tick(self._limits, child.state, elapsed_ms, may_start=may_start))

    def due_ms(self) -> int | None:
        """After how long `tick` has something to do; None when only events can change anything."""
        due = [LINGER_POLL_MS for child in self.all if child.ended is not None or child.lost]
        if not self.stopping:
            due += [
                restart.due_ms(self._limits, child.state)
                for child in self.all
                if child.state.phase is not Phase.WAITING or child is self.zygote or self._zygote_answers()
            ]
        return min(due, default=None)

    def _zygote_answers(self) -> bool:
        return self.zygote.state.phase is Phase.READY and self._line.open

    # What the policy decides

    def _apply(self, child: Child, step: restart.Step) -> None:
        before, (child.state, effect) = child.state, step
        if (before.phase, before.deaths) != (child.state.phase, child.state.deaths):
            self.changed = True
        if child.state.closed and not before.closed:
            child.bad = self._last_line(child)
            self._report.say(f"{child.name}: bad data: it lives without them until the next boot")
        match effect:
            case Effect.START:
                self._start(child)
            case Effect.KILL:
                what = "not ready in time" if before.phase is Phase.STARTING else "silent for too long"
                self._report.say(f"{child.name}: {what}, killed")
                child.cgroup.kill()
            case Effect.PANIC_DEATHS:
                raise Panic(
                    f"{child.name} died {child.state.deaths} times without a healthy stretch between"
                    f" (the last time: {child.ended})\n{self._last_words(child)}"
                )
            case Effect.PANIC_STUCK:
                raise Panic(f"{child.name} was killed and is still there")
            case None:
                pass

    def _last_words(self, child: Child) -> str:
        text = child.ring.tail(LAST_WORDS_BYTES).decode(errors="replace")
        return "\n".join(f"{child.name}: {line}" for line in text.splitlines()[-LAST_WORDS_LINES:])

    def _last_line(self, child: Child) -> str:
        lines = child.ring.tail(LAST_WORDS_BYTES).decode(errors="replace").splitlines()
        last = lines[-1].removeprefix(f"{child.name}: ") if lines else "it did not say why"
        return "".join(c if c.isprintable() else "." for c in last)[:BAD_CHARS_MAX]

    def _start(self, child: Child) -> None:
        child.begin()
        self.changed = True
        try:
            child.cgroup.renew()
            if child is self.zygote:
                self._start_zygote()
            else:
                self._start_organ(child)
        except OSError as error:
            # The kernel refused this start; the policy counts it as a death of this child, not of PID 1.
            self._report.say(f"{child.name}: unable to start: {error}")
            child.ended = str(error)
            self._settle(child)

    # Starting

    def _start_zygote(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and self._adopt(ahead):
            return
        fds = self.zygote.open_pipes(self._loop)
        self._listen_to_status(self.zygote)
        try:
            with self._line.connect(self._on_answer) as theirs:
                self.zygote.pid, self.zygote.pidfd = start_zygote(self.zygote.cgroup.fd, theirs, fds)
        except OSError:
            self._line.close()
            raise
        finally:
            close(fds)

    def _adopt(self, ahead: Ahead) -> bool:
        """Make the process that was started ahead the zygote, if it still lives."""
        zygote = self.zygote
        try:
            # Whoever died before PID 1 heard of deaths is told of by nobody.
            if processes.dead(ahead.pidfd):
                raise ProcessLookupError("it is dead")
            zygote.cgroup.take(ahead.pid)
        except OSError as error:
            self._report.say(f"zygote: not started ahead: {error}")
            processes.kill(ahead.pidfd, signal.SIGKILL)
            ahead.close()
            return False
        zygote.pid, zygote.pidfd, zygote.since_ms = ahead.pid, ahead.pidfd, ahead.since_ms
        zygote.take_pipes(self._loop, ahead.status, ahead.stderr)
        self._listen_to_status(zygote)
        self._line.take(socket.socket(fileno=ahead.line), self._on_answer)
        return True

    def _start_organ(self, child: Child) -> None:
        assert child.organ is not None
        listeners = self._listeners[child.name]
        theirs = child.open_devices(self._ground)
        try:
            theirs |= child.open_pipes(self._loop)
            theirs |= child.open_control()
            fds = {
                request.CGROUP: child.cgroup.fd,
                **theirs,
                **{label: listener.fileno() for label, listener in listeners.items()},
                **self._lasting[child.name],
                **{f"kept:{label}": fd for label, fd in child.kept.items()},
            }
            asked = Request(
                organ=child.name,
                generation=child.generation,
                mounts=tuple(
                    request.Mounting(source=self._ground.devices[m.device], at=m.at, type=m.type)
                    for m in (() if child.state.closed else child.organ.mounts)  # INV-STATE-4
                ),
                fds=tuple(fds),
                bad=child.bad,
            )
            self._listen_to_status(child)
            if child.control is not None:
                self._loop.add(child.control.fileno(), lambda: self._on_control(child))
            try:
                self._line.ask(asked, fds)
            except OSError as error:
                child.lost = True
                self._give_up_zygote(f"does not take requests: {error}")
        finally:
            close(theirs)

    def _listen_to_status(self, child: Child) -> None:
        assert child.status is not None
        self._loop.add(child.status, lambda: self._on_status(child), patient=True)

    def _give_up_zygote(self, why: str | None) -> None:
        """Nothing more will come from it: end it, the policy starts the next one."""
        if why is not None:
            self._report.say(f"zygote: {why}")
        self.zygote.cgroup.kill()
        self._line.close()

    # What happens

    def _on_status(self, child: Child) -> None:
        assert child.status is not None
        signs = os.read(child.status, STATUS_BYTES_MAX)
        if not signs:
            # It closed its end. A dead one is reaped; a living one is silent from here on, and killed for it.
            self._loop.remove(child.status)
        for sign in signs:
            if sign == ord("R"):
                self._on_ready(child)
            elif sign == ord("H"):
                self._apply(child, restart.happen(self._limits, child.state, Event.BEAT))

    def _on_ready(self, child: Child) -> None:
        first = child.name not in self._staged
        if child is self.zygote and first:
            import_ms = now_ms() - child.since_ms
            self.factor = pace.scale(import_ms)
            self._limits = pace.limits(self._policy, self.factor)
        self._apply(child, restart.happen(self._limits, child.state, Event.READY))
        if first:
            self._staged.add(child.name)
            self._report.stage(child.name if child is self.zygote else f"organ.{child.name}")

    def _on_control(self, child: Child) -> None:
        assert child.control is not None
        fds: list[int] = []
        try:
            datagram, fds, _ = rights.receive(child.control, control.DATAGRAM_BYTES_MAX, ASK_DESCRIPTORS_MAX)
        except OSError:
            datagram = b""
        if datagram:
            self._on_ask(child, datagram, fds)
        else:
            for fd in fds:
                os.close(fd)
            self._loop.remove(child.control.fileno())

    def _hear_out(self, child: Child) -> None:
        """What a dead organ said last: it may have left something here that its next incarnation needs."""
        while child.control is not None and self._loop.has(child.control.fileno()):
            self._on_control(child)  # INV-REAP-6

    def _on_answer(self) -> bool:
        """Take one answer of the zygote; whether there may be more."""
        match self._line.read():
            case None:
                return False
            case Over(reason):
                self._give_up_zygote(reason)
                return False
            case Answer(name, made, pidfd):
                self._made(self.organs[name], made, pidfd)
                return True

    def _made(self, child: Child, made: Made, pidfd: int | None) -> None:
        """The zygote answered for this child: it is there, or why it is not."""
        child.pid, child.pidfd = made.pid, pidfd
        self.changed = True
        if made.pid is None:
            child.ended = made.error
            self._report.say(f"{child.name}: not made: {made.error}")
        elif made.pid in self._early:
            self._dead(child, self._early.pop(made.pid))
        elif child.state.phase is Phase.STOPPING or self.stopping:
            child.cgroup.kill()
        if not self._line.awaited:
            self._early.clear()
        self._settle(child)

    def reap(self) -> None:
        """Collect the dead: children, and orphans that only PID 1 can collect. Raises Panic."""
        for pid, code in processes.reap():
            child = next((c for c in self.all if c.pid == pid), None)
            if child is not None:
                self._dead(child, code)
            elif self._line.awaited:
                self._early[pid] = code
        for child in self.all:
            self._settle(child)

    def _dead(self, child: Child, code: int) -> None:
        """Its process is dead. What it may have made dies now; then the child is gone."""
        child.pid, child.ended = None, ending(code)
        # Only who has data can die of them.
        child.of_data = code == layout.EXIT_DATA and child.organ is not None and bool(child.organ.mounts)
        self.changed = True
        if not self.stopping:
            self._report.say(f"{child.name}: generation {child.generation} died: {child.ended}")
        if not child.cgroup.empty():
            child.cgroup.kill()
        if child is self.zygote:
            self._zygote_dead()

    def _zygote_dead(self) -> None:
        while self._line.open and self._on_answer():
            pass  # what it answered before it died is true
        self._line.close()
        for name in self._line.forget():
            # Perhaps made, perhaps not: whatever is in the cgroup has no name. Kill it and start anew.
            self.organs[name].lost = True
            self.organs[name].cgroup.kill()
        self._early.clear()

    def _settle(self, child: Child) -> None:
        """A dead child whose cgroup is empty is gone: only then may the policy start the next one."""
        if child.ended is None and not child.lost:
            return
        no_process = child.pid is None and child.name not in self._line.awaited
        if not (no_process and child.cgroup.empty()):  # INV-REAP-2
            return
        died = Event.DIED_OF_DATA if child.of_data else Event.DIED
        event = Event.LOST if child.ended is None else died
        self._hear_out(child)
        child.close(self._loop)
        self.changed = True
        if not self.stopping:
            self._apply(child, restart.happen(self._limits, child.state, event))
        child.ended, child.lost, child.of_data = None, False, False

    # The end

    def terminate(self) -> None:
        """Ask every child to end. From here on none is started again."""
        self.stopping = True
        for child in self.organs.values():
            if child.pidfd is not None and child.state.phase is not Phase.STARTING:
                processes.kill(child.pidfd, signal.SIGTERM)
            else:
                child.cgroup.kill()
        self.zygote.cgroup.kill()  # it holds nothing that could be lost

    def kill(self) -> None:
        """End every child whole."""
        for child in self.all:
            child.cgroup.kill()

    def tell(self, word: str) -> None:
        """Say one word to every organ whose stanza lets it be told."""
        for child in self.organs.values():
            if child.organ and child.organ.control and word in child.organ.control.told:
                send(child, {"tell": word})


def send(child: Child, message: Mapping[str, object]) -> None:
    """One datagram to an organ. One that does not read loses it: PID 1 waits for nobody."""
    if child.control is not None:
        try:
            child.control.send(control.encode(message))
        except OSError:
            return
