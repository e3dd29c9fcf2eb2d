"""What the running spine says of its slots and boot volumes, on both grounds; and of a slot that rotted.

The container gets slots and boot volumes that the image's own code makes around the root it runs, with
programs that stand in: no kernel is built for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
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
        name: disk.make_boot(made, name, disk.volume(name, loader, uki), EPOCH) for name, uki in ukis.items()
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


def booted(ground: Container, parts: Mapping[str, Path]) -> Live:
    _root, persist = ground.provision(parts["root"].parent, fresh=True)
    pairs = {name: ground.directory / f"{name}.img" for name in NAMES}
    for name, path in pairs.items():
        sparse_copy(parts[name], path)
    ground.start(parts["root"], persist, pairs=pairs)
    ground.wait_ready()
    return Live("container", ground)


@pytest.mark.container
@pytest.mark.proves("INV-SLOT-5")
@pytest.mark.proves("INV-SLOT-8")
def test_a_slot_and_a_file_of_a_boot_volume_that_rotted_are_named(
    ground: Container, parts: Mapping[str, Path], tmp_path: Path
) -> None:
    live = booted(ground, parts)
    found = rows(live)
    assert {name: row["verdict"] for name, row in found.items()} == dict.fromkeys(NAMES, "verified")
    assert [found[name]["how"] for name in NAMES] == ["direct", "direct", "dropped", "dropped"]
    generation = live.table()["integrity"]["generation"]
    assert ground.stop()

    # One byte in the middle of a program of slot B, one in a file of its boot volume.
    damaged = {**parts, "slot-b": tmp_path / "slot-b", "boot-b": tmp_path / "boot-b"}
    data = bytearray(parts["slot-b"].read_bytes())
    at = data.index(b"program b " * 10) + 12_345
    data[at] ^= 0xFF
    damaged["slot-b"].write_bytes(data)
    boot = bytearray(parts["boot-b"].read_bytes())
    at = boot.index(disk.LOADER_CONF)
    boot[at + 8] = ord("9")
    damaged["boot-b"].write_bytes(boot)
    live = booted(ground, damaged)
    found = rows(live)
    assert found["slot-a"]["verdict"] == "verified"
    assert found["slot-b"] == {
        "name": "slot-b",
        "verdict": "tampered",
        "detail": "not what was signed: uki-b",
        "differs": ["uki-b"],
        "how": "direct",
    }
    assert found["boot-a"]["verdict"] == "verified"
    assert found["boot-b"]["verdict"] == "tampered"
    assert found["boot-b"]["differs"] == ["loader/loader.conf"]
    # It was said, and nothing else came of it.
    assert live.table()["integrity"]["generation"] == generation
    log = live.call("operator.log", organ="integrity", bytes=4096)["text"]
    assert isinstance(log, bytes)
    assert b"integrity: slot-b is tampered: not what was signed: uki-b (read direct)" in log
    assert ground.stop()
