"""Makes the root: one SquashFS with the interpreter, the wheels and our own files, and its hash tree.

Works in the cache only. Takes files out of the pinned packages by the rules of trim.py, finds the shared
libraries they need by reading them, strips, compiles every module with the very interpreter that will run
it, and packs. Owner, modes, dates and order are fixed, so the same inputs give the same bytes. No shell, no
package manager, no compiler and no setuid file goes in. A library that no package has ends the build.
"""

import ast
import json
import os
import re
import shutil
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from spine.errors import SpineError
from spine.image import commands, trim, verity
from spine.image.cache import remove
from spine.image.inputs import Package, Wheel
from spine.image.sources import Sources

PYTHON = "usr/bin/python3.11"
STDLIB = "usr/lib/python3.11"
PACKAGES = "usr/lib/python3/dist-packages"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
LOADER = "usr/lib64/ld-linux-x86-64.so.2"
SPINE = "usr/lib/spine"

# Where something is mounted or lies at run time.
EMPTY = ("proc", "sys", "dev", "run", "tmp", "persist")
# Files of ours that take the place of others': where they lie in the tree, and where they go.
STANDINS = {f"spine-image/root/{name}": f"{STDLIB}/{name}" for name in ("ssl.py", "sitecustomize.py")}
# The programs of the image, and what each is made of; the zygote besides that of every organ.
PROGRAMS = {"bay0": "organs.bay0.__main__", "zygote": "organs.bay0.zygote"}
# What programs expect at the top.
LINKS = {"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64"}

BAY0 = b"""\
#!/usr/bin/python3.11 -I
from organs.bay0.ahead import start

ahead = start()

from organs.bay0.__main__ import main

main(ahead)
"""

# 128 KiB: a page fault decompresses at most this much; larger blocks make small modules slow to reach (tried:
# 1 MiB doubles the time of the organs' imports under emulation). LZ4 takes a third more room than zstd and
# far fewer instructions to unpack, which every boot and every room waits for. No fragments: a block that many
# small files share is unpacked anew for each that is read once the kernel has forgotten it, and it remembers
# three.
SQUASH = ("-comp", "lz4", "-Xhc", "-b", "131072", "-no-fragments")
SQUASH_FIXED = ("-all-root", "-no-xattrs", "-no-exports", "-noappend", "-no-progress", "-quiet")

# Runs inside the image's own interpreter: {directory to strip} {keep the sources?}, paths on standard input.
# The .pyc is of the kind that is never compared with its source: nothing changes on this root.
_COMPILE = """\
import importlib.util, os, sys
from importlib._bootstrap_external import _code_to_hash_pyc
root, keep = sys.argv[1], sys.argv[2] == "keep"
for path in sys.stdin.read().split("\\n"):
    with open(root + path, "rb") as file:
        source = file.read()
    code = compile(source, path, "exec", dont_inherit=True)
    target = importlib.util.cache_from_source(root + path) if keep else root + path + "c"
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "wb") as file:
        file.write(_code_to_hash_pyc(code, importlib.util.source_hash(source), False))
"""

