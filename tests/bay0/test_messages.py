"""What comes to bay0 from outside: asks, grounds, switchboards, the zygote's answers. Nonsense is refused."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from organs.bay0 import control, ground, request, switchboard
from organs.bay0.control import Drop, Keep, Power, Probe, Refused, Time
from organs.manifest import ASKS

NONSENSE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)


@pytest.mark.proves("INV-REAP-4")
@pytest.mark.parametrize(
    "granted", [set(c) for n in range(len(ASKS) + 1) for c in itertools.combinations(sorted(ASKS), n)]
)
@pytest.mark.parametrize("development", [True, False])
def test_an_organ_gets_what_its_stanza_grants(granted: set[str], development: bool) -> None:
    for word in ("reboot", "poweroff", "keep", "drop", "time", *sorted(control.PROBES), "halt", ""):
        asked = {"ask": word, "name": "gate", "signal": 9, "label": "a", "bootedMs": 5}
        datagram = json.dumps(asked).encode()
        answer = control.decode(datagram, granted, ["zygote", "gate"], development=development)
        if word in ("reboot", "poweroff"):
            assert isinstance(answer, Power) == (word in granted)
        elif word in control.PROBES:
            assert isinstance(answer, Probe) == (development and "probe" in granted)
        elif word in ("keep", "drop"):
            assert isinstance(answer, Keep | Drop) == ("keep" in granted)
        elif word == "time":
            assert answer == Time(5) if "time" in granted else isinstance(answer, Refused)
        else:
            assert isinstance(answer, Refused)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"ask": "kill", "name": "nobody", "signal": 9}, "no such child"),
        ({"ask": "kill", "name": "gate", "signal": 11}, "signal must be"),
        ({"ask": "kill", "name": "gate", "signal": True}, "signal a number"),
        ({"ask": "kill", "name": 5, "signal": 9}, "name must be"),
        ({"ask": "process", "name": "../1"}, "no such process"),
        ({"ask": "keep"}, "the label"),
        ({"ask": "keep", "label": ""}, "the label"),
        ({"ask": "drop", "label": "a" * 49}, "the label"),
        ({"ask": "keep", "label": "../a"}, "the label"),
        ({"ask": "time"}, "bootedMs must be"),
        ({"ask": "time", "bootedMs": -1}, "bootedMs must be"),
        ({"ask": "time", "bootedMs": 1.5}, "bootedMs must be"),
        ({"ask": "time", "bootedMs": True}, "bootedMs must be"),
        ({"ask": "time", "bootedMs": "5"}, "bootedMs must be"),
        ({"ask": "time", "bootedMs": control.BOOTED_MS_MAX + 1}, "bootedMs must be"),
        ({"ask": ["reboot"]}, "not {"),
        ([], "not {"),
    ],
)
def test_a_wrong_ask_is_refused_with_its_reason(message: object, reason: str) -> None:
    answer = control.decode(json.dumps(message).encode(), ASKS, ["gate"], development=True)
    assert isinstance(answer, Refused)
    assert reason in answer.reason


@given(st.binary(max_size=200) | NONSENSE.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 5000)
def test_any_datagram_has_a_meaning(datagram: bytes) -> None:
    assert isinstance(control.decode(datagram, ASKS, ["gate"], development=True), Refused)


@given(NONSENSE)
def test_an_answer_fits_its_datagram(value: object) -> None:
    assert len(control.encode({"ok": value})) <= control.DATAGRAM_BYTES_MAX
    assert len(control.encode({"ok": "x" * 5000})) <= control.DATAGRAM_BYTES_MAX


@given(st.text(max_size=100) | NONSENSE.map(json.dumps))
@example("[" * 5000)
def test_any_text_is_a_ground_or_refused(text: str) -> None:
    with pytest.raises(ground.GroundRefused):
        ground.decode(text)


GROUND = {
    "kind": "container",
    "devices": {"persist": "/dev/loop7"},
    "portFd": 3,
    "missing": ["dm-verity"],
    "slot": None,
    "rootHash": None,
}


def test_a_container_ground() -> None:
    there = ground.decode(json.dumps(GROUND))
    assert (there.kind, there.devices, there.port_fd) == ("container", {"persist": "/dev/loop7"}, 3)
    assert not there.verified


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "machine"},
        {"devices": {"persist": "/etc/passwd"}},
        {"devices": {"persist": "/dev/../etc/passwd"}},
        {"portFd": 1},
        {"portFd": True},
        {"missing": [1]},
        {"more": 1},
    ],
)
def test_a_wrong_ground_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ground.GroundRefused):
        ground.decode(json.dumps(GROUND | wrong))


@given(st.text(max_size=100) | NONSENSE.map(json.dumps))
@example("[" * 5000)
@example('{"fds": [], "pairs": [["gate", "operator"], ["gate", "operator"]]}')
@example('{"fds": [], "pairs": [["gate", 1]]}')
@example('{"pairs": [["gate", "operator"]]}')
@example('{"fds": [["gate", "operator"]], "pairs": []}')
@example('{"fds": [], "pairs": [], "more": []}')
def test_any_text_is_a_switchboard_or_refused(text: str) -> None:
    with pytest.raises(switchboard.SwitchboardRefused):
        switchboard.decode(text)


def test_a_switchboard() -> None:
    pair = '["gate", "operator"]'
    for fds, found in (("", ()), (pair, (("gate", "operator"),))):
        board = switchboard.decode(f'{{"pairs": [{pair}], "fds": [{fds}]}}')
        assert (board.pairs, board.fds) == ((("gate", "operator"),), found)
    assert switchboard.decode('{"pairs": [], "fds": []}') == switchboard.Switchboard((), ())


@given(st.binary(max_size=100) | NONSENSE.map(lambda value: json.dumps(value).encode()))
def test_any_datagram_of_the_zygote_is_an_answer_or_refused(datagram: bytes) -> None:
    for decode in (request.decode_request, request.decode_made):
        with pytest.raises(request.RequestRefused):
            decode(datagram)


@given(
    st.text(max_size=20), st.integers(1), st.lists(st.text(max_size=20), max_size=10), st.text(max_size=200)
)
def test_requests_come_back_as_they_went(organ: str, generation: int, fds: list[str], bad: str) -> None:
    mounting = request.Mounting(source="/dev/loop0", at="/persist", type="ext4")
    asked = request.Request(organ=organ, generation=generation, mounts=(mounting,), fds=tuple(fds), bad=bad)
    assert len(asked.encode()) <= request.DATAGRAM_BYTES_MAX
    assert request.decode_request(asked.encode()) == asked
    for made in (request.Made(pid=generation, error=""), request.Made(pid=None, error=organ)):
        assert request.decode_made(made.encode()) == made
