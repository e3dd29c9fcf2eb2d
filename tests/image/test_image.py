"""The image as it is built: what the root holds, what the slots say, what the report claims."""

import importlib.util
import json
import marshal
import re
import subprocess
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from organs import layout, persona
from spine import paths
from spine.image import authenticode, build, disk, keys, rescue, root, slot, uki, verity
from spine.image.cache import file_digest
from spine.progress import Progress

pytestmark = [pytest.mark.machine, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module", params=["development", "production"])
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory as `build` leaves it."""
    out = tmp_path_factory.mktemp(request.param)
    build.build(out, production=request.param == "production", progress=Progress())
    yield out
    # Both kinds are 300 MB of holes and 50 MB of bytes.
    for file in out.iterdir():
        file.unlink()


@pytest.fixture(scope="module")
def tree(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of its root."""
    tree = tmp_path_factory.mktemp("unpacked") / "tree"
    subprocess.run(
        ["unsquashfs", "-quiet", "-no-progress", "-dest", tree, image / "root.squashfs"], check=True
    )
    return tree


def listing(image: Path) -> dict[str, tuple[str, str]]:
    """Every path of the root with its mode and owner."""
    said = subprocess.run(
        ["unsquashfs", "-lln", image / "root.squashfs"], capture_output=True, text=True, check=True
    ).stdout
    rows = re.findall(r"^(\S{10}) (\d+/\d+) +[\d,]+ \S+ \S+ squashfs-root(\S*)", said, re.MULTILINE)
    return {path or "/": (mode, owner) for mode, owner, path in rows}


def report(image: Path) -> dict[str, dict[str, object]]:
    loaded = json.loads((image / "report.json").read_bytes())
    assert isinstance(loaded, dict)
    return loaded


def partition(image: Path, name: str) -> bytes:
    offset, length = disk.offsets()[name]
    with (image / "spine.img").open("rb") as file:
        file.seek(offset)
        return file.read(length)


def test_the_root_belongs_to_root_and_nothing_is_setuid_or_writable(image: Path) -> None:
    files = listing(image)
    assert len(files) > 300
    for path, (mode, owner) in files.items():
        assert owner == "0/0", path
        assert "s" not in mode, path
        assert "t" not in mode, path
        if not mode.startswith("l"):
            assert mode[5] == mode[8] == "-", path
    runs = {path for path, (mode, _owner) in files.items() if mode[0] == "-" and "x" in mode}
    assert runs == {"/usr/bin/python3.11", "/usr/bin/bay0", "/usr/lib64/ld-linux-x86-64.so.2"}


def test_nothing_serves_a_prompt_a_build_or_a_package(image: Path) -> None:
    names = {path.rsplit("/", 1)[-1].split(".")[0] for path in listing(image)}
    assert not names & {
        "sh",
        "bash",
        "dash",
        "busybox",
        "pip",
        "ensurepip",
        "distutils",
        "pdb",
        "apt",
        "dpkg",
    }


def test_only_development_carries_probes_and_the_port(image: Path) -> None:
    packages = "/usr/lib/python3/dist-packages"
    files = listing(image)
    development = str(report(image)["image"]) == "development"
    assert (f"{packages}/organs/bay0/probes.py" in files) == development
    assert (f"{packages}/organs/operator/organ.py" in files) == development
    assert f"{packages}/organs/bay0/restart.py" in files
    assert f"{packages}/bus/compile.py" not in files


def test_both_slots_hold_the_same_signed_bytes(image: Path) -> None:
    public = keys.public_bytes(keys.release_key())
    data = partition(image, "slot-a")
    assert data == partition(image, "slot-b")
    manifest, parts = slot.read(data, lambda signature, message: keys.check(public, signature, message))
    assert manifest["image"] == report(image)["image"]
    for name in build.SLOTS:
        assert slot.boot_image(data, manifest, parts, name) == partition(image, f"boot-{name}")
    root = next(part for part in parts if part.name == "root")
    assert verity.tree(data[: root.length]).root_hash == manifest["rootHash"]


@pytest.mark.parametrize("name", build.SLOTS)
def test_a_boot_volume_has_its_own_program_and_the_rescue_and_nothing_else(
    image: Path, tmp_path: Path, name: str
) -> None:
    volume = tmp_path / "volume"
    volume.write_bytes(partition(image, f"boot-{name}"))

    def mtools(*words: str) -> bytes:
        return subprocess.run([*words[:1], "-i", volume, *words[1:]], capture_output=True, check=True).stdout

    listed = mtools("mdir", "-b", "-/", "::").decode().split("\n")
    files = {line.removeprefix("::/") for line in listed if line and not line.endswith("/")}
    assert files == {
        disk.FIRST_PATH,
        disk.LOADER_PATH,
        "loader/loader.conf",
        f"EFI/Linux/spine-{name}+3-0.efi",
        "EFI/Linux/spine-rescue.efi",
    }
    texts = [(paths.ROOT / path).read_bytes() for path in rescue.FILES]
    for path, first in ((disk.FIRST_PATH, True), (disk.RESCUE_PATH, False)):
        program = rescue.make(tmp_path, *texts, first=first)
        # As it was made, but for the padding of a signature and the signature.
        signed = authenticode.unsigned(mtools("mcopy", f"::{path}", "-"))
        assert signed == program + bytes(len(signed) - len(program))


def test_each_program_trusts_its_own_slot(image: Path) -> None:
    public = keys.public_bytes(keys.release_key())
    data = partition(image, "slot-a")
    manifest, parts = slot.read(data, lambda signature, message: keys.check(public, signature, message))
    for name in build.SLOTS:
        part = next(part for part in parts if part.name == f"uki-{name}")
        sections = {one.name: one.data for one in uki.sections(data[part.offset : part.offset + part.length])}
        line = sections[".cmdline"].decode()
        assert line.count(f"PARTUUID={disk.partition(f'slot-{name}').id}") == 2
        assert f"spine.slot={name} " in line
        assert str(manifest["rootHash"]) in line


@pytest.mark.proves("INV-SECURE-1")
@pytest.mark.parametrize("name", build.SLOTS)
def test_every_program_in_a_boot_volume_is_signed(name: str, image: Path, tmp_path: Path) -> None:
    key = keys.boot_key(keys.Role.DB)
    volume = tmp_path / "volume"
    volume.write_bytes(partition(image, f"boot-{name}"))
    subprocess.run(["mcopy", "-s", "-i", volume, "::", tmp_path / "files"], capture_output=True, check=True)
    programs = [path for path in (tmp_path / "files").rglob("*") if path.suffix.lower() == ".efi"]
    assert len(programs) == 4  # the first program, the boot loader, the slot's own, the rescue
    for program in programs:
        authenticode.check(program.read_bytes(), key.certificate)
    # Nothing else in there is a program under another name.
    others = [path for path in (tmp_path / "files").rglob("*") if path.is_file() and path not in programs]
    assert [path.name for path in others] == ["loader.conf"]
    assert report(image)["secureBoot"]["certificate"] == sha256(key.der).hexdigest()


def test_the_report_says_what_is_there(image: Path) -> None:
    said = report(image)
    assert said["sha256"]["disk"] == file_digest(image / "spine.img")
    assert said["sha256"]["uki"] == file_digest(image / "spine.efi")
    assert said["ukis"]["spine-b"]["length"] == (image / "spine.efi").stat().st_size  # type: ignore[index]
    total = (image / "spine.efi").stat().st_size + (image / "root.squashfs").stat().st_size
    assert said["sizes"]["total"] == total


@pytest.mark.proves("INV-IMAGE-6")
def test_kernel_and_root_keep_the_promise_about_size(image: Path) -> None:
    total = (image / "spine.efi").stat().st_size + (image / "root.squashfs").stat().st_size
    assert total <= build.BUDGETS[str(report(image)["profile"])] <= 40_000_000


def test_the_interpreter_of_the_root_can_import_all_of_our_modules(tree: Path) -> None:
    packages = tree / root.PACKAGES
    ours = sorted(
        str(path.relative_to(packages).with_suffix("")).replace("/", ".").removesuffix(".__init__")
        for name in ("organs", "bus")
        for path in (packages / name).rglob("*.py")
    )
    assert "organs.bay0.restart" in ours
    code = f"{TAKE}import zmq, capnp, trio, sqlite3, {', '.join(ours)}"
    tables = [tree / root.SPINE / "compiled" / name for name in ("both", "zygote")]
    python: list[str | Path] = [
        tree / root.LOADER,
        "--library-path",
        tree / root.LIBRARIES,
        tree / root.PYTHON,
    ]
    subprocess.run(
        [*python, "-P", "-s", "-S", "-B", "-c", code, tree, *tables],
        env={"PYTHONHOME": f"{tree}/usr", "PYTHONPATH": str(packages)},
        cwd="/",
        check=True,
    )


def test_a_seeded_change_reaches_the_root_and_leaves_the_tree_alone(tmp_path: Path) -> None:
    probe = (paths.ROOT / "organs/gate/verdict.py").read_bytes() + b"# a seeded bug\n"
    made = build.build(
        tmp_path, root_only=True, replace={"organs/gate/verdict.py": probe}, progress=Progress()
    )
    said = subprocess.run(
        [
            "unsquashfs",
            "-cat",
            tmp_path / "root.squashfs",
            "usr/lib/python3/dist-packages/organs/gate/verdict.py",
        ],
        capture_output=True,
        check=True,
    ).stdout
    assert said == probe
    trusted = subprocess.run(
        ["unsquashfs", "-cat", tmp_path / "root.squashfs", layout.PERSONA_KEYS.removeprefix("/")],
        capture_output=True,
        check=True,
    ).stdout
    assert persona.trusted_keys(trusted.decode()) == {keys.public_bytes(keys.persona_key())}
    assert made["rootHash"] != build.build(tmp_path, root_only=True, progress=Progress())["rootHash"]


# Takes the tables of a tree that lies elsewhere: where it lies, then the tables.
TAKE = """\
import sys, sitecustomize
root, *files = sys.argv[1:]
taken = sitecustomize.take(*files)
for finder in sys.meta_path:
    if type(finder) is sitecustomize.Modules:
        finder.table.update({name: (root + place, *rest) for name, (place, *rest) in finder.table.items()})
"""
# What it imports is run by the interpreter of the image, in a tree of its own; it says how much there
# was in the tables, what was not taken from them, and what of them nobody asked for. Meanwhile no garbage was
# looked for.
ASKED = """\
import gc, sys
usual = gc.get_threshold()
import sitecustomize
root, both, own, *names = sys.argv[1:]
before = set(sys.modules)
missed = []
def counted(act):
    def acting(what, *rest):
        if isinstance(what, (str, bytes)):
            missed.append(what)
        return act(what, *rest)
    return staticmethod(acting)
class Builtins:
    exec, compile = counted(exec), counted(compile)
sitecustomize.builtins = Builtins
tables = sitecustomize.take(both, own)
[finder] = [each for each in sys.meta_path if type(each) is sitecustomize.Modules]
for name, (place, package, code) in finder.table.items():
    finder.table[name] = root + place, package, code
def watched(module, after=finder.after["re._compiler"]):
    module.compile = counted(module.compile)
    after(module)
finder.after["re._compiler"] = watched
sizes = [len(table) for table in tables.values()]
for name in names:
    __import__(name)
looked_for_garbage = gc.get_threshold() == usual
gc.collect()
assert (looked_for_garbage, gc.get_threshold(), gc.callbacks) == (False, usual, [])
for name in set(sys.modules) - before:
    spec = getattr(sys.modules[name], "__spec__", None)
    if spec and spec.cached and spec.loader is not finder:
        missed.append(name)
import json
print(json.dumps([sizes, missed, [str(key) for table in tables.values() for key in table]]))
"""


def test_a_program_of_the_image_finds_all_that_it_imports_and_compiles_in_its_tables(tree: Path) -> None:
    for program in root.PROGRAMS:
        words = root.imported(program, (tree / root.SPINE / "manifest.toml").read_bytes())
        tables = [tree / root.SPINE / "compiled" / name for name in ("both", program)]
        python: list[str | Path] = [tree / root.LOADER, "--library-path", tree / root.LIBRARIES]
        done = subprocess.run(
            [*python, tree / root.PYTHON, "-P", "-s", "-S", "-B", "-c", ASKED, tree, *tables, *words],
            env={"PYTHONHOME": f"{tree}/usr", "PYTHONPATH": str(tree / root.PACKAGES)},
            capture_output=True,
            check=True,
        )
        sizes, missed, left = json.loads(done.stdout)
        modules, texts, scripts, patterns = sizes
        assert min(modules, texts) > 50
        assert min(patterns, scripts + (program == "bay0")) > 0
        assert (missed, left) == ([], [])


def test_what_the_tables_do_not_have_is_compiled_and_found_as_ever(tree: Path, tmp_path: Path) -> None:
    """The same program with tables of nothing but modules; then what it imports later, of no table."""
    tables = []
    for name in ("both", "bay0"):
        modules = marshal.loads((tree / root.SPINE / "compiled" / name).read_bytes())["modules"]
        tables.append(tmp_path / name)
        tables[-1].write_bytes(
            marshal.dumps({"modules": modules, "texts": {}, "scripts": {}, "patterns": {}})
        )
    python: list[str | Path] = [tree / root.LOADER, "--library-path", tree / root.LIBRARIES]
    code = (
        f"{TAKE}import organs.bay0.__main__, re; print(taken is None, re.sub('b+', 'x', 'abbc'));"
        "import threading, subprocess, logging, pprint"
    )
    if (tree / root.PACKAGES / "organs/bay0/probes.py").exists():
        code += ", organs.bay0.probes"

    def said(*files: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*python, tree / root.PYTHON, "-P", "-s", "-S", "-B", "-c", code, tree, *files],
            env={"PYTHONHOME": f"{tree}/usr", "PYTHONPATH": str(tree / root.PACKAGES)},
            capture_output=True,
            check=False,
            text=True,
        )

    with_tables = said(*tables)
    assert (with_tables.stdout.strip(), with_tables.returncode) == ("False axc", 0), with_tables.stderr
    without = said(tmp_path / "none")
    assert "ModuleNotFoundError" in without.stderr
    assert without.returncode == 1


def test_a_module_that_a_program_has_in_its_table_is_not_in_the_root_twice(tree: Path) -> None:
    """But for modules of the standard library, which the other program may ask for later."""
    kept = {path.relative_to(tree) for path in tree.rglob("*.pyc")}
    for table in ("both", "zygote"):
        modules = marshal.loads((tree / root.SPINE / "compiled" / table).read_bytes())["modules"]
        places = [Path(place) for place, *_ in modules.values()]
        if table == "zygote":
            places = [place for place in places if not place.is_relative_to(f"/{root.STDLIB}")]
        assert len(places) > 50
        for place in places:
            files = place.with_suffix(".pyc"), Path(importlib.util.cache_from_source(str(place)))
            assert not kept & {file.relative_to("/") for file in files}
