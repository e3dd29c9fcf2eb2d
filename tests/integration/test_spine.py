"""What a running spine does, the same on both grounds.

Each test leaves the spine as it found it, or restarts at most one organ once: the deaths limit is 3 without a
healthy stretch between.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import threading
from functools import partial

import pytest

from bus.envelope import Code, Envelope, Kind, pack, unpack, unpack_failure
from spine.errors import SpineError
from spine.ground.port import PortFailure, schemas
from tests.integration.live import Live, spine, within

ORGANS = {"gate", "integrity", "netroom", "freezer", "builder", "umbilical", "operator"}


def test_status_follows_its_contract(live: Live) -> None:
    status = json.loads(spine("status", "--json", f"--{live.kind}"))
    assert status["ground"]["kind"] == live.kind
    assert status["ground"]["pid"] == live.ground.pid
    assert os.path.exists(status["ground"]["disk"])
    assert status["pid1"] == "bay0"
    assert set(status["organs"]) == ORGANS
    for organ in status["organs"].values():
        assert organ["state"] == "ready"
        assert organ["pid"] > 1
        assert organ["generation"] >= 1
        assert organ["uptimeS"] >= 0
        assert organ["pssKb"] > 1000
    parts = [organ["pssKb"] for organ in status["organs"].values()] + list(status["pssKb"].values())
    assert status["memory"]["totalKiB"] == sum(parts)
    assert (status["focus"], status["rooms"]) == (None, {})
    assert isinstance(status["personas"], dict)
    assert list(status["checked"]) == ["slot-a", "slot-b", "boot-a", "boot-b"]
    for checked in status["checked"].values():
        assert set(checked) == {"name", "verdict", "detail", "differs", "how"}
    on_machine = live.kind == "machine"
    assert status["slot"]["verified"] is on_machine
    assert (status["slot"]["active"] in ("a", "b")) is on_machine
    assert ("dm-verity" in status["ground"]["missing"]) is not on_machine


@pytest.mark.proves("INV-NET-1")
def test_the_spine_has_no_network(live: Live) -> None:
    network = json.loads(str(live.call("operator.status")["json"]))["network"]
    assert network == {"interfaces": ["lo"], "addresses": []}
    # There is a card, and it waits where nobody is.
    links = live.call("netroom.links")["links"]
    assert isinstance(links, list)
    assert ("eth0", "parked") in {(link["name"], link["state"]) for link in links}


@pytest.mark.container
@pytest.mark.proves("INV-NET-1")
@pytest.mark.proves("INV-NET-2")
def test_a_link_that_appears_is_parked(container: Live) -> None:
    enter = ["nsenter", "-t", str(container.ground.pid), "-n", "ip"]
    pair = [
        "link",
        "add",
        "late0",
        "up",
        "address",
        "02:00:00:00:00:01",
        "type",
        "veth",
        "peer",
        "name",
        "late1",
    ]
    subprocess.run([*enter, *pair], check=True)

    def links() -> dict[object, tuple[object, object]]:
        found = container.call("netroom.links")["links"]
        assert isinstance(found, list)
        return {link["name"]: (link["mac"], link["state"]) for link in found}

    within("both ends parked", lambda: {"late0", "late1"} <= links().keys())
    assert links()["late0"] == ("02:00:00:00:00:01", "parked")
    status = subprocess.run([*enter, "-br", "link"], capture_output=True, text=True, check=True).stdout
    assert [line.split()[:2] for line in status.splitlines()] == [["lo", "DOWN"]]
    # Another incarnation finds them where they were left.
    before = container.table()["netroom"]
    container.probe("kill", "netroom", 9)
    within("netroom restarted", lambda: container.restarted("netroom", before))
    assert {"late0", "late1"} <= links().keys()


def test_a_line_put_is_got_listed_and_deleted(live: Live) -> None:
    live.call("gate.put", persona="linda", key=b"greeting", value=b"hello")
    first = live.call("gate.get", persona="linda", key=b"greeting")
    assert first["value"] == b"hello"
    again = live.call("gate.put", persona="linda", key=b"greeting", value=b"hello again")
    assert int(str(again["seq"])) > int(str(first["seq"]))
    assert live.call("gate.list", persona="linda", after=b"", limit=10)["keys"] == [b"greeting"]
    assert live.call("gate.delete", persona="linda", key=b"greeting") == {"existed": True}
    with pytest.raises(PortFailure) as refused:
        live.call("gate.get", persona="linda", key=b"greeting")
    assert refused.value.failure.code is Code.NOT_FOUND


def test_the_command_line_puts_and_gets(live: Live) -> None:
    ground = f"--{live.kind}"
    spine("call", ground, "gate.put", "persona=linda", "key=said", "value=from outside")
    assert b"from outside" in spine("call", ground, "gate.get", "persona=linda", "key=said")
    spine("call", ground, "gate.get", "persona=linda", "key=unsaid", code=4)
    spine("call", ground, "gate.forget", "persona=linda", code=4)
    spine("call", ground, "gate.delete", "persona=linda", "key=said")


def test_a_value_of_one_mebibyte_travels(live: Live) -> None:
    value = os.urandom(1024 * 1024)
    live.call("gate.put", persona="linda", key=b"large", value=value)
    assert live.call("gate.get", persona="linda", key=b"large")["value"] == value
    live.call("gate.delete", persona="linda", key=b"large")


BAD_PUTS: list[tuple[str, bytes, bytes, set[Code]]] = [
    ("linda", b"k" * 1025, b"v", {Code.INVALID}),
    ("linda", b"", b"v", {Code.INVALID}),
    ("linda", b"k", b"v" * (1024 * 1024 + 1), {Code.INVALID, Code.TOO_LARGE}),
    ("linda\0", b"k", b"v", {Code.INVALID, Code.BAD_MESSAGE}),
    ("../../etc", b"k", b"v", {Code.INVALID}),
    ("", b"k", b"v", {Code.INVALID}),
    ("l" * 65, b"k", b"v", {Code.INVALID}),
]


@pytest.mark.parametrize(("persona", "key", "value", "codes"), BAD_PUTS, ids=range(len(BAD_PUTS)))
def test_bad_input_is_refused_by_name(
    live: Live, persona: str, key: bytes, value: bytes, codes: set[Code]
) -> None:
    before = live.table()["gate"]
    with pytest.raises(PortFailure) as refused:
        live.call("gate.put", persona=persona, key=key, value=value)
    assert refused.value.failure.code in codes
    assert live.table()["gate"]["generation"] == before["generation"]


def test_bytes_that_look_like_paths_are_plain_keys(live: Live) -> None:
    keys = sorted([b"..", b"../x", b"a\0b", b"\xff\xfe", b"/etc/passwd", b"; drop table"])
    for key in keys:
        live.call("gate.put", persona="paths", key=key, value=key)
    assert live.call("gate.list", persona="paths", after=b"", limit=100)["keys"] == keys
    for key in keys:
        assert live.call("gate.get", persona="paths", key=key)["value"] == key
        live.call("gate.delete", persona="paths", key=key)


@pytest.mark.proves("INV-PORT-2")
def test_a_method_not_for_the_operator_is_refused_by_name(live: Live) -> None:
    """By the operator itself, before the bus: the callee's own refusal has another text."""
    methods = [m for interface in schemas().interfaces.values() for m in interface.methods.values()]
    foreign = [m for m in methods if not {"operator", "host"} & set(m.callers)]
    assert foreign
    with live.port() as port:
        for method in foreign:
            with pytest.raises(PortFailure) as refused:
                port.call_raw(method, b"")
            assert refused.value.failure.code is Code.FORBIDDEN
            name = f"{method.interface_name}.{method.name}"
            assert refused.value.failure.message == f"{name} is not for the operator"
        unknown = dataclasses.replace(schemas().interfaces["gate"].methods["get"], ordinal=999)
        with pytest.raises(PortFailure) as refused:
            port.call_raw(unknown, b"")
        assert refused.value.failure.code is Code.UNKNOWN_METHOD
        assert port.call("gate.usage", {"persona": "linda"})


