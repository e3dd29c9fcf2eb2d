"""Chooses the verb, reads its options, prints its errors, gives its exit code.

Imports only the module of the verb that was asked for, so that help and errors stay quick; the list of
verbs is the list of files in verbs/. A verb is a module with `HELP: str`, `add_arguments(parser) -> None`
and `run(args) -> int`; `--json` is added to each (`args.json`). Data goes to standard output, all else to
standard error. A `SpineError` becomes three lines, or one JSON object with `--json`; any other exception is
a defect of ours: it is kept in a file and told in three lines too, and shown whole when SPINE_DEBUG is 1.
"""

import argparse
import ast
import difflib
import errno
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Protocol, cast

from spine.errors import Exit, SpineError

VERBS_DIRECTORY = Path(__file__).resolve().parent / "verbs"
# The order in help: the way a person meets them. Verbs not named here follow by name.
VERBS_FIRST = (
    *("demo", "boot", "status", "persona", "focus", "exec", "call", "log", "reboot", "powercut", "stop"),
    *("doctor", "build", "image", "test"),
)
# A reader that went away (`./spine log | head`) ends us as SIGPIPE would: 128 + 13.
EXIT_BROKEN_PIPE = 141


class Verb(Protocol):
    """What a module in verbs/ offers."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


class Parser(argparse.ArgumentParser):
    """argparse, with errors that are ours."""

    def error(self, message: str) -> NoReturn:
        raise SpineError(message, " ".join(self.format_usage().split()), f"{self.prog} --help", Exit.USAGE)


def main(words: Sequence[str]) -> int:
    """Run one verb with its arguments; the exit code of the process."""
    as_json = _wants_json(words)
    sys.excepthook = lambda _kind, error, trace: _defect(error, trace, words, as_json)
    try:
        code = _dispatch(list(words))
        sys.stdout.flush()
        return code
    except SpineError as error:
        return _tell(error, as_json)
    except BrokenPipeError:
        # Nothing more can be said there; keep the interpreter from trying at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        return _tell(
            SpineError("interrupted", "ctrl-C was pressed", "run the same command again", Exit.INTERRUPTED),
            as_json,
        )
    except OSError as error:
        if os.environ.get("SPINE_DEBUG") == "1":
            raise
        return _tell(_from_os(error), as_json)


def verbs() -> dict[str, str]:
    """Every verb with its one line of help, in the order of the help; read from the files, not imported."""
    found = {path.stem: _help_line(path) for path in VERBS_DIRECTORY.glob("[a-z]*.py")}
    order = [name for name in VERBS_FIRST if name in found]
    return {name: found[name] for name in order + sorted(found.keys() - set(order))}


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        if len(words) > 1 and words[0] == "help":
            return _dispatch([words[1], "--help"])
        sys.stdout.write(_overview())
        return Exit.OK
    name = words[0]
    if not name.isidentifier() or not (VERBS_DIRECTORY / f"{name}.py").is_file() or name.startswith("_"):
        known = list(verbs())
        near = difflib.get_close_matches(name, known, 1)
        raise SpineError(
            f"there is no verb {name!r}",
            f"did you mean {near[0]!r}?" if near else f"the verbs are {', '.join(known)}",
            f"./spine {near[0]} --help" if near else "./spine --help",
            Exit.USAGE,
        )
    verb = cast(Verb, importlib.import_module(f"spine.verbs.{name}"))
    parser = Parser(
        prog=f"./spine {name}", description=verb.HELP, allow_abbrev=False, conflict_handler="resolve"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output, errors too")
    verb.add_arguments(parser)
    return verb.run(parser.parse_args(words[1:]))


def _overview() -> str:
    listed = verbs()
    width = max(map(len, listed), default=0)
    rows = "".join(f"  {name:<{width}}  {line}\n" for name, line in listed.items())
    return (
        "usage: ./spine VERB [options]\n\n"
        f"{rows}\n"
        "Every verb takes --json and --help. Exit codes: 0 ok, 1 failed, 2 usage, 3 host not ready,\n"
        "4 no such thing, 5 refused, 6 loss, 124 timeout.\n"
    )


def _help_line(path: Path) -> str:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        target = node.target if isinstance(node, ast.AnnAssign) else target
        if (
            isinstance(target, ast.Name)
            and target.id == "HELP"
            and isinstance(node, ast.Assign | ast.AnnAssign)
            and isinstance(node.value, ast.Constant)
        ):
            return str(node.value.value)
    return ""


def _wants_json(words: Sequence[str]) -> bool:
    # Errors of reading the options must be JSON too, so this looks before argparse does.
    own = words[: list(words).index("--")] if "--" in words else words
    return "--json" in own


def _tell(error: SpineError, as_json: bool) -> int:
    if as_json:
        sys.stdout.write(json.dumps(error.document()) + "\n")
        sys.stdout.flush()
    else:
        sys.stderr.write(error.lines())
    return error.exit_code


def _from_os(error: OSError) -> SpineError:
    where = f": {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SpineError(
            "the disk is full", f"{error.strerror}{where}", "free some space, then run the same command again"
        )
    return SpineError(
        f"the system refused a call{where}", error.strerror or str(error), "./spine doctor", Exit.FAILED
    )


def _defect(error: BaseException, trace: TracebackType | None, words: Sequence[str], as_json: bool) -> None:
    """The hook for what nobody caught; the interpreter then ends with exit code 1."""
    import traceback

    text = "".join(traceback.format_exception(type(error), error, trace))
    if os.environ.get("SPINE_DEBUG") == "1":
        sys.stderr.write(text)
        return
    kept = "it could not be saved"
    try:
        from spine import paths

        file = paths.private(paths.state()) / "last-traceback.txt"
        file.write_text(text, encoding="utf-8")
        kept = f"the traceback is in {file}"
    except (OSError, SpineError):
        pass
    _tell(
        SpineError(
            f"a defect in spine: {type(error).__name__}: {error}",
            kept,
            f"SPINE_DEBUG=1 ./spine {' '.join(words)}",
        ),
        as_json,
    )
