"""`doctor`: one line for each thing, a verdict for the whole, nothing changed."""

import json
import re
from pathlib import Path

import pytest

from spine import cli, paths
from spine.ground import accel
from spine.verbs import doctor
from spine.verbs.doctor import FAIL, PASS, SKIP, WARN, Finding

ROOT = Path(__file__).resolve().parents[2]
FINE = {"system": PASS, "python": PASS, "space": WARN, "machine": PASS, "container": SKIP, "kvm": WARN}


@pytest.mark.parametrize(
    ("change", "able"),
    [
        ({}, True),
        ({"machine": WARN}, True),
        ({"machine": FAIL}, False),
        ({"machine": FAIL, "container": WARN}, True),
        ({"machine": FAIL, "container": PASS}, True),
        ({"machine": FAIL, "container": FAIL}, False),
        ({"python": FAIL}, False),
        ({"system": FAIL}, False),
        ({"space": FAIL, "container": PASS}, False),
        ({"kvm": FAIL}, True),
    ],
)
def test_the_whole_fails_only_when_nothing_can_run(change: dict[str, str], able: bool) -> None:
    findings = {name: Finding(verdict, name, "") for name, verdict in {**FINE, **change}.items()}
    assert doctor.usable(findings) is able


def test_the_packages_are_the_launchers() -> None:
    text = (ROOT / "spine").read_text(encoding="utf-8")
    groups = doctor.package_groups(text)
    assert set(groups) == {"base", "talk", "build", "boot", "test"}
    assert "qemu-system-x86" in groups["boot"]
    assert "binutils" in groups["build"]
    # Every group is used by the launcher.
    assert all(f"${name}_packages" in text for name in groups)


def test_it_looks_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("CACHE", "STATE", "DATA"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
    # The guest takes seconds where KVM hangs; it has a test of its own.
    monkeypatch.setattr(accel, "kvm", lambda again: accel.Verdict(again, "not tried"))
    code = cli.main(["doctor", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is (code == 0)
    assert [row["name"] for row in told["checks"]][:3] == ["system", "python", "packages"]
    assert all(row.keys() == {"verdict", "name", "text", "fix"} for row in told["checks"])
    assert {row["verdict"] for row in told["checks"]} <= {PASS, WARN, FAIL, SKIP}
    assert list(tmp_path.iterdir()) == []
    assert cli.main(["doctor"]) == code
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert len(lines) == len(told["checks"])
    assert all(re.match(r"(PASS|WARN|FAIL|SKIP)  \w+ +\S", line) for line in lines)


def test_keys_that_others_may_read_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert doctor.keys().verdict == SKIP
    directory = paths.data() / "keys"
    directory.mkdir(parents=True, mode=0o700)
    (directory / "release.key").touch(mode=0o600)
    assert doctor.keys().verdict == PASS
    (directory / "release.key").chmod(0o640)
    found = doctor.keys()
    assert found.verdict == WARN
    assert str(directory / "release.key") in found.fix
