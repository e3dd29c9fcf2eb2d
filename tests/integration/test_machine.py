"""What only the real machine can show: power cuts, corruption, the boot counter, the screen.

Each power-on names its place in the budget (`boots.py`). Machines of these tests run in directories of their
own; whatever happens, they are ended.
"""

from __future__ import annotations

import base64
import errno
import json
import random
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest

from bus.envelope import Code
from organs.bay0 import clock
from organs.manifest import load
from spine import paths
from spine.ground import accel, gpt, powercut
from spine.ground.disk import sparse_copy
from spine.ground.port import PortFailure
from spine.ground.qemu import Machine
from spine.image.build import build
from spine.progress import Progress
from tests.fire.offenders import offence_named
from tests.fire.rig import development
from tests.integration.boots import Boot
from tests.integration.live import Live, within

pytestmark = pytest.mark.machine

# A panic resets the machine at once; with `no_reboot` QEMU ends then. Under TCG the way there takes a minute.
PANIC_S = 240.0
PowerOn = Callable[..., Live]
UKI = re.compile(r"spine-([ab])\+(\d)-(\d)\.efi")
GATE_STORE = "organs/gate/store.py"
FREEZER = "organs/freezer/organ.py"
MANIFEST = "organs/manifest.toml"
# Long before any image: a machine whose battery is empty.
WRONG_CLOCK = "2001-01-01"
# The freezer as it is, and `asker.py` in a thread of it, which has the line to the builder. The freezer's own
# leads to nobody: two readers of one line would take each other's answers.
ASKING = """

async def main(spine: Spine) -> None:
    import threading
    from types import SimpleNamespace

    await ask_time(spine)
    place = SimpleNamespace(generation=spine.generation, fds=dict(spine.fds))
    threading.Thread(target=ask_builder, args=(place,), daemon=True).start()
    ours, _nobody = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    spine.fds = {**spine.fds, PAIR: ours.fileno()}
    await freeze(spine)
"""


@pytest.fixture
def image(report: Mapping[str, object]) -> Path:
    """The built disk image. Booted only as a copy."""
    assert report["version"]
    return paths.out() / "spine.img"


@pytest.fixture
def power_on(tmp_path: Path) -> Iterator[PowerOn]:
    """Start machines on given disks; end them all afterwards."""
    started: list[Machine] = []

    def start(boot: Boot, disk: Path, *, ready: bool = True, **options: object) -> Live:
        machine = Machine(tmp_path / boot.name.lower())
        started.append(machine)
        how, _ = accel.choose("auto")
        machine.start(disk, accel=how, **options)  # type: ignore[arg-type]  # passed on as given
        if ready:
            machine.wait_ready()
        return Live("machine", machine)

    yield start
    for machine in started:
        machine.kill()


def counters(disk: Path) -> dict[str, tuple[int, int]]:
    """The boot counters on a disk: slot → (tries left, tries done), as the firmware would read them."""
    found: dict[str, tuple[int, int]] = {}
    for name in ("boot-a", "boot-b"):
        at = gpt.read(disk)[name].start
        listing = subprocess.run(
            ["mdir", "-b", "-i", f"{disk}@@{at}", "::/EFI/Linux"], capture_output=True, text=True, check=True
        )
        found |= {m[1]: (int(m[2]), int(m[3])) for m in UKI.finditer(listing.stdout)}
    return found


def copy_of(image: Path, tmp_path: Path, name: str = "disk.img") -> Path:
    disk = tmp_path / name
    sparse_copy(image, disk)
    return disk


