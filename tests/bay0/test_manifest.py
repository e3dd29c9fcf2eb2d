"""The manifest: the real one is read, and each rule has a file that breaks only it.

The first line of a bad file is `# refused: line N: ` and what the refusal must say.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from organs import layout, manifest
from organs.manifest import Image, ManifestRefused, decode, load

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT / "organs/manifest.toml"
BAD = sorted((Path(__file__).parent / "bad").glob("*.toml"))


@pytest.mark.parametrize("path", BAD, ids=[path.stem for path in BAD])
def test_each_rule_refuses(path: Path) -> None:
    text = path.read_text()
    expected = re.match(r"# refused: line (\d+): (.*)\n", text)
    assert expected
    with pytest.raises(ManifestRefused) as refused:
        decode(text)
    assert refused.value.line == int(expected[1])
    assert f"manifest line {expected[1]}: {expected[2]}" in str(refused.value)


def test_the_real_manifest() -> None:
    real = load(str(REAL))
    assert list(real.organs) == [
        "gate",
        "integrity",
        "netroom",
        "freezer",
        "builder",
        "umbilical",
        "operator",
    ]
    gate, integrity, netroom, freezer, builder, umbilical, operator = real.organs.values()
    assert (freezer.subtree, umbilical.subtree) == ("rooms", None)
    assert [m.at for m in gate.mounts] == ["/persist"]
    assert gate.control is None
    assert integrity.control
    assert [d.openings() for d in integrity.devices if d.name == layout.PERSONAS] == [
        {"device:personas": "rw", "device:personas:ro": "ro"}
    ]
    assert integrity.control.told == {"healthy"}
    assert operator.image is Image.DEVELOPMENT
    assert netroom.networks == {"parking"}
    powers = {name: organ.capabilities for name, organ in real.organs.items() if organ.capabilities}
    root = {"SYS_ADMIN", "MKNOD", "SETUID", "SETGID", "DAC_OVERRIDE"}
    assert powers == {"netroom": {"NET_ADMIN"}, "builder": root}
    assert (builder.uid, builder.pair) == (0, "freezer")
    assert all(organ.bus and organ.uid > 0 for organ in real.organs.values() if organ is not builder)
    assert gate.memory_max == 96 * 1024**2


def test_the_real_manifest_without_development() -> None:
    """Stanzas stand alone: the production image's manifest is this one with a stanza cut out."""
    text = REAL.read_text()
    start = text.index("[organs.operator]")
    assert list(decode(text[:start]).organs) == [
        "gate",
        "integrity",
        "netroom",
        "freezer",
        "builder",
        "umbilical",
    ]


@pytest.mark.proves("INV-TIME-1")
def test_no_stanza_may_set_the_clock_and_one_may_ask() -> None:
    for never in (manifest.CAPABILITIES_NEVER, manifest.CAPABILITIES_NEVER_ALONE):
        assert "SYS_TIME" in never
    asking = [o.name for o in load(str(REAL)).organs.values() if o.control and "time" in o.control.asks]
    assert asking == ["netroom"]


def test_no_organ_may_hold_what_opens_every_socket() -> None:
    assert set(manifest.CAPABILITIES) > manifest.CAPABILITIES_NEVER
    assert len(set(manifest.CAPABILITIES)) == len(manifest.CAPABILITIES) == 41


@given(st.text(max_size=200))
def test_any_text_is_refused_with_a_line(text: str) -> None:
    with pytest.raises(ManifestRefused):
        decode(text)


LINES = REAL.read_text().splitlines()


@given(st.integers(0, len(LINES) - 1), st.integers(0, len(LINES) - 1))
def test_shuffled_lines_never_end_in_another_error(one: int, other: int) -> None:
    lines = list(LINES)
    lines[one], lines[other] = lines[other], lines[one]
    with contextlib.suppress(ManifestRefused):
        decode("\n".join(lines))


@pytest.mark.proves("INV-TAP-3")
def test_only_an_organ_of_the_development_image_may_tap() -> None:
    text = REAL.read_text()
    assert [organ.name for organ in load(str(REAL)).organs.values() if organ.taps] == ["operator"]
    stanza = text.index("[organs.operator]")
    in_production = text[:stanza] + text[stanza:].replace('"development"', '"production"', 1)
    with pytest.raises(ManifestRefused):
        decode(in_production)
