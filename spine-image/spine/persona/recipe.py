"""The recipe of a persona: `personas/NAME/persona.toml`, read strictly.

Pure but for `load`, which reads that one file. It knows the rules that a recipe must keep: no unknown key,
no key left out, no wrong type, no number outside its range, no path that is not exactly one place in the
room, no two things that contradict each other.
Never: fills in a value that the file does not state.
Fails: with RecipeRefused, which names file, line, key and rule.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from organs import persona
from organs.fields import Fields
from spine import paths
from spine.errors import Exit, SpineError

FILE: Final = "persona.toml"
LOCK: Final = "persona.lock"
# How Debian's policy spells the name of a package.
PACKAGE: Final = re.compile(r"[a-z0-9][a-z0-9+.-]{1,63}")
PROGRAM: Final = re.compile(r"[a-z][a-z0-9-]{0,30}")
SIZE: Final = re.compile(r"([1-9][0-9]{0,6}) (KiB|MiB|GiB)")
UNITS: Final = {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
# Nothing but rights of access: with a bit that makes somebody root, or nobody able to read it, it is refused.
MODE: Final = re.compile(r"0[4-7][0-7]{2}")
# The spine mounts its own over these; what an image has there could not be seen, or would be a trick.
SPINES_OWN: Final = ("/dev", "/proc", "/run", "/sys", "/tmp")
# A persona is a few packages; a whole distribution is not written by hand.
PACKAGES_MAX: Final = 512
FILES_MAX: Final = 1024
NAME_BYTES_MAX: Final = 255
PATH_BYTES_MAX: Final = 1024

T = TypeVar("T")


class RecipeRefused(SpineError):
    """A recipe breaks a rule. `line` is where, or 0 when the file as a whole is meant."""

    def __init__(self, file: str, line: int, key: str, rule: str) -> None:
        super().__init__(
            f"{file}:{line}: {key}: {rule}",
            "a persona is built only from a recipe that keeps every rule",
            f"$EDITOR {file}   # docs/personas.md tells each key",
            Exit.REFUSED,
        )
        self.line = line
        self.key = key
        self.rule = rule


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file of the persona's own: `source` in its folder, `target` in the room."""

    source: str
    target: str
    mode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The whole file. `links` maps a path of the room to what the link there says."""

    name: str
    summary: str
    version: int
    packages: tuple[str, ...]
    programs: tuple[str, ...]
    files: tuple[File, ...]
    links: Mapping[str, str]
    init: tuple[str, ...]
    console: bool
    limits: persona.Limits
    network: persona.Network
    devices: frozenset[str]
    grants: frozenset[str]
    autostart: bool
    on_focus_loss: persona.OnFocusLoss


def directory(name: str) -> Path:
    """The folder of a persona in the tree."""
    return paths.ROOT / "personas" / name


def names() -> list[str]:
    """The personas that the tree has a recipe for."""
    return sorted(path.parent.name for path in (paths.ROOT / "personas").glob(f"*/{FILE}"))


def load(name: str) -> Recipe:
    """The recipe of a persona of the tree. RecipeRefused; SpineError when there is none."""
    if not persona.NAME.fullmatch(name):
        raise SpineError(
            f"{name!r} cannot be the name of a persona",
            "a name is 1 to 15 lower case letters and digits, a letter first",
            "./spine persona list",
            Exit.USAGE,
        )
    file = directory(name) / FILE
    try:
        text = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SpineError(
            f"there is no persona {name}",
            f"{file} is not there",
            f"./spine persona new {name}",
            Exit.NO_SUCH_THING,
        ) from error
    shown = str(file.relative_to(paths.ROOT))
    try:
        return decode(name, text.decode(), shown)
    except UnicodeDecodeError as error:
        raise RecipeRefused(shown, text[: error.start].count(b"\n") + 1, "syntax", "is not UTF-8") from None


def decode(name: str, text: str, file: str = FILE) -> Recipe:
    """Read a recipe. Raises RecipeRefused."""
    if not persona.NAME.fullmatch(name):
        raise RecipeRefused(file, 0, "name", "a folder's name must be 1 to 15 lower case letters and digits")
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        at = re.search(r"at line (\d+)", str(error))
        raise RecipeRefused(file, int(at[1]) if at else 0, "syntax", str(error)) from None
    root = _Table(document, text, file, "")
    recipe = Recipe(
        name=name,
        summary=_summary(root),
        version=root.number("version", 1, persona.VERSION_MAX),
        packages=root.names("packages", PACKAGE, "must be names of Debian packages", PACKAGES_MAX),
        programs=root.names("programs", PROGRAM, "must be names of programs in personas/programs", FILES_MAX),
        files=_files(root.table("files")),
        links=_links(root.table("links")),
        init=_init(root),
        console=root.take("console", bool),
        limits=_limits(root.table("limits")),
        network=_network(root.table("network")),
        devices=root.words("devices", persona.DEVICES),
        grants=root.words("grants", persona.GRANTS),
        autostart=root.take("autostart", bool),
        on_focus_loss=_on_focus_loss(root),
    )
    root.end()
    twice = {each.target for each in recipe.files} & recipe.links.keys()
    if twice:
        raise root.table("links").refuse(min(twice), "is a file already")
    return recipe


def path_problem(path: str) -> str | None:
    """What is wrong with a path in the room, or None. One place has one spelling."""
    parts = path.split("/")
    if not path.startswith("/") or path == "/":
        return "must be a whole path, from /"
    if any(part in ("", ".", "..") for part in parts[1:]):
        return "must have no empty part, no . and no .."
    if not path.isprintable() or "\\" in path:
        return "has a character that no path of an image has"
    if len(path.encode()) > PATH_BYTES_MAX or any(len(part.encode()) > NAME_BYTES_MAX for part in parts):
        return f"is longer than {PATH_BYTES_MAX} bytes, or a part of it than {NAME_BYTES_MAX}"
    if f"/{parts[1]}" in SPINES_OWN:
        return f"lies in /{parts[1]}, where the spine mounts its own"
    return None


def link_problem(path: str, target: str) -> str | None:
    """What is wrong with a symbolic link, or None. A link from / means the room's own /."""
    if not target or not target.isprintable() or len(target.encode()) > PATH_BYTES_MAX:
        return "leads nowhere"
    depth = 0 if target.startswith("/") else path.count("/") - 1
    for part in target.split("/"):
        depth += {"": 0, ".": 0, "..": -1}.get(part, 1)
        if depth < 0:
            return "leads out of the image"
    return None