# Both run there too: what a program imports, compiles and parses while these modules are imported, each text
# as often as it does; and the tables of it that spine-image/root/sitecustomize.py reads. Two processes,
# because marshal looks at who else holds a string, and in a fresh one that is always the same.
_RECORD = """\
import sys, zlib
from _frozen_importlib_external import PathFinder
root, packages, *names = sys.argv[1:]
before = set(sys.modules)
texts, scripts, patterns, asked = [], [], [], []
def run(text, names, into):
    texts.append(text)
    exec(text, names, into)
def compiled(text, file, mode):
    scripts.append((text, file))
    return compile(text, file, mode)
class Sre:
    # The part of re that is written in C.
    def __init__(self, behind):
        self.behind = behind
    def __getattr__(self, name):
        return getattr(self.behind, name)
    def compile(self, text, flags, code, groups, names, numbers):
        asked.append((int(flags), [*map(int, code)], groups, dict(names), numbers))
        return self.behind.compile(text, flags, code, groups, names, numbers)
class Watch:
    # Three modules compile by themselves; what they use for it is watched from their first line on.
    def find_spec(self, name, path=None, target=None):
        if name not in ("dataclasses", "attr._make", "re._compiler"):
            return None
        spec = PathFinder.find_spec(name, path, target)
        usual = spec.loader.exec_module
        def exec_module(module):
            if name == "dataclasses":
                module.exec = run
            elif name == "attr._make":
                module.compile = compiled
                module.hash = lambda text: zlib.crc32(text.encode())
            usual(module)
            if name == "re._compiler":
                watch_patterns(module)
        spec.loader.exec_module = exec_module
        return spec
def watch_patterns(module):
    module._sre = Sre(module._sre)
    usual = module.compile
    def compile(text, flags=0):
        made = usual(text, flags)
        patterns.append((text, flags, *asked.pop()))
        return made
    module.compile = compile
sys.meta_path.insert(2, Watch())
sys.path.append(packages)
for name in names:
    __import__(name)
modules = []
for name, module in list(sys.modules.items()):
    spec = getattr(module, "__spec__", None)
    if name not in before and spec is not None and spec.has_location and spec.cached is not None:
        package = spec.submodule_search_locations is not None
        modules.append((name, spec.origin.removeprefix(root), spec.cached, package))
patterns.sort(key=repr)
print({"modules": modules, "texts": sorted(texts), "scripts": sorted(scripts), "patterns": patterns})
"""
_TABLE = """\
import ast, marshal, sys
asked = ast.literal_eval(sys.stdin.read())
def counted(keys, made):
    table = {}
    for key in keys:
        table[key] = (table[key][0] if key in table else made(key)), table.get(key, (0, 0))[1] + 1
    return table
modules = {}
for name, place, cached, package in asked["modules"]:
    with open(cached, "rb") as file:
        modules[name] = place, package, file.read()[16:]
patterns = {(text, flags): tuple(rest) for text, flags, *rest in asked["patterns"]}
marshal.dump({
    "modules": modules,
    "texts": counted(asked["texts"], lambda text: compile(text, "<string>", "exec", dont_inherit=True)),
    "scripts": counted(asked["scripts"], lambda key: compile(*key, "exec", dont_inherit=True)),
    "patterns": counted([(text, flags) for text, flags, *_ in asked["patterns"]], patterns.__getitem__),
}, sys.stdout.buffer)
"""


def make_base(directory: Path, packages: Mapping[Package, Path], wheels: Mapping[Wheel, Path]) -> None:
    """Fill `directory`/tree with all that is not ours: interpreter, libraries, wheels."""
    unpacked, tree = directory / "unpacked", directory / "tree"
    for deb in packages.values():
        commands.run(["dpkg-deb", "--extract", deb, unpacked], what=f"{deb} cannot be unpacked")
    _take(unpacked / "usr/bin/python3.11", tree / PYTHON)
    stdlib = unpacked / STDLIB
    # dpkg-deb keeps the debs' links; the few that point out of the tree (sitecustomize) are no files of ours.
    for path in _files(stdlib):
        if trim.keep_stdlib(path):
            _take(stdlib / path, tree / STDLIB / path)
    for wheel in wheels.values():
        with zipfile.ZipFile(wheel) as opened:
            for name in opened.namelist():
                if trim.keep_wheel(name):
                    target = tree / PACKAGES / name
                    if ".." in name.split("/") or name.startswith("/"):
                        raise SpineError(f"{wheel.name} is not a wheel", f"it holds {name}", "./spine build")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(opened.read(name))
    _add_libraries(unpacked, tree)
    for library in sorted(tree.rglob("*.so*")):
        commands.run(["strip", "--strip-unneeded", library], what=f"{library.name} cannot be stripped")
    modules = [f"/{path.relative_to(tree)}" for path in sorted(tree.rglob("*.py"))]
    _compile(tree, modules, keep_source=False)
    for module in modules:
        (tree / module[1:]).unlink()
    remove(unpacked)


