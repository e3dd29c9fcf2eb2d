"""The wire: the compiled schemas, and the way from Python values to Cap'n Proto bytes and back.

The only module that imports capnp. It reads one file, `schemas.cgr`, which the build made; it never reads
schema text of ours (the parser ends the process on a bad one). A foreign message is decoded once, whole,
within limits, into plain Python values; no Cap'n Proto reader leaves this file, because `repr()` of a reader
of hostile bytes ends the process too, and much prints values: loggers, debuggers, test runners.

When a peer's bytes cannot be decoded: `PeerError`. When our own values cannot be encoded: `TypeError` or
`ValueError` naming the field. When `schemas.cgr` is not what the build made: any exception; the organ ends.
"""

import functools
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import capnp

from bus.envelope import PeerError

# Importing capnp installs an import hook that looks for *.capnp on sys.path and parses what it finds.
capnp.remove_import_hook()

NESTING_MAX: Final = 16
"""Pointers within pointers in one message. Our deepest value is a list of structs of text: 4."""

# The annotations of schemas/spine.capnp.
CALLERS_ID: Final = 0xD8A6F0C3B1E27401
DEADLINE_ID: Final = 0xD8A6F0C3B1E27402
IDEMPOTENT_ID: Final = 0xD8A6F0C3B1E27403
FD_ID: Final = 0xD8A6F0C3B1E27404
SECRET_ID: Final = 0xD8A6F0C3B1E27405
HOST_PORT_ID: Final = 0xD8A6F0C3B1E27406
DISRUPTIVE_ID: Final = 0xD8A6F0C3B1E27407
GIVES_ID: Final = 0xD8A6F0C3B1E27408
EVENT_ID: Final = 0xD8A6F0C3B1E27409

_INTEGERS: Final = {
    f"{sign}int{bits}": (-(1 << bits - 1), (1 << bits - 1) - 1) if sign == "" else (0, (1 << bits) - 1)
    for sign in ("", "u")
    for bits in (8, 16, 32, 64)
}
_FLOATS: Final = ("float32", "float64")
_SCALARS: Final = {"void": "Void", "bool": "Bool", "text": "Text", "data": "Data"}


def traversal_words(message_bytes: int) -> int:
    """How many words of a message of that size may be visited.

    An honest message is visited about once; a pointer may be followed twice by our decoder. The default limit
    is 64 MiB whatever the size, by which a hundred bytes can keep us busy for minutes.
    """
    return 4 * message_bytes // 8 + 64  # INV-BUS-5


@dataclass(frozen=True, slots=True)
class Type:
    """The type of a value, without capnp.

    `kind` is one of void, bool, int8..int64, uint8..uint64, float32, float64, text, data, list, enum, struct.
    `element` belongs to list, `names` to enum (in the order of their numbers), `fields` to struct.
    """

    kind: str
    name: str
    element: "Type | None" = None
    names: tuple[str, ...] = ()
    fields: tuple["Field", ...] = ()

    @property
    def integer_range(self) -> tuple[int, int] | None:
        """Least and greatest value of an integer type, None for the others."""
        return _INTEGERS.get(self.kind)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Field:
    """One field of the parameters, the results or a struct. `secret`: recordings must leave it out."""

    name: str
    type: Type
    secret: bool
    doc: str


@dataclass(frozen=True, slots=True)
class Method:
    """One method: what the schema says of it, and the encoders and decoders of its two structs.

    `callers` is empty and `deadline_ms` 0 where the schema says nothing; the build refuses such a schema.
    `takes_fd`: descriptors come with a call; `gives_fd`: with its answer; `beside`: one of the two.
    """

    interface_name: str
    interface_id: int
    name: str
    ordinal: int
    callers: tuple[str, ...]
    deadline_ms: int
    idempotent: bool
    takes_fd: bool
    gives_fd: bool
    beside: bool
    disruptive: bool
    doc: str
    params: tuple[Field, ...]
    results: tuple[Field, ...]
    _params: "_Struct" = field(repr=False, compare=False)
    _results: "_Struct" = field(repr=False, compare=False)

    def encode_params(self, values: Mapping[str, object]) -> bytes:
        """The bytes of a call's body. TypeError or ValueError names the field at fault."""
        return self._params.encode(values)

    def decode_params(self, body: bytes) -> dict[str, object]:
        """The values of a call's body; PeerError when the bytes are not such a body."""
        return self._params.decode(body)

    def encode_results(self, values: Mapping[str, object]) -> bytes:
        """The bytes of a reply's body. TypeError or ValueError names the field at fault."""
        return self._results.encode(values)

    def decode_results(self, body: bytes) -> dict[str, object]:
        """The values of a reply's body; PeerError when the bytes are not such a body."""
        return self._results.decode(body)


