"""Turns the picture QEMU takes of the screen (PPM) into PNG.

Pure. QEMU 7.2 can write PNG by itself but swaps red and blue; PPM it writes right.
"""

import struct
import zlib


def png(ppm: bytes) -> bytes:
    """A PNG file of the same picture. ValueError when `ppm` is not a binary 8-bit RGB PPM."""
    parts = ppm.split(maxsplit=4)
    if len(parts) < 4 or parts[0] != b"P6" or parts[3][:3] != b"255":
        raise ValueError("not a binary PPM with 8 bits a colour")
    width, height = int(parts[1]), int(parts[2])
    # Exactly one byte of white space stands between the header and the pixels.
    pixels = ppm[len(ppm) - width * height * 3 :]
    header = ppm[: len(ppm) - len(pixels)]
    if width <= 0 or height <= 0 or not header.strip().endswith(b"255"):
        raise ValueError("the pixels of the PPM are cut short")
    stride = width * 3
    rows = b"".join(b"\0" + pixels[at : at + stride] for at in range(0, len(pixels), stride))
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + _chunk(b"IDAT", zlib.compress(rows))
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
