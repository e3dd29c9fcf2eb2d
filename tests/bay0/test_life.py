"""bay0 as PID 1 of fresh namespaces, with stand-in organs: from the first mount to the exit code.

The kernel is the real one, bay0 and the zygote are the real ones; only what the organs do is made up
(`tests/bay0/standin_runtime.py`).
"""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from organs import layout
from organs.bay0.zygote import OWN_CAPABILITIES
from organs.kernel import realtime
from organs.manifest import CAPABILITIES
from spine.image.root import BAY0
from tests.bay0.spine import (
    GATE,
    INTEGRITY,
    OPERATOR,
    SPINE,
    Spine,
    cgroup_root,
    loop_device,
    running,
    stanza,
    until,
)

pytestmark = pytest.mark.container

ALPHA, BETA = stanza("alpha", 2101), stanza("beta", 2102)


@pytest.fixture(name="disks")
def _disks(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A persist partition with a file system and a boot volume without one, as loop devices."""
    for name in ("persist", "boot-a"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(16 * 1024**2)
    subprocess.run(["mkfs.ext4", "-q", str(tmp_path / "persist")], check=True)
    with loop_device(tmp_path / "persist") as persist, loop_device(tmp_path / "boot-a") as boot:
        yield {"persist": persist, "boot-a": boot}


def status(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, value in (line.split(":", 1) for line in lines)}


def mount_points(pid: int) -> set[str]:
    return {line.split()[4] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()}


def generation(spine: Spine, name: str) -> int:
    value = spine.child(name)["generation"]
    assert isinstance(value, int)
    return value


def test_the_whole_life(tmp_path: Path, disks: dict[str, str]) -> None:
    pairs = [["gate", "operator"], ["integrity", "operator"], ["gate", "absent"]]
    with running(tmp_path, GATE, INTEGRITY, OPERATOR, pairs=pairs, devices=disks) as spine:
        for name in ("gate", "integrity", "operator", "zygote"):
            assert spine.wait_ready(name) == 1
        until("healthy", lambda: spine.state()["boot"]["healthy"])
        boot = spine.state()["boot"]
        assert boot["ground"] == "container"
        assert boot["verified"] is False
        assert "dm-verity" in str(boot["missing"])
        until("integrity is told", lambda: '{"tell": "healthy"}' in spine.log("integrity"))
        stages = re.findall(r"^spine: stage (\S+) \d+$", spine.console(), re.MULTILINE)
        assert stages[:4] == ["bay0", "entropy", "bus", "zygote"]
        assert set(stages[4:7]) == {"organ.gate", "organ.integrity", "organ.operator"}
        assert stages[7:] == ["ready", "healthy"]
        assert spine.ask(ask="poweroff") == {}
        assert spine.end() == layout.EXIT_POWER_OFF
        assert "persist.unmounted" in spine.console()
        # Nothing is left: the file system was let go in order.
        command = ["tune2fs", "-l", disks["persist"]]
        facts = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert re.search(r"Filesystem state: +clean", facts)


@pytest.mark.proves("INV-TIME-1")
def test_in_a_container_the_clock_is_the_host_s(tmp_path: Path) -> None:
    """A proposal that a machine would take: a minute on. It is answered with what is missing."""
    asking = OPERATOR.replace('"probe"]', '"probe", "time"]')
    with running(tmp_path, asking, ALPHA) as spine:
        spine.wait_ready("operator")
        before_ms = realtime.wall_ms() - realtime.since_boot_ms()
        wanted_ms = before_ms + 60_000
        assert spine.ask(ask="time", bootedMs=wanted_ms) == {"error": "missing: clock"}
        assert spine.ask(ask="time", bootedMs=-1) == {"error": "bootedMs must be milliseconds since 1970"}
        # Nobody moved it by what was asked; that somebody else corrects it meanwhile is none of ours.
        assert wanted_ms - (realtime.wall_ms() - realtime.since_boot_ms()) > 30_000


@pytest.mark.proves("INV-PRIV-1")
def test_an_organ_has_the_powers_of_its_stanza_and_no_others(tmp_path: Path, disks: dict[str, str]) -> None:
    wide = stanza("wide", 2102).replace("capabilities = []", 'capabilities = ["NET_ADMIN"]')
    pairs = [["wide", "integrity"]]
    with running(tmp_path, INTEGRITY, wide, pairs=pairs, fds=pairs, devices=disks) as spine:
        for name, uid, mask, fds in (
            ("integrity", 2002, 0, {"status", "control", "device:boot-a"}),
            ("wide", 2102, 1 << 12, {"status", "listen:integrity", "fds:integrity"}),
        ):
            spine.wait_ready(name)
            pid = spine.host_pid(name)
            facts = status(pid)
            assert facts["Name"] == name
            assert facts["Uid"].split() == facts["Gid"].split() == [str(uid)] * 4
            assert facts["Groups"] == ""
            for key in ("CapPrm", "CapEff", "CapBnd"):
                assert int(facts[key], 16) == mask, (name, key)
            assert int(facts["CapInh"], 16) == int(facts["CapAmb"], 16) == 0
            assert facts["NoNewPrivs"] == "1"
            assert facts["Seccomp"] == "2"
            assert facts["Threads"] == "1"
            links = {int(fd): os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
            assert links[0] == "/dev/null"
            assert links[1] == links[2]
            assert links[1].startswith("pipe:")
            assert len(links) == 3 + len(fds)
            assert f"with {' '.join(sorted(fds))}" in until("its first line", partial(spine.log, name))
            limits = Path(f"/proc/{pid}/limits").read_text()
            assert re.search(r"Max open files +128 +128 ", limits)
            assert re.search(r"Max core file size +0 +0 ", limits)
            # Undumpable: its memory belongs to root, even for its own uid.
            assert os.stat(f"/proc/{pid}/environ").st_uid == 0


@pytest.mark.proves("INV-PRIV-4")
def test_the_zygote_holds_what_making_organs_takes(tmp_path: Path) -> None:
    wide = stanza("wide", 2102).replace("capabilities = []", 'capabilities = ["NET_ADMIN"]')
    with running(tmp_path, ALPHA, wide) as spine:
        spine.wait_ready("wide")
        facts = status(spine.host_pid("zygote"))
        mask = sum(1 << CAPABILITIES.index(name) for name in (*OWN_CAPABILITIES, "NET_ADMIN"))
        for key in ("CapPrm", "CapEff", "CapBnd"):
            assert int(facts[key], 16) == mask & int(status(os.getpid())["CapBnd"], 16), key
        assert int(facts["CapInh"], 16) == int(facts["CapAmb"], 16) == 0


def descriptors(pid: int) -> dict[int, str]:
    return {int(name): os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}


@pytest.mark.proves("INV-PRIV-5")
def test_the_first_zygote_starts_before_all_else_and_holds_no_more_than_a_later_one(tmp_path: Path) -> None:
    with running(tmp_path, ALPHA, OPERATOR) as spine:
        for number in (1, 2):
            spine.wait_ready("alpha", number)
            spine.wait_ready("operator")
            pid = spine.host_pid("zygote")
            # In its own namespace the first is the first process after PID 1.
            assert (status(pid)["NSpid"].split()[-1] == "2") == (number == 1)
            held = descriptors(pid)
            kinds = {fd: place.partition(":")[0] for fd, place in held.items()}
            assert kinds == {0: "/dev/null", 1: "pipe", 2: "pipe", 3: "socket", 4: "pipe"}, str(held)
            assert status(pid)["Umask"] == "0022"
            assert (spine.cgroup / "bay0/cgroup.procs").read_text().split() == [str(spine.pid)]
            spine.kill("zygote")
            spine.kill("alpha")
        assert spine.child("zygote")["generation"] == 2


@pytest.mark.proves("INV-PRIV-5")
def test_what_bay0_was_started_with_is_not_the_first_zygotes(tmp_path: Path) -> None:
    given = b"import os\nos.dup2(os.open('/', os.O_RDONLY), 9)\nahead = start()\n"
    with running(tmp_path, ALPHA, bay0=BAY0.replace(b"ahead = start()\n", given)) as spine:
        spine.wait_ready("alpha")
        assert 9 in descriptors(spine.pid)
        assert descriptors(spine.host_pid("zygote")).keys() == {0, 1, 2, 3, 4}


KILLED = b"ahead = start()\nimport os\nos.kill(ahead.pid, 9)\nos.waitid(os.P_PID, ahead.pid, os.WEXITED%s)\n"


@pytest.mark.parametrize(
    ("instead", "said"),
    [
        pytest.param(KILLED % b"", True, id="gone"),
        pytest.param(KILLED % b" | os.WNOWAIT", True, id="dead"),
        pytest.param(b"ahead = None\n", False, id="never there"),
    ],
)
def test_a_zygote_that_was_not_started_ahead_is_started_as_ever(
    tmp_path: Path, instead: bytes, said: bool
) -> None:
    with running(tmp_path, ALPHA, bay0=BAY0.replace(b"ahead = start()\n", instead)) as spine:
        spine.wait_ready("alpha")
        assert spine.child("zygote")["generation"] == 1
        assert ("not started ahead" in spine.console()) == said
        assert descriptors(spine.host_pid("zygote")).keys() == {0, 1, 2, 3, 4}


@pytest.mark.proves("INV-STATE-1")
def test_only_the_gate_sees_persist(tmp_path: Path, disks: dict[str, str]) -> None:
    with running(tmp_path, GATE, INTEGRITY, OPERATOR, devices=disks) as spine:
        for name in ("gate", "integrity", "operator"):
            spine.wait_ready(name)
        # Again after a restart of each, in the other order.
        for name in ("operator", "integrity", "gate"):
            spine.kill(name)
            spine.wait_ready(name, 2)
        seen = {
            name: layout.PERSIST in mount_points(spine.host_pid(name))
            for name in ("gate", "integrity", "operator", "zygote")
        }
        assert seen == {"gate": True, "integrity": False, "operator": False, "zygote": False}
        assert layout.PERSIST not in mount_points(spine.pid)
        persist = os.stat(f"/proc/{spine.host_pid('gate')}/root{layout.PERSIST}")
        assert (persist.st_uid, stat.S_IMODE(persist.st_mode)) == (2001, 0o700)


@pytest.mark.proves("INV-REAP-3")
def test_each_child_killed_comes_back_with_a_new_generation(tmp_path: Path) -> None:
    with running(tmp_path, ALPHA, BETA, OPERATOR) as spine:
        names = ("alpha", "beta", "operator", "zygote")
        for name in names:
            spine.wait_ready(name)
        for name in names:
            others = {other: generation(spine, other) for other in names if other != name}
            before = spine.host_pid(name)
            spine.kill(name)
            assert spine.wait_ready(name, 2) == 2
            assert spine.host_pid(name) != before
            assert {other: generation(spine, other) for other in others} == others
            assert spine.child(name)["deaths"] == 1
        # The second zygote makes organs as the first did.
        spine.kill("alpha")
        assert spine.wait_ready("alpha", 3) == 3


@pytest.mark.proves("INV-REAP-2")
def test_organ_and_zygote_killed_together_again_and_again(tmp_path: Path) -> None:
    patient = SPINE.replace("deaths_max = 3", "deaths_max = 16")
    with running(tmp_path, ALPHA, OPERATOR, spine=patient) as spine:
        procs = spine.cgroup / "organs/alpha/cgroup.procs"
        for number in range(1, 9):
            spine.wait_ready("zygote", number)
            now = spine.wait_ready("alpha", number)
            assert len(procs.read_text().split()) == 1
            spine.kill("alpha")
            spine.kill("zygote")
            spine.wait_ready("alpha", now + 1)


def test_a_start_that_the_zygote_lost_is_not_the_organs_death(tmp_path: Path) -> None:
    with running(tmp_path, ALPHA, OPERATOR) as spine:
        spine.wait_ready("alpha")
        spine.kill("zygote", signal.SIGSTOP)
        spine.kill("alpha")
        spine.wait_ready("zygote", 2)
        spine.wait_ready("alpha", 2)
        assert spine.child("alpha")["deaths"] == 1


def test_a_hang_is_found_by_its_silence(tmp_path: Path) -> None:
    with running(tmp_path, ALPHA, OPERATOR) as spine:
        for name in ("alpha", "zygote"):
            spine.wait_ready(name)
            spine.kill(name, signal.SIGSTOP)
            assert spine.wait_ready(name, 2) == 2
            assert f"{name}: silent for too long, killed" in spine.console()


def test_too_many_deaths_end_in_panic_with_the_reason(tmp_path: Path) -> None:
    with running(tmp_path, ALPHA, BETA) as spine:
        for number in range(1, 5):
            spine.wait_ready("alpha", number)
            spine.kill("alpha")
        assert spine.end() == layout.EXIT_PANIC
        words = spine.console()
        assert "spine: panic: alpha died 4 times without a healthy stretch between" in words
        assert "(the last time: SIGKILL)" in words
        assert "spine: panic: alpha: alpha generation 4" in words


@pytest.mark.proves("INV-STATE-3")
@pytest.mark.proves("INV-STATE-4")
def test_a_partition_without_a_file_system_closes_its_organ_and_nothing_else(tmp_path: Path) -> None:
    """The child dies before it is an organ, faster than it is known, and no death of it is the slot's."""
    with open(tmp_path / "empty", "wb") as file:
        file.truncate(1024**2)
    with (
        loop_device(tmp_path / "empty") as empty,
        running(tmp_path, GATE, devices={"persist": empty}) as spine,
    ):
        assert spine.wait_ready("gate", 5) == 5
        until("healthy", lambda: spine.state()["boot"]["healthy"])
        assert (spine.child("gate")["deaths"], spine.child("gate")["closed"]) == (0, True)
        words = spine.console()
        assert words.count("died: exit code 65") == 4
        assert "gate: bad data: it lives without them until the next boot" in words
        told = "gate lives without its data: unable to mount ext4 at /persist: Invalid argument\n"
        assert told in spine.log("gate")
        assert layout.PERSIST not in mount_points(spine.host_pid("gate"))
        # What has no data any more can die of none: these deaths are the slot's again.
        for number in range(5, 9):
            spine.wait_ready("gate", number)
            spine.kill("gate")
        assert spine.end() == layout.EXIT_PANIC
        assert "gate died 4 times" in spine.console()


@pytest.mark.proves("INV-STATE-3")
def test_bad_data_need_a_file_system_to_be_on(tmp_path: Path, disks: dict[str, str]) -> None:
    """Who says that its data are bad is believed where the stanza mounts some, and nowhere else."""
    mounted = stanza("rotten", 2106, mounts='[{ device = "persist", at = "/persist", type = "ext4" }]')
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with running(tmp_path / "one", mounted, ALPHA, devices=disks) as spine:
        spine.wait_ready("rotten", 5)
        assert spine.child("rotten")["closed"] is True
        assert "rotten lives without its data: a file is damaged\n" in spine.log("rotten")
    with running(tmp_path / "two", stanza("rotten", 2106), ALPHA) as spine:
        assert spine.end() == layout.EXIT_PANIC
        assert "rotten died 4 times" in spine.console()


@pytest.mark.proves("INV-STATE-3")
def test_a_device_that_takes_no_writes_closes_its_organ(tmp_path: Path) -> None:
    with open(tmp_path / "persist", "wb") as file:
        file.truncate(16 * 1024**2)
    subprocess.run(["mkfs.ext4", "-q", str(tmp_path / "persist")], check=True)
    with (
        loop_device(tmp_path / "persist", "--read-only") as persist,
        running(tmp_path, GATE, devices={"persist": persist}) as spine,
    ):
        spine.wait_ready("gate", 5)
        told = "gate lives without its data: unable to mount ext4 at /persist: Permission denied\n"
        assert told in spine.log("gate")
        assert spine.child("gate")["deaths"] == 0


@pytest.mark.proves("INV-STATE-5")
def test_what_a_file_system_does_on_damage_is_not_its_own_choice(tmp_path: Path) -> None:
    """Not tried with "panic", which this host would have to survive."""
    with open(tmp_path / "persist", "wb") as file:
        file.truncate(16 * 1024**2)
    subprocess.run(["mkfs.ext4", "-q", str(tmp_path / "persist")], check=True)
    own = ["tune2fs", "-e", "continue", str(tmp_path / "persist")]
    subprocess.run(own, check=True, stdout=subprocess.DEVNULL)
    with (
        loop_device(tmp_path / "persist") as persist,
        running(tmp_path, GATE, devices={"persist": persist}) as spine,
    ):
        spine.wait_ready("gate")
        lines = Path(f"/proc/{spine.host_pid('gate')}/mountinfo").read_text().splitlines()
        (options,) = [line.split()[-1] for line in lines if line.split()[4] == layout.PERSIST]
        # ext4 names it because the file system itself says something else.
        assert "errors=remount-ro" in options.split(",")


def test_an_organ_that_cannot_take_its_place_says_why(tmp_path: Path, disks: dict[str, str]) -> None:
    """A device that somebody else holds is no damage of it: a death like any other."""
    held = os.open(disks["persist"], os.O_RDWR | os.O_EXCL)
    try:
        with running(tmp_path, GATE, devices={"persist": disks["persist"]}) as spine:
            assert spine.end() == layout.EXIT_PANIC
            words = spine.console()
            assert "gate died 4 times" in words
            assert "(the last time: exit code 111)" in words
            assert "gate: unable to mount ext4 at /persist: Device or resource busy" in words
    finally:
        os.close(held)


def test_never_getting_ready_ends_in_panic_too(tmp_path: Path) -> None:
    hasty = SPINE.replace("start_deadline_ms = 3000", "start_deadline_ms = 500")
    with running(tmp_path, ALPHA, stanza("late", 2103), spine=hasty) as spine:
        assert spine.end() == layout.EXIT_PANIC
        assert spine.console().count("late: not ready in time, killed") == 4


@pytest.mark.proves("INV-REAP-2")
def test_what_an_organ_made_dies_with_it(tmp_path: Path) -> None:
    forker = stanza("forker", 2104, 'bus = false\npair = "alpha"').replace('["base"', '["children", "base"')
    with running(tmp_path, forker, ALPHA) as spine:
        spine.wait_ready("forker")
        procs = spine.cgroup / "organs/forker/cgroup.procs"

        def pair() -> set[str] | None:
            there = set(procs.read_text().split())
            return there if len(there) == 2 else None

        first = until("its child", pair)
        os.kill(min(map(int, first)), signal.SIGKILL)
        spine.wait_ready("forker", 2)
        second = until("its next child", pair)
        assert not first & second
        assert not any(Path(f"/proc/{pid}").exists() for pid in first)
        # Starting before all of it was gone would have been refused by the kernel and counted as a death.
        assert spine.child("forker")["deaths"] == 1


@pytest.mark.proves("INV-REAP-6")
def test_what_an_organ_leaves_with_bay0_its_next_incarnation_gets(tmp_path: Path) -> None:
    keeper = stanza("keeper", 2101, 'control = { asks = ["keep"], told = [] }').replace(
        "nofile_max = 128", "nofile_max = 512"
    )
    with running(tmp_path, keeper, BETA) as spine:
        spine.wait_ready("keeper")
        until("bay0 has taken what it takes", lambda: "none is not kept" in spine.console())
        before = len(os.listdir(f"/proc/{spine.pid}/fd"))
        os.kill(spine.host_pid("keeper"), signal.SIGKILL)
        spine.wait_ready("keeper", 2)
        until("the second one read", lambda: "keeper reads from the first one" in spine.log("keeper"))
        # 128 were taken, one of them dropped; what came too much or with two was closed.
        assert "keeper has 127: kept:pipe000 to kept:pipe127" in spine.log("keeper")
        assert "pipe128 is not kept: no more is kept" in spine.console()
        assert "two is not kept: one descriptor" in spine.console()
        assert len(os.listdir(f"/proc/{spine.pid}/fd")) == before


@pytest.mark.proves("INV-REAP-6")
def test_what_an_organ_left_in_its_last_moment_is_kept_too(tmp_path: Path) -> None:
    hasty = stanza("hasty", 2101, 'control = { asks = ["keep"], told = [] }').replace(
        "nofile_max = 128", "nofile_max = 512"
    )
    with running(tmp_path, hasty, BETA) as spine:
        spine.wait_ready("hasty", 2)
        until("the second one looked", lambda: "hasty has" in spine.log("hasty"))
        assert "hasty has 100" in spine.log("hasty")


def test_an_orphan_is_collected_by_pid_1(tmp_path: Path) -> None:
    with running(tmp_path, ALPHA, OPERATOR) as spine:
        spine.wait_ready("alpha")
        subprocess.run(
            ["nsenter", "-t", str(spine.pid), "-p", "-m", "sh", "-c", "(exit 7) & exec /usr/bin/true"],
            check=True,
        )
        until("no zombie", lambda: not zombies(spine))
        assert generation(spine, "alpha") == 1


def zombies(spine: Spine) -> list[str]:
    children = Path(f"/proc/{spine.pid}/task/{spine.pid}/children").read_text().split()
    return [pid for pid in children if status(int(pid))["State"].startswith("Z")]


def test_a_flooding_log_stays_bounded_and_hurts_nobody(tmp_path: Path) -> None:
    with running(tmp_path, stanza("flood", 2105), ALPHA, OPERATOR) as spine:
        spine.wait_ready("flood")
        until("both files of the ring", lambda: len(spine.log("flood")) > 64 * 1024)
        spine.wait_ready("alpha")
        spine.kill("alpha")
        spine.wait_ready("alpha", 2)
        assert spine.ask(ask="pss")["ok"]
        folder = Path(f"/proc/{spine.pid}/root/run/spine/log")
        for file in folder.glob("flood.log*"):
            assert file.stat().st_size <= 64 * 1024
        assert stat.S_IMODE(folder.stat().st_mode) == 0o750
        assert folder.stat().st_gid == 2003
        assert generation(spine, "flood") == 1


@pytest.mark.proves("INV-STATE-2")
def test_rooms_end_with_the_spine_frozen_or_not(tmp_path: Path) -> None:
    keeper = stanza("alpha", 2101, 'subtree = "rooms"')
    with running(tmp_path, keeper) as spine, subprocess.Popen(["sleep", "1000"]) as child:
        spine.wait_ready("alpha")
        room = spine.cgroup / "rooms/linda"
        room.mkdir()
        (room / "cgroup.freeze").write_text("1")
        (room / "cgroup.procs").write_text(str(child.pid))
        os.kill(spine.pid, signal.SIGTERM)
        assert spine.end() == layout.EXIT_POWER_OFF
        # It is not of bay0's pid namespace: nothing but its cgroup ended it.
        assert child.wait(timeout=30) == -signal.SIGKILL


def test_an_organ_that_does_not_end_is_killed(tmp_path: Path) -> None:
    with running(tmp_path, stanza("stubborn", 2106), ALPHA) as spine:
        spine.wait_ready("stubborn")
        os.kill(spine.pid, signal.SIGTERM)
        assert spine.end() == layout.EXIT_POWER_OFF
        assert "killing what did not end in time" in spine.console()


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, layout.EXIT_POWER_OFF),
        (signal.SIGINT, layout.EXIT_POWER_OFF),
        (signal.SIGUSR1, layout.EXIT_REBOOT),
    ],
)
def test_signals_to_pid_1_end_in_order(tmp_path: Path, number: signal.Signals, code: int) -> None:
    with running(tmp_path, ALPHA) as spine:
        spine.wait_ready("alpha")
        os.kill(spine.pid, number)
        assert spine.end() == code
        assert "died" not in spine.console()


