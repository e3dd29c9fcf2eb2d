"""Power: restart, power off, the watchdog, the power button.

Touches: reboot(2), /dev/watchdog, /dev/input, /sys/class/input.
Never: decides when. A watchdog that is not there is None, not an error.
Fails: KernelError from reboot(2), which returns only when it failed.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Final

from organs.kernel import _libc

_RESTART: Final = 0x0123_4567
_POWER_OFF: Final = 0x4321_FEDC
_CAD_OFF: Final = 0

# struct input_event on 64 bit: two longs of time, type, code, value.
_EVENT: Final = struct.Struct("=qqHHi")
_EV_KEY: Final = 1
_KEY_POWER: Final = 116
_EVENTS_MAX: Final = 64


def restart() -> None:
    """Restart the machine now. Raises KernelError when the kernel refuses."""
    # Safe: a constant of the ABI by value; nothing is pointed to.
    os.sync()
    _libc.check(_libc.reboot(_signed(_RESTART)), "restart")


def power_off() -> None:
    """Power the machine off now. Raises KernelError when the kernel refuses."""
    os.sync()
    _libc.check(_libc.reboot(_signed(_POWER_OFF)), "power off")


def ignore_three_keys() -> None:
    """Control-Alt-Delete becomes a signal to PID 1 instead of an immediate restart. Raises KernelError."""
    _libc.check(_libc.reboot(_CAD_OFF), "take over ctrl-alt-del")


def _signed(number: int) -> int:
    return number - 2**32 if number >= 2**31 else number


class Watchdog:
    """/dev/watchdog: resets the machine unless it is fed. Opening it arms it, and nothing disarms it.

    The kernel is built with NOWAYOUT: also an orderly end that hangs on its last steps is reset.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def open(cls) -> Watchdog | None:
        """Arm the watchdog, or None when the machine has none that we can have."""
        try:
            return cls(os.open("/dev/watchdog", os.O_WRONLY | os.O_CLOEXEC))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.EBUSY):
                return None
            raise

    def feed(self) -> None:
        """Not yet."""
        os.write(self._fd, b"\0")


def open_buttons() -> list[int]:
    """Non-blocking descriptors of every power button the kernel knows."""
    root, found = "/sys/class/input", []
    names = sorted(os.listdir(root)) if os.path.isdir(root) else []
    for event in names:
        try:
            with open(f"{root}/{event}/device/name", encoding="utf-8", errors="replace") as file:
                if event.startswith("event") and file.read().strip() == "Power Button":
                    found.append(os.open(f"/dev/input/{event}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except FileNotFoundError:
            continue  # the kernel's name without its node, or a device without a name
    return found


def pressed(button: int) -> bool:
    """Read what a button has to say; whether it was pressed."""
    try:
        data = os.read(button, _EVENT.size * _EVENTS_MAX)
    except BlockingIOError:
        return False
    whole = len(data) - len(data) % _EVENT.size
    return any(
        (kind, code, value) == (_EV_KEY, _KEY_POWER, 1)
        for _, _, kind, code, value in _EVENT.iter_unpack(data[:whole])
    )
