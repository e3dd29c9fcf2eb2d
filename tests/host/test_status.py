"""`status`: what the operator tells becomes the object that scripts rely on, or a told error."""

import copy
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spine.ground.state import Ground, Process
from spine.verbs import status

GROUND = Ground("machine", Process(1234, 5), Path("/d"), Path("/p"), Path("/c"), "tcg", ())
TOLD = {
    "organs": {
        "boot": {
            "ground": "machine",
            "slot": "b",
            "rootHash": "ab" * 32,
            "verified": True,
            "healthy": False,
            "missing": ["pstore"],
            "version": "0.1.0",
            "image": "development",
        },
        "zygote": {"pid": 3, "generation": 1, "state": "ready"},
        "organs": {
            "gate": {"state": "ready", "pid": 5, "generation": 2, "deaths": 1, "sinceMs": 4500},
            "operator": {"state": "waiting", "pid": None, "generation": 0, "deaths": 0, "sinceMs": 0},
        },
    },
    "pss": {"bay0": 9000, "zygote": 8000, "gate": 7000},
    "nowMs": 6000,
    "network": {"interfaces": ["lo"], "addresses": []},
}
SLOTS = {
    "active": "b",
    "standing": "working",
    "blessed": False,
    "lost": False,
    "update": "none",
    "replacing": "slot-a",
    "writtenBytes": 30,
    "totalBytes": 120,
    "report": "replacing slot-a and boot-a from slot-b",
    "checked": [
        {
            "name": "slot-a",
            "verdict": "tampered",
            "detail": "not: root",
            "differs": ["root"],
            "how": "direct",
        },
        {"name": "slot-b", "verdict": "verified", "detail": "", "differs": [], "how": "direct"},
        {"name": "boot-a", "verdict": "pending", "detail": "", "differs": [], "how": ""},
    ],
}

ROOMS = {
    "rooms": [
        {
            "name": "courier",
            "state": "running",
            "cpuUsec": 1_234_567,
            "blocker": "",
            "version": 2,
            "store": "courier@0123456789abcdef",
            "network": "connected 10.0.2.15/24",
        },
        {
            "name": "linda",
            "state": "stuck",
            "cpuUsec": 0,
            "blocker": "77 uninterruptible sleep",
            "version": 1,
            "store": "linda@0123456789abcdef",
            "network": "none",
        },
    ],
    "focus": "courier",
}
PERSONAS = {
    "personas": [
        {
            "name": "painter",
            "version": 4,
            "keyId": "ab" * 8,
            "offset": 4096,
            "length": 900,
            "manifest": b"{}",
        },
        {"name": "linda", "version": 1, "keyId": "ab" * 8, "offset": 8192, "length": 901, "manifest": b"{}"},
        {"name": "broken", "version": 1, "keyId": "ab" * 8, "offset": 0, "length": 902, "manifest": b""},
    ]
}


DATA: dict[str, object] = {"closed": "", "damaged": []}
DAMAGED = {"closed": "unable to mount", "damaged": [{"store": "linda", "why": "the file has 0 bytes"}]}


def whole() -> dict[str, object]:
    return status.document(GROUND, TOLD, SLOTS, ROOMS, PERSONAS, DATA)


def test_the_contract() -> None:
    found = whole()
    assert json.loads(json.dumps(found)) == found
    assert found["ground"] == {
        "kind": "machine",
        "pid": 1234,
        "disk": "/d",
        "missing": ["pstore"],
        "accel": "tcg",
    }
    assert found["pid1"] == "bay0"
    assert found["slot"] == {"active": "b", "rootHash": "ab" * 32, "verified": True, "healthy": False}
    assert found["organs"] == {
        "gate": {
            "state": "ready",
            "pid": 5,
            "generation": 2,
            "uptimeS": 1.5,
            "pssKb": 7000,
            "deaths": 1,
            "closed": False,
        },
        "operator": {
            "state": "waiting",
            "pid": None,
            "generation": 0,
            "uptimeS": 0,
            "pssKb": None,
            "deaths": 0,
            "closed": False,
        },
    }
    assert found["data"] == {"closed": None, "damaged": {}}
    assert found["pairs"] == {name: SLOTS[name] for name in status.PAIRS}
    assert found["checked"] == {
        "slot-a": {
            "name": "slot-a",
            "verdict": "tampered",
            "detail": "not: root",
            "differs": ["root"],
            "how": "direct",
        },
        "slot-b": {"name": "slot-b", "verdict": "verified", "detail": "", "differs": [], "how": "direct"},
        "boot-a": {"name": "boot-a", "verdict": "pending", "detail": "", "differs": [], "how": ""},
    }
    assert found["focus"] == "courier"
    assert found["rooms"] == {
        "courier": {
            "state": "running",
            "focus": True,
            "version": 2,
            "cpuUsec": 1234567,
            "network": "connected",
            "address": "10.0.2.15/24",
            "store": "courier@0123456789abcdef",
            "blocker": None,
        },
        "linda": {
            "state": "stuck",
            "focus": False,
            "version": 1,
            "cpuUsec": 0,
            "network": "none",
            "address": None,
            "store": "linda@0123456789abcdef",
            "blocker": "77 uninterruptible sleep",
        },
    }
    assert found["personas"] == {
        "broken": {"version": 1, "keyId": "ab" * 8, "bytes": 902, "damaged": True},
        "linda": {"version": 1, "keyId": "ab" * 8, "bytes": 901, "damaged": False},
        "painter": {"version": 4, "keyId": "ab" * 8, "bytes": 900, "damaged": False},
    }
    assert found["network"] == {"interfaces": ["lo"], "addresses": []}
    assert found["pssKb"] == {"bay0": 9000, "zygote": 8000}
    assert found["memory"] == {"totalKiB": 24000}