class _Table(Fields):
    """One TOML table being read: knows its place in the text and which keys were not asked for yet."""

    def __init__(self, values: Mapping[str, object], text: str, file: str, path: str) -> None:
        super().__init__(values)
        self._text = text
        self._file = file
        self._path = path
        self._tables: dict[str, _Table] = {}

    def refuse(self, key: str, rule: str) -> RecipeRefused:
        """The refusal of one key of this table."""
        where = f"{self._path}.{key}" if self._path else key
        shown = where if where.isprintable() else repr(where)
        return RecipeRefused(self._file, _line(self._text, self._path, key), shown, rule)

    def all_keys(self) -> tuple[str, ...]:
        """All keys, in the order of the file."""
        return tuple(self.values)

    def end(self) -> None:
        """Refuse what nobody asked for, below and here."""
        for table in self._tables.values():
            table.end()
        super().end()

    def size(self, key: str, low: int, high: int) -> int:
        """A size like "64 MiB", in bytes."""
        parts = SIZE.fullmatch(self.take(key, str))
        size = int(parts[1]) * UNITS[parts[2]] if parts else 0
        if not low <= size <= high:
            raise self.refuse(key, f'must be a size like "64 MiB", from {_size(low)} to {_size(high)}')
        return size

    def names(self, key: str, pattern: re.Pattern[str], rule: str, most: int) -> tuple[str, ...]:
        """A list of names of one form, none of them twice, in the order of the file."""
        found = self.distinct(key)
        if len(found) > most or not all(pattern.fullmatch(name) for name in found):
            raise self.refuse(key, f"{rule}, at most {most}")
        return tuple(found)

    def table(self, key: str) -> "_Table":
        """A table of this one."""
        if key not in self._tables:
            path = f"{self._path}.{key}" if self._path else key
            self._tables[key] = _Table(self.take(key, dict), self._text, self._file, path)
        return self._tables[key]


