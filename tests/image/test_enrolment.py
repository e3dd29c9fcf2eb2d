"""What a firmware is told of the keys: lists it can read, changes it can check."""

import struct
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from spine.image import enrolment, keys
from spine.image.keys import BootKey, Role

SECRETS = {role: rsa.generate_private_key(65537, 2048) for role in Role}
KEYS = {role: BootKey(role, secret, keys.certificate(role, secret)) for role, secret in SECRETS.items()}


def test_every_key_has_its_three_files_and_they_stay_the_same() -> None:
    files = enrolment.exported(KEYS)
    assert sorted(files) == sorted(f"{role.value}.{kind}" for role in Role for kind in ("auth", "cer", "esl"))
    assert files == enrolment.exported(KEYS)


@pytest.mark.parametrize("role", Role)
def test_a_list_holds_one_certificate(role: Role) -> None:
    data = enrolment.signature_list(KEYS[role].certificate)
    kind, size, header, entry = struct.unpack_from("<16sIII", data)
    assert kind.hex() == "a159c0a5e494a74a87b5ab155c2bf072"
    assert (size, header, entry) == (len(data), 0, len(data) - 28)
    assert data[28 + 16 :] == KEYS[role].der


# Who may change a variable (UEFI specification, 32.3): PK itself and KEK, KEK db.
SIGNERS = {Role.PK: Role.PK, Role.KEK: Role.PK, Role.DB: Role.KEK}


@pytest.mark.parametrize("role", Role)
def test_openssl_takes_a_change_from_its_signer_and_from_nobody_else(role: Role, tmp_path: Path) -> None:
    data = enrolment.exported(KEYS)[f"{role.value}.auth"]
    # A date without any of its smaller parts (UEFI specification, 8.2.2).
    year, month, day = struct.unpack_from("<HBB", data)
    assert (year, month, day) == (2026, 1, 1)
    assert not any(data[4:16])
    length, revision, kind = struct.unpack_from("<IHH", data, 16)
    assert (revision, kind) == (0x0200, 0x0EF1)
    signature, wanted = data[16 + 24 : 16 + length], data[16 + length :]
    assert wanted == enrolment.signature_list(KEYS[role].certificate)
    vendor = "cbb219d73a3d9645a3bcdad00e67656f" if role is Role.DB else "61dfe48bca93d211aa0d00e098032b8c"
    message = role.value.encode("utf-16-le") + bytes.fromhex(vendor) + struct.pack("<I", 0x27) + data[:16]
    (tmp_path / "message").write_bytes(message + wanted)
    # openssl wants the wrapping that a firmware does not.
    from spine.image import der

    (tmp_path / "signature").write_bytes(der.wrapped(signature))
    for signer in Role:
        (tmp_path / "certificate").write_bytes(KEYS[signer].der)
        done = subprocess.run(
            [
                *("openssl", "smime", "-verify", "-binary", "-inform", "DER", "-in", "signature"),
                *("-content", "message", "-certfile", "certificate", "-nointern", "-noverify"),
            ],
            cwd=tmp_path,
            capture_output=True,
            check=False,
        )
        assert (done.returncode == 0) == (signer is SIGNERS[role]), done.stderr
