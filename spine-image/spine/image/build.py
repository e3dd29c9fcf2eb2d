"""Builds the image: from pinned inputs and the tree to out/spine.img.

Does each step only when its inputs have changed, each in the cache under their hash; what lies in `out` is
replaced file by file with renames when everything is ready, so an interruption, an error or a full disk
leaves the image that was there. Needs no root. Says what it does through the progress printer, and returns
the report that it also writes to out/report.json.
"""

import fcntl
import hashlib
import json
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from spine import paths
from spine.errors import Exit, SpineError
from spine.image import (
    authenticode,
    commands,
    disk,
    inputs,
    kernel,
    keys,
    licences,
    rescue,
    root,
    sbom,
    slot,
    uki,
    verity,
)
from spine.image.cache import Cache, digest, file_digest
from spine.image.sources import Sources
from spine.progress import Progress

SLOTS = ("a", "b")
# What kernel and root together may not exceed, per profile (bytes).
BUDGETS = {"qemu": 20_000_000, "pc": 40_000_000}
# What `build` leaves in out/, besides the report.
IMAGE_FILES = ("spine.img", "spine.efi", "root.squashfs", "kernel.config", sbom.FILE)
# What was left in out/ and from which inputs, so that a build with nothing to do touches nothing.
STAMP = ".build.json"
# What the packages of the root say of their licences, kept beside it.
LICENCES = "licences.json"
LOADER = "usr/lib/systemd/boot/efi/systemd-bootx64.efi"
STUB = "usr/lib/systemd/boot/efi/linuxx64.efi.stub"

Report = dict[str, object]


