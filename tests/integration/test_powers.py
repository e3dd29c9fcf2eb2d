"""The powers of the running system: what the kernel says of each organ, beside its stanza.

On the container ground the host's /proc is read from outside; on both grounds bay0's probe reads it inside.
What a process says of itself is not asked.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from organs import layout
from organs.kernel import inspection
from organs.manifest import CAPABILITIES, Manifest, load
from spine import paths
from spine.ground.port import schemas
from tests.bay0.spine import cgroup_root
from tests.integration.live import Live
from tests.powers import Seen, differences

Look = Callable[[str], Seen]


def manifest() -> Manifest:
    """The stanzas of the image that runs."""
    return load(str(paths.ROOT / "organs/manifest.toml"))


def callers(name: str) -> set[str]:
    """Who has a socket to this organ: what the schemas say, and the tap of the development image."""
    stanzas = manifest().organs
    if not stanzas[name].bus:
        return set()
    interface = schemas().interfaces.get(name)
    methods = (*interface.methods.values(), *interface.events.values()) if interface else ()
    allowed = {caller for method in methods for caller in method.callers if caller in stanzas}
    # A second socket for descriptors, where a method carries some.
    allowed |= {
        f"{caller}.fds"
        for method in methods
        for caller in method.callers
        if caller in stanzas and method.beside
    }
    return allowed | ({layout.TAP} if any(organ.taps for organ in stanzas.values()) else set())


def probed(live: Live, name: str) -> Seen:
    """What bay0 reads of its child."""
    return cast(Seen, live.probe("process", name))


def outside(live: Live, name: str) -> Seen:
    """What the host reads of the same process."""
    inside = 1 if name == "bay0" else int(str(live.table()[name]["pid"]))
    return inspection.inspect(host_pid(live, inside), str(cgroup_root()))


def host_pid(live: Live, inside: int) -> int:
    """The host's number of a process of the container."""
    space = os.readlink(f"/proc/{live.ground.pid}/ns/pid")
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.readlink(entry / "ns/pid") == space:
                status = (entry / "status").read_text().splitlines()
                numbers = next(line.split() for line in status if line.startswith("NSpid:"))
                if int(numbers[-1]) == inside:
                    return int(entry.name)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # gone, or not for us to look into: then it is none of the container's
    raise AssertionError(f"no process {inside} in the container")


def looks(live: Live) -> dict[str, Look]:
    """The ways to look on this ground."""
    ways: dict[str, Look] = {"probe": partial(probed, live)}
    if live.kind == "container":
        ways["host"] = partial(outside, live)
    return ways


@pytest.mark.proves("INV-PRIV-3")
def test_each_organ_holds_what_its_stanza_says_and_nothing_else(live: Live) -> None:
    for way, look in looks(live).items():
        base = look("bay0")["mounts"].keys()
        found = {
            f"{name}, by {way}": wrong
            for name, organ in manifest().organs.items()
            if (wrong := differences(organ, look(name), base, callers(name)))
        }
        assert not found


def test_the_limits_of_memory_processes_and_processor_are_the_kernels_where_it_has_them(live: Live) -> None:
    missing = cast(list[str], live.boot_facts()["missing"])
    for controller, name in (("memory", "memory.max"), ("pids", "pids.max"), ("cpu", "cpu.weight")):
        there = name in probed(live, "gate")["cgroup"]
        assert there == (f"cgroup.{controller}" not in missing)


@pytest.mark.proves("INV-PRIV-1")
def test_sys_admin_is_in_no_process_that_speaks_on_the_bus(live: Live) -> None:
    bit = 1 << CAPABILITIES.index("SYS_ADMIN")
    for way, look in looks(live).items():
        for name, organ in manifest().organs.items():
            seen = look(name)
            held = [k for k in ("CapPrm", "CapEff", "CapBnd") if int(str(seen["status"][k]), 16) & bit]
            assert not (held and organ.bus), (way, name, held)
        # bay0 and the zygote hold it, and neither has a socket of the bus open but bay0's listeners.
        assert not any("unix /run/" in kind for kind in look("bay0")["fds"]), way
        assert not any(layout.BUS in kind for kind in look("zygote")["fds"]), way


def test_only_the_stanza_that_mounts_persist_sees_it(live: Live) -> None:
    stanzas = manifest().organs
    for name in ("bay0", "zygote", *stanzas):
        own = stanzas[name].mounts if name in stanzas else ()
        seen = probed(live, name)["mounts"]
        assert (layout.PERSIST in seen) == any(mount.at == layout.PERSIST for mount in own), name
