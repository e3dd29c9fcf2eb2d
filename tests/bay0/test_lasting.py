"""What bay0 keeps for the whole boot: the line of a pair, a network namespace, each handed out again."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from tests.bay0.spine import OPERATOR, Spine, running, stanza, until

pytestmark = pytest.mark.container

ASKER = stanza("asker", 2101)
MAKER = (
    stanza("maker", 0, 'bus = false\npair = "asker"')
    .replace("capabilities = []", 'capabilities = ["SYS_ADMIN"]')
    .replace("nofile_max = 128", "nofile_max = 64")
)
PARKER = stanza("parker", 2102, 'networks = ["parking"]').replace(
    "capabilities = []", 'capabilities = ["NET_ADMIN"]'
)


def descriptors(spine: Spine, name: str) -> dict[int, str]:
    pid = spine.host_pid(name)
    return {int(fd): os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}


def said(spine: Spine, name: str, sentence: str) -> bool:
    return sentence in spine.log(name)


@pytest.mark.proves("INV-BUILD-1")
def test_a_process_without_the_bus_has_its_pair_and_nothing_else(tmp_path: Path) -> None:
    pairs = [["asker", "operator"], ["maker", "operator"], ["asker", "maker"]]
    with running(tmp_path, ASKER, MAKER, OPERATOR, pairs=pairs) as spine:
        spine.wait_ready("maker")
        line = until("its first line", partial(spine.log, "maker")).splitlines()[0]
        assert line == "maker generation 1 with pair:asker status"
        # The standard three, the status pipe, the pair; no listener, whatever the switchboard says.
        assert len(descriptors(spine, "maker")) == 5
        facts = dict(
            row.split(":", 1)
            for row in Path(f"/proc/{spine.host_pid('maker')}/status").read_text().splitlines()
        )
        assert facts["Uid"].split() == ["0"] * 4
        for key in ("CapPrm", "CapEff", "CapBnd"):
            assert int(facts[key], 16) == 1 << 21, key
        assert int(facts["CapInh"], 16) == int(facts["CapAmb"], 16) == 0
        assert facts["NoNewPrivs"].strip() == "1"
        bus = Path(f"/proc/{spine.pid}/root/run/spine/bus")
        # Also a switchboard that names it anyway.
        assert [path.name for path in bus.iterdir()] == ["asker.operator"]


def test_either_end_of_a_pair_finds_the_other_again(tmp_path: Path) -> None:
    with running(tmp_path, ASKER, MAKER) as spine:
        until("they hear each other", lambda: said(spine, "asker", "asker 1 hears maker 1"))
        until("they hear each other", lambda: said(spine, "maker", "maker 1 hears asker 1"))
        spine.kill("maker")
        until("the next maker is heard", lambda: said(spine, "asker", "asker 1 hears maker 2"))
        spine.kill("asker")
        until("the next asker is heard", lambda: said(spine, "maker", "maker 2 hears asker 2"))
        spine.kill("asker")
        spine.kill("maker")
        until("both anew", lambda: said(spine, "maker", "maker 3 hears asker 3"))
        until("both anew", lambda: said(spine, "asker", "asker 3 hears maker 3"))


@pytest.mark.proves("INV-NET-2")
def test_a_network_outlives_its_organ(tmp_path: Path) -> None:
    with running(tmp_path, PARKER, ASKER, MAKER) as spine:
        own = os.readlink(f"/proc/{spine.pid}/ns/net")
        seen = set()
        for number in (1, 2):
            spine.wait_ready("parker", number)
            line = until("its first line", partial(spine.log, "parker")).splitlines()[-1]
            assert line == f"parker generation {number} with netlink:parking netns:parking status"
            there = [link for link in descriptors(spine, "parker").values() if link.startswith("net:")]
            assert len(there) == 1
            seen |= set(there)
            # The organ itself, and everybody else, stays where bay0 is.
            for name in ("parker", "asker", "maker", "zygote"):
                assert os.readlink(f"/proc/{spine.host_pid(name)}/ns/net") == own
            spine.kill("parker")
        assert len(seen) == 1
        assert own not in seen
