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
    "checked": [
        {
            "name": "slot-a",
            "verdict": "tampered",
            "detail": "not: root",
            "differs": ["root"],
            "how": "direct",
        },
        {"name": "slot-b", "verdict": "verified", "detail": "", "differs": [], "how": "direct"},
        {"name": "esp", "verdict": "pending", "detail": "", "differs": [], "how": ""},
    ],
}


def test_the_contract() -> None:
    found = status.document(GROUND, TOLD, SLOTS)
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
        "gate": {"state": "ready", "pid": 5, "generation": 2, "uptimeS": 1.5, "pssKb": 7000, "deaths": 1},
        "operator": {
            "state": "waiting",
            "pid": None,
            "generation": 0,
            "uptimeS": 0,
            "pssKb": None,
            "deaths": 0,
        },
    }
    assert found["checked"] == {
        "slot-a": {
            "name": "slot-a",
            "verdict": "tampered",
            "detail": "not: root",
            "differs": ["root"],
            "how": "direct",
        },
        "slot-b": {"name": "slot-b", "verdict": "verified", "detail": "", "differs": [], "how": "direct"},
        "esp": {"name": "esp", "verdict": "pending", "detail": "", "differs": [], "how": ""},
    }
    assert found["rooms"] == {}
    assert found["network"] == {"interfaces": ["lo"], "addresses": []}
    assert found["pssKb"] == {"bay0": 9000, "zygote": 8000}
    assert found["memory"] == {"totalKiB": 24000}


def test_the_page_says_the_same() -> None:
    shown = status.page(status.document(GROUND, TOLD, SLOTS))
    for word in (
        "machine (tcg)",
        "process 1234",
        "slot b",
        "verified",
        "pstore",
        "gate",
        "waiting",
        "7000 KiB",
        "slot-a    tampered: not: root",
        "slot-b    verified\n",
        "esp       pending\n",
        "9000 KiB",
        "24000 KiB",
    ):
        assert word in shown


ROOMS = {
    "focus": "courier",
    "rooms": [
        {
            "name": "courier",
            "state": "running",
            "cpuUsec": 5,
            "blocker": "",
            "version": 1,
            "store": "courier@00",
            "network": "connected 10.0.2.15/24",
        },
        {
            "name": "linda",
            "state": "frozen",
            "cpuUsec": 531837,
            "blocker": "",
            "version": 2,
            "store": "linda@00",
            "network": "none",
        },
    ],
}


def test_the_rooms() -> None:
    found = status.document(GROUND, TOLD, SLOTS, ROOMS)
    assert found["focus"] == "courier"
    assert found["rooms"] == {
        row["name"]: {key: row[key] for key in status.ROOM} for row in ROOMS["rooms"] if isinstance(row, dict)
    }
    shown = status.page(found)
    assert "courier         running               5 µs   connected 10.0.2.15/24, has the focus\n" in shown
    assert "linda           frozen           531837 µs   none\n" in shown
    assert "processor time" not in status.page(status.document(GROUND, TOLD, SLOTS, None))


def test_an_integrity_that_does_not_answer_leaves_the_rest() -> None:
    found = status.document(GROUND, TOLD, None)
    assert found["checked"] == {}
    assert "slot-a" not in status.page(found)


junk = st.recursive(
    st.none() | st.integers() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=2)
)


@given(data=st.data(), item=junk)
def test_other_answers_are_refused_or_read(data: st.DataObject, item: object) -> None:
    told = copy.deepcopy({**TOLD, "slots": SLOTS})
    at: object = told
    while isinstance(at, dict):
        key = data.draw(st.sampled_from(sorted(at)))
        if not isinstance(at[key], dict) or data.draw(st.booleans()):
            at[key] = item
            break
        at = at[key]
    try:
        slots = told.pop("slots")
        json.dumps(status.document(GROUND, told, slots))  # type: ignore[arg-type]  # junk is the point
    except (KeyError, TypeError, AttributeError, ValueError):
        return


def test_a_missing_part_is_told() -> None:
    for key in TOLD:
        with pytest.raises(KeyError):
            status.document(GROUND, {name: part for name, part in TOLD.items() if name != key}, SLOTS)
