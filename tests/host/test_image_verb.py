"""`./spine image`: the keys as a person sees them, and what an export holds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import cast

import pytest

from spine import cli, paths
from spine.errors import Exit
from spine.image import enrolment, keys, update


@pytest.fixture(autouse=True)
def _host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def document(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    assert cli.main(["image", *words, "--json"]) == Exit.OK
    return cast(dict[str, object], json.loads(capsys.readouterr().out))


def test_keys_shows_every_key_and_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    rows = cast(list[dict[str, str]], document(capsys, "keys")["keys"])
    files = [Path(row["file"]) for row in rows]
    assert sorted(files) == sorted(keys.directory().iterdir())
    assert len({row["sha256"] for row in rows}) == 5
    assert cli.main(["image", "keys"]) == Exit.OK
    shown = capsys.readouterr().out
    for row, file in zip(rows, files, strict=True):
        assert row["sha256"] in shown
        assert row["purpose"] in shown
        secret = "".join(file.read_text().splitlines()[1:-1])
        assert secret[20:60] not in shown


def test_export_writes_what_a_firmware_takes_and_nothing_secret(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    target = tmp_path / "stick"
    told = document(capsys, "keys", "--export", str(target))
    written = {path.name: path.read_bytes() for path in target.iterdir()}
    assert told["exported"] == sorted(str(path) for path in target.iterdir())
    assert written == enrolment.exported({role: keys.boot_key(role) for role in keys.Role})
    assert not any(b"PRIVATE" in data for data in written.values())
    # Once more over what is there.
    document(capsys, "keys", "--export", str(target))
    assert {path.name: path.read_bytes() for path in target.iterdir()} == written


def test_an_export_to_where_nothing_can_be_written_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["image", "keys", "--export", str(tmp_path / "file")]) == Exit.FAILED
    assert "the keys cannot be written" in capsys.readouterr().err


def test_a_word_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["image"]) == Exit.USAGE
    assert "WORD" in capsys.readouterr().err


def test_verify_says_what_is_no_image_and_what_is_not_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["image", "verify", str(tmp_path / "nothing")]) == Exit.NO_SUCH_THING
    (tmp_path / "noise").write_bytes(b"noise")
    assert cli.main(["image", "verify", str(tmp_path / "noise")]) == Exit.REFUSED
    assert "neither a disk image nor an update" in capsys.readouterr().err


def test_verify_of_a_bad_update_by_itself_is_refused_with_the_reason(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "bad.update").write_bytes(update.MAGIC + bytes(99))
    words = ["image", "verify", "--alone", str(tmp_path / "bad.update")]
    assert cli.main([*words, "--json"]) == Exit.REFUSED
    told = json.loads(capsys.readouterr().out)
    assert (told["kind"], told["rebuilt"]) == ("update", False)
    assert told["problems"]
    assert cli.main(words) == Exit.REFUSED
    assert "by itself: truncated" in capsys.readouterr().out


def test_what_cannot_be_built_anew_is_said_and_the_file_is_checked_all_the_same(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A tree from which nothing can be built.
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    (tmp_path / "spine-image").mkdir()
    (tmp_path / "spine-image/inputs.lock").write_text("nonsense = 1\n")
    (tmp_path / "bad.update").write_bytes(update.MAGIC + bytes(99))
    assert cli.main(["image", "verify", str(tmp_path / "bad.update"), "--json"]) == Exit.REFUSED
    told = json.loads(capsys.readouterr().out)
    assert told["rebuilt"] is False
    assert "inputs.lock" in told["why"]
