"""The compiler of schemas: what it writes, and that each rule refuses the schema that breaks it and no other.

A file in bad/ breaks one rule; its first line says at which line and with which message it is refused.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bus.compile import SchemaRefused, compile_schemas
from tests.bus.wiring import HERE, ROOT

BAD = sorted((HERE / "bad").glob("*.capnp"))
MANIFEST = HERE / "good/manifest.toml"


def folder(tmp_path: Path, **files: str) -> Path:
    """A folder of schemas: the annotations, and each file given."""
    source = tmp_path / "schemas"
    source.mkdir()
    shutil.copy(ROOT / "schemas/spine.capnp", source)
    for name, text in files.items():
        (source / f"{name}.capnp").write_text(text)
    return source


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_a_broken_rule_is_refused_with_its_line(path: Path, tmp_path: Path) -> None:
    expected = re.search(r"# refused: (\d+): (.*)", path.read_text().splitlines()[0])
    assert expected is not None
    source = folder(tmp_path, echo=path.read_text())
    with pytest.raises(SchemaRefused) as caught:
        compile_schemas(source, MANIFEST, tmp_path / "out")
    refused = caught.value
    assert (refused.file, refused.line) == ("echo.capnp", int(expected[1]))
    # capnp's own messages may end in advice that is new each time; the file gives the beginning then.
    beginning = expected[2].removesuffix("...").split()
    assert refused.rule.split()[: len(beginning)] == beginning
    assert expected[2].endswith("...") or refused.rule.split() == beginning
    assert str(refused) == f"echo.capnp:{expected[1]}: {refused.rule}"
    assert not (tmp_path / "out").exists()


@pytest.mark.proves("INV-BUILD-1")
@pytest.mark.parametrize("name", ["caller", "callee"])
def test_a_stanza_without_the_bus_is_nobody_here(tmp_path: Path, name: str) -> None:
    manifest = tmp_path / "manifest.toml"
    quiet = {"caller": "[organs.alpha]\nbus = false", "callee": "[organs.echo]\nbus = false"}[name]
    manifest.write_text(MANIFEST.read_text().replace(quiet.split("\n")[0], quiet))
    text = interface("Echo", 1, '  say @0 () -> () $callers(["alpha"]) $deadlineMs(5);')
    with pytest.raises(SchemaRefused, match="no organ of"):
        compile_schemas(folder(tmp_path, echo=text), manifest, tmp_path / "out")


def interface(name: str, id_: int, methods: str, port: str = "") -> str:
    return f"""@{0xC1D5B2A90F3E7700 + id_:#x};
using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".hostPort;
interface {name} {port} {{
{methods}
}}
"""


def method(name: str, ordinal: int, *callers: str) -> str:
    return f"  {name} @{ordinal} () -> () $callers({json.dumps(callers)}) $deadlineMs(1);"


def test_a_circle_of_calls_is_refused(tmp_path: Path) -> None:
    source = folder(
        tmp_path,
        alpha=interface("Alpha", 1, method("a", 0, "beta") + "\n" + method("b", 1, "echo")),
        beta=interface("Beta", 2, method("a", 0, "echo")),
        echo=interface("Echo", 3, method("a", 0, "alpha")),
    )
    with pytest.raises(SchemaRefused, match="calls go in a circle: alpha -> echo -> alpha"):
        compile_schemas(source, MANIFEST, tmp_path / "out")
    (source / "alpha.capnp").write_text(interface("Alpha", 1, method("a", 0, "beta")))
    with pytest.raises(SchemaRefused) as caught:
        compile_schemas(source, MANIFEST, tmp_path / "out")
    assert caught.value.rule.endswith("calls go in a circle: alpha -> echo -> beta -> alpha")
    (source / "echo.capnp").write_text(interface("Echo", 3, ""))
    compile_schemas(source, MANIFEST, tmp_path / "out")


def test_calls_that_meet_again_are_no_circle(tmp_path: Path) -> None:
    source = folder(
        tmp_path,
        beta=interface("Beta", 2, method("a", 0, "alpha")),
        echo=interface("Echo", 3, method("a", 0, "alpha", "beta")),
    )
    compile_schemas(source, MANIFEST, tmp_path / "out")
    assert json.loads((tmp_path / "out/switchboard.json").read_text()) == {
        "fds": [],
        "pairs": [["beta", "alpha"], ["echo", "alpha"], ["echo", "beta"]],
    }


def test_a_pair_that_passes_descriptors_has_a_second_socket(tmp_path: Path) -> None:
    """alpha may call methods that carry some, beta only one that carries none."""
    source = folder(tmp_path, courier=(HERE / "good/courier.capnp").read_text())
    compile_schemas(source, MANIFEST, tmp_path / "out")
    assert json.loads((tmp_path / "out/switchboard.json").read_text()) == {
        "fds": [["courier", "alpha"]],
        "pairs": [["courier", "alpha"], ["courier", "beta"]],
    }


def test_who_only_hears_has_a_socket_and_makes_no_circle(tmp_path: Path) -> None:
    """beta calls alpha, and hears it; alpha hears beta."""
    event = '  news @1 () -> () $callers(["{}"]) $event;'
    head = 'using import "spine.capnp".event;\n'

    def both(name: str, id_: int, heard_by: str, *callers: str) -> str:
        methods = (method("a", 0, *callers) + "\n" if callers else "") + event.format(heard_by)
        text = interface(name, id_, methods if callers else methods.replace("@1", "@0"))
        return text.replace("interface", head + "interface")

    source = folder(
        tmp_path,
        alpha=both("Alpha", 1, "beta", "beta"),
        beta=both("Beta", 2, "alpha"),
        echo=interface("Echo", 3, ""),
    )
    compile_schemas(source, MANIFEST, tmp_path / "out")
    assert json.loads((tmp_path / "out/switchboard.json").read_text()) == {
        "fds": [],
        "pairs": [["alpha", "beta"], ["beta", "alpha"]],
    }


def test_the_host_calls_one_interface_and_needs_no_socket(tmp_path: Path) -> None:
    source = folder(tmp_path, echo=interface("Echo", 3, method("a", 0, "host"), "$hostPort"))
    compile_schemas(source, MANIFEST, tmp_path / "out")
    assert json.loads((tmp_path / "out/switchboard.json").read_text()) == {"fds": [], "pairs": []}
    (source / "beta.capnp").write_text(interface("Beta", 2, method("a", 0, "host"), "$hostPort"))
    with pytest.raises(SchemaRefused) as caught:
        compile_schemas(source, MANIFEST, tmp_path / "out")
    assert str(caught.value) == "echo.capnp:5: echo: $hostPort is already on beta"


def test_the_same_schemas_give_the_same_bytes_wherever_they_lie(tmp_path: Path) -> None:
    text = (HERE / "good/echo.capnp").read_text()
    outs = []
    for place in ("one", "a/longer/place"):
        (tmp_path / place).mkdir(parents=True)
        out = tmp_path / place / "out"
        compile_schemas(folder(tmp_path / place, echo=text), MANIFEST, out)
        outs.append([(out / name).read_bytes() for name in ("schemas.cgr", "switchboard.json")])
    assert outs[0] == outs[1]


def test_a_manifest_without_organs_or_with_a_bad_name_is_refused(tmp_path: Path) -> None:
    source = folder(tmp_path, echo=(HERE / "good/echo.capnp").read_text())
    manifest = tmp_path / "manifest.toml"
    for text in ("[spine]\n", "[organs.host]\n", "[organs.Gate]\n", f"[organs.{'a' * 33}]\n"):
        manifest.write_text(text)
        with pytest.raises(SchemaRefused) as caught:
            compile_schemas(source, manifest, tmp_path / "out")
        assert caught.value.file == str(manifest)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemaRefused, match="there is no schema here"):
        compile_schemas(tmp_path, MANIFEST, tmp_path / "out")


def test_the_command_line(tmp_path: Path) -> None:
    source = folder(tmp_path, echo=(HERE / "bad/deadline_zero.capnp").read_text())

    def run(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "bus.compile", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stderr

    refused = run(str(source), str(MANIFEST), str(tmp_path / "out"))
    assert refused == (1, "echo.capnp:7: echo.a: $deadlineMs is missing or 0\n")
    assert run()[0] == 2
    (source / "echo.capnp").unlink()
    assert run(str(source), str(MANIFEST), str(tmp_path / "out")) == (0, "")
