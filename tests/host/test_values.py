"""Words of the command line into values: each is a value or a told error; bytes stay what they were."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.wire import Field, Type
from spine import values
from spine.errors import Exit, SpineError
from spine.ground import port as ports


def kind(name: str, **more: object) -> Type:
    return Type(name, name.capitalize(), **more)  # type: ignore[arg-type]  # the caller knows the fields


def field(name: str, type_: Type) -> Field:
    return Field(name, type_, secret=False, doc="")


SIMPLE = [
    "text",
    "data",
    "bool",
    "void",
    "float64",
    *(f"{s}int{b}" for s in ("", "u") for b in (8, 16, 32, 64)),
]
FIELDS = [field(name, kind(name)) for name in SIMPLE] + [
    field("enum", kind("enum", names=("red", "green"))),
    field("list", kind("list", element=kind("data"))),
]

words = st.text(st.characters(exclude_categories=()), max_size=20)


@given(word=words, name=st.sampled_from([*SIMPLE, "enum", "list"]))
def test_any_word_is_a_value_or_told(word: str, name: str) -> None:
    chosen = [one for one in FIELDS if one.name == name]
    if word.startswith("@"):
        return
    try:
        found = values.parse(chosen, [f"{name}={word}"], "organ.method")[name]
    except SpineError as told:
        fix, code = told.fix, told.exit_code
        assert (fix[:26], code) == ("./spine call organ.method ", Exit.USAGE)
        return
    if name.endswith(("8", "16", "32")) or (name.endswith("64") and "int" in name):
        low, high = chosen[0].type.integer_range or (0, 0)
        assert isinstance(found, int)
        assert low <= found <= high


@given(data=st.binary(max_size=64))
def test_bytes_stay_what_they_were(data: bytes) -> None:
    word = os.fsdecode(data)
    one = [field("data", kind("data"))]
    assert values.parse(one, [f"data=text:{word}"], "m") == {"data": data}
    assert values.parse(one, [f"data=hex:{data.hex()}"], "m") == {"data": data}
    if not word.startswith(("@", "hex:", "text:")):
        assert values.parse(one, [f"data={word}"], "m") == {"data": data}
    # What is printed can be given again, and JSON says the same.
    shown = values.as_text({"data": data}).removeprefix("data: ")[:-1]
    assert shown.isprintable()
    back = values.as_json(data)
    assert isinstance(back, dict)
    assert back.get("utf8", "").encode() == data or bytes.fromhex(back.get("hex", "")) == data


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"\0\xff")
    one = [field("data", kind("data"))]
    assert values.parse(one, [f"data=@{tmp_path / 'f'}"], "m") == {"data": b"\0\xff"}
    with pytest.raises(OSError, match="No such file"):
        values.parse(one, [f"data=@{tmp_path / 'none'}"], "m")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["text"], "not of the form"),
        (["txet=x"], "did you mean 'text'?"),
        (["nothing=x"], "it takes"),
        (["text=1", "text=2"], "given twice"),
        ([], "must be given"),
        (["uint8=256"], "from 0 to 255"),
        (["enum=blue"], "none of red, green"),
        (["bool=maybe"], "neither true nor false"),
        (["data=hex:xyz"], "data:"),
        (["list={"], "list:"),
    ],
)
def test_what_does_not_fit_is_told(given: list[str], says: str) -> None:
    with pytest.raises(SpineError) as raised:
        values.parse(FIELDS, given, "organ.method")
    assert says in raised.value.why
    assert raised.value.exit_code == Exit.USAGE


def test_lists_and_structs_are_json() -> None:
    entry = kind("struct", fields=(field("name", kind("text")), field("raw", kind("data"))))
    one = [field("all", kind("list", element=entry))]
    word = json.dumps([{"name": "a", "raw": {"hex": "00ff"}}, {"name": "b", "raw": "text"}])
    assert values.parse(one, [f"all={word}"], "m")["all"] == [
        {"name": "a", "raw": b"\0\xff"},
        {"name": "b", "raw": b"text"},
    ]


def test_a_result_does_not_steer_the_terminal() -> None:
    shown = values.as_text({"text": "\x1b[2J", "raw": b"\x1b[2J", "list": ["\x1b"], "flag": True})
    assert "\x1b" not in shown
    assert "flag: true\n" in shown


def test_every_method_for_the_host_is_listed() -> None:
    table = ports.schemas()
    methods = [m for interface in table.interfaces.values() for m in interface.methods.values()]
    shown = values.listing(methods, ("host", "operator"))
    assert "gate.put persona=Text key=Data value=Data -> seq:UInt64\n" in shown
    assert "operator.status -> json:Text\n" in shown
    assert values.listing(methods, ("nobody",)) == ""
