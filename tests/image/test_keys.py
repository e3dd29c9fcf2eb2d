"""The keys are made once, kept private, and refused when they are not."""

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from spine.errors import Exit, SpineError
from spine.image import keys, slot


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path / "alpine-spine" / "keys"


def test_made_once_and_private(data: Path) -> None:
    first, second = keys.release_key(), keys.release_key()
    assert keys.public_bytes(first) == keys.public_bytes(second)
    assert data.stat().st_mode & 0o777 == 0o700
    [file] = data.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_personas_have_a_key_of_their_own(data: Path) -> None:
    release, persona = keys.release_key(), keys.persona_key()
    assert keys.public_bytes(release) != keys.public_bytes(persona)
    assert keys.public_bytes(persona) == keys.public_bytes(keys.persona_key())
    assert {file.name: file.stat().st_mode & 0o777 for file in data.iterdir()} == {
        "release.key": 0o600,
        "persona.key": 0o600,
    }


BOTH = [
    (keys.release_key, keys.FILE),
    (keys.persona_key, keys.PERSONA_FILE),
    (lambda: keys.boot_key(keys.Role.DB), keys.Role.DB.file),
]


@pytest.mark.proves("INV-IMAGE-5")
@pytest.mark.parametrize(("take", "file"), BOTH)
def test_a_key_others_can_read_is_refused(data: Path, take: Callable[[], object], file: str) -> None:
    take()
    (data / file).chmod(0o644)
    with pytest.raises(SpineError, match="not private") as caught:
        take()
    assert caught.value.exit_code == Exit.REFUSED


@pytest.mark.parametrize(("take", "file"), BOTH)
def test_a_file_that_is_no_key_is_refused(data: Path, take: Callable[[], object], file: str) -> None:
    take()
    (data / file).write_bytes(b"nonsense")
    with pytest.raises(SpineError, match="cannot be used"):
        take()


def test_the_keys_of_secure_boot_are_three_and_their_certificates_follow_from_them(data: Path) -> None:
    first = {role: keys.boot_key(role) for role in keys.Role}
    assert len({key.der for key in first.values()}) == 3
    assert {role: keys.boot_key(role).der for role in keys.Role} == {
        role: key.der for role, key in first.items()
    }
    assert {file.name: file.stat().st_mode & 0o777 for file in data.iterdir()} == {
        "secure-boot-PK.key": 0o600,
        "secure-boot-KEK.key": 0o600,
        "secure-boot-db.key": 0o600,
    }


def test_a_key_of_another_kind_or_length_is_refused(data: Path) -> None:
    keys.boot_key(keys.Role.DB)
    keys.release_key()
    small = rsa.generate_private_key(65537, 1024).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for text in (small, (data / keys.FILE).read_bytes()):
        (data / keys.Role.DB.file).write_bytes(text)
        with pytest.raises(SpineError, match="cannot be used"):
            keys.boot_key(keys.Role.DB)
    (data / keys.FILE).write_bytes(small)
    with pytest.raises(SpineError, match="cannot be used"):
        keys.release_key()


def test_signatures(data: Path) -> None:
    key = keys.release_key()
    keys.check(keys.public_bytes(key), key.sign(b"release"), b"release")
    with pytest.raises(slot.SlotError):
        keys.check(keys.public_bytes(key), key.sign(b"release"), b"other")
    assert data.is_dir()