def make_root(
    directory: Path, base: Path, sources: Sources, compiled: Path, facts: "Facts", epoch: int
) -> None:
    """Make `directory`/root.squashfs (with its tree appended) and root.json from `base` and our own files.

    `compiled` holds schemas.cgr and switchboard.json.
    """
    tree = directory / "tree"
    shutil.copytree(base / "tree", tree, symlinks=True)
    out = frozenset() if not facts.production else development_organs(sources.read("organs/manifest.toml"))
    modules = []
    for path in sources.files("organs", "bus"):
        if trim.keep_own(path, out, production=facts.production):
            _write(tree / PACKAGES / path, sources.read(path))
            modules.append(f"/{PACKAGES}/{path}")
    for path, place in STANDINS.items():
        _write(tree / place, sources.read(path))
        modules.append(f"/{place}")
    _compile(tree, sorted(modules), keep_source=True)
    manifest = sources.read("organs/manifest.toml")
    _write(tree / SPINE / "manifest.toml", production_manifest(manifest) if facts.production else manifest)
    _write(tree / SPINE / "schemas.cgr", (compiled / "schemas.cgr").read_bytes())
    for name, table in _tables(tree, (tree / SPINE / "manifest.toml").read_bytes()).items():
        _write(tree / SPINE / "compiled" / name, table)
    pairs = json.loads((compiled / "switchboard.json").read_bytes())
    kept = {kind: [pair for pair in found if not out & set(pair)] for kind, found in pairs.items()}
    _write(tree / SPINE / "switchboard.json", _json(kept))
    _write(tree / SPINE / "release.json", _json({**facts.release(), "built": epoch}))
    _write(tree / SPINE / "release.pub", facts.public_key.hex().encode() + b"\n")
    _write(tree / SPINE / "persona-keys", facts.persona_key.hex().encode() + b"\n")
    _write(tree / "usr/bin/bay0", BAY0)
    for name in EMPTY:
        (tree / name).mkdir()
    for name, target in LINKS.items():
        (tree / name).symlink_to(target)
    _set_modes(tree)
    squashed = directory / "squashed"
    commands.run(
        [
            "mksquashfs",
            tree,
            squashed,
            *SQUASH,
            *SQUASH_FIXED,
            "-mkfs-time",
            str(epoch),
            "-all-time",
            str(epoch),
        ],
        what="the root cannot be packed",
    )
    data = verity.padded(squashed.read_bytes())
    hashes = verity.tree(data)
    (directory / "root.squashfs").write_bytes(data + hashes.data)
    (directory / "root.json").write_bytes(
        _json(
            {
                "rootHash": hashes.root_hash,
                "blocks": hashes.blocks,
                "squashfsBytes": len(data),
                "treeBytes": len(hashes.data),
                "files": sum(1 for _ in _files(tree)),
                "unpackedBytes": dict(_sizes(tree)),
            }
        )
    )
    squashed.unlink()
    remove(tree)


class Facts:
    """What an image says of itself."""

    def __init__(self, version: str, public_key: bytes, persona_key: bytes, *, production: bool) -> None:
        self.version = version
        self.public_key = public_key
        self.persona_key = persona_key
        self.production = production

    def release(self) -> dict[str, str]:
        """The content of release.json, but for the time."""
        image = "production" if self.production else "development"
        return {"name": "Alpine-Spine", "version": self.version, "image": image}


def imported(program: str, manifest: bytes) -> list[str]:
    """The modules that a program of the image imports, of which all others follow."""
    organs = tomllib.loads(manifest.decode())["organs"] if program == "zygote" else ()
    return [PROGRAMS[program], *(f"organs.{name}.organ" for name in organs)]


def development_organs(manifest: bytes) -> frozenset[str]:
    """The names of the organs that a production image does not carry."""
    organs = tomllib.loads(manifest.decode()).get("organs", {})
    return frozenset(name for name, stanza in organs.items() if stanza.get("image") == "development")


def production_manifest(manifest: bytes) -> bytes:
    """The manifest without the stanzas of development organs and the comments that stand over them."""
    out = development_organs(manifest)
    kept: list[str] = []
    waiting: list[str] = []
    dropping = False
    for line in manifest.decode().splitlines(keepends=True):
        header = re.match(r"\s*\[+\s*([^\]]+?)\s*\]", line)
        if header:
            name = header[1].split(".")
            dropping = len(name) > 1 and name[0] == "organs" and name[1] in out
        elif line.startswith("#") or not line.strip():
            # A comment belongs to what follows it.
            waiting.append(line)
            continue
        if not dropping:
            kept += [*waiting, line]
        waiting.clear()
    return "".join(kept).encode()


