"""Personas on a running spine: installed through the operator's port, kept over a stop, refused by name.

The images are real ones: mksquashfs makes the file system, veritysetup the hash tree, the host's own key
signs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bus.envelope import Code
from organs import persona
from organs.integrity.shelf import DATA_AT
from organs.persona import MANIFEST_BYTES
from spine.errors import Exit
from spine.ground import state
from spine.ground.container import Container
from spine.ground.port import Port, PortFailure
from spine.image import keys
from tests.integration.live import Live, spine, within
from tests.personas import DOCUMENT, block

CHUNK = 512 * 1024
SALT = "5a" * 32


def made(
    directory: Path, name: str, version: int, key: Ed25519PrivateKey, *, says: str = "hello", **other: object
) -> bytes:
    """An image whose SquashFS and hash tree were made by the field's own programs."""
    tree, squashed, hashes = directory / "tree", directory / "squashed", directory / "hashes"
    for path in (tree, squashed, hashes):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (tree / "sbin").mkdir(parents=True)
    (tree / "sbin/init").write_text(f"#!/bin/sh\necho {says}\n")
    # Larger than one chunk, and than what one block of the hash tree covers.
    (tree / "ballast").write_bytes(
        b"".join(hashlib.sha256(f"{says}{n}".encode()).digest() for n in range(40_000))
    )
    command = [
        "mksquashfs",
        tree,
        squashed,
        "-comp",
        "lz4",
        "-b",
        "131072",
        "-all-root",
        "-quiet",
        "-no-progress",
    ]
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    data = squashed.read_bytes()
    data = data.ljust(-(-len(data) // 4096) * 4096, b"\0")
    squashed.write_bytes(data)
    said = subprocess.run(
        [
            *("veritysetup", "format", "--no-superblock", "--hash", "sha256", "--salt", SALT),
            *("--data-block-size", "4096", "--hash-block-size", "4096", squashed, hashes),
        ],
        check=True,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    ).stdout
    root_hash = next(line.split()[-1] for line in said.splitlines() if line.startswith("Root hash"))
    blocks = len(data) // 4096
    levels = hashes.read_bytes()[: sum(persona.levels(blocks)) * 4096]
    document: dict[str, object] = {
        **DOCUMENT,
        "name": name,
        "version": version,
        "image": [0, len(data), hashlib.sha256(data).hexdigest()],
        "tree": [len(data), len(levels), hashlib.sha256(levels).hexdigest()],
        "verity": {"rootHash": root_hash, "salt": SALT, "blocks": blocks},
        **other,
    }
    return data + levels + block(document, key)


def install(port: Port, data: bytes, *, upto: int | None = None) -> dict[str, object]:
    """As a person's tool does it."""
    ticket = port.call("integrity.beginInstall", {"bytes": len(data)})["ticket"]
    for at in range(0, len(data) if upto is None else upto, CHUNK):
        port.call("integrity.chunk", {"ticket": ticket, "offset": at, "data": data[at : at + CHUNK]})
    found = port.call("integrity.commit", {"ticket": ticket})["persona"]
    assert isinstance(found, dict)
    return found


def refusal(port: Port, data: bytes, **how: int) -> str:
    """The first words of the refusal."""
    with pytest.raises(PortFailure) as caught:
        install(port, data, **how)
    assert caught.value.failure.code is Code.REFUSED
    return caught.value.failure.message.partition(":")[0]


def listed(port: Port) -> dict[str, int]:
    rows = port.call("integrity.personas", {})["personas"]
    assert isinstance(rows, list)
    for row in rows:
        assert json.loads(row["manifest"])["name"] == row["name"]
    return {row["name"]: row["version"] for row in rows}


def clear(ground: Live) -> None:
    """Nothing is installed."""
    with ground.port() as port:
        for name in listed(port):
            port.call("integrity.remove", {"name": name})


@pytest.fixture
def emptied(live: Live) -> Iterator[Live]:
    """Each ground in turn, with nothing installed before and after."""
    clear(live)
    yield live
    clear(live)


@pytest.fixture
def empty(container: Live) -> Iterator[Live]:
    """The container, with nothing installed before and after."""
    clear(container)
    yield container
    clear(container)


@pytest.mark.proves("INV-PERSONA-1")
@pytest.mark.proves("INV-PERSONA-2")
@pytest.mark.proves("INV-PERSONA-5")
def test_a_persona_comes_stays_and_goes(emptied: Live, tmp_path: Path) -> None:
    key = keys.persona_key()
    first, second = (made(tmp_path, "stays", n, key, says=f"version {n}") for n in (1, 2))
    other = made(tmp_path, "stays", 2, key, says="another two")
    stranger = Ed25519PrivateKey.generate()
    with emptied.port() as port:
        row = install(port, first)
        assert (row["name"], row["version"], row["length"]) == ("stays", 1, len(first))
        assert row["keyId"] == persona.key_id(keys.public_bytes(key))
        assert listed(port) == {"stays": 1}
        again = install(port, first)
        assert again == row
        assert install(port, second)["version"] == 2
        assert refusal(port, first) == "downgrade"
        assert refusal(port, other) == "downgrade"
        assert refusal(port, made(tmp_path, "stays", 3, stranger)) == "foreign key"
        assert refusal(port, second[:-4096]) == "truncated"
        assert refusal(port, second, upto=CHUNK) == "truncated"
        assert refusal(port, second[:5000] + b"!" + second[5001:]) == "altered"
        assert (
            refusal(port, second[: 52 - MANIFEST_BYTES] + bytes(64) + second[116 - MANIFEST_BYTES :])
            == "unsigned"
        )
        assert refusal(port, made(tmp_path, "stays", 3, key, init=["sh"])) == "malformed"
        with pytest.raises(PortFailure) as caught:
            port.call("integrity.beginInstall", {"bytes": 1 << 40})
        assert caught.value.failure.message.startswith("full: ")
        assert listed(port) == {"stays": 2}
        port.call("integrity.remove", {"name": "stays"})
        assert listed(port) == {}
        assert refusal(port, first) == "downgrade"
        assert install(port, second)["version"] == 2


@pytest.mark.container
@pytest.mark.proves("INV-PERSONA-1")
def test_the_bytes_that_were_installed_are_the_ones_on_the_partition(empty: Live, tmp_path: Path) -> None:
    data = made(tmp_path, "bytes", 1, keys.persona_key())
    with empty.port() as port:
        row = install(port, data)
    assert isinstance(empty.ground, Container)
    offset = int(str(row["offset"]))
    assert offset >= DATA_AT
    assert empty.ground.personas.read_bytes()[offset : offset + len(data)] == data


@pytest.mark.container
def test_check_reads_every_byte_of_what_is_installed(empty: Live, tmp_path: Path) -> None:
    data = made(tmp_path, "whole", 1, keys.persona_key())
    with empty.port() as port:
        at = int(str(install(port, data)["offset"]))
    words = ("persona", "check", "whole", "--container")
    assert spine(*words) == b"whole 1: all %d bytes are what was installed\n" % len(data)
    assert isinstance(empty.ground, Container)
    with empty.ground.personas.open("r+b") as file:
        for place in (at + len(data) - 1, at):
            file.seek(place)
            [byte] = file.read(1)
            file.seek(place)
            file.write(bytes([byte ^ 1]))
            file.flush()
            spine(*words, code=Exit.FAILED)
            file.seek(place)
            file.write(bytes([byte]))
            file.flush()
    spine(*words)
    spine("persona", "check", "nobody", "--container", code=Exit.NO_SUCH_THING)


@pytest.mark.container
def test_a_killed_organ_keeps_what_was_installed_and_forgets_what_was_not(
    empty: Live, tmp_path: Path
) -> None:
    data, late = (made(tmp_path, name, 1, keys.persona_key()) for name in ("kept", "late"))
    with empty.port() as port:
        install(port, data)
        ticket = port.call("integrity.beginInstall", {"bytes": len(late)})["ticket"]
        port.call("integrity.chunk", {"ticket": ticket, "offset": 0, "data": late[:CHUNK]})
        before = empty.table()["integrity"]
        empty.probe("kill", "integrity", 9)
        within("integrity is back", lambda: empty.restarted("integrity", before))
        assert listed(port) == {"kept": 1}
        with pytest.raises(PortFailure) as caught:
            port.call("integrity.commit", {"ticket": ticket})
        assert caught.value.failure.code is Code.NOT_FOUND
        assert install(port, late)["name"] == "late"
        assert listed(port) == {"kept": 1, "late": 1}


@pytest.mark.container
def test_what_is_installed_outlives_a_boot_and_not_a_fresh_one(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("own")))
    data = made(tmp_path, "stays", 1, keys.persona_key())

    def boot(*words: str) -> dict[str, int]:
        """What is installed at the end of one boot."""
        spine("boot", "--detach", "--container", *words)
        try:
            ground = Container.attach(state.directory("container"))
            assert ground is not None
            with ground.port() as port:
                before = listed(port)
                install(port, data)
            return before
        finally:
            spine("stop", "--container")

    assert boot() == {}
    assert boot() == {"stays": 1}
    assert boot("--fresh") == {}
