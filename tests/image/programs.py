"""Small UEFI programs to take apart."""

import struct

HEADERS = 0x400
# With all sixteen directories, the signature's among them.
OPTIONAL = 240


def stub(count: int = 1, headers: int = HEADERS, symbols: bytes = b"") -> bytes:
    """A small 64-bit PE program with `count` sections of one page each, and a symbol table behind them."""
    coff = 0x80
    out = bytearray(headers)
    out[:2] = b"MZ"
    struct.pack_into("<I", out, 0x3C, coff)
    at = headers + 512 * count if symbols else 0
    struct.pack_into("<4sHHIIIHH", out, coff, b"PE\0\0", 0x8664, count, 0, at, 0, OPTIONAL, 0)
    optional = coff + 24
    struct.pack_into("<H", out, optional, 0x20B)
    struct.pack_into("<II", out, optional + 32, 4096, 512)
    struct.pack_into("<II", out, optional + 56, 4096 * (count + 1), headers)
    struct.pack_into("<I", out, optional + 108, 16)
    for index in range(count):
        row = struct.pack(
            "<8sIIIIIIHHI", b".text", 10, 4096 * (index + 1), 512, len(out), 0, 0, 0, 0, 0x60000020
        )
        out[optional + OPTIONAL + index * 40 : optional + OPTIONAL + index * 40 + 40] = row
        out += b"x" * 512
    return bytes(out) + symbols
