"""The SNTP codec: what a client says, byte for byte; any answer is read strictly or is garbled."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from organs.netroom import sntp
from organs.netroom.sntp import Garbled, Kiss, Reply, Times

NONCE = bytes(range(8))
# 2026-01-01, and 1970, as timestamps count.
NEW_YEAR_S, EPOCH_S = 1767225600, 2208988800


def stamp(unix_s: float) -> bytes:
    """A timestamp."""
    whole = int(unix_s // 1)
    return struct.pack(">II", (whole + EPOCH_S) % 2**32, int((unix_s - whole) * 2**32))


def short(seconds: float) -> bytes:
    """A root delay or dispersion."""
    return struct.pack(">i", int(seconds * 65536))


def answer(**changed: object) -> bytes:
    """A good answer of a server, with some fields changed. Its own writer, not the module's."""
    fields: dict[str, object] = {
        "leap": 0,
        "version": 4,
        "mode": 4,
        "stratum": 2,
        "delay": short(0.02),
        "dispersion": short(0.01),
        "reference": b"\x0a\x00\x00\x01",
        "set_at": stamp(NEW_YEAR_S - 60),
        "nonce": NONCE,
        "heard": stamp(NEW_YEAR_S),
        "answered": stamp(NEW_YEAR_S + 0.25),
    }
    assert changed.keys() <= fields.keys()
    fields |= changed
    leap, version, mode, stratum = (fields[name] for name in ("leap", "version", "mode", "stratum"))
    assert isinstance(leap, int)
    assert isinstance(version, int)
    assert isinstance(mode, int)
    assert isinstance(stratum, int)
    text = bytes([leap << 6 | version << 3 | mode, stratum, 6, 0xEC])
    for name in ("delay", "dispersion", "reference", "set_at", "nonce", "heard", "answered"):
        part = fields[name]
        assert isinstance(part, bytes)
        text += part
    return text


@pytest.mark.proves("INV-TIME-5")
@given(st.binary(min_size=8, max_size=8))
def test_a_question_is_its_number_and_nothing_else(nonce: bytes) -> None:
    assert sntp.encode(nonce) == b"\x23" + bytes(39) + nonce


def test_a_good_answer() -> None:
    said = Times(NEW_YEAR_S * 1_000_000, NEW_YEAR_S * 1_000_000 + 250_000)
    assert sntp.decode(answer()) == Reply(NONCE, said)
    assert sntp.decode(answer(version=3, leap=1, stratum=15, set_at=bytes(8))) == Reply(NONCE, said)


@pytest.mark.parametrize(
    "changed",
    [
        {"mode": 3},
        {"mode": 5},
        {"version": 2},
        {"version": 5},
        {"leap": 3},
        {"stratum": 16},
        {"stratum": 255},
        {"delay": short(2.1)},
        {"delay": short(-0.01)},
        {"dispersion": short(1.0)},
        {"delay": short(1.2), "dispersion": short(0.5)},
        {"heard": bytes(8)},
        {"answered": bytes(8)},
        {"answered": stamp(NEW_YEAR_S - 0.25)},
        {"answered": stamp(NEW_YEAR_S + 1.5)},
        {"set_at": stamp(NEW_YEAR_S + 60)},
    ],
    ids=str,
)
def test_what_is_wrong_with_an_answer(changed: dict[str, object]) -> None:
    with pytest.raises(Garbled):
        sntp.decode(answer(**changed))


@pytest.mark.parametrize(
    ("code", "kiss"),
    [
        (b"RATE", Kiss.RATE),
        (b"DENY", Kiss.DENY),
        (b"RSTR", Kiss.DENY),
        (b"INIT", Kiss.OTHER),
        (b"\0\0\0\0", Kiss.OTHER),
        (b"\xff" * 4, Kiss.OTHER),
    ],
)
def test_a_kiss_is_heard_whatever_else_stands_there(code: bytes, kiss: Kiss) -> None:
    for leap in (0, 3):
        said = sntp.decode(answer(stratum=0, leap=leap, reference=code, heard=bytes(8), answered=bytes(8)))
        assert said == Reply(NONCE, kiss)


@pytest.mark.parametrize("size", [0, 1, 47, 49, 68, 1500])
def test_an_answer_has_one_length(size: int) -> None:
    with pytest.raises(Garbled, match=rf"^{size} bytes$"):
        sntp.decode(answer().ljust(size, b"\0")[:size])


@given(st.binary(max_size=60) | st.binary(min_size=48, max_size=48))
def test_any_bytes_are_an_answer_or_garbled(datagram: bytes) -> None:
    with contextlib.suppress(Garbled):
        reply = sntp.decode(datagram)
        assert reply.nonce == datagram[24:32]
        if isinstance(reply.said, Times):
            assert 1 <= datagram[1] <= 15
            assert 0 <= reply.said.answered_us - reply.said.heard_us <= sntp.HELD_US_MAX


@given(st.binary(min_size=48, max_size=48), st.integers(0, 47), st.integers(0, 255))
def test_any_byte_of_a_good_answer_changed(noise: bytes, at: int, value: int) -> None:
    text = answer()
    with contextlib.suppress(Garbled):
        reply = sntp.decode(text[:at] + bytes([value]) + text[at + 1 :])
        assert isinstance(reply.said, Times | Kiss)
    with contextlib.suppress(Garbled):
        sntp.decode(text[:at] + noise[at:])


# From the last second that the first era's high half begins with, to the end of what a timestamp can say.
@given(st.integers(2**31 - EPOCH_S, 2**32 + 2**31 - 1 - EPOCH_S), st.integers(0, 999_999))
def test_times_are_read_over_the_turn_of_the_era(second: int, micro: int) -> None:
    fraction = -(-micro * 2**32 // 1_000_000)
    when = struct.pack(">II", (second + EPOCH_S) % 2**32, fraction)
    if not any(when):
        return  # the turn itself, to the microsecond: it cannot be told from no time
    said = sntp.decode(answer(heard=when, answered=when, set_at=bytes(8))).said
    assert said == Times(second * 1_000_000 + micro, second * 1_000_000 + micro)