def _add_libraries(unpacked: Path, tree: Path) -> None:
    have = {path.name: path for path in sorted(unpacked.rglob("*.so*")) if path.exists()}
    todo = [tree / PYTHON, *tree.rglob("*.so*")]
    done = {path.name for path in todo}
    while todo:
        for name in _needed(todo.pop()):
            if name in done:
                continue
            done.add(name)
            if name not in have:
                raise SpineError(
                    f"no package of the image has the library {name}",
                    "something in the root needs it",
                    "$EDITOR spine-image/inputs.lock   # add its package, then ./spine build --relock",
                )
            target = tree / (LOADER if name == Path(LOADER).name else f"{LIBRARIES}/{name}")
            _take(have[name].resolve(), target)
            todo.append(target)


def _needed(path: Path) -> list[str]:
    shown = commands.run(["readelf", "--dynamic", path], what=f"{path} cannot be read").decode()
    return re.findall(r"\(NEEDED\)\s+Shared library: \[([^\]]+)\]", shown)


def _compile(tree: Path, modules: list[str], *, keep_source: bool) -> None:
    words = (str(tree), "keep" if keep_source else "drop")
    _python(tree, _COMPILE, *words, stdin="\n".join(modules).encode(), what="a module cannot be compiled")


def _tables(tree: Path, manifest: bytes) -> dict[str, bytes]:
    """What each program imports, compiles and parses at its start, and apart what both import, as tables.

    The bytecode that the other program cannot ask for lies in its table only, and no more in the tree.
    """
    asked = {}
    for program in PROGRAMS:
        words = (str(tree), str(tree / PACKAGES), *imported(program, manifest))
        said = _python(tree, _RECORD, *words, what="a program cannot be imported")
        asked[program] = ast.literal_eval(said.decode())
    first, second = asked.values()
    names = {name for name, *_ in first["modules"]} & {name for name, *_ in second["modules"]}
    nothing: dict[str, list[object]] = {"texts": [], "scripts": [], "patterns": []}
    asked["both"] = {**nothing, "modules": [each for each in second["modules"] if each[0] in names]}
    for program in PROGRAMS:
        asked[program]["modules"] = [each for each in asked[program]["modules"] if each[0] not in names]
    tables = {
        name: _python(tree, _TABLE, stdin=repr(each).encode(), what="its tables cannot be made")
        for name, each in asked.items()
    }
    for _, _, cached, _ in asked["both"]["modules"]:
        Path(cached).unlink()
    for _, _, cached, _ in asked["zygote"]["modules"]:
        # bay0 has nothing but the standard library and its own; of that it may import more later.
        if not Path(cached).is_relative_to(tree / STDLIB):
            Path(cached).unlink()
    return tables


def _python(tree: Path, program: str, *words: str, stdin: bytes = b"", what: str) -> bytes:
    # The interpreter that will run the modules compiles them. A fixed hash seed fixes the order of sets.
    # Where in a line something stood is left out: a twelfth of the root, for the marks below a traceback.
    command: list[str | Path] = [tree / LOADER, "--library-path", tree / LIBRARIES, tree / PYTHON]
    return commands.run(
        [*command, "-P", "-s", "-S", "-B", "-X", "no_debug_ranges", "-c", program, *words],
        env={"PYTHONHASHSEED": "0", "PYTHONHOME": f"{tree}/usr", "PYTHONUTF8": "1"},
        stdin=stdin,
        what=what,
    )


def _set_modes(tree: Path) -> None:
    for path in (tree, *tree.rglob("*")):
        if path.is_symlink():
            continue
        runs = path.is_dir() or str(path.relative_to(tree)) in (PYTHON, LOADER, "usr/bin/bay0")
        path.chmod(0o755 if runs else 0o644)


def _sizes(tree: Path) -> Iterator[tuple[str, int]]:
    """Where the bytes of the root are, before compression."""
    rows = {
        "interpreter": f"{PYTHON}",
        "standard library": STDLIB,
        "shared libraries": LIBRARIES,
        "wheels": PACKAGES,
        "organs": f"{PACKAGES}/organs",
        "bus": f"{PACKAGES}/bus",
    }
    for name, place in rows.items():
        path = tree / place
        total = (
            path.stat().st_size
            if path.is_file()
            else sum((path / file).stat().st_size for file in _files(path))
        )
        yield name, total


def _files(directory: Path) -> Iterator[str]:
    """The regular files below a directory, relative to it, in order."""
    for path in sorted(directory.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield str(path.relative_to(directory))


def _take(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    if os.access(source, os.X_OK):
        target.chmod(0o755)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1).encode() + b"\n"
