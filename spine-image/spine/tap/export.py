"""Messages of the tap as files that Cap'n Proto's own tools read: what it shows can be judged from outside.

For each method one generated schema with the structs `Params` and `Results` (the implicit structs of a method
have no name that `capnp decode` could be given; fields in the order of their numbers lay out the same), and
for each message one file with its body, as it crossed the bus but for its secrets.

Touches one directory, which is new or empty. Never overwrites. A recording is foreign: names that are no
names of Cap'n Proto reach no path and no schema text; they, and what cannot be written, are an `ExportError`.
"""

import hashlib
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from bus.envelope import Kind, split_beside
from bus.tap import Record
from bus.wire import Field, Method, Schemas, Type

# Far more than anybody looks at one by one; a directory of more files is a trap for its owner.
FILES_MAX = 100_000
# Structs within structs. wire.py refuses a struct that contains itself; ours nest 2 deep.
DEPTH_MAX = 16
STRUCTS = {Kind.CALL: "Params", Kind.REPLY: "Results"}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]{0,63}")
_PLAIN = {"void": "Void", "bool": "Bool", "text": "Text", "data": "Data"}


class ExportError(ValueError):
    """It cannot be exported; the text says why."""


def schema_text(method: Method) -> str:
    """A schema by which the bodies of a method's calls and answers can be read. ExportError."""
    label = f"{named(method.interface_name)}.{named(method.name)}"
    # A file's id has its highest bit set; the same method has the same id each time.
    number = int.from_bytes(hashlib.sha256(label.encode()).digest()[:8]) | 1 << 63
    return (
        f"@{number:#018x};\n# {label}, as the recording's own schemas describe it. Secrets are empty.\n"
        f"{_struct('Params', method.params, 0)}{_struct('Results', method.results, 0)}"
    )


def named(name: str) -> str:
    """The name, if it is one that may stand in a schema and in a path. ExportError."""
    if not _NAME.fullmatch(name):
        raise ExportError(f"{name[:64]!r} is no name of an organ, a method or a field")
    return name


def _struct(name: str, fields: Iterable[Field], depth: int) -> str:
    if depth > DEPTH_MAX:
        raise ExportError(f"structs within structs, more than {DEPTH_MAX} deep")
    inner, lines = "", ""
    for number, field in enumerate(fields):
        # A type's own name need not be unique among a method's fields; one made from the field's is.
        own = f"Of{number}"
        text, declared = _type(field.type, own, depth)
        inner += declared
        lines += f"{named(field.name)} @{number} :{text};\n"
    body = "".join(f"  {line}\n" for line in (lines + inner).splitlines())
    return f"struct {name} {{\n{body}}}\n"


def _type(kind: Type, own: str, depth: int) -> tuple[str, str]:
    """How a type is written, and what must be declared for it."""
    match kind.kind:
        case "list" if kind.element is not None:
            text, declared = _type(kind.element, own, depth)
            return f"List({text})", declared
        case "struct":
            return own, _struct(own, kind.fields, depth + 1)
        case "enum":
            names = "".join(f"  {named(name)} @{number};\n" for number, name in enumerate(kind.names))
            return own, f"enum {own} {{\n{names}}}\n"
    if kind.kind in _PLAIN:
        return _PLAIN[kind.kind], ""
    digits = kind.kind.lstrip("uintfloa")
    return ("UInt" if kind.kind[0] == "u" else "Int" if kind.kind[0] == "i" else "Float") + digits, ""


class Exporter:
    """Writes messages into a directory."""

    def __init__(self, directory: Path, schemas: Schemas) -> None:
        """Make the directory. ExportError when there is something in it; OSError."""
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise ExportError(f"{directory} is not empty")
        self._directory, self._schemas = directory, schemas
        self._known: set[str] = set()
        self.written = 0
        """Messages so far."""
        self.left_out = 0
        """Messages whose body the tap did not show."""
        self.example = ""
        """The command that decodes the last message written."""

    def add(self, record: Record) -> None:
        """One more message; a failure, a hello and what has no method have no body to be decoded."""
        envelope = record.envelope
        struct = STRUCTS.get(envelope.kind)
        method = self._schemas.method(envelope.interface, envelope.ordinal) if struct else None
        if method is None or struct is None:
            return
        if not record.whole:
            self.left_out += 1
            return
        if self.written >= FILES_MAX:
            raise ExportError(f"more than {FILES_MAX} messages; --method, --organ or --count take fewer")
        label = f"{named(method.interface_name)}.{named(method.name)}"
        schema = self._directory / f"{label}.capnp"
        if label not in self._known:
            schema.write_text(schema_text(method), encoding="ascii")
            self._known.add(label)
        self.written += 1
        side = record.side.name.lower()
        name = f"{self.written:06}-{named(record.organ)}-{side}-{label}-{envelope.kind.name.lower()}.bin"
        # What announces descriptors beside a message is the bus' own, and no Cap'n Proto.
        body = split_beside(envelope.body)[2] if method.beside else envelope.body
        (self._directory / name).write_bytes(body)
        self.example = decoding(schema, struct, self._directory / name)


def decoding(schema: Path, struct: str, message: Path) -> str:
    """The command line by which a person decodes a message."""
    # Quiet: of a short message the tool guesses another framing, and would refuse it.
    return f"capnp decode --quiet {shlex.quote(str(schema))} {struct} <{shlex.quote(str(message))}"