def test_the_page_says_the_same() -> None:
    shown = status.page(whole())
    for word in (
        "machine (tcg)",
        "process 1234",
        "slot b",
        "verified",
        "pstore",
        "gate",
        "waiting",
        "7000 KiB",
        "pairs     working: what is not as it should be is put right; slot-a is being written, 25 %; last: ",
        "slot-a    tampered: not: root",
        "slot-b    verified\n",
        "boot-a    pending\n",
        "9000 KiB",
        "24000 KiB",
        "* courier         running          2      1234567 µs  connected 10.0.2.15/24\n",
        "  linda           stuck            1            0 µs  none\n"
        "    held up by process 77 uninterruptible sleep\n",
        "* courier has the focus\n",
        "  painter         installed, version 4, no room   (./spine persona start painter)\n",
        "  broken          installed, DAMAGED, no room",
    ):
        assert word in shown
    assert "linda           installed" not in shown


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("on", "firmware  secure boot on"),
        ("off", "firmware  SECURE BOOT OFF: who has the disk in hand can replace the kernel"),
        ("unknown", "firmware  secure boot unknown"),
        ("what", "firmware  secure boot unknown"),
        (None, None),
    ],
)
def test_secure_boot_is_said_with_what_it_means(said: str | None, shown: str | None) -> None:
    told = copy.deepcopy(TOLD)
    told["organs"]["boot"]["secureBoot"] = said  # type: ignore[index]  # a document of ours
    found = status.document(GROUND, told, SLOTS, ROOMS, PERSONAS, DATA)
    assert found["secureBoot"] == said
    assert shown in status.page(found) if shown else "secure boot" not in status.page(found).lower()


def test_nobody_with_the_focus_and_nobody_at_all_say_what_to_do() -> None:
    found = status.document(GROUND, TOLD, SLOTS, {**ROOMS, "focus": ""}, PERSONAS, DATA)
    assert found["focus"] is None
    shown = status.page(found)
    assert "nobody has the focus   (./spine focus NAME)" in shown
    assert "*" not in shown
    empty = status.document(GROUND, TOLD, SLOTS, {"rooms": [], "focus": ""}, {"personas": []}, DATA)
    assert (empty["focus"], empty["rooms"], empty["personas"]) == (None, {}, {})
    assert "no persona is installed   (./spine persona install linda)" in status.page(empty)


def test_an_organ_that_does_not_answer_leaves_the_rest() -> None:
    found = status.document(GROUND, TOLD, None, ROOMS, None, None)
    assert found["data"] is None
    assert found["checked"] == {}
    assert found["personas"] is None
    shown = status.page(found)
    assert "slot-a" not in shown
    assert "* courier has the focus\npersonas  not known" in shown
    found = status.document(GROUND, TOLD, SLOTS, None, PERSONAS, DATA)
    assert (found["focus"], found["rooms"]) == (None, None)
    shown = status.page(found)
    assert "rooms     not known: the freezer does not answer\n" in shown


def test_bad_data_are_told_with_what_to_do() -> None:
    told = copy.deepcopy(TOLD)
    told["organs"]["organs"]["gate"]["closed"] = True  # type: ignore[index]  # a plain dict
    found = status.document(GROUND, told, SLOTS, ROOMS, PERSONAS, DAMAGED)
    assert found["data"] == {"closed": "unable to mount", "damaged": {"linda": "the file has 0 bytes"}}
    assert found["organs"]["gate"]["closed"] is True  # type: ignore[index]  # a plain dict
    shown = status.page(found)
    assert "data      BAD: unable to mount\n" in shown
    assert "./spine boot --fresh-data" in shown
    assert "data      DAMAGED, of linda alone: the file has 0 bytes\n" in shown
    assert "data" not in status.page(whole())


junk = st.recursive(
    st.none() | st.integers() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=2)
)


@given(data=st.data(), item=junk)
def test_other_answers_are_refused_or_read(data: st.DataObject, item: object) -> None:
    told = copy.deepcopy({**TOLD, "slots": SLOTS, "rooms": ROOMS, "personas": PERSONAS, "data": DAMAGED})
    at: object = told
    while isinstance(at, dict | list):
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if not at[key] or not isinstance(at[key], dict | list) or data.draw(st.booleans()):
            at[key] = item
            break
        at = at[key]
    try:
        parts = [told.pop(name) for name in ("slots", "rooms", "personas", "data")]
        found = status.document(GROUND, told, *parts)  # type: ignore[arg-type]  # junk is the point
        json.dumps(found)
        status.page(found)
    except (KeyError, TypeError, AttributeError, ValueError):
        return


def test_a_missing_part_is_told() -> None:
    for key in TOLD:
        with pytest.raises(KeyError):
            status.document(
                GROUND,
                {name: part for name, part in TOLD.items() if name != key},
                SLOTS,
                ROOMS,
                PERSONAS,
                DATA,
            )
