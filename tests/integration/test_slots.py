"""What the running spine makes of its slots and boot volumes, on both grounds: whole, rotted, wiped, lost.

The container gets slots and boot volumes that the image's own code makes around the root it runs, with
programs that stand in: no kernel is built for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest

from spine.ground.container import Container
from spine.ground.disk import sparse_copy
from spine.image import disk, keys, slot, verity
from spine.image.build import build
from spine.progress import Progress
from tests.integration.live import Live, spine, within

NAMES = ("slot-a", "slot-b", "boot-a", "boot-b")
SLOT_BYTES = 48 * 1024 * 1024
EPOCH = 1_700_000_000
# deaths_max of the manifest, less one: the next would be a panic.
DEATHS = 2


def rows(live: Live) -> dict[str, dict[str, object]]:
    """What integrity says, once it has read everything."""
    found: dict[str, dict[str, object]] = {}

    def settled() -> bool:
        checked = live.call("integrity.slots")["checked"]
        assert isinstance(checked, list)
        found.update({row["name"]: row for row in checked})
        return all(row["verdict"] != "pending" for row in checked)

    within("all devices read", settled)
    return found


@pytest.mark.machine
def test_the_machine_has_verified_both_slots_and_their_boot_volumes(machine: Live) -> None:
    verified = {"verdict": "verified", "detail": "", "differs": []}
    assert rows(machine) == {
        "slot-a": {"name": "slot-a", **verified, "how": "direct"},
        "slot-b": {"name": "slot-b", **verified, "how": "direct"},
        "boot-a": {"name": "boot-a", **verified, "how": "dropped"},
        "boot-b": {"name": "boot-b", **verified, "how": "dropped"},
    }
    status = json.loads(spine("status", "--json", "--machine"))
    assert {name: row["verdict"] for name, row in status["checked"].items()} == dict.fromkeys(
        NAMES, "verified"
    )
    said = spine("log", "--machine", "integrity").decode()
    assert all(said.count(f"integrity: {name} is verified") == 1 for name in NAMES)


@pytest.mark.container
def test_a_ground_without_slots_names_them(container: Live) -> None:
    missing = container.boot_facts()["missing"]
    assert isinstance(missing, list)
    for name, row in rows(container).items():
        assert (row["verdict"] == "unreadable") == (name in missing)
        assert name not in missing or row["detail"] == f"there is no device {name} here"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Slots and boot volumes around the root that `./spine boot --container` starts."""
    made = tmp_path_factory.mktemp("slots")
    built = build(made / "out", root_only=True, progress=Progress())
    packed = (made / "out/root.squashfs").read_bytes()
    length = int(str(built["squashfsBytes"]))
    assert verity.tree(packed[:length]).data == packed[length:]
    ukis = {name: f"program {name} ".encode() * 50_000 for name in ("a", "b")}
    loader = b"MZ" + bytes(range(256)) * 300
    boots = {
        name: disk.make_boot(made, name, disk.volume(name, b"MZ-first", loader, uki, b"MZ-rescue"), EPOCH)
        for name, uki in ukis.items()
    }
    key = keys.release_key()
    data, _parts = slot.compose(
        packed[:length],
        packed[length:],
        ukis,
        {name: boot.read_bytes() for name, boot in boots.items()},
        {"version": "test"},
        key.sign,
    )
    found = {"root": made / "out/root.squashfs", **{f"boot-{name}": boot for name, boot in boots.items()}}
    for name in ("slot-a", "slot-b"):
        found[name] = made / name
        found[name].write_bytes(data)
        with found[name].open("r+b") as file:
            file.truncate(SLOT_BYTES)
    return found


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Container]:
    """A container of the test's own."""
    made = Container(tmp_path / "ground")
    yield made
    made.kill()


def blessed(live: Live) -> dict[str, object]:
    """What integrity says once nothing is left to do."""
    found: dict[str, object] = {}

    def settled() -> bool:
        found.update(live.call("integrity.slots"))
        assert found["standing"] not in ("lost", "irreplaceable", "leaving"), found
        return found["blessed"] is True

    within("both pairs are as they should be", settled)
    return found


def log(live: Live) -> bytes:
    text = live.call("operator.log", organ="integrity", bytes=8192)["text"]
    assert isinstance(text, bytes)
    return text