def test_what_the_operator_may_ask(tmp_path: Path) -> None:
    with running(tmp_path, ALPHA, OPERATOR) as spine:
        spine.wait_ready("operator")
        spine.wait_ready("alpha")
        sizes = spine.ask(ask="pss")["ok"]
        assert isinstance(sizes, dict)
        assert set(sizes) == {"bay0", "zygote", "alpha", "operator"}
        assert all(size > 100 for size in sizes.values())
        assert spine.ask(ask="write-root") == {"ok": {"errno": "EROFS"}}
        assert spine.ask(ask="kill", name="nobody", signal=9) == {"error": "there is no such child"}
        assert "ok" in spine.ask(ask="kill", name="alpha", signal=9)
        spine.wait_ready("alpha", 2)
        assert "ok" in spine.ask(ask="kill", name="zygote", signal=9)
        spine.wait_ready("zygote", 2)
        assert spine.ask(ask="reboot") == {}
        assert spine.end() == layout.EXIT_REBOOT


def test_a_production_image_has_no_probes(tmp_path: Path) -> None:
    with running(tmp_path, ALPHA, OPERATOR, image="production") as spine:
        spine.wait_ready("operator")
        for probe in ("pss", "write-root"):
            assert spine.ask(ask=probe) == {"error": "probes are not granted"}
        assert spine.ask(ask="kill", name="alpha", signal=9) == {"error": "probes are not granted"}
        assert spine.ask(ask="poweroff") == {}
        assert spine.end() == layout.EXIT_POWER_OFF


