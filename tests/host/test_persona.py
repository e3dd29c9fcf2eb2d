"""`./spine persona`: what a person sees of it without a running spine, and what it asks of one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest

from bus.envelope import Code, Failure
from organs.persona import Refusal
from spine import cli, paths
from spine.errors import Exit, SpineError
from spine.ground.port import Port, PortFailure
from spine.image import keys
from spine.persona import recipe
from spine.verbs import persona as verb

WORDS = ("new", "build", "sign", "verify", "inspect", "list", "install", "remove", "start", "stop", "log")


@pytest.fixture(autouse=True)
def _host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keys, state and personas of the test's own; downloads and packed files are those of the host."""
    import sys

    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    root = tmp_path / "tree"
    shutil.copytree(paths.ROOT / "personas", root / "personas")
    (root / "spine-image").mkdir()
    shutil.copy(paths.ROOT / "spine-image/inputs.lock", root / "spine-image/inputs.lock")
    monkeypatch.setattr(paths, "ROOT", root)


def spine(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(["persona", *words])
    seen = capsys.readouterr()
    return code, seen.out, seen.err


def document(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    code, out, _ = spine(capsys, *words, "--json")
    assert code == Exit.OK, out
    return cast(dict[str, object], json.loads(out))


@pytest.mark.parametrize("word", WORDS)
def test_each_word_has_help(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["persona", word, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: ./spine persona {word}" in shown
    assert "--json" in shown


def test_from_new_to_an_image_that_is_verified(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = spine(capsys, "new", "grandpa")
    assert (code, "personas/grandpa/persona.toml" in out) == (0, True)
    made = recipe.load("grandpa")
    assert (made.grants, made.autostart, made.network.use, made.version) == (frozenset(), False, False, 1)
    assert "#" in (recipe.directory("grandpa") / recipe.FILE).read_text(), "the comments come along"
    built = document(capsys, "build", "grandpa")
    assert built["path"] == str(paths.out() / "grandpa.persona")
    verified = document(capsys, "verify", "grandpa")
    assert (verified["name"], verified["signature"]) == ("grandpa", "verified")
    assert verified["keyId"] == built["keyId"]
    # A second one of the same name does not take its place.
    code, _, err = spine(capsys, "new", "grandpa")
    assert (code, "is there already" in err) == (Exit.REFUSED, True)


def test_inspect_shows_what_it_may_like_a_phone(capsys: pytest.CaptureFixture[str]) -> None:
    spine(capsys, "build", "courier")
    code, out, err = spine(capsys, "inspect", "courier")
    assert (code, err) == (0, "")
    assert out.startswith("courier 3: ")
    for part in (
        "verified, signed with a trusted key",
        "may call anybody; may be called on TCP 8080",
        "64 MiB of memory, 64 processes",
        "passing the focus to another persona",
        "stands still until it comes back",
    ):
        assert part in out
    shown = document(capsys, "inspect", "courier")
    assert shown["network"] == {"use": True, "inbound": [8080]}
    assert shown["signature"] == "verified"


def test_an_image_that_is_not_ours(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tmp_path / "theirs.persona"
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("XDG_DATA_HOME", str(tmp_path / "other"))
        spine(capsys, "build", "linda")
        shutil.move(paths.out() / "linda.persona", theirs)
        key = keys.public_bytes(keys.persona_key()).hex()
    code, _, err = spine(capsys, "verify", str(theirs))
    assert (code, err.splitlines()[0]) == (
        Exit.REFUSED,
        f"spine: the persona {theirs} is refused: foreign key",
    )
    assert document(capsys, "verify", str(theirs), "--key", key)["signature"] == "verified"
    assert document(capsys, "inspect", str(theirs))["signature"] == "foreign key"
    assert "NOT VERIFIED: foreign key" in spine(capsys, "inspect", str(theirs))[1]
    signed = document(capsys, "sign", str(theirs))
    assert signed["name"] == "linda"
    assert document(capsys, "verify", str(theirs))["signature"] == "verified"


def test_what_is_wrong_with_an_image_is_named_and_it_is_not_signed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    spine(capsys, "build", "linda")
    good = (paths.out() / "linda.persona").read_bytes()
    for data, kind in (
        (good[:1000] + b"\xff" + good[1001:], "altered"),
        (good[:-4096], "truncated"),
        (b"", "truncated"),
    ):
        file = tmp_path / "x.persona"
        file.write_bytes(data)
        for word in ("verify", "sign"):
            code, out, err = spine(capsys, word, str(file))
            assert (code, out) == (Exit.REFUSED, "")
            assert f"is refused: {kind}" in err
        assert file.read_bytes() == data


def test_a_bad_recipe_is_told_with_file_line_and_key(capsys: pytest.CaptureFixture[str]) -> None:
    file = recipe.directory("linda") / recipe.FILE
    text = file.read_text()
    line = text.count("\n") + 3
    file.write_text(text + '\n# one more\n"/dev/sda" = "x"\n')
    code, out, err = spine(capsys, "build", "linda")
    assert (code, out) == (Exit.REFUSED, "")
    assert err.startswith(f"spine: personas/linda/persona.toml:{line}: links./dev/sda: lies in /dev")
    assert len(err.splitlines()) == 3


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["new", "Linda"], Exit.USAGE),
        (["new", "../x"], Exit.USAGE),
        (["build", "nobody"], Exit.NO_SUCH_THING),
        (["build", "../linda"], Exit.USAGE),
        (["inspect", "linda"], Exit.NO_SUCH_THING),
        (["verify", "none.persona"], Exit.NO_SUCH_THING),
        (["install", "nobody"], Exit.NO_SUCH_THING),
        (["install", "./none"], Exit.NO_SUCH_THING),
        (["verify", "x.persona", "--key", "zz"], Exit.NO_SUCH_THING),
        (["log", "linda", "-f", "--json"], Exit.USAGE),
        (["log", "LINDA"], Exit.USAGE),
        (["start", "linda"], Exit.NO_SUCH_THING),
        (["stop", "linda"], Exit.NO_SUCH_THING),
        (["remove", "linda"], Exit.NO_SUCH_THING),
        ([], Exit.USAGE),
        (["dance"], Exit.USAGE),
    ],
)
def test_each_no_has_its_exit_code(words: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["persona", *words]) == code
    seen = capsys.readouterr()
    said = json.loads(seen.out)["error"] if "--json" in words else {"fix": seen.err.splitlines()[-1]}
    assert said["fix"]


def test_list_without_a_spine(capsys: pytest.CaptureFixture[str]) -> None:
    spine(capsys, "build", "linda")
    listed = document(capsys, "list")
    assert listed["running"] is False
    rows = cast(list[dict[str, object]], listed["personas"])
    assert {"name": "linda", "recipe": True, "built": True, "installed": None} in rows
    assert {"name": "courier", "recipe": True, "built": False, "installed": None} in rows
    assert "no spine runs" in spine(capsys, "list")[1]


class Remembers:
    """The other end of a port: keeps what was asked, and fails at one method when told to."""

    def __init__(self, fails_at: str = "", error: SpineError | None = None) -> None:
        self.asked: list[tuple[str, Mapping[str, object]]] = []
        self._fails_at = fails_at
        self._error = error or SpineError("no", "because", "try", Exit.REFUSED)

    def call(self, method: str, params: Mapping[str, object]) -> dict[str, object]:
        self.asked.append((method, params))
        if method == self._fails_at:
            raise self._error
        return {"ticket": 7, "persona": {"name": "linda", "version": 1, "keyId": "00"}}


def test_an_image_travels_in_chunks() -> None:
    data = bytes(range(256)) * (verb.CHUNK_BYTES * 5 // 2 // 256)
    port = Remembers()
    assert verb.send(cast(Port, port), data, "linda")["name"] == "linda"
    assert port.asked[0] == ("integrity.beginInstall", {"bytes": len(data)})
    assert port.asked[-1] == ("integrity.commit", {"ticket": 7})
    chunks = [params for method, params in port.asked if method == "integrity.chunk"]
    assert b"".join(cast(bytes, chunk["data"]) for chunk in chunks) == data
    assert [chunk["offset"] for chunk in chunks] == [0, verb.CHUNK_BYTES, 2 * verb.CHUNK_BYTES]


@pytest.mark.parametrize("method", ["integrity.chunk", "integrity.commit"])
def test_half_an_image_is_given_up(method: str) -> None:
    port = Remembers(method)
    with pytest.raises(SpineError, match="no"):
        verb.send(cast(Port, port), b"x" * 100, "linda")
    assert port.asked[-1] == ("integrity.abandon", {"ticket": 7})


@pytest.mark.parametrize("kind", Refusal)
def test_each_refusal_of_the_spine_says_what_helps(kind: Refusal) -> None:
    failure = Failure(Code.REFUSED, f"{kind.value}: manifest: it is so")
    port = Remembers("integrity.commit", PortFailure("integrity.commit", failure))
    with pytest.raises(SpineError) as refused:
        verb.send(cast(Port, port), b"x" * 100, "linda")
    error = refused.value
    assert error.what == f"the spine refuses the persona linda: {kind.value}"
    assert (error.why, error.exit_code) == ("manifest: it is so", Exit.REFUSED)
    assert error.fix.partition("persona")[1]
    assert "NAME" not in error.fix


def test_another_failure_of_the_spine_is_told_as_it_is() -> None:
    failure = PortFailure("integrity.commit", Failure(Code.CORRUPT, "the device cannot be read"))
    with pytest.raises(PortFailure) as raised:
        verb.send(cast(Port, Remembers("integrity.commit", failure)), b"x", "linda")
    assert raised.value is failure