def flipped(path: Path, at: int) -> None:
    """Turn one byte of a file over."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0xFF]))


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def start(ground: Container, parts: Mapping[str, Path], damage: Callable[[dict[str, Path]], None]) -> Live:
    """A container with devices that were damaged before."""
    _root, persist = ground.provision(parts["root"].parent, fresh=True)
    pairs = {name: ground.directory / f"{name}.img" for name in NAMES}
    for name, path in pairs.items():
        path.unlink(missing_ok=True)
        sparse_copy(parts[name], path)
    damage(pairs)
    ground.start(parts["root"], persist, pairs=pairs)
    ground.wait_ready()
    return Live("container", ground)


def same(ground: Container, parts: Mapping[str, Path]) -> bool:
    """Every device is what the image's code made, bit for bit: in a container nothing counts boots."""
    return all((ground.directory / f"{name}.img").read_bytes() == parts[name].read_bytes() for name in NAMES)


@pytest.mark.container
@pytest.mark.proves("INV-SLOT-5")
@pytest.mark.proves("INV-SLOT-8")
def test_a_slot_and_a_file_of_a_boot_volume_that_rotted_are_named_and_replaced(
    ground: Container, parts: Mapping[str, Path]
) -> None:
    def damage(pairs: dict[str, Path]) -> None:
        flipped(pairs["slot-b"], parts["slot-b"].read_bytes().index(b"program b " * 10) + 12_345)
        flipped(pairs["boot-b"], parts["boot-b"].read_bytes().index(disk.LOADER_CONF) + 8)

    live = start(ground, parts, damage)
    generation = live.table()["integrity"]["generation"]
    found = blessed(live)
    assert {name: row["verdict"] for name, row in rows(live).items()} == dict.fromkeys(NAMES, "verified")
    assert [rows(live)[name]["how"] for name in NAMES] == ["direct", "direct", "dropped", "dropped"]
    assert found["report"] == "replaced slot-b and boot-b from slot-a"
    assert live.table()["integrity"]["generation"] == generation
    said = log(live)
    for line in (
        b"slot-b is tampered: not what was signed: uki-b (read direct)",
        b"boot-b is tampered: changed: loader/loader.conf (read dropped)",
        b"replacing slot-b and boot-b from slot-a",
        b"replaced slot-b and boot-b from slot-a",
        b"blessed",
    ):
        assert said.count(b"integrity: " + line) == 1, said
    assert ground.stop()
    assert same(ground, parts)


@pytest.mark.container
@pytest.mark.proves("INV-SLOT-12")
def test_boot_volumes_that_are_gone_come_back(ground: Container, parts: Mapping[str, Path]) -> None:
    def damage(pairs: dict[str, Path]) -> None:
        zeros(pairs["boot-b"])
        flipped(pairs["boot-a"], 511)

    live = start(ground, parts, damage)
    blessed(live)
    said = log(live)
    assert said.index(b"replaced boot-b from slot-a") < said.index(b"replacing boot-a from slot-b")
    assert ground.stop()
    assert same(ground, parts)


@pytest.mark.container
@pytest.mark.proves("INV-SLOT-13")
def test_when_both_slots_are_bad_that_is_said_and_nothing_is_written(
    ground: Container, parts: Mapping[str, Path]
) -> None:
    before: dict[str, bytes] = {}

    def damage(pairs: dict[str, Path]) -> None:
        flipped(pairs["slot-a"], 0)
        flipped(pairs["slot-b"], 123_456)
        zeros(pairs["boot-b"])
        before.update({name: path.read_bytes() for name, path in pairs.items()})

    live = start(ground, parts, damage)
    within("it is lost", lambda: live.call("integrity.slots")["lost"])
    assert b"integrity: lost: " in log(live)
    assert ground.stop()
    assert {name: (ground.directory / f"{name}.img").read_bytes() for name in NAMES} == before


@pytest.mark.container
@pytest.mark.proves("INV-SLOT-17")
def test_a_repair_that_is_killed_again_and_again_ends_the_same(
    ground: Container, parts: Mapping[str, Path]
) -> None:
    """As often as one boot forgives deaths; many more kills are in tests/integrity/test_killed.py."""
    live = start(ground, parts, lambda pairs: flipped(pairs["slot-b"], 123_456))
    killed = 0
    while killed < DEATHS:
        found = live.call("integrity.slots")
        if found["blessed"]:
            break
        if found["replacing"]:
            before = live.table()["integrity"]
            live.probe("kill", organ="integrity", signal=9)
            killed += 1
            within("it lives again", partial(live.restarted, "integrity", before))
    assert killed
    blessed(live)
    assert ground.stop()
    assert same(ground, parts)
