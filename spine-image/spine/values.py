"""Words of the command line into the values of a schema, and results into text or JSON.

Touches nothing but the files a person names with `@`. What does not fit is a SpineError (2) that names the
field, the type and an example.
"""

import difflib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spine.errors import Exit, SpineError

if TYPE_CHECKING:
    from bus.wire import Field, Method, Type

TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0")
# The ways to write bytes: plain text, or one of these.
HEX, TEXT, FILE = "hex:", "text:", "@"


def parse(fields: Sequence["Field"], words: Iterable[str], asked: str) -> dict[str, object]:
    """`name=value` words for these fields; every field once. `asked` is the method, for messages."""
    by_name = {field.name: field for field in fields}
    found: dict[str, object] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise _usage(asked, fields, f"{word!r} is not of the form name=value")
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(by_name) or 'nothing'}"
            raise _usage(asked, fields, f"there is no field {name!r}; {hint}")
        if name in found:
            raise _usage(asked, fields, f"{name!r} is given twice")
        try:
            found[name] = value(by_name[name].type, text)
        except (ValueError, TypeError) as error:
            raise _usage(asked, fields, f"{name}: {error}") from error
    lacking = [field.name for field in fields if field.name not in found]
    if lacking:
        raise _usage(asked, fields, f"{', '.join(lacking)} must be given")
    return found


def value(kind: "Type", text: str) -> object:
    """One value from its text. ValueError, OSError (a file that cannot be read)."""
    match kind.kind:
        case "text":
            # What was not UTF-8 on the command line has become lone surrogates.
            text.encode()
            return text
        case "data":
            return _data(text)
        case "bool":
            if text.lower() not in TRUE + FALSE:
                raise ValueError(f"{text!r} is neither true nor false")
            return text.lower() in TRUE
        case "void":
            if text:
                raise ValueError("this field carries nothing")
            return None
        case "float32" | "float64":
            return float(text)
        case "enum":
            if text not in kind.names:
                raise ValueError(f"{text!r} is none of {', '.join(kind.names)}")
            return text
        case "list" | "struct":
            return _from_json(kind, json.loads(text))
    number = int(text, 0)
    limits = kind.integer_range
    if limits and not limits[0] <= number <= limits[1]:
        raise ValueError(f"{number} is not from {limits[0]} to {limits[1]}")
    return number


def signature(fields: Sequence["Field"]) -> str:
    """`name=Type` for each field, as a person would write the call."""
    return " ".join(f"{field.name}={field.type}" for field in fields)


def callable_by(method: "Method", callers: Sequence[str]) -> bool:
    """Whether one of these callers may call it from here: no descriptor crosses the operator's port."""
    return bool(set(callers) & set(method.callers)) and not method.beside


def listing(methods: Iterable["Method"], caller: Sequence[str]) -> str:
    """What may be called by one of these callers, with what, and what for: two lines each."""
    rows = []
    for method in methods:
        if not callable_by(method, caller):
            continue
        takes, gives = signature(method.params), " ".join(f"{f.name}:{f.type}" for f in method.results)
        about = " ".join(method.doc.split())
        rows.append(
            f"{method.interface_name}.{method.name} {takes}".rstrip() + (f" -> {gives}" if gives else "")
        )
        rows.append(f"    {about}" if about else "")
    return "".join(row + "\n" for row in rows if row)


def as_text(results: Mapping[str, object]) -> str:
    """`field: value` lines."""
    return "".join(f"{name}: {_shown(item)}\n" for name, item in results.items())


def as_json(item: object) -> object:
    """The same values for JSON: bytes become {"utf8": ...}, or {"hex": ...} when they are not UTF-8."""
    if isinstance(item, bytes):
        try:
            return {"utf8": item.decode()}
        except UnicodeDecodeError:
            return {"hex": item.hex()}
    if isinstance(item, Mapping):
        return {str(name): as_json(part) for name, part in item.items()}
    if isinstance(item, list | tuple):
        return [as_json(part) for part in item]
    return item


def _data(text: str) -> bytes:
    if text.startswith(FILE):
        return Path(text[len(FILE) :]).read_bytes()
    if text.startswith(HEX):
        return bytes.fromhex(text[len(HEX) :])
    # Exactly the bytes of the command line, be they UTF-8 or not.
    return os.fsencode(text.removeprefix(TEXT))


def _from_json(kind: "Type", item: object) -> object:
    match kind.kind, item:
        case "list", list() if kind.element is not None:
            return [_from_json(kind.element, part) for part in item]
        case "struct", dict():
            by_name = {field.name: field.type for field in kind.fields}
            return {
                name: _from_json(by_name[name], part) if name in by_name else part
                for name, part in item.items()
            }
        case "data", str():
            return item.encode()
        case "data", {"utf8": str(text)}:
            return text.encode()
        case "data", {"hex": str(digits)}:
            return bytes.fromhex(digits)
    return item


def _shown(item: object) -> str:
    if isinstance(item, bytes):
        try:
            text = item.decode()
        except UnicodeDecodeError:
            return HEX + item.hex()
        return text if text.isprintable() else HEX + item.hex()
    if isinstance(item, bool):
        return "true" if item else "false"
    if isinstance(item, list):
        return json.dumps([as_json(part) for part in item], ensure_ascii=False)
    if isinstance(item, Mapping):
        return json.dumps(as_json(item), ensure_ascii=False)
    # A terminal must not be steered by what the other side sends.
    text = str(item)
    return text if text.isprintable() else json.dumps(text)


def _usage(asked: str, fields: Sequence["Field"], why: str) -> SpineError:
    return SpineError(
        f"{asked} cannot be called like this",
        why,
        f"./spine call {asked} {signature(fields)}".rstrip(),
        Exit.USAGE,
    )
