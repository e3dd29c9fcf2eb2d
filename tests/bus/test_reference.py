"""The reference in docs is what the schemas say, whole, and nothing else."""

from __future__ import annotations

from pathlib import Path

from bus import reference
from tests.bus import wiring

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs/reference"


def test_the_committed_pages_are_what_the_schemas_say() -> None:
    written = reference.written_from(ROOT / "schemas", ROOT / "organs/manifest.toml")
    committed = {path.name: path.read_text() for path in PAGES.glob("*.md")}
    differing = sorted(
        name for name in written.keys() | committed.keys() if written.get(name) != committed.get(name)
    )
    assert not differing, f"docs/reference is old in {', '.join(differing)}; renew it: {reference.RENEW}"


def test_the_page_says_which_way_descriptors_go() -> None:
    text = reference.pages(wiring.schemas("courier"))["courier.md"]
    methods = {part.split("\n")[0]: part for part in text.split("## courier.")[1:]}
    assert "| descriptors | with the call |" in methods["read"]
    assert "| descriptors | with the answer |" in methods["open"]
    assert "| descriptors | with the call and the answer |" in methods["swap"]
    assert "descriptors |" not in methods["plain"]


def test_the_page_says_who_hears_an_event() -> None:
    text = reference.pages(wiring.schemas("herald"))["herald.md"]
    assert "## herald.changed (event)\n\n`(key: UInt32, value: Text, password: Data)`" in text
    assert "| heard by | alpha, beta |" in text
    assert "- `password`, Data, left out of recordings" in text


def test_every_method_and_field_is_on_its_page() -> None:
    schemas = wiring.schemas()
    pages = reference.pages(schemas)
    for name, interface in schemas.interfaces.items():
        text = pages[f"{name}.md"]
        for method in interface.methods.values():
            assert f"## {name}.{method.name}\n" in text
            assert f"| deadline | {method.deadline_ms} ms |" in text
            for field in (*method.params, *method.results):
                assert f"- `{field.name}`, {field.type}" in text
