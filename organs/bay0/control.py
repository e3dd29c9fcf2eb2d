"""Control: what an organ may ask of bay0, read from one datagram.

Pure but for reading JSON. An organ's stanza says which words it may use; everything else is Refused.
Never: performs; believes a name or a number it does not know.
Fails: never. Each datagram has one of three meanings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

DATAGRAM_BYTES_MAX: Final = 4096
POWER_WORDS: Final = frozenset({"reboot", "poweroff"})
# The named acts of a development image. There is no probe that runs what it is sent.
PROBES: Final = frozenset({"kill", "pss", "write-root", "process", "settings"})
# What "process" may be asked of besides the children.
BAY0: Final = "bay0"
# What an organ may leave with bay0 for its next incarnation. The label says to it what the descriptor is.
KEEP, DROP = "keep", "drop"
# The one word about the clock, and the furthest future that fits every clock in milliseconds.
TIME: Final = "time"
BOOTED_MS_MAX: Final = 1 << 48
LABEL: Final = re.compile(r"[a-z][a-z0-9.@-]{0,47}")
# SIGKILL, SIGSTOP, SIGCONT: an organ that crashes, hangs, comes back.
SIGNALS: Final = frozenset({9, 19, 18})


@dataclass(frozen=True, slots=True)
class Power:
    """End the machine in order: "reboot" or "poweroff"."""

    word: str


@dataclass(frozen=True, slots=True)
class Probe:
    """One of the named acts of a development image; `target` and `signal` where the act takes them."""

    act: str
    target: str
    signal: int


@dataclass(frozen=True, slots=True)
class Keep:
    """Keep the descriptor beside the datagram under this label, in the place of an earlier one."""

    label: str


@dataclass(frozen=True, slots=True)
class Drop:
    """Close what is kept under this label, if anything is."""

    label: str


@dataclass(frozen=True, slots=True)
class Time:
    """A network says that the machine booted then, in milliseconds since 1970."""

    booted_ms: int


@dataclass(frozen=True, slots=True)
class Refused:
    """Not a thing this organ may ask, and why."""

    reason: str


def decode(
    datagram: bytes, asks: Collection[str], children: Collection[str], *, development: bool
) -> Power | Probe | Keep | Drop | Time | Refused:
    """What an organ with the granted words `asks` wants."""
    try:
        message: object = json.loads(datagram)
    except (ValueError, RecursionError):
        return Refused("not JSON")
    if not isinstance(message, dict) or not isinstance(word := message.get("ask"), str):
        return Refused('not {"ask": ...}')
    if word in POWER_WORDS:
        return Power(word) if word in asks else Refused(f"{word} is not granted")  # INV-REAP-4
    if word in (KEEP, DROP):
        return _kept(word, message.get("label"), asks)
    if word == TIME:
        return _time(message.get("bootedMs"), asks)
    if word not in PROBES:
        return Refused("there is no such word")
    if not development or "probe" not in asks:
        return Refused("probes are not granted")
    target, number = message.get("name", ""), message.get("signal", 0)
    if not isinstance(target, str) or type(number) is not int:
        return Refused("name must be a text and signal a number")
    if word == "kill" and target not in children:
        return Refused("there is no such child")
    if word == "process" and target not in {BAY0, *children}:
        return Refused("there is no such process")
    if word == "kill" and number not in SIGNALS:
        return Refused(f"the signal must be one of {', '.join(map(str, sorted(SIGNALS)))}")
    return Probe(word, target, number)


def _kept(word: str, label: object, asks: Collection[str]) -> Keep | Drop | Refused:
    if KEEP not in asks:
        return Refused(f"{word} is not granted")  # INV-REAP-4
    if not isinstance(label, str) or not LABEL.fullmatch(label):
        return Refused("the label must be 1 to 48 lower case letters, digits and .@-")
    return Keep(label) if word == KEEP else Drop(label)


def _time(booted_ms: object, asks: Collection[str]) -> Time | Refused:
    if TIME not in asks:
        return Refused("time is not granted")  # INV-REAP-4
    if type(booted_ms) is not int or not 0 <= booted_ms <= BOOTED_MS_MAX:
        return Refused("bootedMs must be milliseconds since 1970")
    return Time(booted_ms)


def encode(message: Mapping[str, object]) -> bytes:
    """A datagram of bay0's: an answer or a word. What is too long is answered with an error instead."""
    datagram = json.dumps(message).encode()
    if len(datagram) > DATAGRAM_BYTES_MAX:
        return json.dumps({"error": "the answer is too long"}).encode()
    return datagram