def flip(disk: Path, offset: int) -> None:
    """Change one bit of one byte."""
    with open(disk, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_the_screen_shows_one_page(machine: Live, tmp_path: Path) -> None:
    assert isinstance(machine.ground, Machine)
    picture = tmp_path / "screen.ppm"
    machine.ground.screendump(picture)
    kind, width, height = picture.read_bytes().split(maxsplit=3)[:3]
    assert kind == b"P6"
    pixels = picture.read_bytes()[-3 * int(width) * int(height) :]
    lit = sum(1 for at in range(0, len(pixels), 3) if pixels[at] > 64)
    # Some lines of text on black: neither nothing nor a filled screen.
    assert 1000 < lit < len(pixels) // 3 // 4


@pytest.mark.proves("INV-SLOT-4")
def test_the_deaths_limit_panics_and_burns_a_try_and_health_arms_it_again(
    image: Path, tmp_path: Path, power_on: PowerOn
) -> None:
    disk = copy_of(image, tmp_path)
    assert counters(disk) == {"a": (3, 0), "b": (3, 0)}
    live = power_on(Boot.DEATHS, disk)
    assert isinstance(live.ground, Machine)
    slot = str(live.boot_facts()["slot"])
    other = "a" if slot == "b" else "b"
    assert counters(disk)[slot] == (2, 1)
    mark = live.ground.console.mark()
    for death in range(1, 5):
        before = live.table()["gate"]
        live.probe("kill", "gate", 9)
        if death < 4:
            within("gate restarted", partial(live.restarted, "gate", before))
    live.ground.console.wait_text("Kernel panic", PANIC_S, since=mark)
    panicked = live.ground.console.mark()
    assert "gate died 4 times" in live.ground.console.text(mark)
    # The firmware is still at it, so this is how the panic left the counter: armed again before it or not.
    left, done = counters(disk)[slot]
    within("the next boot takes a try", lambda: counters(disk)[slot] == (left - 1, done + 1))
    live.ground.wait_ready(since=panicked)
    assert live.boot_facts()["slot"] == slot
    within("the counter is armed again", lambda: counters(disk)[slot] == (3, 0))
    assert live.boot_facts()["healthy"] is True
    assert counters(disk)[other] == (3, 0)


def cut_after_a_put(
    image: Path, tmp_path: Path, power_on: PowerOn, boots: tuple[Boot, Boot]
) -> tuple[bytes | None, int]:
    """Put, cut the power at a write after the acknowledgement, boot, get: (what was got, where the cut was).

    The oracle is here, outside of the machine: what was acknowledged, and how long the write log was by then.
    """
    base = copy_of(image, tmp_path, "base.img")
    disk = copy_of(image, tmp_path)
    log = tmp_path / "writes.log"
    log.touch()
    live = power_on(boots[0], disk, blockdevs=powercut.blockdevs(disk, log))
    live.call("gate.put", persona="linda", key=b"greeting", value=b"hello")
    acknowledged = len(powercut.read(log))
    live.ground.kill()
    entries = powercut.read(log)
    cut = random.Random(0).randint(acknowledged, min(acknowledged + 2, len(entries)))
    after = tmp_path / "after.img"
    powercut.replay(base, log, cut, after)
    again = power_on(boots[1], after)
    try:
        value = again.call("gate.get", persona="linda", key=b"greeting")["value"]
    except PortFailure:
        value = None
    again.ground.kill()
    assert value is None or isinstance(value, bytes)
    return value, cut


@pytest.mark.proves("INV-GATE-1")
def test_an_acknowledged_put_survives_a_power_cut(image: Path, tmp_path: Path, power_on: PowerOn) -> None:
    value, cut = cut_after_a_put(image, tmp_path, power_on, (Boot.CUT, Boot.CUT_AFTER))
    assert value == b"hello", f"lost at entry {cut}"


def test_the_power_cut_catches_a_gate_that_skips_its_flush(
    image: Path, tmp_path: Path, power_on: PowerOn
) -> None:
    assert image.is_file()
    store = (paths.ROOT / GATE_STORE).read_text()
    seeded = store.replace('("synchronous", "FULL", 2)', '("synchronous", "OFF", 0)')
    assert seeded != store
    out = tmp_path / "out"
    build(out, replace={GATE_STORE: seeded.encode()}, progress=Progress())
    value, cut = cut_after_a_put(
        out / "spine.img", tmp_path, power_on, (Boot.CUT_SEEDED, Boot.CUT_SEEDED_AFTER)
    )
    assert value is None, f"the seeded bug was not seen at entry {cut}"


@pytest.mark.proves("INV-BUILD-4")
@pytest.mark.proves("INV-BUILD-5")
@pytest.mark.proves("INV-NET-1")
@pytest.mark.proves("INV-ROOM-1")
@pytest.mark.proves("INV-TIME-1")
@pytest.mark.proves("INV-TIME-2")
def test_the_builder_checks_blocks_and_makes_a_room_and_a_card_is_parked_and_the_clock_is_set(
    report: Mapping[str, object], tmp_path: Path, power_on: PowerOn
) -> None:
    assert report["version"]
    freezer = (paths.ROOT / FREEZER).read_text()
    asking = freezer.replace("async def main(", "async def freeze(")
    assert asking != freezer
    asker = (Path(__file__).parent / "asker.py").read_text().split('"""', 2)[2]
    asking += asker.replace('IMAGE = ""', f'IMAGE = "{persona(tmp_path)}"') + ASKING
    # It writes the personas it asks for, and proposes the time; the freezer itself may neither.
    manifest = (paths.ROOT / MANIFEST).read_text()
    for old, new in (
        ('"files-read", "cgroups"]', '"files-read", "files-write", "cgroups"]'),
        ('asks = ["keep"]', 'asks = ["keep", "time"]'),
    ):
        assert manifest.count(old) == 1
        manifest = manifest.replace(old, new)
    out = tmp_path / "out"
    build(out, replace={FREEZER: asking.encode(), MANIFEST: manifest.encode()}, progress=Progress())
    live = power_on(Boot.BUILDER, out / "spine.img", extra=("-rtc", f"base={WRONG_CLOCK}"))
    facts: dict[str, object] = {}

    def told(fact: str) -> bool:
        text = live.call("operator.log", organ="freezer", bytes=16384)["text"]
        assert isinstance(text, bytes)
        for found in re.findall(r"^asker: (.*)$", text.decode(), re.MULTILINE):
            facts.update(json.loads(found))
        return fact in facts

    within("proposed the time", lambda: told("the clock follows"))
    within("asked the builder", lambda: told("kill the builder"))
    before = live.table()["builder"]
    live.probe("kill", "builder", 9)
    within("all devices gone", lambda: told("all is gone"))
    console = str(facts.pop("console"))
    generations = {key for key in facts if key.startswith("ran for ")}
    assert len(generations) == 2
    assert all(facts.pop(key) == ["Started", "exit 7\n"] for key in generations)
    assert facts.pop("the clock of the boot is the build") is True
    assert facts.pop("the clock follows") is True
    assert facts.pop("proposals") == {
        "before the build": clock.Why.EARLY.value,
        "decades on": clock.Why.LATE.value,
        "years on": "moved",
        "at once again": clock.Why.SOON.value,
    }
    said_by_bay0 = live.call("operator.log", organ="bay0", bytes=16384)["text"]
    assert isinstance(said_by_bay0, bytes)
    assert said_by_bay0.count(b"clock: ") == 5
    assert facts == {
        "room": ["listener", "netns", "route", "console"],
        "born": ["populated", "1", "frozen", "1"],
        "said frozen": False,
        "umbilical": "hello",
        "peer": 0x15_0000,
        "the room's device is gone": True,
        "checked": True,
        "same": True,
        "blocks": ["00", "01", "02", "Input/output error", "04", "05", "06", "07"],
        "wrong root": "Input/output error",
        "released is gone": True,
        "kill the builder": None,
        "its own is gone": True,
        "held goes on": "01",
        "all is gone": True,
    }
    said = dict(line.split(None, 1) for line in console.splitlines() if len(line.split(None, 1)) == 2)
    assert {
        key: said[key].strip() for key in ("CapEff:", "CapBnd:", "NoNewPrivs:", "Seccomp:", "NSpid:")
    } == {
        "CapEff:": "00000000000005fb",
        "CapBnd:": "00000000000005fb",
        "NoNewPrivs:": "1",
        "Seccomp:": "2",
        "NSpid:": "1",
    }
    assert {key: int(said[key]) for key in sorted(TRIED)} == TRIED
    assert "0::/\r\n" in console
    assert live.restarted("builder", before)
    assert live.call("netroom.links") == {
        "links": [{"name": "eth0", "mac": "52:54:00:12:34:56", "state": "parked"}]
    }
    network = json.loads(str(live.call("operator.status")["json"]))["network"]
    assert network == {"interfaces": ["lo"], "addresses": []}


# What the first program tried, and the errno that it must get on the kernel of the image; 0 is a success.
TRIED = {
    "write": 0,
    "null": 0,
    "node": -errno.EACCES,
    "settings": -errno.EACCES,
    "kmsg": 0,
    "unshare": -errno.EPERM,
    "mount": -errno.EPERM,
    "clone3": -errno.ENOSYS,
    "inet": -errno.EAFNOSUPPORT,
    "connect": 0,
}


def persona(folder: Path) -> str:
    """A SquashFS with one program and one device node, in base64."""
    root = folder / "persona"
    root.mkdir()
    source = Path(__file__).with_name("first.c")
    # Without a library the compiler must not call one either.
    gcc = ["gcc", "-static", "-nostdlib", "-Os", "-fno-stack-protector", "-fno-tree-loop-distribute-patterns"]
    subprocess.run([*gcc, "-o", str(root / "first"), str(source)], check=True)
    image = folder / "persona.squashfs"
    squash = ["mksquashfs", str(root), str(image), "-quiet", "-no-progress", "-comp", "lz4", "-all-root"]
    subprocess.run([*squash, "-p", "node c 666 0 0 1 3"], check=True, stdout=subprocess.DEVNULL)
    content = image.read_bytes()
    # Two blocks at least: a single one would be its own hash tree.
    return base64.b64encode(content.ljust(max(2, -(-len(content) // 4096)) * 4096, b"\0")).decode()


def offset_in_slot(disk: Path, slot: str, inside: int) -> int:
    return gpt.read(disk)[f"slot-{slot}"].start + inside


@pytest.mark.proves("INV-ROOT-1")
@pytest.mark.parametrize("where", ["root", "tree"])
def test_a_flipped_byte_panics_the_machine(
    image: Path, tmp_path: Path, power_on: PowerOn, report: Mapping[str, object], where: str
) -> None:
    disk = copy_of(image, tmp_path)
    slot = report["slot"]
    assert isinstance(slot, dict)
    # Slot b starts first. The superblock of the root is in its first block, which every boot reads; the first
    # block of the tree is its top, which every read needs.
    inside = 96 if where == "root" else int(slot["parts"]["tree"][0]) + 64
    flip(disk, offset_in_slot(disk, "b", inside))
    boot = Boot.FLIPPED_ROOT if where == "root" else Boot.FLIPPED_TREE
    live = power_on(boot, disk, ready=False, no_reboot=True)
    assert isinstance(live.ground, Machine)
    live.ground.wait_exit(PANIC_S)
    said = live.ground.console.text()
    assert "Kernel panic" in said
    assert "spine: stage" not in said


@pytest.mark.parametrize(
    ("boot", "offence", "ended"),
    [
        (Boot.OFFENDER, "memory without end", "umbilical"),
        # The honest exception: libzmq counts it by no limit, and the callee pays.
        (Boot.ENDLESS, "a message without end", "gate"),
    ],
)
def test_memory_without_end_is_ended_by_the_limit_of_one_organ_and_no_other_notices(
    report: Mapping[str, object], tmp_path: Path, power_on: PowerOn, boot: Boot, offence: str, ended: str
) -> None:
    """The real memory.max, which the container ground of most hosts has not; else as tests/fire does it."""
    assert report["version"]
    out = tmp_path / "out"
    build(out, replace=offence_named(offence).overlay(development()), progress=Progress())
    live = power_on(boot, out / "spine.img")
    before = live.table()
    kept = 0

    def ended_twice() -> bool:
        nonlocal kept
        key = f"{kept}".encode()
        try:
            live.call("gate.put", persona="linda", key=key, value=key)
            kept += 1
        except PortFailure as failure:
            # Typed, and only where the callee is the one that ends.
            if ended != "gate" or failure.failure.code not in (Code.PEER_DIED, Code.DEADLINE):
                raise
        now, then = (int(str(table[ended]["generation"])) for table in (live.table(), before))
        return now >= then + 2

    within(f"{ended} ended twice", ended_twice)
    after = live.table()
    assert {n for n, row in after.items() if row["generation"] != before[n]["generation"]} == {ended}
    said = live.call("operator.log", organ="umbilical", bytes=65536)["text"]
    assert isinstance(said, bytes)
    reached = max(int(number) for number in re.findall(rb"offended (\d+)", said))
    limit = load(str(paths.ROOT / MANIFEST)).organs[ended].memory_max
    if ended == "umbilical":
        assert limit // 2 < reached << 20 <= limit
    else:
        assert reached > limit // 2

    def all_is_kept() -> bool:
        try:
            for number in range(kept):
                key = f"{number}".encode()
                assert live.call("gate.get", persona="linda", key=key)["value"] == key
        except PortFailure:
            return False  # the offender goes on, so the gate may be away again
        return True

    within("what was acknowledged is there", all_is_kept)
    assert kept >= 1
