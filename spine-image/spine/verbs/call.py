"""`./spine call ORGAN.METHOD name=value ...`: one call into the running spine; alone, what may be called.

`./spine call ORGAN.METHOD --help` shows one method, from the cache of the schemas: help sets nothing up.

Touches: the operator's port, the compiled schemas in the cache, files named with `@`. The values are read
by the schema's types; results are `name: value` lines, one object with `--json`, or the plain bytes when a
single Data result goes to a file or a pipe.
"""

import argparse
import difflib
import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from spine import methods, values
from spine.errors import Exit, SpineError
from spine.ground import port as ports
from spine.ground.attach import add_choice, attach

if TYPE_CHECKING:
    from bus.wire import Method, Schemas

HELP = "call a method of an organ, or list what may be called"


class Help(argparse.Action):
    """`--help` behind the name of a method is about that method."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(
            option_strings, dest, nargs=0, default=argparse.SUPPRESS, help="of this verb, or of a method"
        )

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,  # noqa: ARG002
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        asked = namespace.method
        known = methods.known()
        if asked is None or known is None:
            parser.print_help()
            if asked is not None:
                sys.stderr.write("spine: nothing is known of methods yet; ./spine call looks them up\n")
        else:
            if asked not in known:
                raise unknown(asked, known)
            sys.stdout.write(methods.page(asked, known[asked]))
        parser.exit()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("-h", "--help", action=Help)
    parser.add_argument(
        "method", nargs="?", metavar="ORGAN.METHOD", help="without it: list what may be called"
    )
    parser.add_argument(
        "values",
        nargs="*",
        metavar="name=value",
        help="bytes: text, @FILE, hex:00ff, or text:... for any text",
    )
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="how long the call may take")
    add_choice(parser)


def run(args: argparse.Namespace) -> int:
    """Call, or list."""
    table = ports.schemas()
    if args.method is None:
        found = [m for interface in table.interfaces.values() for m in interface.methods.values()]
        if args.json:
            names = [f"{m.interface_name}.{m.name}" for m in found if values.callable_by(m, methods.CALLERS)]
            sys.stdout.write(json.dumps({"methods": names}) + "\n")
        else:
            sys.stdout.write(values.listing(found, methods.CALLERS))
        return Exit.OK
    method = find(table, args.method)
    if method.params and not args.values:
        shown = methods.page(args.method, methods.document(table)[args.method])  # type: ignore[arg-type]
        raise SpineError(
            f"{args.method} takes parameters",
            f"none was given, and it takes {', '.join(field.name for field in method.params)}",
            f"./spine call {args.method} {values.signature(method.params)}",
            Exit.USAGE,
            shown=shown.splitlines(),
        )
    try:
        params = values.parse(method.params, args.values, args.method)
        body = method.encode_params(params)
    except (ValueError, TypeError) as error:
        raise SpineError(
            f"{args.method} cannot be called like this",
            str(error),
            f"./spine call {args.method} {values.signature(method.params)}".rstrip(),
            Exit.USAGE,
        ) from error
    with attach(args.ground).port() as port:
        results = port.call_raw(method, body, args.timeout)
    _print(results, args.json)
    return Exit.OK


def find(table: "Schemas", name: str) -> "Method":
    """The method of this name. SpineError (4)."""
    known = {
        f"{method.interface_name}.{method.name}": method
        for interface in table.interfaces.values()
        for method in interface.methods.values()
    }
    if name in known:
        return known[name]
    raise unknown(name, known)


def unknown(name: str, known: Iterable[str]) -> SpineError:
    """The error for a method that no schema declares."""
    near = difflib.get_close_matches(name, list(known), 1)
    return SpineError(
        f"there is no method {name!r}",
        f"did you mean {near[0]!r}?" if near else "no schema declares it",
        "./spine call   (lists what may be called)",
        Exit.NO_SUCH_THING,
    )


def _print(results: dict[str, object], as_json: bool) -> None:
    only = next(iter(results.values())) if len(results) == 1 else None
    if as_json:
        sys.stdout.write(json.dumps(values.as_json(results)) + "\n")
    elif isinstance(only, bytes) and not sys.stdout.isatty():
        sys.stdout.buffer.write(only)
    else:
        sys.stdout.write(values.as_text(results))
