"""Whether an Ed25519 signature is right (RFC 8032), in plain integers.

Pure: bytes in, a yes or no out. Only public values pass through it, so that its time depends on them does not
matter.
Never: signs, holds a secret, accepts two encodings of one signature: S is below the group's order, points are
encoded canonically, and a key of small order, under which anything is signed, is refused.
Fails: it does not; whatever the bytes are, the answer is False.
"""

from __future__ import annotations

from hashlib import sha512
from typing import Final

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64

_P: Final = 2**255 - 19
_ORDER: Final = 2**252 + 27742317777372353535851937790883648493
_D: Final = -121665 * pow(121666, -1, _P) % _P
_2D: Final = 2 * _D % _P
_ROOT_OF_MINUS_ONE: Final = pow(2, (_P - 1) // 4, _P)

# Extended coordinates: x = X/Z, y = Y/Z, XY = ZT.
_Point = tuple[int, int, int, int]
_NEUTRAL: Final[_Point] = (0, 1, 1, 0)


def _add(p: _Point, q: _Point) -> _Point:
    a = (p[1] - p[0]) * (q[1] - q[0]) % _P
    b = (p[1] + p[0]) * (q[1] + q[0]) % _P
    c = p[3] * q[3] % _P * _2D % _P
    d = 2 * p[2] * q[2]
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _double(p: _Point) -> _Point:
    a, b = p[0] * p[0], p[1] * p[1]
    h, g = a + b, a - b
    e = (h - (p[0] + p[1]) ** 2) % _P
    f = (2 * p[2] * p[2] + g) % _P
    g, h = g % _P, h % _P
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _minus(p: _Point) -> _Point:
    return -p[0] % _P, p[1], p[2], -p[3] % _P


def _combined(m: int, p: _Point, n: int, q: _Point) -> _Point:
    """m times p and n times q. Both are doubled as one, which is most of the work."""
    what = _NEUTRAL, p, q, _add(p, q)
    total = _NEUTRAL
    for bit in reversed(range(max(m, n).bit_length())):
        total = _double(total)
        if which := (m >> bit & 1) + 2 * (n >> bit & 1):
            total = _add(total, what[which])
    return total


def _same(p: _Point, q: _Point) -> bool:
    return (p[0] * q[2] - q[0] * p[2]) % _P == 0 and (p[1] * q[2] - q[1] * p[2]) % _P == 0


def _point(encoded: bytes) -> _Point | None:
    """The point, or None when the bytes are not the one encoding of a point."""
    number = int.from_bytes(encoded, "little")
    sign, y = number >> 255, number & (1 << 255) - 1
    if y >= _P:
        return None
    square = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if (x * x - square) % _P:
        x = x * _ROOT_OF_MINUS_ONE % _P
    if (x * x - square) % _P or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = _P - x
    return x, y, 1, x * y % _P


def _base() -> _Point:
    point = _point((4 * pow(5, -1, _P) % _P).to_bytes(32, "little"))
    assert point is not None
    return point


_BASE: Final = _base()


def _is_small(point: _Point) -> bool:
    """Whether eight times the point is nothing."""
    return _same(_double(_double(_double(point))), _NEUTRAL)


def right(key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether `signature` (64 bytes) over `message` is that of the public `key` (32 bytes)."""
    if len(key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    public, nonce = _point(key), _point(signature[:32])
    scalar = int.from_bytes(signature[32:], "little")
    if public is None or nonce is None or scalar >= _ORDER or _is_small(public):
        return False
    challenge = int.from_bytes(sha512(signature[:32] + key + message).digest(), "little") % _ORDER
    return _same(_combined(scalar, _BASE, challenge, _minus(public)), nonce)
