"""The reference of the bus, written from the compiled schemas: one page for each interface.

Runs on the builder, never in the image: `python -m bus.reference SCHEMAS MANIFEST PAGES`. A page holds what
the schema says and nothing else, so that it cannot be wrong by itself. The same schemas give the same bytes;
pages of interfaces that are gone are removed. A schema that the build refuses leaves the pages as they are.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bus import compile as schema_compiler
from bus import wire
from bus.wire import Field, Interface, Method, Schemas, Type

RENEW = "python -m bus.reference schemas organs/manifest.toml docs/reference"
_NOTE = f"<!-- Made from the schema by `{RENEW}`. Do not edit. -->"


def pages(schemas: Schemas) -> dict[str, str]:
    """The text of each page, by its file's name."""
    return {f"{name}.md": page(interface) for name, interface in sorted(schemas.interfaces.items())}


def page(interface: Interface) -> str:
    """One interface."""
    return "\n".join(_page(interface)).rstrip() + "\n"


def _page(interface: Interface) -> Iterator[str]:
    yield f"# {interface.name}"
    yield ""
    yield _NOTE
    yield ""
    if interface.doc:
        yield _prose(interface.doc)
        yield ""
    yield f"Interface `{interface.id:#018x}`, declared in `schemas/{interface.file}`."
    structs: dict[str, Type] = {}
    for method in sorted(interface.methods.values(), key=lambda found: found.ordinal):
        yield ""
        yield from _method(method)
        for field in (*method.params, *method.results):
            _collect(field.type, structs)
    for event in sorted(interface.events.values(), key=lambda found: found.ordinal):
        yield ""
        yield from _event(event)
        for field in event.params:
            _collect(field.type, structs)
    for name, struct in sorted(structs.items()):
        yield ""
        yield f"## {name}"
        yield ""
        if struct.names:
            yield ", ".join(f"`{word}`" for word in struct.names)
        else:
            yield from _fields(struct.fields)


def _method(method: Method) -> Iterator[str]:
    params, results = (
        ", ".join(f"{field.name}: {field.type}" for field in fields)
        for fields in (method.params, method.results)
    )
    yield f"## {method.interface_name}.{method.name}"
    yield ""
    yield f"`({params}) -> ({results})`"
    yield ""
    if method.doc:
        yield _prose(method.doc)
        yield ""
    yield "| | |"
    yield "|---|---|"
    yield f"| callers | {', '.join(method.callers)} |"
    yield f"| deadline | {method.deadline_ms} ms |"
    yield f"| idempotent | {'yes' if method.idempotent else 'no'} |"
    if method.beside:
        sides = [("the call", method.takes_fd), ("the answer", method.gives_fd)]
        yield f"| descriptors | with {' and '.join(side for side, there in sides if there)} |"
    if method.disruptive:
        yield "| disruptive | may end a process or the system |"
    yield f"| ordinal | {method.ordinal} |"
    for title, fields in (("Parameters", method.params), ("Results", method.results)):
        if fields:
            yield ""
            yield f"{title}:"
            yield ""
            yield from _fields(fields)


def _event(event: Method) -> Iterator[str]:
    params = ", ".join(f"{field.name}: {field.type}" for field in event.params)
    yield f"## {event.interface_name}.{event.name} (event)"
    yield ""
    yield f"`({params})`"
    yield ""
    if event.doc:
        yield _prose(event.doc)
        yield ""
    yield "| | |"
    yield "|---|---|"
    yield f"| heard by | {', '.join(event.callers)} |"
    yield f"| ordinal | {event.ordinal} |"
    if event.params:
        yield ""
        yield "Parameters:"
        yield ""
        yield from _fields(event.params)


def _fields(fields: tuple[Field, ...]) -> Iterator[str]:
    for field in fields:
        secret = ", left out of recordings" if field.secret else ""
        doc = f": {_prose(field.doc)}" if field.doc else ""
        yield f"- `{field.name}`, {field.type}{secret}{doc}"


def _collect(type_: Type, into: dict[str, Type]) -> None:
    """The structs and enums that a type is made of."""
    if type_.element is not None:
        _collect(type_.element, into)
    if type_.kind in ("struct", "enum") and type_.name not in into:
        into[type_.name] = type_
        for field in type_.fields:
            _collect(field.type, into)


def _prose(comment: str) -> str:
    """A comment as one paragraph."""
    return " ".join(comment.split())


def parsed(schemas_dir: Path, manifest_path: Path) -> Schemas:
    """The schemas of a directory. SchemaRefused, FileNotFoundError as `bus.compile`."""
    with tempfile.TemporaryDirectory() as out:
        schema_compiler.compile_schemas(schemas_dir, manifest_path, Path(out))
        return wire.parse((Path(out) / "schemas.cgr").read_bytes())


def written_from(schemas_dir: Path, manifest_path: Path) -> dict[str, str]:
    """The pages of a directory of schemas. SchemaRefused, FileNotFoundError as `bus.compile`."""
    return pages(parsed(schemas_dir, manifest_path))


def main() -> int:
    """Write the pages; exit code 1 and one line when a schema is refused."""
    if len(sys.argv) != 4:
        print("usage: python -m bus.reference SCHEMAS MANIFEST PAGES", file=sys.stderr)
        return 2
    schemas_dir, manifest_path, directory = (Path(argument) for argument in sys.argv[1:])
    try:
        written = written_from(schemas_dir, manifest_path)
    except schema_compiler.SchemaRefused as refused:
        print(refused, file=sys.stderr)
        return 1
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob("*.md"):
        if old.name not in written:
            old.unlink()
    for name, text in written.items():
        (directory / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