@dataclass(frozen=True, slots=True)
class Interface:
    """One organ's methods. `name` is the organ's name: the interface's own name in lower case.

    `events` are no methods, though they are declared and described as such: `callers` may hear them.
    """

    name: str
    id: int
    file: str
    host_port: bool
    doc: str
    methods: dict[str, Method]
    events: dict[str, Method]

    def by_ordinal(self, ordinal: int) -> Method | None:
        """The method with this ordinal."""
        return next((method for method in self.methods.values() if method.ordinal == ordinal), None)

    def event(self, ordinal: int) -> Method | None:
        """The event with this ordinal."""
        return next((event for event in self.events.values() if event.ordinal == ordinal), None)

    def concerns(self, caller: str) -> bool:
        """Whether that organ may call or hear anything of this one."""
        declared = (*self.methods.values(), *self.events.values())
        return any(caller in method.callers for method in declared)


@dataclass(frozen=True, slots=True)
class Message:
    """A struct that stands by itself in a schema file, as it travels in a stream: in standard framing."""

    name: str
    fields: tuple[Field, ...]
    _struct: "_Struct" = field(repr=False, compare=False)

    def encode(self, values: Mapping[str, object]) -> bytes:
        """The framed bytes. TypeError or ValueError names the field at fault."""
        return self._struct.encode(values)

    def decode(self, framed: bytes) -> dict[str, object]:
        """The values of one whole framed message; PeerError when the bytes are not such a message."""
        return self._struct.decode(framed)


@dataclass(frozen=True, slots=True)
class Schemas:
    """All interfaces by name, and all structs of files by `file.Struct`."""

    interfaces: dict[str, Interface]
    messages: dict[str, Message] = field(default_factory=dict)

    def method(self, interface_id: int, ordinal: int) -> Method | None:
        """The method a header names, None when there is no such method."""
        for interface in self.interfaces.values():
            if interface.id == interface_id:
                return interface.by_ordinal(ordinal)
        return None

    def event(self, interface_id: int, ordinal: int) -> Method | None:
        """The event a header names, None when there is no such event."""
        for interface in self.interfaces.values():
            if interface.id == interface_id:
                return interface.event(ordinal)
        return None


class SchemaError(ValueError):
    """A schema uses a part of Cap'n Proto that the spine does not speak; `where` names the declaration."""

    def __init__(self, where: str, rule: str) -> None:
        self.where: Final = where
        self.rule: Final = rule
        super().__init__(f"{where}: {rule}")


@functools.cache
def load(path: str | os.PathLike[str]) -> Schemas:
    """The schemas of a CodeGeneratorRequest file; the same object each time for the same path."""
    with open(path, "rb") as file:
        return parse(file.read())


def parse(request: bytes) -> Schemas:
    """The schemas of a CodeGeneratorRequest; SchemaError when one uses what the spine does not speak.

    What was parsed stays in memory for ever, so a process parses once (the build, at most a few times).
    """
    return _Loading(request).schemas()


# --- From here on readers and builders of capnp are handled; its API has no types. ---

# Standard framing begins with the number of segments, less one; the words of the first are next.
_ONE_SEGMENT: Final = bytes(4)
_FILE_STRUCT: Final = re.compile(r"[^:./]+\.capnp:[A-Za-z0-9]+")
# A schema object used after its loader is gone ends the process, so loaders are kept for ever.
_LOADERS: Final[list[Any]] = []


@functools.cache
def _schema_of_schemas() -> Any:
    """Cap'n Proto's own schema.capnp: the only schema text that is ever parsed here, shipped with capnp."""
    site = os.path.dirname(os.path.dirname(capnp.__file__))
    return capnp.load(os.path.join(site, "capnp", "schema.capnp"), imports=[site])


