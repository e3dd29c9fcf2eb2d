"""Compiles the schemas at build time: `schemas.cgr` for `bus.wire`, `switchboard.json` for bay0.

Runs on the builder, never in the image. Reads schemas/*.capnp with the `capnp` tool and the organs' names
from the manifest; writes the two files, the same bytes for the same input. Whatever is wrong with a schema is
refused here, as `SchemaRefused` with file, line and rule, so that nothing is left to be found out at boot.
Nothing is written then.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from bus import wire

HOST: Final = "host"
"""The caller that is no organ: the person at ./spine. It gets no socket."""
DEADLINE_MS_MAX: Final = 10 * 60 * 1000
"""No call has a reason to take longer than ten minutes; a greater number is a slip of a digit."""
NAME_BYTES_MAX: Final = 32
"""An organ's name is part of a socket's path, which the kernel limits to 107 bytes."""

_CAPNP_MESSAGE: Final = re.compile(
    r"^(?P<file>[^:\n]+):(?P<line>\d+)[:\-][^ ]* error: (?P<rule>.*)$", re.MULTILINE
)


class SchemaRefused(Exception):
    """A schema that must not become part of an image."""

    def __init__(self, file: str, line: int, rule: str) -> None:
        self.file: Final = file
        self.line: Final = line
        self.rule: Final = rule
        super().__init__(f"{file}:{line}: {rule}")


def compile_schemas(schemas_dir: Path, manifest_path: Path, out_dir: Path) -> None:
    """Writes `out_dir/schemas.cgr` and `out_dir/switchboard.json`.

    SchemaRefused when a schema breaks a rule; FileNotFoundError when the `capnp` tool is not installed.
    """
    request = _run_capnp(schemas_dir)
    try:
        schemas = wire.parse(request)
    except wire.SchemaError as error:
        file, _, declaration = error.where.partition(":")
        line = _line_of(schemas_dir / file, declaration)
        raise SchemaRefused(file, line, f"{declaration}: {error.rule} is not spoken by the bus") from None
    organs = _organ_names(manifest_path)
    for refusal in refusals(schemas, organs):
        interface, method, rule = refusal
        declaration = f"{interface.name}.{method.name}" if method else interface.name
        line = _line_of(schemas_dir / interface.file, declaration)
        raise SchemaRefused(interface.file, line, f"{declaration}: {rule}")
    pairs = switchboard(schemas.interfaces)
    beside = switchboard(schemas.interfaces, beside=True)
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "schemas.cgr").write_bytes(request)
    text = json.dumps({"fds": beside, "pairs": pairs}, indent=1, sort_keys=True) + "\n"
    (out_dir / "switchboard.json").write_text(text)


def switchboard(interfaces: Mapping[str, wire.Interface], *, beside: bool = False) -> list[tuple[str, str]]:
    """The pairs (callee, caller) that need a socket, sorted. The host needs none: it comes in by a port.
    Who only hears needs one too.

    `beside`: those that need one more, for descriptors.
    """
    return sorted(
        {
            (interface.name, caller)
            for interface in interfaces.values()
            for method in (*interface.methods.values(), *interface.events.values())
            for caller in method.callers
            if caller != HOST and (method.beside or not beside)
        }
    )


Refusal = tuple[wire.Interface, wire.Method | None, str]


def refusals(schemas: wire.Schemas, organs: frozenset[str]) -> Iterator[Refusal]:
    """Each rule that a schema breaks: the interface, the method where there is one, and the rule."""
    ports = [interface for interface in schemas.interfaces.values() if interface.host_port]
    for interface in ports[1:]:
        yield interface, None, f"$hostPort is already on {ports[0].name}"
    for interface in schemas.interfaces.values():
        if interface.name not in organs:
            yield interface, None, "the manifest has no organ of that name"
        if Path(interface.file).stem != interface.name:
            yield interface, None, f"the interface of {interface.name} belongs in {interface.name}.capnp"
        for method in interface.methods.values():
            for rule in _broken_rules(interface, method, organs):
                yield interface, method, rule
        for event in interface.events.values():
            for rule in _broken_event_rules(interface, event, organs):
                yield interface, event, rule
    yield from _cycles(schemas)


def _broken_rules(interface: wire.Interface, method: wire.Method, organs: frozenset[str]) -> Iterator[str]:
    yield from _broken_caller_rules(interface, method, organs)
    for caller in method.callers:
        if caller == HOST:
            if method.beside:
                yield f"no descriptor crosses the port to the {HOST}, so $fd and $gives exclude it"
            if not interface.host_port:
                yield f"only an interface with $hostPort may have the caller {HOST}"
    if method.deadline_ms == 0:
        yield "$deadlineMs is missing or 0"
    elif method.deadline_ms > DEADLINE_MS_MAX:
        yield f"$deadlineMs is over {DEADLINE_MS_MAX}"


def _broken_event_rules(
    interface: wire.Interface, event: wire.Method, organs: frozenset[str]
) -> Iterator[str]:
    yield from _broken_caller_rules(interface, event, organs)
    if HOST in event.callers:
        yield f"no event crosses the port to the {HOST}"
    if event.results:
        yield "an event has no results: nobody answers it"
    if event.deadline_ms or event.idempotent or event.beside or event.disruptive:
        yield "an event has $callers and no other property of a method"


def _broken_caller_rules(
    interface: wire.Interface, method: wire.Method, organs: frozenset[str]
) -> Iterator[str]:
    if not method.callers:
        yield "$callers is missing or empty"
    if len(set(method.callers)) != len(method.callers):
        yield "$callers names a caller twice"
    for caller in method.callers:
        if caller == interface.name:
            yield "an organ does not call itself over the bus"
        elif caller not in organs and caller != HOST:
            yield f"$callers names {caller}, which is no organ of the manifest"


def _cycles(schemas: wire.Schemas) -> Iterator[Refusal]:
    """A method that closes a circle of calls. Whoever waits in a circle may wait for himself."""
    callees: dict[str, dict[str, tuple[wire.Interface, wire.Method]]] = {}
    for interface in schemas.interfaces.values():
        for method in interface.methods.values():
            for caller in method.callers:
                callees.setdefault(caller, {}).setdefault(interface.name, (interface, method))
    done: set[str] = set()

    def visit(organ: str, path: tuple[str, ...]) -> Iterator[Refusal]:
        for callee, (interface, method) in sorted(callees.get(organ, {}).items()):
            if callee in path and callee != organ:
                circle = " -> ".join((*path[path.index(callee) :], callee))
                yield interface, method, f"calls go in a circle: {circle}"
            elif callee not in done and callee != organ:
                yield from visit(callee, (*path, callee))
        done.add(organ)

    for organ in sorted(callees):
        if organ not in done:
            yield from visit(organ, (organ,))


def _organ_names(manifest_path: Path) -> frozenset[str]:
    """The names in the manifest. Only its keys are read here; the manifest has a decoder of its own."""
    with manifest_path.open("rb") as file:
        organs = tomllib.load(file).get("organs")
    if not isinstance(organs, dict):
        raise SchemaRefused(str(manifest_path), 1, "the manifest has no table [organs]")
    for name in organs:
        if not re.fullmatch(rf"[a-z][a-z0-9]{{0,{NAME_BYTES_MAX - 1}}}", name) or name == HOST:
            raise SchemaRefused(str(manifest_path), 1, f"{name} cannot be the name of an organ")
    # A stanza may say that its process has no bus; such a one can neither call nor be called.
    return frozenset(name for name, stanza in organs.items() if stanza.get("bus", True) is not False)


def _run_capnp(schemas_dir: Path) -> bytes:
    """The CodeGeneratorRequest of all schemas, with relative names: its bytes do not tell where they lay."""
    files = sorted(path.name for path in schemas_dir.glob("*.capnp"))
    if not files:
        raise SchemaRefused(str(schemas_dir), 1, "there is no schema here")
    done = subprocess.run(
        ["capnp", "compile", "--no-standard-import", "-o-", *files],
        cwd=schemas_dir,
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode == 0:
        return done.stdout
    report = done.stderr.decode(errors="replace")
    found = _CAPNP_MESSAGE.search(report)
    if found is None:
        raise SchemaRefused(files[0], 1, report.strip() or f"capnp ended with {done.returncode}")
    raise SchemaRefused(found["file"], int(found["line"]), found["rule"])


def _line_of(path: Path, declaration: str) -> int:
    """The line where `Interface`, `Interface.method` or a field of it is declared, 1 when it is not found.

    The compiled schema holds no positions, so the text is searched: for the interface first, then for
    `name @`. Comments are skipped.
    """
    lines = [line.partition("#")[0] for line in path.read_text().splitlines()]
    number = 0
    for index, word in enumerate(declaration.split(".")):
        pattern = rf"\binterface\s+{word}\b" if index == 0 else rf"\b{re.escape(word)}\s*[@:]"
        matches = _matching(lines[number:], re.compile(pattern, re.IGNORECASE if index == 0 else 0))
        offset = next(matches, None)
        if offset is None:
            break
        number += offset
    return number + 1


def _matching(lines: Iterable[str], pattern: re.Pattern[str]) -> Iterator[int]:
    return (index for index, line in enumerate(lines) if pattern.search(line))


def main() -> int:
    """`python -m bus.compile SCHEMAS MANIFEST OUT`; exit code 1 and one line when a schema is refused."""
    if len(sys.argv) != 4:
        print("usage: python -m bus.compile SCHEMAS MANIFEST OUT", file=sys.stderr)
        return 2
    try:
        compile_schemas(*(Path(argument) for argument in sys.argv[1:]))
    except SchemaRefused as refused:
        print(refused, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
