"""The release key is made once, kept private, and refused when it is not."""

from pathlib import Path

import pytest

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


@pytest.mark.proves("INV-IMAGE-5")
def test_a_key_others_can_read_is_refused(data: Path) -> None:
    keys.release_key()
    (data / keys.FILE).chmod(0o644)
    with pytest.raises(SpineError, match="not private") as caught:
        keys.release_key()
    assert caught.value.exit_code == Exit.REFUSED


def test_a_file_that_is_no_key_is_refused(data: Path) -> None:
    keys.release_key()
    (data / keys.FILE).write_bytes(b"nonsense")
    with pytest.raises(SpineError, match="cannot be used"):
        keys.release_key()


def test_signatures(data: Path) -> None:
    key = keys.release_key()
    keys.check(keys.public_bytes(key), key.sign(b"release"), b"release")
    with pytest.raises(slot.SlotError):
        keys.check(keys.public_bytes(key), key.sign(b"release"), b"other")
    assert data.is_dir()