class _Loading:
    """One pass over a CodeGeneratorRequest, from its nodes to `Schemas`."""

    def __init__(self, request: bytes) -> None:
        self._loader = capnp.SchemaLoader()
        _LOADERS.append(self._loader)
        self._docs: dict[int, tuple[str, list[str]]] = {}
        self._interfaces: list[tuple[int, str]] = []
        self._messages: list[tuple[int, str]] = []
        module = _schema_of_schemas()
        # The file comes out of our own verified root, so it may be visited as often as it takes.
        with module.CodeGeneratorRequest.from_bytes(request, traversal_limit_in_words=2**40) as reader:
            for node in reader.nodes:
                self._loader.load_dynamic(node)
                if str(node.which()) == "interface":
                    self._interfaces.append((int(node.id), str(node.displayName)))
                # Structs within others and the implicit ones of methods have a longer name.
                if str(node.which()) == "struct" and _FILE_STRUCT.fullmatch(str(node.displayName)):
                    self._messages.append((int(node.id), str(node.displayName)))
            for info in reader.sourceInfo:
                # Implicit structs of methods all share id 0 here; they carry no comments.
                members = [_doc(str(member.docComment)) for member in info.members]
                self._docs[int(info.id)] = (_doc(str(info.docComment)), members)

    def schemas(self) -> Schemas:
        found: dict[str, Interface] = {}
        for id_, display in sorted(self._interfaces, key=lambda item: item[1]):
            interface = self._interface(id_, display)
            if interface.name in found:
                raise SchemaError(display, "two interfaces differ in letter case only")
            found[interface.name] = interface
        messages = {}
        for id_, display in sorted(self._messages, key=lambda item: item[1]):
            struct = self._struct(id_, display, ())
            name = display.replace(".capnp:", ".")
            messages[name] = Message(name, struct.fields, struct)
        return Schemas(found, messages)

    def _interface(self, id_: int, display: str) -> Interface:
        file, _, name = display.rpartition(":")
        display = f"{file}:{name.lower()}"
        schema = self._loader.get(id_).as_interface()
        node = schema.node
        if len(node.interface.superclasses) > 0:
            raise SchemaError(display, "an interface that extends another")
        if len(node.parameters) > 0:
            raise SchemaError(display, "a generic interface")
        doc, member_docs = self._docs.get(id_, ("", []))
        methods: dict[str, Method] = {}
        events: dict[str, Method] = {}
        for ordinal, method in enumerate(node.interface.methods):
            where = f"{display}.{method.name}"
            annotations = {int(a.id): a.value for a in method.annotations}
            callers = annotations.get(CALLERS_ID)
            label = f"{name.lower()}.{method.name}"
            params = self._struct(int(method.paramStructType), where, (), label)
            results = self._struct(int(method.resultStructType), where, (), f"{label} results")
            declared = events if EVENT_ID in annotations else methods
            declared[str(method.name)] = Method(
                interface_name=name.lower(),
                interface_id=id_,
                name=str(method.name),
                ordinal=ordinal,
                callers=() if callers is None else _texts(callers),
                deadline_ms=int(annotations[DEADLINE_ID].uint32) if DEADLINE_ID in annotations else 0,
                idempotent=IDEMPOTENT_ID in annotations,
                takes_fd=FD_ID in annotations,
                gives_fd=GIVES_ID in annotations,
                beside=FD_ID in annotations or GIVES_ID in annotations,
                disruptive=DISRUPTIVE_ID in annotations,
                doc=member_docs[ordinal] if ordinal < len(member_docs) else "",
                params=params.fields,
                results=results.fields,
                _params=params,
                _results=results,
            )
        return Interface(
            name=name.lower(),
            id=id_,
            file=file,
            host_port=any(int(a.id) == HOST_PORT_ID for a in node.annotations),
            doc=doc,
            methods=methods,
            events=events,
        )

    def _struct(self, id_: int, where: str, outer: tuple[int, ...], label: str = "") -> "_Struct":
        if id_ in outer:
            raise SchemaError(where, "a struct that contains itself")
        schema = self._loader.get(id_).as_struct()
        node = schema.node
        if len(node.parameters) > 0 or node.isGeneric:
            raise SchemaError(where, "a generic struct")
        if int(node.struct.discriminantCount) > 0:
            raise SchemaError(where, "a union")
        _, member_docs = self._docs.get(id_, ("", []))
        fields: list[Field] = []
        codecs: dict[str, _Codec] = {}
        for index, member in enumerate(node.struct.fields):
            name = str(member.name)
            if str(member.which()) != "slot":
                raise SchemaError(f"{where}.{name}", "a group")
            type_, codec = self._type(member.slot.type, f"{where}.{name}", (*outer, id_))
            fields.append(
                Field(
                    name=name,
                    type=type_,
                    secret=any(int(a.id) == SECRET_ID for a in member.annotations),
                    doc=member_docs[index] if index < len(member_docs) else "",
                )
            )
            codecs[name] = codec
        return _Struct(label or str(node.displayName).rpartition(":")[2], schema, tuple(fields), codecs)

    def _type(self, type_: Any, where: str, outer: tuple[int, ...]) -> tuple[Type, "_Codec"]:
        kind = str(type_.which())
        if kind in _INTEGERS:
            low, high = _INTEGERS[kind]
            name = f"UInt{kind[4:]}" if kind.startswith("u") else f"Int{kind[3:]}"
            return Type(kind, name), _Codec(functools.partial(_check_integer, low, high), None)
        if kind in _FLOATS:
            return Type(kind, kind.capitalize()), _Codec(functools.partial(_check_float, kind), None)
        if kind in _SCALARS:
            return Type(kind, _SCALARS[kind]), _Codec(_CHECKS[kind], None)
        if kind == "enum":
            node = self._loader.get(int(type_.enum.typeId)).as_enum().node
            names = tuple(str(enumerant.name) for enumerant in node.enum.enumerants)
            label = str(node.displayName).rpartition(":")[2]
            return Type(kind, label, names=names), _Codec(functools.partial(_check_enum, names), str)
        if kind == "list":
            element, codec = self._type(type_.list.elementType, where, outer)
            return Type(kind, f"List({element})", element=element), _Codec(
                None if codec.check is None else functools.partial(_check_list, codec.check),
                functools.partial(_read_list, codec),
                functools.partial(_fill_list, codec),
            )
        if kind == "struct":
            struct = self._struct(int(type_.struct.typeId), where, outer)
            codec = _Codec(None, struct.read, struct.build, struct)
            return Type(kind, struct.name, fields=struct.fields), codec
        raise SchemaError(where, f"a value of type {kind}")