@dataclass(frozen=True)
class _Plan:
    """What one build knows before it does anything slow."""

    cache: Cache
    sources: Sources
    locked: inputs.Inputs
    facts: root.Facts
    key: Ed25519PrivateKey
    boot_key: keys.BootKey
    profile: str
    progress: Progress

    def signed(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """The files of a boot volume, each program of them signed."""
        secret, certificate = self.boot_key.secret, self.boot_key.certificate
        return {
            # INV-SECURE-1
            path: authenticode.sign(data, secret, certificate) if data[:2] == b"MZ" else data
            for path, data in files.items()
        }

    def own(self) -> list[str]:
        """Our own files that go into the root, or that it is made by."""
        return [*self.sources.files("organs", "bus", "schemas"), *root.STANDINS]

    def recipe(self) -> str:
        """The hash of the code that makes everything but the kernel."""
        directory = Path(__file__).parent
        return digest(
            *(data for path in sorted(directory.glob("*.py")) for data in (path.name, path.read_bytes()))
        )


def build(
    out: Path,
    *,
    root_only: bool = False,
    production: bool = False,
    profile: str = "qemu",
    relock: bool = False,
    replace: Mapping[str, bytes] | None = None,
    progress: Progress,
) -> Report:
    """Build what is missing and leave it in `out`; the report.

    `root_only` makes out/root.squashfs and no kernel or disk. `profile`: the machine that the kernel is for,
    "qemu" or "pc". `replace` lays other bytes over files of the tree (paths relative to its root). `relock`
    renews inputs.lock first. SpineError when it cannot be built.
    """
    sources = Sources(paths.ROOT, replace or {})
    cache = Cache(paths.cache(), progress.say)
    locked = inputs.decode(sources.read(inputs.LOCK).decode())
    if relock:
        with progress.stage("renew the lock"):
            locked = inputs.relock(cache, locked, sources.read(inputs.PYTHON_LOCK).decode())
            _replace_file(paths.ROOT / inputs.LOCK, inputs.encode(locked).encode())
    key = keys.release_key()
    version = tomllib.loads(sources.read("pyproject.toml").decode())["project"]["version"]
    signs_personas = keys.public_bytes(keys.persona_key())
    facts = root.Facts(str(version), keys.public_bytes(key), signs_personas, production=production)
    plan = _Plan(cache, sources, locked, facts, key, keys.boot_key(keys.Role.DB), profile, progress)
    made_root, root_key = _root(plan)
    if root_only:
        deliver(
            out,
            {"root.squashfs": made_root / "root.squashfs", "root.json": made_root / "root.json"},
            root_key,
        )
        return _load(made_root / "root.json")
    [source] = locked.of("kernel")
    fragment = kernel.merged(profile, lambda path: sources.read(path).decode())
    kernel_key = kernel.key(source.sha256, fragment, locked.epoch)
    image_key = digest(
        *("image", profile, root_key, kernel_key, plan.recipe(), sources.read(inputs.LOCK), _boot_key(plan)),
        plan.boot_key.der,
        sources.digest(*rescue.FILES),
    )

    def fetch() -> Path:
        with progress.stage("kernel: fetch the source"):
            return inputs.fetch_package(cache, source)

    def make(directory: Path) -> None:
        made_kernel = kernel.build(cache, fetch, kernel_key, fragment, locked.epoch, progress)
        _image(plan, directory, made_kernel, made_root)

    made = cache.entry("image", image_key, make)
    files = {name: made / name for name in IMAGE_FILES if name != "root.squashfs"}
    files |= {"root.squashfs": made_root / "root.squashfs", "report.json": made / "report.json"}
    deliver(out, files, image_key)
    return _load(made / "report.json")


def _root(plan: _Plan) -> tuple[Path, str]:
    locked, cache = plan.locked, plan.cache
    packages = locked.of("root")
    base_key = digest(
        "base",
        plan.recipe(),
        str(locked.epoch),
        *(package.sha256 for package in packages),
        *(wheel.sha256 for wheel in locked.wheels),
    )
    root_key = digest(
        "root",
        base_key,
        plan.sources.digest(*plan.own()),
        json.dumps(plan.facts.release()),
        plan.facts.public_key,
        plan.facts.persona_key,
    )

    def make_base(directory: Path) -> None:
        with plan.progress.stage("root: packages and wheels"):
            debs = {}
            for package in packages:
                plan.progress.note(package.name)
                debs[package] = inputs.fetch_package(cache, package)
            python_lock = plan.sources.read(inputs.PYTHON_LOCK).decode()
            wheels = dict(zip(locked.wheels, inputs.fetch_wheels(cache, locked, python_lock), strict=True))
            root.make_base(directory, debs, wheels)
            said = {
                f"deb:{package.name}": licences.of_deb(package.name, deb) for package, deb in debs.items()
            }
            said |= {f"wheel:{wheel.name}": licences.of_wheel(path) for wheel, path in wheels.items()}
            (directory / LICENCES).write_text(json.dumps({name: asdict(one) for name, one in said.items()}))

    def make_root(directory: Path) -> None:
        base = cache.entry("base", base_key, make_base)
        with plan.progress.stage("root: pack"):
            compiled = directory / "compiled"
            compiled.mkdir()
            _compile_schemas(plan.sources, directory / "schemas", compiled)
            shutil.copyfile(base / LICENCES, directory / LICENCES)
            root.make_root(directory, base, plan.sources, compiled, plan.facts, locked.epoch)

    return cache.entry("root", root_key, make_root), root_key


def _compile_schemas(sources: Sources, copy: Path, compiled: Path) -> None:
    # Imported only here: a build that has its root already needs neither the compiler nor the bus.
    from bus.compile import SchemaRefused, compile_schemas

    for path in (*sources.files("schemas"), "organs/manifest.toml"):
        target = copy / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(sources.read(path))
    try:
        compile_schemas(copy / "schemas", copy / "organs/manifest.toml", compiled)
    except SchemaRefused as error:
        raise SpineError(
            "the schemas cannot be compiled",
            str(error),
            "$EDITOR schemas/   # then ./spine build",
            Exit.REFUSED,
        ) from error


def _image(plan: _Plan, directory: Path, made_kernel: Path, made_root: Path) -> None:
    with plan.progress.stage("slots and disk"):
        [boot] = plan.locked.of("boot")
        programs = _boot_files(plan, inputs.fetch_package(plan.cache, boot))
        about = _load(made_root / "root.json")
        packed = (made_root / "root.squashfs").read_bytes()
        bzimage = (made_kernel / "bzImage").read_bytes()
        ukis = {
            name: _uki(plan, name, programs[STUB], bzimage, _number(about, "blocks"), str(about["rootHash"]))
            for name in SLOTS
        }
        texts = [plan.sources.read(path) for path in rescue.FILES]
        first, rescuer = (rescue.make(directory, *texts, first=first) for first in (True, False))
        # All that a firmware is to start, and so all that is to be signed for it, is in these files.
        volumes = {
            name: plan.signed(disk.volume(name, first, programs[LOADER], ukis[name], rescuer))
            for name in SLOTS
        }
        ukis = {name: files[disk.program_path(name)] for name, files in volumes.items()}
        boots = {
            name: disk.make_boot(directory, name, files, plan.locked.epoch) for name, files in volumes.items()
        }
        length = _number(about, "squashfsBytes")
        _check_budget(plan.profile, len(ukis[SLOTS[-1]]) + len(packed))
        slot_facts = {**plan.facts.release(), "rootHash": str(about["rootHash"])}
        slot_bytes, parts = slot.compose(
            packed[:length],
            packed[length:],
            ukis,
            {name: boot.read_bytes() for name, boot in boots.items()},
            slot_facts,
            plan.key.sign,
        )
        persist = disk.make_persist(directory, plan.locked.epoch)
        disk.write_disk(
            directory / "spine.img",
            {
                **{f"boot-{name}": boot for name, boot in boots.items()},
                **{f"slot-{name}": slot_bytes for name in SLOTS},
                "persist": persist,
            },
        )
        for made in (*boots.values(), persist):
            made.unlink()
        # With equal versions systemd-boot starts the last slot first.
        (directory / "spine.efi").write_bytes(ukis[SLOTS[-1]])
        shutil.copyfile(made_kernel / "config", directory / "kernel.config")
        (directory / sbom.FILE).write_bytes(_sbom(plan, made_root, directory))
        report = _report(plan, directory, about, bzimage, ukis, parts, len(slot_bytes))
        (directory / "report.json").write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")


def _sbom(plan: _Plan, made_root: Path, directory: Path) -> bytes:
    said = {
        str(name): licences.Licence(str(row["declared"]), tuple(row["names"]))
        for name, row in json.loads((made_root / LICENCES).read_bytes()).items()
    }
    [boot] = plan.locked.of("boot")
    said[f"deb:{boot.name}"] = licences.of_deb(boot.name, inputs.fetch_package(plan.cache, boot))
    settings = [path for path in (kernel.FRAGMENT, kernel.OVERLAYS[plan.profile]) if path]
    paths_ = [*plan.own(), *rescue.FILES, *settings, inputs.LOCK, inputs.PYTHON_LOCK]
    own = [(path, plan.sources.read(path)) for path in paths_]
    return sbom.document(plan.facts.release(), plan.locked, said, own, file_digest(directory / "spine.img"))


def _check_budget(profile: str, total: int) -> None:
    budget = BUDGETS[profile]
    # INV-IMAGE-6
    if total > budget:
        raise SpineError(
            "the image is too large",
            f"kernel and root have {total / 1e6:.1f} MB together, the promise is {budget / 1e6:.0f}",
            "make spine-image/kernel.config or spine-image/inputs.lock smaller",
        )


def _uki(plan: _Plan, name: str, stub: bytes, bzimage: bytes, blocks: int, root_hash: str) -> bytes:
    line = uki.command_line(
        name,
        disk.partition(f"slot-{name}").id,
        blocks,
        root_hash,
        verity.SALT.hex(),
        production=plan.facts.production,
        # The first partition of the same disk: one that is found means that the disk is there. Not the slot:
        # one that is lost must panic, so that the next boot tries the other.
        wait_for=disk.PARTITIONS[0].id if plan.profile == "pc" else None,
    )
    version = plan.facts.version
    release = f'ID=alpine-spine\nVERSION_ID={version}\nPRETTY_NAME="Alpine-Spine {version} (slot {name})"\n'
    return uki.append(stub, [(".osrel", release.encode()), (".cmdline", line.encode()), (".linux", bzimage)])


def _boot_files(plan: _Plan, deb: Path) -> dict[str, bytes]:
    def make(directory: Path) -> None:
        commands.run(["dpkg-deb", "--extract", deb, directory], what=f"{deb} cannot be unpacked")

    unpacked = plan.cache.entry("boot", _boot_key(plan), make)
    return {name: (unpacked / name).read_bytes() for name in (LOADER, STUB)}


def _boot_key(plan: _Plan) -> str:
    return digest("boot", *(package.sha256 for package in plan.locked.of("boot")))


def _report(
    plan: _Plan,
    directory: Path,
    about: Report,
    bzimage: bytes,
    ukis: Mapping[str, bytes],
    parts: Sequence[slot.Part],
    slot_length: int,
) -> Report:
    first = ukis[SLOTS[-1]]
    root_bytes = _number(about, "squashfsBytes") + _number(about, "treeBytes")
    compiler = commands.run(["gcc", "--version"], what="the compiler cannot be asked").decode().split("\n")[0]
    return {
        **plan.facts.release(),
        "profile": plan.profile,
        "compiler": compiler,
        "inputs": {
            "packages": [vars(entry) for entry in plan.locked.packages],
            "wheels": [vars(entry) for entry in plan.locked.wheels],
            "epoch": plan.locked.epoch,
        },
        "rootHash": about["rootHash"],
        "secureBoot": {"certificate": _sha256(plan.boot_key.der)},
        "root": about,
        "sizes": {
            "kernel": len(bzimage),
            "stub, command line, signature": len(first) - len(bzimage),
            "root, compressed": about["squashfsBytes"],
            "hash tree": about["treeBytes"],
            "total": len(first) + root_bytes,
            "budget": BUDGETS[plan.profile],
        },
        "slot": {"length": slot_length, "parts": {part.name: [part.offset, part.length] for part in parts}},
        "partitions": {
            row.name: {"offset": disk.offsets()[row.name][0], "length": row.size, "id": row.id}
            for row in disk.PARTITIONS
        },
        "ukis": {
            f"spine-{name}": {"file": disk.entry_name(name), "length": len(data), "sha256": _sha256(data)}
            for name, data in ukis.items()
        },
        "sha256": {
            "kernel": _sha256(bzimage),
            "root": next(part.sha256 for part in parts if part.name == "root"),
            "uki": _sha256(first),
            "disk": file_digest(directory / "spine.img"),
        },
    }


def deliver(out: Path, files: Mapping[str, Path], key: str) -> None:
    """Put files into `out`: all copied first, then all renamed; nothing when they are there already."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            stamp = json.loads((out / STAMP).read_bytes())
        except (OSError, ValueError):
            stamp = {}
        todo = {name: path for name, path in files.items() if stamp.get(name) != _seen(out / name, key)}
        copies = {name: out / f".part-{name}" for name in todo}
        try:
            for name, path in todo.items():
                # The disk is mostly holes; cp keeps them.
                commands.run(
                    ["cp", "--reflink=auto", "--sparse=always", path, copies[name]],
                    what=f"{out / name} cannot be written",
                )
            for name, path in copies.items():
                path.replace(out / name)
                stamp[name] = _seen(out / name, key)
            if todo:
                _replace_file(out / STAMP, json.dumps(stamp).encode())
        finally:
            for path in copies.values():
                path.unlink(missing_ok=True)


def _seen(path: Path, key: str) -> list[str | int]:
    try:
        seen = path.stat()
    except FileNotFoundError:
        return [key]
    return [key, seen.st_size, seen.st_mtime_ns]


def _replace_file(path: Path, data: bytes) -> None:
    part = path.with_name(f".part-{path.name}")
    part.write_bytes(data)
    part.replace(path)


def _load(path: Path) -> Report:
    loaded = json.loads(path.read_bytes())
    assert isinstance(loaded, dict)
    return loaded


def _number(row: Report, key: str) -> int:
    value = row[key]
    assert isinstance(value, int)
    return value


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