@pytest.mark.proves("INV-BUS-20")
def test_bus_sockets_belong_to_root_and_are_for_the_caller(tmp_path: Path) -> None:
    pairs = [["alpha", "beta"], ["alpha", "absent"]]
    with running(tmp_path, ALPHA, BETA, pairs=pairs, fds=pairs) as spine:
        spine.wait_ready("alpha")
        folder = Path(f"/proc/{spine.pid}/root{layout.BUS}")
        assert sorted(path.name for path in folder.iterdir()) == ["alpha.beta", "alpha.beta.fds"]
        assert stat.S_IMODE(folder.stat().st_mode) == 0o711
        for name, kind in (("alpha.beta", socket.SOCK_STREAM), ("alpha.beta.fds", socket.SOCK_SEQPACKET)):
            there = (folder / name).stat()
            assert (there.st_uid, there.st_gid, stat.S_IMODE(there.st_mode)) == (0, 2102, 0o620)
            for uid, allowed in ((2102, True), (2101, False), (2999, False)):
                assert connects(folder / name, uid, kind) == allowed


def connects(path: Path, uid: int, kind: socket.SocketKind) -> bool:
    """Whether a process with this uid and gid can connect to the socket."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.chdir(path.parent)
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            socket.socket(socket.AF_UNIX, kind).connect(path.name)
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0


def test_a_missing_device_is_a_panic_that_names_it(tmp_path: Path) -> None:
    with running(tmp_path, GATE) as spine:
        assert spine.end() == layout.EXIT_PANIC
        assert "spine: panic: GroundRefused: there is no device persist" in spine.console()


def test_nothing_of_a_life_is_left(tmp_path: Path) -> None:
    with running(tmp_path, ALPHA) as spine:
        spine.wait_ready("alpha")
        os.kill(spine.pid, signal.SIGTERM)
        assert spine.end() == layout.EXIT_POWER_OFF
        assert "populated 0" in (spine.cgroup / "cgroup.events").read_text()
    assert not list(cgroup_root().glob(f"spine-test-{os.getpid()}-*"))
