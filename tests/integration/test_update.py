"""Updates as a person brings them, on both grounds; and every file that is refused before a byte is written.

The container gets pairs that the image's own code makes around the root it runs, with programs that stand in:
it starts none of them, so what is tried there is what is taken and what is written. The machine starts them.
"""

from __future__ import annotations

import hashlib
import json
import signal
import tomllib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bus.envelope import Code
from spine import paths
from spine.errors import SpineError
from spine.ground import gpt, state
from spine.ground.container import Container
from spine.ground.port import PortFailure
from spine.image import disk, keys, slot, update
from spine.image.build import build
from spine.progress import Progress
from spine.room import program
from spine.room.lease import Lease
from spine.verbs import update as verb
from spine.verbs.persona import send as install_persona
from tests.integration.boots import Boot
from tests.integration.live import Live, spine, within
from tests.rooms.house import Source

PAIRS = ("slot-a", "slot-b", "boot-a", "boot-b")
EPOCH = 1_700_000_000
RUNS = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]["version"]
NEWER = f"{RUNS}.1"
BAD = f"{RUNS}.2"
# The first process ends, and with it the kernel.
CRASHES = b'def main() -> None:\n    raise SystemExit("this bay0 ends at once")\n'
CHUNK = 512 * 1024


# ---- the container: what is taken, and what is not ---------------------------------------------------------


class Releases:
    """Slots of any version around the root that the container starts."""

    def __init__(self, place: Path) -> None:
        self.out = place / "out"
        built = build(self.out, root_only=True, progress=Progress())
        packed, length = (self.out / "root.squashfs").read_bytes(), int(str(built["squashfsBytes"]))
        self._place, self._root, self._tree = place, packed[:length], packed[length:]

    def slot(self, version: str, image: str = "development", key: Ed25519PrivateKey | None = None) -> bytes:
        """A slot without the zeros at its end."""
        ukis = {name: f"program {name} {version:<9}".encode() * 50_000 for name in ("a", "b")}
        loader = b"MZ" + bytes(range(256)) * 300
        boots = {}
        for name, uki in ukis.items():
            files = disk.volume(name, loader, uki, b"MZ-rescue")
            boots[name] = disk.make_boot(self._place, name, files, EPOCH).read_bytes()
        facts = {"version": version, "image": image}
        sign = (key or keys.release_key()).sign
        return slot.compose(self._root, self._tree, ukis, boots, facts, sign)[0]


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Releases:
    """What updates are made of."""
    return Releases(tmp_path_factory.mktemp("update"))


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Container]:
    """A container of the test's own."""
    found = Container(tmp_path / "ground")
    yield found
    found.kill()


def booted(ground: Container, releases: Releases) -> Live:
    """Both pairs hold what runs."""
    root, persist = ground.provision(releases.out, fresh=True)
    data = releases.slot(RUNS)
    files = {}
    for name in PAIRS:
        files[name] = ground.directory / f"{name}.img"
        files[name].write_bytes(data if name.startswith("slot") else boot_volume(data, name[-1]))
        with files[name].open("r+b") as file:
            file.truncate(disk.partition(name).size)
    ground.start(root, persist, pairs=files)
    ground.wait_ready()
    live = Live("container", ground)
    within("blessed", lambda: live.call("integrity.slots")["blessed"])
    return live


def boot_volume(data: bytes, letter: str) -> bytes:
    """What a slot carries for that boot volume."""
    manifest, parts = slot.read(data, _ours)
    return slot.boot_image(data, manifest, parts, letter)


def hashes(ground: Container) -> dict[str, str]:
    """What is in the four partitions."""
    return {
        name: hashlib.sha256((ground.directory / f"{name}.img").read_bytes()).hexdigest() for name in PAIRS
    }


def block(data: bytes) -> bytes:
    at = slot.manifest_offset(data[:96])
    return data[at : at + slot.MANIFEST_SIZE]


def refusal(live: Live, data: bytes, shown: bytes) -> tuple[Code, str]:
    """How the spine refuses what a host without any check of its own sends."""

    def bring() -> None:
        with live.port() as port:
            begun = port.call("integrity.beginUpdate", {"manifest": shown, "bytes": len(data)})
            for at in range(0, len(data), CHUNK):
                piece = {"ticket": begun["ticket"], "offset": at, "data": data[at : at + CHUNK]}
                port.call("integrity.updateChunk", piece)
            port.call("integrity.commitUpdate", {"ticket": begun["ticket"], "reboot": True})

    with pytest.raises(PortFailure) as caught:
        bring()
    return caught.value.failure.code, caught.value.failure.message.partition(":")[0]


