"""The organ machine, written once: what every organ does besides its own work.

An organ starts here as a child of the zygote, its powers already dropped. The runtime opens the one trio
loop, beats, listens for SIGTERM and for bay0's words, serves the organ's interface on the listeners it was
handed, and turns every ending into one of four exit codes.

Touches: the file descriptors bay0 handed over, nothing it opens itself but connections on the bus.
Never: raises its own powers, keeps a call past its deadline, hides an exception.
Fails: by ending the process. 0 stopped as asked; 101 we were wrong (any exception: a defect); 111 the
kernel refused something an organ cannot go on without (OSError); 65 its durable data are bad (BadData). bay0
starts the next incarnation.
"""

from __future__ import annotations

import array
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import NoReturn, Protocol, cast

import trio

from bus import client, server, sockets, tap, wire
from organs import layout
from organs.manifest import Manifest, load
from organs.pulse import until_beat_ns

EXIT_STOPPED = 0
EXIT_DEFECT = 101
EXIT_KERNEL = 111

# One control datagram; organs/bay0 refuses longer ones as well.
CONTROL_BYTES_MAX = 4096
# Words of bay0 not yet read by the organ. There is one word a boot today.
WORDS_MAX = 8
# The listener of the tap among the descriptors.
TAP = "listen:tap"
# What bay0 kept for us is called this and its label.
KEPT = "kept:"
# How long bay0 may take to answer on the control socket: it answers from its loop, without waiting.
CONTROL_DEADLINE_S = 10.0


class Program(Protocol):
    """What `organs/NAME/organ.py` must offer."""

    async def main(self, spine: Spine) -> None: ...


class QuietProgram(Protocol):
    """What it must offer where the stanza says that there is no bus."""

    def main(self, place: Place) -> None: ...


def preload() -> None:
    """Import and load everything organs share. The zygote calls it once, before it forks the first organ."""
    wire.load(layout.SCHEMAS)
    for name in _manifest().organs:
        importlib.import_module(f"organs.{name}.organ")


def _manifest() -> Manifest:
    return load(layout.MANIFEST)


class BadData(Exception):
    """An organ cannot go on for what is on the file system that its stanza mounts; the text is what was seen.

    After a few of these bay0 starts it without: see `Spine.bad`.
    """


class BayZeroGone(OSError):
    """The control socket or the status pipe has no other end: PID 1 is no longer there."""


class Place:
    """What every program is given: its name, its descriptors, its signs of life to bay0.

    One without the bus is given nothing else, and beats by itself, at least each `heartbeat_ms`.
    """

    def __init__(self, name: str, generation: int, fds: Mapping[str, int], heartbeat_ms: int) -> None:
        self.name = name
        self.generation = generation
        self.fds = fds
        self.heartbeat_ms = heartbeat_ms
        os.set_blocking(fds["status"], False)

    def ready(self) -> None:
        """Tell bay0 that this program answers."""
        self._status(b"R")

    def beat(self) -> None:
        """Tell bay0 that this program lives."""
        self._status(b"H")

    def _status(self, byte: bytes) -> None:
        try:
            os.write(self.fds["status"], byte)
        except BlockingIOError:
            pass  # bay0 has not read the last ones yet: the pipe already says that we live
        except BrokenPipeError:
            raise BayZeroGone("status pipe closed") from None