@dataclass(frozen=True, slots=True)
class _Codec:
    """How a value of one type gets in and out.

    A plain value (no struct in it) is handed to capnp as `check` returns it, having refused what does not
    fit. Others are built in place by `fill(init, key, where, value)`, where `init(key)` makes the place.
    They are never handed over as a dict: capnp would set attributes by name, and miss a field that is named
    like one of its own. `read` turns what capnp answers into a plain value; None where it is one already.
    """

    check: Callable[[str, object], Any] | None
    read: Callable[[Any], object] | None
    fill: Callable[[Any, str | int, str, object], None] | None = None
    struct: "_Struct | None" = None


class _Struct:
    """The way in and out of one struct type."""

    __slots__ = ("_from_bytes", "_from_segments", "_members", "_readers", "_schema", "fields", "name")

    def __init__(self, name: str, schema: Any, fields: tuple[Field, ...], codecs: dict[str, _Codec]) -> None:
        self.name: Final = name
        self.fields: Final = fields
        self._schema = schema
        module = capnp._StructModule(schema, name)
        self._from_bytes, self._from_segments = module.from_bytes, module.from_segments
        # By field, not by attribute: a field may have the name of a method of capnp's objects; and it is
        # faster.
        members = schema.fields
        self._members = tuple(
            (field.name, f"{name}.{field.name}", members[field.name], codecs[field.name]) for field in fields
        )
        self._readers = tuple((field.name, members[field.name], codecs[field.name].read) for field in fields)

    def encode(self, values: Mapping[str, object]) -> bytes:
        root = capnp._MallocMessageBuilder().init_root(self._schema)
        self.fill(root, self.name, values)
        encoded: bytes = root.to_bytes()
        return encoded

    def build(self, init: Any, key: str | int, where: str, value: object) -> None:
        """Makes the struct at `key` of what encloses it, and fills it."""
        self.fill(init(key), where, value)

    def fill(self, builder: Any, where: str, values: object) -> None:
        """Sets each field; what is missing, too much or wrong is refused by name."""
        if type(values) is not dict and not isinstance(values, Mapping):
            raise TypeError(f"{where}: a mapping is needed, not {type(values).__name__}")
        put = builder._set_by_field
        for name, label, member, codec in self._members:
            if where is not self.name:
                label = f"{where}.{name}"
            if name not in values:
                raise ValueError(f"{label} is missing")
            if codec.check is not None:
                put(member, codec.check(label, values[name]))
            else:
                assert codec.fill is not None
                codec.fill(builder.init, name, label, values[name])
        if len(values) != len(self._members):
            known = {name for name, _, _, _ in self._members}
            extra = sorted(str(name) for name in values if name not in known)
            raise ValueError(f"{where}.{extra[0]} is not a field")

    def decode(self, body: bytes) -> dict[str, object]:
        # The one place where every exception is caught. capnp answers hostile bytes with KjException,
        # ValueError (length), RuntimeError (an enumerant that is not known), UnicodeDecodeError (text),
        # IndexError and others that it does not document; whichever it is, the peer's bytes are the cause.
        # The text of the exception may quote those bytes, so only its type is kept.
        words = traversal_words(len(body))
        try:
            if body[:4] == _ONE_SEGMENT and 8 + 8 * int.from_bytes(body[4:8], "little") == len(body):
                # Nearly every message, at a third of the price: without a context manager of Python's.
                return self.read(self._from_segments([memoryview(body)[8:]], words, NESTING_MAX))
            with self._from_bytes(body, words, NESTING_MAX) as reader:
                return self.read(reader)
        except Exception as error:
            raise PeerError(f"{self.name} cannot be decoded ({type(error).__name__})") from None

    def read(self, reader: Any) -> dict[str, object]:
        get = reader._get_by_field
        return {
            name: get(member) if read is None else read(get(member)) for name, member, read in self._readers
        }


