"""Signed programs: what others' tools say of them, and that no byte of one can be another.

The judges are Debian's sbverify here and the firmware itself in `tests/integration/test_secure_boot.py`.
"""

import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from spine.image import authenticode, keys, uki
from spine.image.authenticode import SignatureError
from tests.image.programs import stub

KEY, OTHER = (rsa.generate_private_key(65537, 2048) for _ in range(2))
CERTIFICATE, STRANGER = (keys.certificate(keys.Role.DB, key) for key in (KEY, OTHER))
PROGRAM = uki.append(stub(), [(".cmdline", b"quiet"), (".linux", b"kernel" * 100)])
SIGNED = authenticode.sign(PROGRAM, KEY, CERTIFICATE)


def test_the_same_program_and_key_give_the_same_bytes() -> None:
    assert authenticode.sign(PROGRAM, KEY, CERTIFICATE) == SIGNED
    authenticode.check(SIGNED, CERTIFICATE)
    assert len(SIGNED) % authenticode.ALIGN == 0


@given(st.binary(max_size=40), st.lists(st.binary(min_size=1, max_size=700), max_size=4))
def test_what_is_signed_is_the_program(symbols: bytes, datas: list[bytes]) -> None:
    program = uki.append(stub(symbols=symbols), [(".a", data) for data in datas])
    signed = authenticode.sign(program, KEY, CERTIFICATE)
    authenticode.check(signed, CERTIFICATE)
    body = authenticode.unsigned(signed)
    assert body == program + bytes(-len(program) % authenticode.ALIGN)
    assert uki.sections(signed) == uki.sections(program)


def judge(tmp_path: Path, program: bytes, certificate: object = CERTIFICATE) -> bool:
    if shutil.which("sbverify") is None:
        pytest.skip("sbverify is not installed (Debian: sbsigntool)")
    assert isinstance(certificate, type(CERTIFICATE))
    file, pem = tmp_path / "program.efi", tmp_path / "certificate.pem"
    file.write_bytes(program)
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    done = subprocess.run(["sbverify", "--cert", pem, file], capture_output=True, check=False)
    assert b"gap" not in done.stderr
    return done.returncode == 0


@pytest.mark.proves("INV-SECURE-2")
def test_sbverify_takes_it_and_nothing_else(tmp_path: Path) -> None:
    assert judge(tmp_path, SIGNED)
    assert not judge(tmp_path, SIGNED, STRANGER)
    assert not judge(tmp_path, PROGRAM)
    for at in (SIGNED.index(b"quiet"), 0x90, len(PROGRAM) - 1):
        assert not judge(tmp_path, changed(SIGNED, at)), at


def changed(program: bytes, at: int, bit: int = 0) -> bytes:
    out = bytearray(program)
    out[at] ^= 1 << bit
    return bytes(out)


# The checksum of the header: no reader of signatures looks at it.
UNSIGNED_BYTES = range(0x80 + 24 + 64, 0x80 + 24 + 68)


@pytest.mark.proves("INV-SECURE-2")
@settings(max_examples=500)
@given(st.integers(0, len(SIGNED) - 1), st.integers(0, 7))
def test_one_changed_bit_anywhere_is_seen(at: int, bit: int) -> None:
    damaged = changed(SIGNED, at, bit)
    if at in UNSIGNED_BYTES:
        authenticode.check(damaged, CERTIFICATE)
    else:
        with pytest.raises(SignatureError):
            authenticode.check(damaged, CERTIFICATE)


@given(st.integers(0, len(SIGNED)), st.binary(max_size=24))
def test_what_is_cut_or_longer_is_seen(length: int, more: bytes) -> None:
    other = SIGNED[:length] + more
    if other != SIGNED:
        with pytest.raises(SignatureError):
            authenticode.check(other, CERTIFICATE)


def test_another_key_is_seen() -> None:
    with pytest.raises(SignatureError):
        authenticode.check(SIGNED, STRANGER)
    with pytest.raises(SignatureError):
        authenticode.check(authenticode.sign(PROGRAM, OTHER, CERTIFICATE), CERTIFICATE)
    with pytest.raises(SignatureError, match="not signed"):
        authenticode.check(PROGRAM, CERTIFICATE)


def test_nothing_is_signed_twice() -> None:
    with pytest.raises(ValueError, match="already"):
        authenticode.sign(SIGNED, KEY, CERTIFICATE)


def test_a_program_with_a_gap_is_not_signed() -> None:
    # The raw offset of the second section, moved on: readers of the format would hash different bytes.
    program = bytearray(stub(2) + bytes(512))
    row = 0x80 + 24 + 240 + 40 + 20
    program[row : row + 4] = (len(program) - 512).to_bytes(4, "little")
    with pytest.raises(ValueError, match="gap"):
        authenticode.sign(bytes(program), KEY, CERTIFICATE)


@given(st.binary(max_size=1000))
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="PE"):
        authenticode.sign(data, KEY, CERTIFICATE)
    with pytest.raises(SignatureError):
        authenticode.check(data, CERTIFICATE)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 0x400 - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_headers_are_refused_or_signed_whole(damage: list[tuple[int, int]]) -> None:
    program = bytearray(PROGRAM)
    for at, value in damage:
        program[at] = value
    try:
        signed = authenticode.sign(bytes(program), KEY, CERTIFICATE)
    except ValueError:
        return
    authenticode.check(signed, CERTIFICATE)
    assert authenticode.unsigned(signed)[: len(program)] == bytes(program)
