"""A booted spine as the integration tests see it, and how they wait for something to happen."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from spine import paths
from spine.errors import SpineError
from spine.ground.container import Container
from spine.ground.port import Port
from spine.ground.qemu import Machine

POLL_S = 0.05
# Far above what any wait here needs on a machine that is merely slow.
PATIENCE_S = 240.0


def within(what: str, look: Callable[[], object], limit_s: float = PATIENCE_S) -> None:
    """Look until it is true, or fail saying what did not happen."""
    end = time.monotonic() + limit_s
    while not look():
        assert time.monotonic() < end, f"{what}: not within {limit_s:.0f} s"
        time.sleep(POLL_S)


def spine(*words: str, code: int = 0, stdin: bytes | None = None, limit_s: float = 900) -> bytes:
    """Run ./spine as a person does; its standard output. Asserts the exit code."""
    done = subprocess.run(
        [paths.ROOT / "spine", *words], capture_output=True, input=stdin, check=False, timeout=limit_s
    )
    said = (done.stdout + done.stderr).decode(errors="replace")
    assert done.returncode == code, f"./spine {' '.join(words)}: {done.returncode}\n{said}"
    return done.stdout


@dataclass
class Live:
    """A booted spine."""

    kind: str
    ground: Machine | Container

    def port(self) -> Port:
        """A connection of its own."""
        return self.ground.port()

    def call(self, name: str, /, **params: object) -> dict[str, object]:
        """One call over a fresh connection."""
        with self.port() as port:
            return port.call(name, params)

    def probe(self, name: str, organ: str = "", signal: int = 0) -> object:
        """One of the development image's named probes."""
        answer = self.call("operator.probe", name=name, organ=organ, signal=signal)
        return json.loads(str(answer["json"]))

    def table(self) -> dict[str, dict[str, object]]:
        """The organs and the zygote by name: state, pid, generation, deaths."""
        status = json.loads(str(self.call("operator.status")["json"]))["organs"]
        return {**status["organs"], "zygote": status["zygote"]}

    def boot_facts(self) -> dict[str, object]:
        """What bay0 says of this boot."""
        return dict(json.loads(str(self.call("operator.status")["json"]))["organs"]["boot"])

    def restarted(self, name: str, before: Mapping[str, object]) -> bool:
        """Whether the next incarnation is there and ready."""
        try:
            now = self.table()[name]
        except SpineError:
            return False  # the operator itself may be the one that restarts
        return now["state"] == "ready" and now["generation"] == int(str(before["generation"])) + 1