def _read_list(codec: _Codec, reader: Any) -> list[object]:
    read = codec.read
    return list(reader) if read is None else [read(value) for value in reader]


def _check_list(check: Callable[[str, object], Any], where: str, value: object) -> list[Any]:
    return [check(f"{where}[{index}]", item) for index, item in enumerate(_listed(where, value))]


def _fill_list(codec: _Codec, init: Any, key: str | int, where: str, value: object) -> None:
    """Makes the list at `key` of what encloses it, and fills it; for lists with structs in them."""
    values = _listed(where, value)
    builder = init(key, len(values))
    for index, item in enumerate(values):
        label = f"{where}[{index}]"
        if codec.struct is not None:
            codec.struct.fill(builder[index], label, item)
        else:
            assert codec.fill is not None
            codec.fill(builder.init, index, label, item)


def _listed(where: str, value: object) -> list[object] | tuple[object, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{where}: a list is needed, not {type(value).__name__}")
    return value


def _check_integer(low: int, high: int, where: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{where}: an int is needed, not {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{where}: {value} is outside {low}..{high}")
    return int(value)  # capnp takes no subclass of int, such as an IntEnum.


def _check_float(kind: str, where: str, value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{where}: a float is needed, not {type(value).__name__}")
    if kind == "float32" and abs(value) > 3.4028234663852886e38 and abs(value) != float("inf"):
        # capnp would store infinity and say nothing.
        raise ValueError(f"{where}: {value} does not fit Float32")
    return float(value)


def _check_bool(where: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{where}: a bool is needed, not {type(value).__name__}")
    return value


def _check_text(where: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{where}: a str is needed, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where}: text holds a lone surrogate") from None
    return str.__str__(value)


def _check_data(where: str, value: object) -> bytes:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise TypeError(f"{where}: bytes are needed, not {type(value).__name__}")
    return bytes(value)  # No copy when it is bytes already.


def _check_void(where: str, value: object) -> None:
    if value is not None:
        raise TypeError(f"{where}: None is needed, not {type(value).__name__}")


def _check_enum(names: tuple[str, ...], where: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{where}: the name of an enumerant is needed, not {type(value).__name__}")
    if value not in names:
        raise ValueError(f"{where}: {value!r} is none of {', '.join(names)}")
    return str.__str__(value)


_CHECKS: Final[dict[str, Callable[[str, object], object]]] = {
    "void": _check_void,
    "bool": _check_bool,
    "text": _check_text,
    "data": _check_data,
}


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(str(text) for text in value.list.as_list(capnp._ListSchema(capnp.types.Text)))


def _doc(comment: str) -> str:
    return comment.strip()
