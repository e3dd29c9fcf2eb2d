"""Rooms as a person has them: linda and courier of the tree, started and handed the focus by ./spine.

On both grounds. Only the one that has the focus runs, is spoken to and has a network; what that means is
measured from outside, by the kernel's count of processor time and by who answers on the wire.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bus.envelope import Code
from organs import persona
from spine import paths
from spine.ground import wire
from spine.ground.container import Container
from spine.ground.port import PortFailure
from spine.ground.qemu import Machine
from spine.image import keys
from spine.verbs.persona import send
from tests.fire.rig import edited
from tests.integration.live import Live, spine, within
from tests.rooms.house import House, Kernel, Source, images

NAMES = ("courier", "linda")
FROZEN_S = 5.0
# How long a caller on the wire waits for an answer that does not come. The kernel asks twice in it.
NO_ANSWER_S = 2.0
OPEN, CLOSED = 8080, 8081
# What is given away on either ground: the first clients, one each; who came before us is not ours to say.
GIVEN = {
    "container": re.compile(r"connected (10\.77\.0\.1\d\d)/24"),
    "machine": re.compile(r"connected (10\.0\.2\.(?:1[5-9]|2\d|30))/24"),
}
# Its first program ends when somebody says so.
MORTAL = "while [ ! -e /tmp/end ]; do sleep 1; done"
ENDLESS = "echo begun; sleep 98765; :"
# Run in the namespace behind a container: what a caller there meets.
KNOCK = """
import socket, sys
caller = socket.socket()
caller.settimeout(float(sys.argv[3]))
try:
    caller.connect((sys.argv[1], int(sys.argv[2])))
    caller.sendall(b"GET /index.html HTTP/1.0\\r\\n\\r\\n")
    print(caller.recv(100).decode().split()[1])
except ConnectionRefusedError:
    print("refused")
except OSError:
    print("no answer")
