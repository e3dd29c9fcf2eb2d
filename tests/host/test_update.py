"""`./spine update`: what a person sees of it without a running spine, and what it asks of one."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest

from bus.envelope import Code, Failure
from organs.integrity.update import VERSION, Refusal
from spine import cli, paths
from spine.errors import Exit, SpineError
from spine.ground.port import Port, PortFailure
from spine.image import update
from spine.progress import Progress
from spine.verbs import update as verb
from tests.image.test_update import check, packed


@pytest.fixture(autouse=True)
def _host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A state of the test's own, and the key that the test's slots are signed with."""
    import sys

    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(verb, "_verify", check)


def spine(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(["update", *words])
    seen = capsys.readouterr()
    return code, seen.out, seen.err


def test_show_says_what_a_file_brings(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "new.update"
    file.write_bytes(packed())
    code, out, _ = spine(capsys, "show", str(file))
    assert (code, out[:34]) == (Exit.OK, "Alpine-Spine 2, production image, ")
    code, out, _ = spine(capsys, "show", str(file), "--json")
    assert json.loads(out) == {
        "version": "2",
        "image": "production",
        "slotBytes": len(packed()) - update.HEAD_BYTES,
    }


def test_each_bad_file_is_three_lines(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = packed()
    middle = bytearray(data)
    middle[-1] ^= 1
    unsigned = bytearray(data)
    unsigned[120] ^= 1
    bad = {
        "truncated": data[:-4096],
        "malformed": b"x" + data[1:],
        "altered": bytes(middle),
        "unsigned": bytes(unsigned),
        "too large": data + bytes(update.FILE_BYTES_MAX),
    }
    for kind, content in bad.items():
        file = tmp_path / "bad.update"
        file.write_bytes(content)
        code, out, err = spine(capsys, "show", str(file))
        assert (code, out) == (Exit.REFUSED, "")
        assert err.startswith(f"spine: {file} is refused: {kind}\n  why: ")
        assert err.count("\n") == 3
        code, out, _ = spine(capsys, "show", str(file), "--json")
        assert json.loads(out)["error"]["code"] == kind.replace(" ", "-")
    assert spine(capsys, "show", str(tmp_path / "absent"))[0] == Exit.NO_SUCH_THING


def test_without_a_spine_nothing_is_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert spine(capsys, "apply", str(tmp_path / "absent"))[0] == Exit.NO_SUCH_THING


@pytest.mark.parametrize("version", ["", "1..2", "v1", "01", "1.2.3.4.5", "1 "])
def test_what_is_no_version_is_not_built(capsys: pytest.CaptureFixture[str], version: str) -> None:
    assert verb.VERSION.pattern == VERSION.pattern, "what the spine takes"
    assert spine(capsys, "make", "--version", version)[0] == Exit.USAGE


def test_another_version_changes_one_line() -> None:
    project = (paths.ROOT / "pyproject.toml").read_bytes()
    changed = verb.other_version(project, "9.8.7")
    before, after = (tomllib.loads(text.decode()) for text in (project, changed))
    assert after["project"].pop("version") == "9.8.7"
    assert before["project"].pop("version") != "9.8.7"
    assert before == after
    lines = zip(project.splitlines(), changed.splitlines(), strict=True)
    assert sum(one != other for one, other in lines) == 1


class Spoken:
    """A port that answers as it is told to, and keeps what it was asked."""

    def __init__(self, failing: str = "", failure: Failure | None = None, times: int = 1) -> None:
        self.asked: list[tuple[str, Mapping[str, object]]] = []
        self._failing, self._failure, self._times = failing, failure, times

    def call(self, name: str, params: Mapping[str, object]) -> dict[str, object]:
        self.asked.append((name, params))
        if name == self._failing and self._failure is not None and self._times:
            self._times -= 1
            raise PortFailure(name, self._failure)
        return {"ticket": 7, "slot": "b", "version": "2"}


def sent(port: Spoken) -> Mapping[str, object]:
    found = update.unpack(packed(), check)
    return verb.send(cast(Port, port), found.block, found.slot, Progress())


def test_it_is_sent_whole_and_in_order() -> None:
    port = Spoken()
    assert sent(port) == {"ticket": 7, "slot": "b", "version": "2"}
    found = update.unpack(packed(), check)
    begun, *pieces, commit = port.asked
    assert begun == ("integrity.beginUpdate", {"manifest": found.block, "bytes": len(found.slot)})
    assert commit == ("integrity.commitUpdate", {"ticket": 7, "reboot": False})
    whole = b""
    for name, params in pieces:
        data = params["data"]
        assert isinstance(data, bytes)
        assert (name, params["ticket"], params["offset"]) == ("integrity.updateChunk", 7, len(whole))
        assert 1 <= len(data) <= verb.CHUNK_BYTES
        whole += data
    assert whole == found.slot


@pytest.mark.parametrize("kind", list(Refusal))
@pytest.mark.parametrize("at", ["integrity.beginUpdate", "integrity.commitUpdate"])
def test_each_refusal_of_the_spine_has_what_helps(kind: Refusal, at: str) -> None:
    port = Spoken(at, Failure(Code.REFUSED, f"{kind.value}: because"))
    with pytest.raises(SpineError) as caught:
        sent(port)
    assert caught.value.exit_code == Exit.REFUSED
    assert caught.value.why == "because"
    assert caught.value.what.endswith(kind.value)
    given_up = ("integrity.abandonUpdate", {"ticket": 7}) in port.asked
    assert given_up == (at == "integrity.commitUpdate")


def test_who_is_busy_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "ASK_S", 0.0)
    port = Spoken("integrity.beginUpdate", Failure(Code.BUSY, "the slots are still being read"), times=3)
    assert sent(port)["slot"] == "b"
    assert [name for name, _ in port.asked].count("integrity.beginUpdate") == 4
    monkeypatch.setattr(verb, "BUSY_S", 0.0)
    with pytest.raises(PortFailure, match="BUSY"):
        sent(Spoken("integrity.beginUpdate", Failure(Code.BUSY, "for ever"), times=10**9))


def test_another_failure_is_told_as_it_is() -> None:
    port = Spoken(
        "integrity.updateChunk", Failure(Code.NOT_FOUND, "no such update is under way; begin again")
    )
    with pytest.raises(PortFailure) as caught:
        sent(port)
    assert caught.value.exit_code == Exit.NO_SUCH_THING
    assert port.asked[-1] == ("integrity.abandonUpdate", {"ticket": 7})


def test_the_starts_that_failed_are_counted() -> None:
    boot = b"BdsDxe: starting Boot0001\r\n[    0.000000] Linux version 6.12\r\n"
    panic = b"spine: panic: gate died 4 times without a healthy stretch between\r\n"
    console = (
        b"[   91.0] reboot: Restarting system\r\n"
        + (boot + panic) * 3
        + boot
        + b"spine: stage ready 9000\r\n"
    )
    assert verb.failures(console) == (3, "gate died 4 times without a healthy stretch between")
    killed = b"[    3.1] Kernel panic - not syncing: Attempted to kill init!\r\n"
    assert verb.failures((boot + killed) * 2 + boot) == (2, "Attempted to kill init!")
    assert verb.failures(boot) == (0, "")
