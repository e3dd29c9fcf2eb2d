"""Keeps both pairs of slot and boot volume as they should be: looks, has it decided, does one step, looks
again.

What is done is decided in `organs/integrity/slots.py`; how a pair is written stands in
`organs/integrity/replace.py`, how a counter is set in `organs/integrity/patch.py`. An update comes in here
too.

Touches: the four devices by the descriptors it was handed. One lock is held over every write to any of them.
Never: acts before the boot was called healthy; does the same thing to a pair more often than ATTEMPTS_MAX in
one life, so that a device which forgets what was written to it is not written for ever.
Fails: it does not; a device that refuses is said in the log and in the answer of `slots`, and the machine
goes on with what it has.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

import trio

from organs.integrity import patch, rearm, replace
from organs.integrity.fat import BadVolume, entries
from organs.integrity.replace import NotReplaced, Progress, Source, Target
from organs.integrity.slots import Act, Facts, Plan, Standing, Step, Update, decide, may_install, target
from organs.integrity.survey import BOOTS, NAMES, SLOTS, Checked, Say, Survey

T = TypeVar("T")

# A try that fails may be a device that had a bad moment; a second one is not.
ATTEMPTS_MAX: Final = 2

_SAID: Final = {
    Standing.BLESSED: "blessed: both pairs are verified, hold the same release and have all tries",
    Standing.UPDATE: "the other pair holds an update that was not started yet",
    Standing.LOST: "lost: there is no verified slot to go on with; nothing is written and no tries are given",
    Standing.NONE: "healthy; there are no slots here",
    Standing.IRREPLACEABLE: "irreplaceable: a pair is not as it should be and cannot be written",
}


def set_counter(fd: int, letter: str, state: tuple[int, int]) -> str:
    """Set the slot's counter on its boot volume; a sentence about what was done or why nothing was.

    Raises BadVolume, patch.Unpatchable, patch.NotWritten, OSError.
    """
    found = entries(lambda offset, length: os.pread(fd, length, offset))
    decided = rearm.decide([entry.name for entry in found], letter, state)
    if isinstance(decided, rearm.Nothing):
        return decided.reason
    patch.apply(fd, found, decided)  # INV-SLOT-1
    return ", ".join(
        f"{found[change.index].name} is now {patch.new_name(found[change.index], change)}"
        for change in decided
    )


class Pairs:
    """Both pairs. `running` is the slot that runs, empty where there is none; `leave` asks for a reboot."""

    def __init__(self, survey: Survey, running: str, say: Say, leave: Callable[[], None]) -> None:
        self.survey = survey
        self._running = running
        self._say = say
        self._leave = leave
        self._healthy = self._leaving = False
        self._attempts: Counter[tuple[Act, str]] = Counter()
        self._writing = trio.Lock()
        self._changed = trio.Event()
        self._progress = Progress()
        self._plan = Plan(Standing.WAITING)
        self._report = ""

    def healthy(self) -> None:
        """bay0 called the boot healthy."""
        self._healthy = True
        self._wake()

    def facts(self) -> Facts:
        """All that is decided from, as it is now."""
        a, b = (
            self.survey.pair(letter, failed=any(self._attempts[act, letter] >= ATTEMPTS_MAX for act in Act))
            for letter in SLOTS
        )
        return Facts(self._running, self._healthy, a, b, self.survey.order(), self._leaving)

    def answer(self) -> dict[str, object]:
        """Where things stand, as `integrity.slots` answers it."""
        plan = decide(self.facts())
        return {
            "blessed": plan.standing is Standing.BLESSED,
            "lost": plan.standing is Standing.LOST,
            "standing": plan.standing.value,
            "update": plan.update.value,
            "replacing": self._progress.name,
            "writtenBytes": self._progress.done,
            "totalBytes": self._progress.total,
            "report": self._report,
        }

    async def run(self) -> None:
        """Read everything, then keep it. Never returns."""
        async with trio.open_nursery() as nursery:
            for name in NAMES:
                nursery.start_soon(self._look, name)
            nursery.start_soon(self._keep)

    async def install(self, source: Source) -> str:
        """Write an update to the pair that does not run; the pair's letter. Raises NotReplaced.

        The caller has compared its version with `running_version`.
        """
        async with self._writing:
            facts = self.facts()
            if refused := may_install(facts):
                raise NotReplaced(refused)
            letter = target(facts)
            # What the device refused before, it is asked again for this.
            for act in Act:
                del self._attempts[act, letter]
            await self._write_pair(letter, source)
            self._tell(f"slot-{letter} and boot-{letter} hold version {source.release.version} now")
        self._wake()
        return letter

    def running_version(self) -> str | None:
        """The version that all is held against; None while it is not known."""
        own = decide(self.facts()).own
        release = self.survey.release(own) if own else None
        return release.version if release else None

    @property
    def key(self) -> bytes:
        """The key that slots are signed with; empty where there is none."""
        return self.survey.key

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _tell(self, sentence: str) -> None:
        self._report = sentence
        self._say(sentence)

    async def _look(self, name: str) -> None:
        await self.survey.look(name, self._say)
        self._wake()

    async def _keep(self) -> None:
        while True:
            changed = self._changed
            async with self._writing:
                plan = decide(self.facts())
                if plan.step is not None:
                    await self._do(plan.step)
            if plan.step is None:
                self._stand(plan)
                await changed.wait()

    def _stand(self, plan: Plan) -> None:
        """Say once where things stand."""
        if plan.standing is not self._plan.standing and plan.standing in _SAID:
            self._say(_SAID[plan.standing])
        self._plan = plan

    async def _do(self, step: Step) -> None:
        """One step, and a look at what became of it."""
        if decide(self.facts()).update is Update.FAILED and step.act is Act.REPLACE:
            self._tell(f"the update in slot-{step.pair} used up its tries")
        try:
            if step.act is Act.REBOOT:
                self._leaving = True
                self._tell(f"slot-{self._running} is bad: asking for a restart into slot-{step.pair}")
                self._leave()
                return
            if step.act in (Act.ARM, Act.DISARM):
                state = rearm.ARMED if step.act is Act.ARM else rearm.DISARMED
                fd = self.survey.fd(BOOTS[step.pair])
                assert fd is not None, "what has no device is not decided to be written"
                try:
                    self._tell(await self._thread(partial(set_counter, fd, step.pair, state)))
                finally:
                    await self.survey.look(BOOTS[step.pair], self._say)
            elif step.act is Act.REPLACE:
                self._tell(f"replacing slot-{step.pair} and boot-{step.pair} from slot-{step.source}")
                source = await self._source(step.source)
                await self._write_pair(step.pair, source)
                self._tell(f"replaced slot-{step.pair} and boot-{step.pair} from slot-{step.source}")
            else:
                await self._write_boot(step)
        except (BadVolume, patch.Unpatchable, patch.NotWritten, NotReplaced, OSError) as error:
            self._tell(f"unable to {step.act.value} {step.pair}: {error}")
        finally:
            self._attempts[step.act, step.pair] += 1

    async def _source(self, letter: str) -> Source:
        """The slot, read and verified once more. Raises NotReplaced."""
        fd = self.survey.fd(SLOTS[letter])
        assert fd is not None, "what has no device is not verified"
        try:
            return await self._thread(partial(replace.device, fd, self.key))
        except NotReplaced:
            # It was verified when it was last read.
            await self.survey.look(SLOTS[letter], self._say)
            raise

    async def _write_pair(self, letter: str, source: Source) -> None:
        self.survey.forget(letter)
        self._progress = Progress()
        try:
            write = partial(replace.pair, self._target(letter), source, self._progress)
            checked: Checked = await self._thread(write)
            self.survey.settle(letter, checked, self._say)
        except NotReplaced:
            await self.survey.look(SLOTS[letter], self._say)
            raise
        finally:
            self._progress = Progress()
            await self.survey.look(BOOTS[letter], self._say)

    async def _write_boot(self, step: Step) -> None:
        name = BOOTS[step.pair]
        fd = self.survey.fd(name)
        assert fd is not None, "what has no device is not decided to be written"
        self._progress = Progress()
        try:
            if step.act is Act.WIPE_BOOT:
                await self._thread(partial(replace.wipe_boot_volume, name, fd, self._progress))
                self._tell(f"wiped {name}")
                return
            self._tell(f"replacing {name} from slot-{step.source}")
            source = await self._source(step.source)
            await self._thread(partial(replace.boot_volume, step.pair, fd, source, self._progress))
            self._tell(f"replaced {name} from slot-{step.source}")
        finally:
            self._progress = Progress()
            await self.survey.look(name, self._say)

    def _target(self, letter: str) -> Target:
        slot, boot = self.survey.fd(SLOTS[letter]), self.survey.fd(BOOTS[letter])
        assert slot is not None, "what has no device is not decided to be written"
        assert boot is not None, "what has no device is not decided to be written"
        return Target(letter, slot, boot)

    async def _thread(self, act: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(act, abandon_on_cancel=True)
