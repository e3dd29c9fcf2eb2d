"""Tests made from the schemas: every method that may be called from here, without naming one.

What is called, with what, and what the answer must look like comes out of the compiled schemas; a new method
is tested because it is declared. A method that the schema calls disruptive gets only bodies that are refused,
and calls that have no time.
"""

from __future__ import annotations

import dataclasses
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from bus import reference
from bus.envelope import MESSAGE_MAX, Code, PeerError
from bus.wire import Interface, Method, Schemas, Type
from spine import paths
from spine.ground.container import Container
from spine.ground.port import Port, PortFailure, schemas
from spine.image.build import build
from spine.progress import Progress
from tests.bus import strategies
from tests.integration.live import Live

OPERATOR, HOST = "operator", "host"
# What a callee may say of parameters that fit the schema: a documented no of its own.
HONEST = frozenset(
    {
        *(Code.INVALID, Code.NOT_FOUND, Code.REFUSED, Code.QUOTA, Code.FULL, Code.THROTTLED, Code.CORRUPT),
        *(Code.UNKNOWN, Code.FROZEN, Code.BUSY, Code.TOO_LARGE),
    }
)
EXAMPLES = 15
HOSTILE = 40
DRAWN = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def callable_here(table: Schemas) -> list[Method]:
    """Every method that the host reaches: its own, and those that the operator may pass on, which are none
    that carry descriptors."""
    return [
        method
        for interface in table.interfaces.values()
        for method in interface.methods.values()
        if (HOST if interface.host_port else OPERATOR) in method.callers and not method.beside
    ]


METHODS = callable_here(schemas())
EACH = pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.interface_name}.{m.name}")
HARMLESS = pytest.mark.parametrize(
    "method", [m for m in METHODS if not m.disruptive], ids=lambda m: f"{m.interface_name}.{m.name}"
)
IDEMPOTENT = pytest.mark.parametrize(
    "method",
    [m for m in METHODS if m.idempotent and not m.disruptive],
    ids=lambda m: f"{m.interface_name}.{m.name}",
)


def generations(live: Live) -> dict[str, object]:
    """The generation of every child. A test that hurts nobody finds the same afterwards."""
    return {name: row["generation"] for name, row in live.table().items()}


@pytest.fixture
def unhurt(live: Live) -> Iterator[Live]:
    """The spine, in which nobody may be restarted by what the test does."""
    before = generations(live)
    yield live
    assert generations(live) == before


def outcome(port: Port, method: Method, body: bytes, timeout_s: float | None = None) -> object:
    """The results of a call, decoded by the schema, or the code of its failure."""
    try:
        return port.call_raw(method, body, timeout_s)
    except PortFailure as failure:
        return failure.failure.code


def fits(type_: Type, value: object) -> bool:
    """Whether a value is one of the type."""
    if type_.integer_range is not None:
        return isinstance(value, int) and type_.integer_range[0] <= value <= type_.integer_range[1]
    if type_.kind == "list":
        assert type_.element is not None
        return isinstance(value, list) and all(fits(type_.element, item) for item in value)
    if type_.kind == "struct":
        return isinstance(value, dict) and all(fits(f.type, value.get(f.name)) for f in type_.fields)
    kinds: dict[str, type | tuple[type, ...]] = {"text": str, "enum": str, "data": bytes, "bool": bool}
    return isinstance(value, kinds.get(type_.kind, object))


@HARMLESS
def test_parameters_that_fit_get_a_typed_answer(unhurt: Live, method: Method) -> None:
    with unhurt.port() as port:

        @DRAWN
        @given(strategies.fields(method.params))
        def ask(params: dict[str, object]) -> None:
            got = outcome(port, method, method.encode_params(params))
            if isinstance(got, dict):
                assert got.keys() == {field.name for field in method.results}
                assert all(fits(field.type, got[field.name]) for field in method.results)
            else:
                assert got in HONEST, got

        ask()


def hostile_bodies(method: Method) -> list[bytes]:
    """Bodies that cannot be decoded: noise, cuts and flips of honest ones, and the costliest small one."""
    dice = random.Random(f"{method.interface_name}.{method.name}")
    honest = [b"", bytes(8), bytes(16), dice.randbytes(64), dice.randbytes(4096)]
    # One segment; a struct all of whose pointers lead to a list of half a billion nothings.
    root = bytes.fromhex("00000000 0c000000 00000000 00000b00")
    bomb = root + bytes.fromhex("01000000 f8ffff7f") * 11
    made = [*honest, bomb]
    words = [dice.getrandbits(64).to_bytes(8, "little") for _ in range(8)]
    header = (0).to_bytes(4, "little") + len(words).to_bytes(4, "little")
    for _ in range(HOSTILE):
        body = bytearray(header + b"".join(dice.choices(words, k=len(words))))
        body[dice.randrange(8, len(body))] ^= 1 << dice.randrange(8)
        made.append(bytes(body[: dice.choice((len(body), len(body) - 8, len(body) - 3))]))
    return [body for body in made if undecodable(method, body)]


def undecodable(method: Method, body: bytes) -> bool:
    try:
        method.decode_params(body)
    except PeerError:
        return True
    return False


@EACH
def test_hostile_bodies_get_a_typed_failure(unhurt: Live, method: Method) -> None:
    bodies = hostile_bodies(method)
    assert len(bodies) >= 3
    with unhurt.port() as port:
        for body in bodies:
            assert outcome(port, method, body) is Code.BAD_MESSAGE