@pytest.mark.container
@pytest.mark.proves("INV-UPDATE-1")
@pytest.mark.proves("INV-UPDATE-2")
def test_what_is_not_to_come_is_refused_before_any_write(ground: Container, releases: Releases) -> None:
    live = booted(ground, releases)
    before = hashes(ground)
    data = releases.slot(NEWER)
    foreign = releases.slot(NEWER, key=Ed25519PrivateKey.from_private_bytes(bytes(32)))
    middle = bytearray(data)
    middle[len(data) // 2] ^= 1
    cases: Mapping[str, tuple[bytes, bytes, str]] = {
        "a flipped bit": (bytes(middle), block(data), "altered"),
        "another key": (foreign, block(foreign), "unsigned"),
        "another key behind our manifest": (foreign, block(data), "altered"),
        "no signature": (data, block(data)[:20] + bytes(64) + block(data)[84:], "unsigned"),
        "an older version": (releases.slot("0.0.1"), block(releases.slot("0.0.1")), "downgrade"),
        "an older slot behind a newer manifest": (releases.slot("0.0.1"), block(data), "altered"),
        "the same version": (releases.slot(RUNS), block(releases.slot(RUNS)), "downgrade"),
        "cut short": (data[:-4096], block(data), "truncated"),
        "longer than a slot": (data + bytes(disk.partition("slot-a").size), block(data), "too large"),
        "longer than it says": (data + bytes(4096), block(data), "malformed"),
        "a production image": (
            releases.slot(NEWER, "production"),
            block(releases.slot(NEWER, "production")),
            "other image",
        ),
    }
    for name, (sent, shown, kind) in cases.items():
        assert (name, *refusal(live, sent, shown)) == (name, Code.REFUSED, kind)
        assert hashes(ground) == before, name
    answer = live.call("integrity.slots")
    assert (answer["blessed"], answer["update"]) == (True, "none")
    assert live.table()["integrity"]["generation"] == 1
    assert ground.stop()
    assert hashes(ground) == before


@pytest.mark.container
def test_an_update_is_written_as_it_was_made(ground: Container, releases: Releases) -> None:
    """A container starts no slot: there the newest verified one is what both pairs are to hold."""
    live = booted(ground, releases)
    data = releases.slot(NEWER)
    with live.port() as port:
        written = verb.send(port, block(data), data, Progress())
    assert (written["slot"], written["version"]) == ("b", NEWER)
    within("blessed", lambda: live.call("integrity.slots")["blessed"])
    for letter in ("a", "b"):
        there = (ground.directory / f"slot-{letter}.img").read_bytes()
        assert there == data + bytes(len(there) - len(data))
        volume = boot_volume(data, letter)
        there = (ground.directory / f"boot-{letter}.img").read_bytes()
        assert there == volume + bytes(len(there) - len(volume))
    # What is there now is what the next one must be newer than.
    assert refusal(live, data, block(data)) == (Code.REFUSED, "downgrade")
    assert ground.stop()


@pytest.mark.container
@pytest.mark.parametrize("device", ["boot-b", "slot-b"])
def test_killed_while_it_writes_it_leaves_one_version_or_the_other(
    ground: Container, releases: Releases, device: str
) -> None:
    live = booted(ground, releases)
    old, new = releases.slot(RUNS), releases.slot(NEWER)

    def bring() -> None:
        with live.port() as port:
            verb.send(port, block(new), new, Progress())

    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(bring)
        within(f"{device} is written", lambda: live.call("integrity.slots")["replacing"] == device)
        live.probe("kill", "integrity", signal.SIGKILL)
        with pytest.raises(SpineError):
            sent.result()

    def whole() -> bool:
        try:
            return bool(live.call("integrity.slots")["blessed"])
        except SpineError:
            return False  # it is starting

    within("blessed", whole)
    found = [(ground.directory / f"slot-{letter}.img").read_bytes() for letter in ("a", "b")]
    assert found[0] == found[1]
    assert found[0].rstrip(b"\0") in (old.rstrip(b"\0"), new.rstrip(b"\0"))
    assert live.table()["integrity"]["generation"] == 2
    assert ground.stop()


def in_room(live: Live, name: str, script: str, given: Path) -> tuple[str, str]:
    """How a script in a room ended, and what it printed."""
    live.call("freezer.focus", persona=name)
    said = bytearray()
    with Lease(live.ground) as lease, given.open("rb") as source:
        ended = program.run(lease, name, ["sh", "-c", script], source.fileno(), said.extend, said.extend)
    return ended, said.decode()


@pytest.mark.container
@pytest.mark.proves("INV-UPDATE-6")
def test_a_persona_with_the_grant_brings_one(ground: Container, releases: Releases, tmp_path: Path) -> None:
    """As in production, where there is no operator: out of a room, with the client that is in it."""
    live = booted(ground, releases)
    file = tmp_path / "new.update"
    file.write_bytes(update.pack(releases.slot(NEWER), _ours))
    source = Source.of("linda", tmp_path)
    limits = {"memoryBytes": 128 << 20, "pids": 64, "writableBytes": 64 << 20}
    with live.port() as port:
        for name, grants in (("bearer", ["update"]), ("other", ["focus"])):
            words = {"name": name, "grants": grants, "limits": limits, "autostart": False}
            install_persona(port, source.sealed(keys.persona_key(), **words), name)
            port.call("freezer.start", {"persona": name})
    before = hashes(ground)
    bring = "cat > /tmp/new.update && umbilical update /tmp/new.update"
    assert in_room(live, "other", bring, file) == (
        "exit 5",
        "umbilical: update: refused: this persona has not the grant update\n",
    )
    assert hashes(ground) == before
    assert in_room(live, "bearer", bring, file) == (
        "exit 0",
        f"slot b has {NEWER} now; it runs after the next start\n",
    )
    within("blessed", lambda: live.call("integrity.slots")["blessed"])
    assert (ground.directory / "slot-b.img").read_bytes().startswith(releases.slot(NEWER))
    again, words_ = in_room(live, "bearer", bring, file)
    assert (again, words_.split(": ")[:4]) == ("exit 5", ["umbilical", "update", "refused", "downgrade"])
    # With a restart: what it asks for is what integrity asks bay0 for.
    file.write_bytes(update.pack(releases.slot(BAD), _ours))
    mark = ground.console.mark()
    ended, _said = in_room(live, "bearer", f"{bring} reboot", file)
    assert ended == "exit 0"
    ground.wait_ready(since=mark)
    assert ground.stop()


# ---- the machine -------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state directory of this test's own, and in it a machine that is ended."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    yield tmp_path
    if state.read(state.directory("machine")):
        spine("stop", "--machine")


def pairs_on(image: Path) -> dict[str, bytes]:
    """The four partitions of a disk."""
    table = gpt.read(image)
    found = {}
    with image.open("rb") as file:
        for name in PAIRS:
            file.seek(table[name].start)
            found[name] = file.read(table[name].size)
    return found


def settled(standing: str) -> dict[str, object]:
    """What integrity says once it has come to rest."""
    found: dict[str, object] = {}

    def look() -> bool:
        found.update(json.loads(spine("call", "integrity.slots", "--json", "--machine")))
        return found["standing"] == standing

    within(f"standing {standing}", look, 600.0)
    return found


@pytest.mark.machine
@pytest.mark.proves("INV-UPDATE-7")
def test_a_machine_moves_to_a_newer_version_and_back_from_one_that_does_not_start(
    report: Mapping[str, object], home: Path
) -> None:
    """Boot.UPDATE: by ./spine, as a person does. One power-on; the machine then starts itself anew."""
    assert Boot.UPDATE
    assert report["version"] == RUNS
    file = home / "new.update"
    said = json.loads(spine("update", "make", "--version", NEWER, "--out", str(file), "--json"))
    assert (said["version"], said["path"]) == (NEWER, str(file))
    new = update.unpack(file.read_bytes(), _ours).slot
    bad = home / "bad.update"
    bad.write_bytes(verb.make(BAD, replace={"organs/bay0/__main__.py": CRASHES})[0])

    spine("boot", "--detach")
    settled("blessed")
    old = json.loads(spine("status", "--json"))
    assert old["version"] == RUNS
    done = json.loads(spine("update", "apply", str(file), "--reboot", "--json", limit_s=1800))
    assert (done["version"], done["rebooted"]) == (NEWER, True)
    assert done["slot"] == done["running"] != old["slot"]["active"]
    answer = settled("blessed")
    assert answer["active"] == done["slot"]
    entries = answer["entries"]
    assert isinstance(entries, list)
    assert [entry["left"] for entry in entries if entry["name"] != "spine-rescue.efi"] == [3, 3]

    failed = json.loads(spine("update", "apply", str(bad), "--reboot", "--json", code=1, limit_s=1800))
    assert failed["error"]["code"] == "rolled-back"
    assert failed["error"]["what"] == f"{NEWER} is back"
    assert f"{BAD} was started 3 times" in failed["error"]["why"]
    answer = settled("blessed")
    assert answer["active"] == done["slot"]
    disk_ = Path(json.loads(spine("status", "--json"))["ground"]["disk"])
    spine("stop")
    found = pairs_on(disk_)
    assert found["slot-a"] == found["slot-b"] == new + bytes(len(found["slot-a"]) - len(new))


def _ours(signature: bytes, message: bytes) -> None:
    keys.check(keys.public_bytes(keys.release_key()), signature, message)
