"""Turns the picture QEMU takes of the screen (PPM) into PNG.

Pure. QEMU 7.2 can write PNG by itself but swaps red and blue; PPM it writes right.
"""

import re
import struct
import zlib


def png(ppm: bytes) -> bytes:
    """A PNG file of the same picture. ValueError when `ppm` is not a binary 8-bit RGB PPM."""
    # Exactly one byte of white space stands between the header and the pixels.
    header = re.match(rb"P6\s+(\d{1,5})\s+(\d{1,5})\s+255\s", ppm)
    if header is None:
        raise ValueError("not a binary PPM with 8 bits a colour")
    width, height, pixels = int(header[1]), int(header[2]), ppm[header.end() :]
    if not width or not height or len(pixels) != width * height * 3:
        raise ValueError("the pixels of the PPM are not all there")
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