class Spine(Place):
    """What an organ's main is given besides: its bus, its line to bay0."""

    def __init__(
        self, name: str, generation: int, fds: Mapping[str, int], heartbeat_ms: int, bad: str = ""
    ) -> None:
        super().__init__(name, generation, fds, heartbeat_ms)
        # Why the file system of the stanza is not mounted: the organ's own last word on it. Empty: it is.
        self.bad = bad
        self.schemas = wire.load(layout.SCHEMAS)
        # The tap exists where bay0 handed over a listener for it: in the development image.
        self._publisher = sockets.Publisher(fds[TAP]) if TAP in fds else None
        self._tap = tap.Tap(name, self.schemas, self._publisher) if self._publisher else None
        self.bus = client.Bus(self.schemas, name, layout.BUS, self._tap)
        self._control: trio.socket.SocketType | None = None
        self._words_in, self._words_out = trio.open_memory_channel[str](WORDS_MAX)
        self._answers_in, self._answers_out = trio.open_memory_channel[dict[str, object]](1)
        self._asking = trio.Lock()

    async def serve(
        self, handlers: Mapping[str, server.Handler], events: server.Events | None = None
    ) -> None:
        """Serve this organ's interface on every listener it was handed; ready once they are up.

        `events` are its news, where its schema declares some. Never returns.
        """
        interface = self.schemas.interfaces[self.name]
        listeners = self._labelled("listen:")
        listeners.pop(layout.TAP, None)
        async with trio.open_nursery() as nursery:
            serve = partial(server.serve, events=events, descriptors=self._labelled("fds:"), tap=self._tap)
            await nursery.start(serve, interface, handlers, listeners, self.generation)
            self.ready()

    def _labelled(self, prefix: str) -> dict[str, int]:
        """The handed-over descriptors of one kind, by the name of the caller."""
        return {label.removeprefix(prefix): fd for label, fd in self.fds.items() if label.startswith(prefix)}

    async def told(self) -> AsyncIterator[str]:
        """The words bay0 tells this organ, as they come."""
        async for word in self._words_out:
            yield word

    def ask(self, word: str) -> None:
        """Ask bay0 for one of the acts the manifest grants this organ: "reboot" or "poweroff"."""
        if self._control is None:
            raise ValueError(f"{self.name} has no control socket in the manifest")
        # A control datagram is small and bay0 always reads: a full socket means PID 1 is stuck, and then
        # ending this organ is right.
        os.write(self._control.fileno(), json.dumps({"ask": word}).encode())

    @property
    def kept(self) -> dict[str, int]:
        """What earlier incarnations left with bay0, by label."""
        return {label.removeprefix(KEPT): fd for label, fd in self.fds.items() if label.startswith(KEPT)}

    async def keep(self, label: str, fd: int) -> None:
        """Leave a descriptor with bay0 for the next incarnation; ours stays ours."""
        await self._tell(json.dumps({"ask": "keep", "label": label}), [fd])

    async def drop(self, label: str) -> None:
        """What is kept under this label is not needed any more."""
        await self._tell(json.dumps({"ask": "drop", "label": label}), [])

    async def _tell(self, text: str, fds: list[int]) -> None:
        if self._control is None:
            raise ValueError(f"{self.name} has no control socket in the manifest")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        await self._control.sendmsg([text.encode()], rights)

    async def request(self, message: Mapping[str, object]) -> dict[str, object]:
        """Ask bay0 and wait for its answer (the development probes). Raises TimeoutError, ValueError."""
        if self._control is None:
            raise ValueError(f"{self.name} has no control socket in the manifest")
        async with self._asking:
            await self._control.send(json.dumps(message).encode())
            with trio.move_on_after(CONTROL_DEADLINE_S):
                return await self._answers_out.receive()
            raise TimeoutError("bay0 did not answer")

    async def _beat(self) -> None:
        while True:
            self.beat()
            await trio.sleep(until_beat_ns(time.monotonic_ns(), self.heartbeat_ms) / 1e9)

    async def _hear(self) -> None:
        """Read bay0's datagrams: its words go to told(), its answers to request()."""
        fd = self.fds.get("control")
        if fd is None:
            return
        self._control = trio.socket.from_stdlib_socket(socket.socket(fileno=os.dup(fd)))
        while datagram := await self._control.recv(CONTROL_BYTES_MAX):
            message = cast(dict[str, object], json.loads(datagram))
            if isinstance(word := message.get("tell"), str):
                await self._words_in.send(word)
            else:
                await self._answers_in.send(message)
        raise BayZeroGone("control socket closed")

    async def _stop_on_signal(self, scope: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                scope.cancel()

    async def live(self, main: Callable[[Spine], Awaitable[None]]) -> None:
        """Run the organ's main until it ends, fails, or SIGTERM asks it to stop."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat)
            nursery.start_soon(self._hear)
            nursery.start_soon(self._stop_on_signal, nursery.cancel_scope)
            if self._publisher is not None:
                nursery.start_soon(self._publisher.run)
            await nursery.start(self.bus.run)
            await main(self)
            raise RuntimeError(f"{self.name}: main returned; an organ serves until it is stopped")


def exit_code(error: BaseException) -> int:
    """Which of the documented codes an ending by this exception has."""
    if isinstance(error, BaseExceptionGroup):
        codes = {exit_code(inner) for inner in error.exceptions}
        return codes.pop() if len(codes) == 1 else EXIT_DEFECT
    if isinstance(error, BadData):
        return layout.EXIT_DATA
    return EXIT_KERNEL if isinstance(error, OSError) else EXIT_DEFECT


def _sentences(error: BaseException) -> list[str]:
    """What an ending by bad data says of them."""
    if isinstance(error, BaseExceptionGroup):
        return [sentence for inner in error.exceptions for sentence in _sentences(inner)]
    return [str(error)]


def run(name: str, generation: int, fds: Mapping[str, int], bad: str = "") -> NoReturn:
    """The life of one organ, from its dropped powers to its exit code. `name` is a stanza of the manifest."""
    code = EXIT_STOPPED
    try:
        manifest = _manifest()
        program = importlib.import_module(f"organs.{name}.organ")
        if manifest.organs[name].bus:
            spine = Spine(name, generation, fds, manifest.spine.heartbeat_ms, bad)
            trio.run(spine.live, cast(Program, program).main)
        else:
            cast(QuietProgram, program).main(Place(name, generation, fds, manifest.spine.heartbeat_ms))
            raise RuntimeError(f"{name}: main returned; a program serves until it is stopped")
    except BaseException as error:  # the last frame of the process: name the ending, then end
        code = exit_code(error)
        print(f"{name}: ends with {code}", file=sys.stderr)
        traceback.print_exc()
        if code == layout.EXIT_DATA:
            # Last, and in one line: bay0 hands it to the incarnation that it starts without the data.
            print(f"{name}: {' '.join('; '.join(_sentences(error)).split())}", file=sys.stderr)
    sys.stderr.flush()
    # Not sys.exit: this is a forked child, and the zygote's exit handlers are not its own.
    os._exit(code)
