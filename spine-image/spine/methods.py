"""What may be called, as help and completion need it: out of the cache, without Cap'n Proto.

Compiling the schemas and reading them takes packages and a tenth of a second; a shell that completes a word
has neither. So whoever compiles them leaves what a person wants to know beside them, as JSON.

Touches one directory of the cache. Never compiles, never installs. A cache that is not there, or that is
not what was left there, is `None`: there is nothing to show yet.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spine import paths

if TYPE_CHECKING:
    from bus.wire import Field, Schemas

FILE = "methods.json"
# Part of the name of the directory: another form of the file is another directory.
FORM = b"methods 1"
# Who the person at the host is to the organs: "host" to the operator, and the operator to the others.
CALLERS = ("host", "operator")
# How each type may be written on the command line, where that is not plain.
WRITTEN = {"Data": "text, @FILE, hex:00ff, or text:... for any text", "Bool": "true or false"}

Method = Mapping[str, object]


def directory() -> Path:
    """Where the compiled schemas of the tree, as it is now, lie or will lie."""
    digest = hashlib.sha256(FORM)
    for file in [
        *sorted((paths.ROOT / "schemas").glob("*.capnp")),
        paths.ROOT / "organs" / "manifest.toml",
        paths.ROOT / "bus" / "compile.py",
    ]:
        digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return paths.cache() / f"schemas-{digest.hexdigest()[:16]}"


def document(table: "Schemas") -> dict[str, object]:
    """What to keep of the schemas. Pure."""
    return {
        f"{interface.name}.{method.name}": {
            "callers": list(method.callers),
            "deadlineMs": method.deadline_ms,
            "doc": " ".join(method.doc.split()),
            "params": _fields(method.params),
            "results": _fields(method.results),
        }
        for interface in table.interfaces.values()
        for method in interface.methods.values()
    }


def _fields(fields: Iterable["Field"]) -> list[dict[str, object]]:
    return [
        {
            "name": field.name,
            "type": str(field.type),
            "one of": list(field.type.names),
            "secret": field.secret,
            "doc": " ".join(field.doc.split()),
        }
        for field in fields
    ]


def known(where: Path | None = None) -> dict[str, Method] | None:
    """All methods by name, as they were left in the cache; None when they were not."""
    try:
        found = json.loads(((where or directory()) / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or not all(_sound(method) for method in found.values()):
        return None
    return found


def _sound(method: object) -> bool:
    """Whether it has the form that `document` makes."""
    return (
        isinstance(method, dict)
        and method.keys() == {"callers", "deadlineMs", "doc", "params", "results"}
        and isinstance(method["deadlineMs"], int)
        and all(isinstance(method[name], list) for name in ("callers", "params", "results"))
        and all(
            isinstance(row, dict) and row.keys() == {"name", "type", "one of", "secret", "doc"}
            for row in [*method["params"], *method["results"]]
        )
    )


def callable_by_us(methods: Mapping[str, Method]) -> dict[str, Method]:
    """Those that the person at the host may call."""
    return {name: method for name, method in methods.items() if set(CALLERS) & set(_list(method["callers"]))}


def page(name: str, method: Method) -> str:
    """A method for a person: how it is called, what for, with what. Pure."""
    params, results = _rows(method["params"]), _rows(method["results"])
    takes = "".join(f" {row['name']}={row['type']}" for row in params)
    lines = [f"./spine call {name}{takes}", f"    {method['doc']}"]
    for title, rows in (("takes", params), ("gives", results)):
        lines += ["", f"{title}{'' if rows else ' nothing'}"]
        width = max((len(str(row["name"])) for row in rows), default=0)
        lines += [f"    {row['name']:<{width}}  {_about(row, title == 'takes')}" for row in rows]
    if not set(CALLERS) & set(_list(method["callers"])):
        lines += ["", f"not for you: only {', '.join(_list(method['callers']))} may call it"]
    lines += ["", f"answered within {int(str(method['deadlineMs'])) / 1000:g} s"]
    return "".join(line.rstrip() + "\n" for line in lines)


def _about(row: Mapping[str, object], written: bool) -> str:
    words = [str(row["type"])]
    if names := _list(row["one of"]):
        words.append(f"({' | '.join(names)})")
    if written and (how := WRITTEN.get(str(row["type"]))):
        words.append(f"({how})")
    if row["secret"]:
        words.append("never shown by the tap")
    if row["doc"]:
        words.append(f"- {row['doc']}")
    return "  ".join(words)


def completions(words: Sequence[str], methods: Mapping[str, Method]) -> list[str]:
    """What may come after these words of `./spine call`, the last of which is being typed. Pure.

    A shell may give `name=value` in one word or, as bash does, in three.
    """
    *before, current = words or [""]
    asked = next((word for word in before if not word.startswith("-")), None)
    mine = callable_by_us(methods)
    if asked is None:
        return sorted(name for name in mine if name.startswith(current))
    given = {word.partition("=")[0] for word in before if "=" in word and word != "="}
    given |= {word for word, after in zip(before, [*before[1:], current], strict=True) if after == "="}
    if asked not in mine or "=" in current or (before and before[-1] == "="):
        return []
    names = [str(row["name"]) for row in _rows(mine[asked]["params"])]
    return [f"{name}=" for name in names if name.startswith(current) and name not in given]


def _list(item: object) -> list[str]:
    return [str(part) for part in item] if isinstance(item, list) else []


def _rows(item: object) -> list[Mapping[str, object]]:
    return [row for row in item if isinstance(row, Mapping)] if isinstance(item, list) else []