def _line(text: str, path: str, key: str) -> int:
    """The line on which `key` of the table `path` stands; else the line of the table; else 0."""
    table, found = "", 0
    wanted = path.split(".", 1)
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[([^\[\]]+)\]\s*(#.*)?$", line):
            table = header[1].strip()
            if table == (f"{path}.{key}" if path else key):
                return number
            if table == path:
                found = number
        elif table == path and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[.=]", line):
            return number
        # `files = { ... }`, and a key of a table within a table: the line that the outer key stands on.
        elif table == "" and re.match(rf"\s*{re.escape(wanted[0])}\s*[.=]", line):
            found = found or number
        elif (
            len(wanted) > 1
            and table == wanted[0]
            and re.match(rf"\s*[\"']{re.escape(wanted[1])}[\"']\s*=", line)
        ):
            return number
    return found


def _size(number: int) -> str:
    unit = max((unit for unit, size in UNITS.items() if number % size == 0), key=lambda unit: UNITS[unit])
    return f"{number // UNITS[unit]} {unit}"


def _summary(root: _Table) -> str:
    summary = root.take("summary", str)
    if not summary or not summary.isprintable() or len(summary) > persona.SUMMARY_CHARS_MAX:
        raise root.refuse("summary", f"must be one line of 1 to {persona.SUMMARY_CHARS_MAX} characters")
    return summary


def _files(table: _Table) -> tuple[File, ...]:
    found = []
    for target in table.all_keys():
        if problem := path_problem(target):
            raise table.refuse(target, problem)
        row = table.table(target)
        source, mode = row.take("source", str), row.take("mode", str)
        if source.startswith("/") or path_problem(f"/files/{source}"):
            raise table.refuse(target, "source must be a path within the persona's folder")
        if not MODE.fullmatch(mode):
            raise table.refuse(target, 'mode must be rights like "0644" or "0755", and nothing above them')
        found.append(File(source=source, target=target, mode=int(mode, 8)))
    if len(found) > FILES_MAX:
        raise table.refuse(table.all_keys()[-1], f"there must be at most {FILES_MAX} files")
    return tuple(found)


def _links(table: _Table) -> dict[str, str]:
    found = {}
    for path in table.all_keys():
        target = table.take(path, str)
        if problem := path_problem(path) or link_problem(path, target):
            raise table.refuse(path, problem)
        found[path] = target
    return found


def _init(root: _Table) -> tuple[str, ...]:
    words = root.take("init", list)
    if not 1 <= len(words) <= persona.INIT_WORDS_MAX:
        raise root.refuse("init", f"must have 1 to {persona.INIT_WORDS_MAX} words")
    for word in words:
        if not isinstance(word, str) or not 1 <= len(word) <= persona.INIT_CHARS_MAX or "\0" in word:
            raise root.refuse("init", f"each word must have 1 to {persona.INIT_CHARS_MAX} characters")
    if problem := path_problem(words[0]):
        raise root.refuse("init", f"the program {problem}")
    return tuple(words)


def _limits(table: _Table) -> persona.Limits:
    return persona.Limits(
        memory_bytes=table.size("memory", *persona.MEMORY_BYTES),
        pids=table.number("pids", *persona.PIDS),
        writable_bytes=table.size("writable", *persona.WRITABLE_BYTES),
    )


def _network(table: _Table) -> persona.Network:
    use, ports = table.take("use", bool), table.take("inbound", list)
    if len(ports) > persona.INBOUND_MAX or not all(
        type(port) is int and 1 <= port <= persona.PORT_MAX for port in ports
    ):
        raise table.refuse(
            "inbound", f"must be at most {persona.INBOUND_MAX} ports from 1 to {persona.PORT_MAX}"
        )
    if len(set(ports)) != len(ports):
        raise table.refuse("inbound", "names a port twice")
    if ports and not use:
        raise table.refuse("inbound", "without a network there is nothing to be called on")
    return persona.Network(use=use, inbound=tuple(ports))


def _on_focus_loss(root: _Table) -> persona.OnFocusLoss:
    word = root.take("on-focus-loss", str)
    if word not in {each.value for each in persona.OnFocusLoss}:
        raise root.refuse("on-focus-loss", "must be freeze or kill")
    return persona.OnFocusLoss(word)