def test_a_person_is_told_what_is_not_for_the_operator(live: Live) -> None:
    words = ("call", f"--{live.kind}", "--json", "freezer.hushed", "room=linda", "epoch=1")
    error = json.loads(spine(*words, code=5))["error"]
    assert error["code"] == "forbidden"
    assert error["why"] == "freezer.hushed is not for the operator"


def raw_port(live: Live) -> socket.socket:
    """The port's bytes without a client in between."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(60)
    sock.connect(str(live.ground.port_path))
    return sock


def framed(envelope: Envelope) -> bytes:
    """One frame of the port."""
    return base64.b64encode(pack(envelope)) + b"\n"


def answers(sock: socket.socket, wanted_id: int) -> list[Envelope]:
    """Everything up to the answer with this id."""
    seen: list[Envelope] = []
    buffer = b""
    while True:
        buffer += sock.recv(65536)
        *lines, buffer = buffer.split(b"\n")
        seen += [unpack(base64.b64decode(line)) for line in lines if line]
        if any(envelope.id == wanted_id for envelope in seen):
            return seen


def test_garbage_on_the_port_is_answered_and_the_stream_goes_on(live: Live) -> None:
    before = live.table()["operator"]
    gate = schemas().interfaces["gate"]
    with raw_port(live) as sock:
        sock.sendall(b"\n" + os.urandom(4096).replace(b"\n", b"x") + b"\n")
        sock.sendall(b"A" * (3 * 1024 * 1024) + b"\n")
        sock.sendall(base64.b64encode(os.urandom(64)) + b"\n")
        sock.sendall(framed(Envelope(kind=Kind.EVENT, id=5)))
        hostile = Envelope(
            kind=Kind.CALL, id=6, deadline_ns=60 * 10**9, interface=gate.id, ordinal=0, body=os.urandom(64)
        )
        sock.sendall(framed(hostile))
        sock.sendall(framed(Envelope(kind=Kind.HELLO, id=777)))
        seen = answers(sock, 777)
    failures = [unpack_failure(e.body).code for e in seen if e.kind is Kind.FAILURE]
    assert Code.TOO_LARGE in failures
    assert failures.count(Code.BAD_MESSAGE) >= 3
    assert live.table()["operator"]["generation"] == before["generation"]


def test_a_half_sent_frame_does_not_hurt_the_next_client(live: Live) -> None:
    whole = framed(Envelope(kind=Kind.HELLO, id=1))
    with raw_port(live) as sock:
        sock.sendall(whole[: len(whole) // 2])
    assert live.call("gate.usage", persona="linda")


def call_frame(number: int, name: str, /, **params: object) -> bytes:
    """One call as the port carries it."""
    organ, _, method_name = name.partition(".")
    method = schemas().interfaces[organ].methods[method_name]
    return framed(
        Envelope(
            kind=Kind.CALL,
            id=number,
            deadline_ns=60 * 10**9,
            interface=method.interface_id,
            ordinal=method.ordinal,
            body=method.encode_params(params),
        )
    )


def ends_of(live: Live, calls: dict[int, bytes]) -> dict[int, Envelope]:
    """Send all calls at once and read until each has ended, in an answer or in a failure."""
    ended: dict[int, Envelope] = {}
    with raw_port(live) as sock:
        writer = threading.Thread(target=sock.sendall, args=(b"\n" + b"".join(calls.values()),))
        writer.start()
        buffer = b""
        while not calls.keys() <= ended.keys():
            data = sock.recv(65536)
            assert data, f"the port closed with {len(calls) - len(ended)} calls open"
            *lines, buffer = (buffer + data).split(b"\n")
            for envelope in (unpack(base64.b64decode(line)) for line in lines if line):
                ended[envelope.id] = envelope
        writer.join()
    return ended


def test_a_flood_of_calls_is_answered_one_by_one(live: Live) -> None:
    calls = {number: call_frame(number, "gate.usage", persona="linda") for number in range(1, 301)}
    assert ends_of(live, calls).keys() >= calls.keys()


@pytest.mark.proves("INV-REAP-3")
@pytest.mark.parametrize("name", ["gate", "zygote", "builder"])
def test_a_killed_process_comes_back_and_no_call_hangs(live: Live, name: str) -> None:
    live.call("gate.put", persona="killed", key=b"before", value=name.encode())
    before = live.table()
    get = partial(call_frame, persona="killed", key=b"before")
    calls = {number: get(number, "gate.get") for number in range(1, 101)}
    calls[50] = call_frame(50, "operator.probe", name="kill", organ=name, signal=9)
    ended = ends_of(live, calls)
    assert ended.pop(50).kind is Kind.REPLY
    assert {e.kind for e in ended.values()} <= {Kind.REPLY, Kind.FAILURE}
    came_back_alone(live, name, before)


def test_a_killed_operator_comes_back(live: Live) -> None:
    live.call("gate.put", persona="killed", key=b"before", value=b"operator")
    before = live.table()
    with contextlib.suppress(SpineError):  # it may die before it can say that it will
        live.probe("kill", "operator", 9)
    came_back_alone(live, "operator", before)


def came_back_alone(live: Live, name: str, before: dict[str, dict[str, object]]) -> None:
    """The named process has its next generation, no other one has, and the gate answers."""
    within(f"{name} restarted", lambda: live.restarted(name, before[name]))
    expected = name.encode()
    assert live.call("gate.get", persona="killed", key=b"before")["value"] == expected
    after = live.table()
    assert {n: row["generation"] for n, row in after.items() if n != name} == {
        n: row["generation"] for n, row in before.items() if n != name
    }


def test_a_hung_organ_is_found_and_restarted(live: Live) -> None:
    before = live.table()["integrity"]
    live.probe("kill", "integrity", 19)
    within("integrity restarted", lambda: live.restarted("integrity", before))
    assert "entries" in live.call("integrity.slots")


def test_a_write_to_the_root_fails(live: Live) -> None:
    assert live.probe("write-root") == {"errno": "EROFS"}


def test_the_log_of_an_organ_can_be_read(live: Live) -> None:
    assert spine("log", f"--{live.kind}", "bay0")
    spine("log", f"--{live.kind}", "nobody", code=4)