@pytest.mark.proves("INV-BUS-2")
@EACH
def test_a_call_without_time_is_not_executed(unhurt: Live, method: Method) -> None:
    # Even a disruptive one: nothing of it is executed.
    with unhurt.port() as port:
        body = method.encode_params({f.name: plain(f.type) for f in method.params})
        assert outcome(port, method, body, 1e-9) is Code.DEADLINE


def plain(type_: Type) -> object:
    """The emptiest value of a type."""
    if type_.integer_range is not None:
        return 0
    if type_.kind == "enum":
        return type_.names[0]
    if type_.kind == "struct":
        return {field.name: plain(field.type) for field in type_.fields}
    emptiest: dict[str, object] = {"text": "", "data": b"", "list": [], "bool": False, "void": None}
    return emptiest.get(type_.kind, 0.0)


@IDEMPOTENT
def test_asking_twice_is_asking_once(unhurt: Live, method: Method) -> None:
    with unhurt.port() as port:

        @settings(DRAWN, max_examples=5)
        @given(strategies.fields(method.params))
        def ask(params: dict[str, object]) -> None:
            body = method.encode_params(params)
            first, second = outcome(port, method, body), outcome(port, method, body)
            # What time alone changes may differ; whether there is an answer, and of what kind, may not.
            assert type(first) is type(second)
            if isinstance(first, Code):
                assert first is second

        ask()


@EACH
def test_what_is_too_large_is_refused_by_the_sender(unhurt: Live, method: Method) -> None:
    with unhurt.port() as port:
        with pytest.raises(ValueError, match="is over"):
            port.call_raw(method, bytes(MESSAGE_MAX + 8))
        # Nothing of it went out: the same connection goes on.
        assert outcome(port, method, b"") is Code.BAD_MESSAGE


def declared(interface: Interface) -> int:
    """How many ordinals an interface uses."""
    return len(interface.methods) + len(interface.events)


def test_events_are_not_called(unhurt: Live) -> None:
    with unhurt.port() as port:
        for interface in schemas().interfaces.values():
            for event in interface.events.values():
                assert outcome(port, event, b"") is Code.UNKNOWN_METHOD


def test_a_method_that_is_not_there_is_said_so(unhurt: Live) -> None:
    with unhurt.port() as port:
        for interface in schemas().interfaces.values():
            any_method = next(iter(interface.methods.values()))
            unknown = dataclasses.replace(any_method, ordinal=declared(interface))
            assert outcome(port, unknown, b"") is Code.UNKNOWN_METHOD


@pytest.mark.proves("INV-PORT-2")
def test_what_the_operator_may_not_call_is_forbidden(unhurt: Live) -> None:
    table = schemas()
    here = callable_here(table)
    others = [m for i in table.interfaces.values() for m in i.methods.values() if m not in here]
    with unhurt.port() as port:
        for method in others:
            assert outcome(port, method, b"") is Code.FORBIDDEN


PING_SCHEMA = """
  ping @{ordinal} (echo :Data) -> (echo :Data)
    $callers(["operator"]) $deadlineMs(5000) $idempotent;
  # Answers with what was asked.
}}
"""


@pytest.mark.container
def test_a_new_method_needs_its_schema_and_its_handler_only(tmp_path: Path) -> None:
    """`ping` is added to a copy of the tree in two places; call, tests and reference follow."""
    tree = tmp_path / "tree"
    for name in ("schemas", "organs"):
        shutil.copytree(paths.ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    schema, organ = tree / "schemas/netroom.capnp", tree / "organs/netroom/organ.py"
    ordinal = declared(schemas().interfaces["netroom"])
    text_before = schema.read_text()
    assert text_before.rstrip().endswith("}")
    schema.write_text(text_before.rstrip()[:-1] + PING_SCHEMA.format(ordinal=ordinal))
    served = "        await spine.serve(handlers, rooms.events)\n"
    handler = (
        "        async def ping(_call: object, params: Mapping[str, object]) -> dict[str, object]:\n"
        '            return {"echo": params["echo"]}\n\n'
        '        await spine.serve({**handlers, "ping": ping}, rooms.events)\n'
    )
    text = organ.read_text()
    assert text.count(served) == 1
    organ.write_text(text.replace(served, handler))

    overlay = {str(path.relative_to(tree)): path.read_bytes() for path in (schema, organ)}
    out = tmp_path / "out"
    build(out, root_only=True, replace=overlay, progress=Progress())
    pages = reference.written_from(tree / "schemas", tree / "organs/manifest.toml")
    assert "## netroom.ping\n" in pages["netroom.md"]
    assert "Answers with what was asked." in pages["netroom.md"]
    table = reference.parsed(tree / "schemas", tree / "organs/manifest.toml")
    [method] = [m for m in callable_here(table) if m.name == "ping"]
    ground = Container(tmp_path / "ground")
    root, persist = ground.provision(out, fresh=True)
    try:
        ground.start(root, persist)
        ground.wait_ready()
        with Port(ground.port_path, table=table) as port:
            assert port.call("netroom.ping", {"echo": b"here"}) == {"echo": b"here"}
        live = Live("container", ground)
        before = generations(live)
        for test in (
            test_parameters_that_fit_get_a_typed_answer,
            test_hostile_bodies_get_a_typed_failure,
            test_a_call_without_time_is_not_executed,
            test_asking_twice_is_asking_once,
            test_what_is_too_large_is_refused_by_the_sender,
        ):
            test(live, method)
        assert generations(live) == before
        assert ground.stop()
    finally:
        ground.kill()
        shutil.rmtree(ground.directory, ignore_errors=True)
