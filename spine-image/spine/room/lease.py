"""The operator's port, held for a while at a time, so that other ./spine commands get their turn.

A machine's port has one client at a time, and a program or a console may last for hours.
"""

import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spine.ground.container import Container
    from spine.ground.port import Port
    from spine.ground.qemu import Machine

HELD_S = 0.5
# Others look for the port's lock more often than this.
LEFT_S = 0.05


class Lease:
    """`port()` gives a connection that is never older than `HELD_S`. Use as a context manager."""

    def __init__(self, ground: "Machine | Container") -> None:
        self._ground = ground
        self._port: Port | None = None
        self._since = 0.0

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def port(self) -> "Port":
        """A connection to the operator's port. SpineError."""
        if self._port is not None and time.monotonic() - self._since > HELD_S:
            self._leave()
            time.sleep(LEFT_S)
        if self._port is None:
            self._port = self._ground.port()
            self._since = time.monotonic()
        return self._port

    def _leave(self) -> None:
        if self._port is not None:
            self._port.close()
            self._port = None