"""
INTEGRITY = "organs/integrity/personas.py"


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("container", marks=pytest.mark.container),
        pytest.param("machine", marks=pytest.mark.machine),
    ],
)
def housed(request: pytest.FixtureRequest) -> Iterator[Live]:
    """Each ground in turn, with linda and courier in their rooms."""
    live = request.getfixturevalue(request.param)
    assert isinstance(live, Live)
    ground = f"--{live.kind}"
    for name in NAMES:
        spine("persona", "install", ground, name)
        spine("persona", "start", ground, name)
    yield live
    for name in NAMES:
        spine("persona", "stop", ground, name)
        spine("persona", "remove", ground, name)


def rooms(live: Live) -> dict[str, Mapping[str, object]]:
    """What the freezer says of each room."""
    found = live.call("freezer.rooms")["rooms"]
    assert isinstance(found, list)
    return {row["name"]: row for row in found}


def used(live: Live, name: str) -> int:
    """The processor time of a room, as the kernel counts it."""
    return int(str(rooms(live)[name]["cpuUsec"]))


def focus(live: Live, name: str) -> None:
    spine("focus", f"--{live.kind}", name)
    assert live.call("freezer.rooms")["focus"] == name


def ran(live: Live, *words: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    """A program in a room: its exit code, output and error."""
    done = subprocess.run(
        [paths.ROOT / "spine", "exec", f"--{live.kind}", *words],
        capture_output=True,
        input=stdin,
        check=False,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


def said(live: Live, *words: str) -> bytes:
    """What a program in a room printed, which ended well."""
    code, output, error = ran(live, *words)
    assert code == 0, error
    return output


def awake(live: Live) -> list[str]:
    """The rooms that are not frozen: as the freezer says, and of a container as the kernel says."""
    said_so = [name for name, row in rooms(live).items() if row["state"] != "frozen"]
    if isinstance(live.ground, Container):
        kernel = Kernel.of(live.ground.pid).rooms()
        assert [name for name, state in kernel.items() if state != "frozen"] == said_so
    return said_so


@pytest.mark.proves("INV-FOCUS-4")
def test_a_killed_freezer_finds_the_focus_where_it_was(housed: Live) -> None:
    focus(housed, "linda")
    said(housed, "linda", "--", "sh", "-c", "echo kept > /tmp/kept")
    before = housed.table()["freezer"]
    housed.probe("kill", "freezer", 9)
    within("the next freezer", lambda: housed.restarted("freezer", before))
    within("linda has it", lambda: housed.call("freezer.rooms")["focus"] == "linda")
    assert awake(housed) == ["linda"]
    # It is the same room, and it is heard.
    assert said(housed, "linda", "--", "sh", "-c", "cat /tmp/kept; umbilical status").startswith(b"kept\n")
    focus(housed, "courier")
    assert awake(housed) == ["courier"]


def test_a_program_has_its_streams_and_its_exit_code(housed: Live) -> None:
    script = "cat; echo oops >&2; exit 7"
    done = ran(housed, "--focus", "linda", "--", "sh", "-c", script, stdin=b"fed\0\xff")
    assert done == (7, b"fed\0\xff", b"oops\n")
    assert ran(housed, "linda", "--", "sh", "-c", "kill -9 $$")[0] == 128 + 9
    assert ran(housed, "linda", "--", "nothing")[0] == 127
    # It ends with its program, whatever that left behind holds its streams.
    assert ran(housed, "linda", "--", "sh", "-c", "sleep 1000 & echo left")[:2] == (0, b"left\n")
    size = 1_000_000
    assert ran(housed, "linda", "--", "sh", "-c", "cat", stdin=bytes(size))[:2] == (0, bytes(size))


def test_status_shows_the_rooms(housed: Live) -> None:
    focus(housed, "courier")
    within("an address", lambda: " " in network(housed, "courier"))
    found = json.loads(spine("status", "--json", f"--{housed.kind}"))
    assert found["focus"] == "courier"
    assert set(found["personas"]) == set(found["rooms"]) == set(NAMES)
    courier, linda = (found["rooms"][name] for name in NAMES)
    assert (courier["state"], courier["focus"], courier["network"]) == ("running", True, "connected")
    assert (linda["state"], linda["focus"], linda["network"]) == ("frozen", False, "none")
    assert courier["address"] in network(housed, "courier")
    assert courier["store"].startswith("courier@")
    page = spine("status", f"--{housed.kind}").decode()
    assert "\n* courier " in page
    assert "\n  linda " in page


def test_what_ends_exec_ends_the_program(housed: Live) -> None:
    focus(housed, "linda")
    for number in (signal.SIGINT, signal.SIGTERM):
        # Its child is ended with it.
        exec_ = subprocess.Popen(
            [paths.ROOT / "spine", "exec", f"--{housed.kind}", "linda", "--", "sh", "-c", ENDLESS],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert exec_.stdout is not None
        assert exec_.stdout.readline() == b"begun\n"
        exec_.send_signal(number)
        exec_.communicate(timeout=300)
        assert exec_.returncode == 128 + number
        within(
            "it is gone", lambda: b"sleep 98765" not in said(housed, "linda", "--", "sh", "-c", "busybox ps")
        )


def test_exec_in_one_object(housed: Live) -> None:
    code, output, error = ran(
        housed, "--focus", "--json", "linda", "--", "sh", "-c", "echo one; printf '\\377' >&2; exit 4"
    )
    assert (code, error) == (4, b"")
    assert json.loads(output) == {
        "exit": 4,
        "ended": "exit 4",
        "output": {"utf8": "one\n"},
        "error": {"hex": "ff"},
    }


def test_much_comes_out_whole(housed: Live) -> None:
    script = "busybox head -c 8388608 /dev/urandom | busybox tee /tmp/big; busybox sha256sum </tmp/big >&2"
    code, output, error = ran(housed, "--focus", "linda", "--", "sh", "-c", f"{script}; busybox rm /tmp/big")
    assert (code, len(output)) == (0, 8388608)
    assert error.split()[0].decode() == hashlib.sha256(output).hexdigest()


def test_one_that_has_not_the_focus_is_frozen_and_says_so(housed: Live) -> None:
    focus(housed, "courier")
    code, output, error = ran(housed, "linda", "--", "true")
    assert (code, output) == (5, b"")
    assert b"FROZEN" in error
    with pytest.raises(PortFailure) as refused:
        housed.call("operator.exec", persona="linda", argv=["true"])
    assert refused.value.failure.code is Code.FROZEN
    assert ran(housed, "nobody", "--", "true")[0] == 4
    spine("focus", f"--{housed.kind}", "nobody", code=4)
    assert housed.call("freezer.rooms")["focus"] == "courier"


def test_a_busy_loop_in_the_background_uses_nothing(housed: Live) -> None:
    focus(housed, "linda")
    looping = "echo $$ > /tmp/loop; while :; do :; done"
    housed.call("operator.exec", persona="linda", argv=["sh", "-c", looping])
    before = used(housed, "linda")
    within("the loop runs", lambda: used(housed, "linda") > before + 100_000)
    focus(housed, "courier")
    before, courier = used(housed, "linda"), used(housed, "courier")
    assert (
        said(housed, "courier", "--", "sh", "-c", "n=0; while [ $n -lt 20000 ]; do n=$((n+1)); done") == b""
    )
    time.sleep(FROZEN_S)
    assert used(housed, "linda") == before
    assert used(housed, "courier") > courier
    focus(housed, "linda")
    within("the loop goes on", lambda: used(housed, "linda") > before + 100_000)
    said(housed, "linda", "--", "sh", "-c", "kill -9 $(cat /tmp/loop)")


def knock(live: Live, address: str, port: int) -> str:
    """What a caller from outside of the spine meets at a port of that address: a status, or no answer."""
    if isinstance(live.ground, Container):
        command = ["nsenter", "-t", str(live.ground.wire), "-n", sys.executable, "-c", KNOCK]
        words = [*command, address, str(port), str(NO_ANSWER_S)]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    with forwarded(live.ground, address, port) as here, socket.socket() as caller:
        # QEMU takes the call itself, and then asks the guest.
        caller.settimeout(NO_ANSWER_S)
        caller.connect(("127.0.0.1", here))
        try:
            caller.sendall(b"GET /index.html HTTP/1.0\r\n\r\n")
            words = caller.recv(100).decode().split()
        except (TimeoutError, ConnectionError):
            return "no answer"
    return words[1] if words else "no answer"


@contextlib.contextmanager
def forwarded(machine: Machine, address: str, port: int) -> Iterator[int]:
    """A port of this host's loopback that leads to one of the guest's."""
    with socket.create_server(("127.0.0.1", 0)) as chosen:
        here = int(chosen.getsockname()[1])
    with machine.qmp() as session:
        session.execute(
            "human-monitor-command",
            {"command-line": f"hostfwd_add card tcp:127.0.0.1:{here}-{address}:{port}"},
        )
    try:
        yield here
    finally:
        with machine.qmp() as session:
            session.execute(
                "human-monitor-command", {"command-line": f"hostfwd_remove card tcp:127.0.0.1:{here}"}
            )


def network(live: Live, name: str) -> str:
    return str(rooms(live)[name]["network"])


def connected(live: Live) -> str:
    """The address that courier was given, once it has the focus."""
    focus(live, "courier")
    within("an address", lambda: GIVEN[live.kind].fullmatch(network(live, "courier")))
    match = GIVEN[live.kind].fullmatch(network(live, "courier"))
    assert match
    return match[1]


def test_the_network_is_the_focused_rooms_and_not_the_spines(housed: Live) -> None:
    address = connected(housed)
    shown = said(housed, "courier", "--", "sh", "-c", "ip -4 addr show eth0; cat /etc/resolv.conf")
    assert f"inet {address}/24" in shown.decode()
    if housed.kind == "container":
        # QEMU, closed towards the host, names no server.
        assert f"nameserver {wire.ROUTER.ip}" in shown.decode()
    status = json.loads(str(housed.call("operator.status")["json"]))["network"]
    assert status == {"interfaces": ["lo"], "addresses": []}
    links = said(housed, "--focus", "linda", "--", "sh", "-c", "ip -o link").decode().splitlines()
    assert [line.split()[1] for line in links] == ["lo:"]
    assert network(housed, "courier") == "cut"
    assert network(housed, "linda") == "none"


@pytest.mark.proves("INV-NET-4")
@pytest.mark.proves("INV-NET-5")
def test_courier_answers_on_its_port_while_it_has_the_focus(housed: Live) -> None:
    address = connected(housed)
    within("courier answers", lambda: knock(housed, address, OPEN) == "200")
    # A server listens there too, but its manifest did not open it.
    inside = "wget -q -O - http://127.0.0.1:8081/index.html"
    assert b"<" in said(housed, "courier", "--", "sh", "-c", inside)
    assert knock(housed, address, CLOSED) == "no answer"
    focus(housed, "linda")
    assert knock(housed, address, OPEN) == "no answer"
    focus(housed, "courier")
    within("courier answers again", lambda: knock(housed, address, OPEN) == "200")


def test_what_one_stored_another_does_not_find(housed: Live) -> None:
    said(housed, "--focus", "linda", "--", "sh", "-c", "echo hers | umbilical put mine")
    code, output, _ = ran(housed, "--focus", "courier", "--", "umbilical", "get", "mine")
    assert (code, output) == (4, b"")
    assert said(housed, "--focus", "linda", "--", "umbilical", "get", "mine") == b"hers\n"


def test_a_room_is_stopped_and_started_and_keeps_what_it_stored(housed: Live) -> None:
    ground = f"--{housed.kind}"
    said(
        housed, "--focus", "linda", "--", "sh", "-c", "echo lasting | umbilical put kept; echo x > /tmp/lost"
    )
    spine("persona", "start", ground, "linda", code=5)
    spine("persona", "stop", ground, "linda")
    assert "linda" not in rooms(housed)
    assert ran(housed, "linda", "--", "true")[0] == 4
    spine("persona", "stop", ground, "linda", code=4)
    spine("persona", "start", ground, "linda")
    assert rooms(housed)["linda"]["state"] == "frozen"
    found = said(housed, "--focus", "linda", "--", "sh", "-c", "umbilical get kept; ls /tmp")
    assert found == b"lasting\n"


def test_a_room_that_dies_hands_the_focus_on(housed: Live, tmp_path: Path) -> None:
    source = Source.of("linda", tmp_path)
    words = {"name": "mortal", "init": ["/bin/sh", "-c", MORTAL], "autostart": False}
    with housed.port() as port:
        send(port, source.sealed(keys.persona_key(), **words), "mortal")
    try:
        focus(housed, "courier")
        focus(housed, "linda")
        housed.call("freezer.start", persona="mortal")
        focus(housed, "mortal")
        housed.call("operator.exec", persona="mortal", argv=["sh", "-c", "touch /tmp/end"])
        within("mortal is gone", lambda: "mortal" not in rooms(housed))
        within("linda has the focus", lambda: housed.call("freezer.rooms")["focus"] == "linda")
        assert awake(housed) == ["linda"]
        assert said(housed, "linda", "--", "sh", "-c", "echo here") == b"here\n"
    finally:
        housed.call("integrity.remove", name="mortal")


@pytest.mark.container
@pytest.mark.proves("INV-ROOM-21")
def test_a_persona_of_the_same_name_and_another_key_inherits_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spine of its own that trusts a second key as well."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    own, other = keys.persona_key(), Ed25519PrivateKey.generate()
    second = keys.public_bytes(other)
    line = 'return trusted_keys(text.decode("ascii", "replace"))'
    trusting = {line: f'{line} | {{bytes.fromhex("{second.hex()}")}}'}
    source = Source.of("linda", tmp_path)

    house = House(tmp_path, {INTEGRITY: edited(INTEGRITY, trusting)}, images(tmp_path))
    try:
        with house.spine.container.port() as port:

            def lives(secret: Ed25519PrivateKey, *argv: str) -> str | None:
                """Install her, run a program in her room, end and remove her; how the program ended."""
                send(port, source.sealed(secret), "linda")
                port.call("freezer.start", {"persona": "linda"})
                port.call("freezer.focus", {"persona": "linda"})
                found = port.call("freezer.rooms")["rooms"]
                assert isinstance(found, list)
                store = persona.store_name("linda", persona.key_id(keys.public_bytes(secret)))
                assert [row["store"] for row in found] == [store]
                ended = house.run("linda", *argv)
                port.call("freezer.stop", {"persona": "linda"})
                port.call("integrity.remove", {"name": "linda"})
                return ended

            assert lives(own, "sh", "-c", "echo secret | umbilical put mine") == "exit 0"
            assert lives(other, "umbilical", "get", "mine") == "exit 4"
            assert lives(own, "umbilical", "get", "mine") == "exit 0"
    finally:
        house.spine.close()
