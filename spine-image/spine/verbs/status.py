"""`./spine status`: what runs, as the spine itself says; `--json` is a contract for scripts.

Touches: the operator's port. Invents nothing: what the host knows (process, disk, ground) and what the
operator answers (organs, memory, network), what integrity says of the disk and the freezer of the rooms are
put side by side.
"""

import argparse
import json
import sys
from collections.abc import Mapping

from spine.errors import Exit, SpineError
from spine.ground import state
from spine.ground.attach import add_choice, attach
from spine.ground.port import PortFailure

# What `--json` says of each slot and of the ESP.
CHECKED = ("name", "verdict", "detail", "differs", "how")

# The same of each room.
ROOM = ("state", "cpuUsec", "network", "version", "store")

HELP = "what runs: ground, slot, rooms, organs, network"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    add_choice(parser)


def run(args: argparse.Namespace) -> int:
    """Ask and print."""
    ground = state.running(args.ground)
    with attach(ground.kind).port() as port:
        answer = port.call("operator.status")
        try:
            slots: Mapping[str, object] | None = port.call("integrity.slots")
        except PortFailure:
            slots = None  # it is being restarted; its row in the table says so
        try:
            rooms: Mapping[str, object] | None = port.call("freezer.rooms")
        except PortFailure:
            rooms = None
    try:
        told = json.loads(str(answer["json"]))
        found = document(ground, told, slots, rooms)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpineError(
            "the operator's status cannot be read",
            f"{type(error).__name__}: {error}",
            "./spine build; ./spine reboot   (the image may be older than the tree)",
        ) from error
    if args.json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        sys.stdout.write(page(found))
    return Exit.OK


def document(
    ground: state.Ground,
    told: Mapping[str, object],
    slots: Mapping[str, object] | None,
    rooms: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """The contract's object from what the host knows and what the operator, integrity and the freezer told
    (None: it did not answer). Pure.

    KeyError, TypeError, AttributeError when they told something else.
    """
    report = _object(told["organs"])
    boot, pss = _object(report["boot"]), _object(told["pss"])
    now_ms = _number(told["nowMs"])
    missing = boot.get("missing")
    organs = {}
    for name, row in _object(report["organs"]).items():
        organ = _object(row)
        started = organ.get("pid") is not None
        organs[name] = {
            "state": organ["state"],
            "pid": organ["pid"],
            "generation": organ["generation"],
            "uptimeS": round((now_ms - _number(organ["sinceMs"])) / 1000, 1) if started else 0,
            "pssKb": pss.get(name),
            "deaths": organ.get("deaths"),
        }
    return {
        "ground": {
            "kind": ground.kind,
            "pid": ground.process.pid,
            "disk": str(ground.disk),
            "missing": sorted({*ground.missing, *(missing if isinstance(missing, list) else [])}),
            "accel": ground.accel or None,
        },
        "pid1": "bay0",
        "slot": {
            "active": boot["slot"],
            "rootHash": boot["rootHash"],
            "verified": boot["verified"],
            "healthy": boot["healthy"],
        },
        "checked": {str(row["name"]): row for row in _rows(slots["checked"] if slots else [])},
        "organs": organs,
        "rooms": {
            str(_object(row)["name"]): {key: _object(row)[key] for key in ROOM}
            for row in _list(rooms["rooms"] if rooms else [])
        },
        "focus": str(rooms["focus"]) if rooms else "",
        "network": told["network"],
        "version": boot.get("version"),
        "image": boot.get("image"),
        "pssKb": {name: pss[name] for name in ("bay0", "zygote") if name in pss},
        # All of the spine's processes. A page that several share counts in parts: the sum is what they take.
        "memory": {"totalKiB": sum(int(_number(kib)) for kib in pss.values())},
    }


def page(found: Mapping[str, object]) -> str:
    """The object as a page for a person. Pure."""
    ground, slot, network = _object(found["ground"]), _object(found["slot"]), _object(found["network"])
    how = f" ({ground['accel']})" if ground["accel"] else ""
    verified = "verified" if slot["verified"] else "not verified"
    healthy = "healthy" if slot["healthy"] else "not yet confirmed healthy"
    lines = [
        f"ground    {ground['kind']}{how}, process {ground['pid']}, disk {ground['disk']}",
        f"version   {found['version']} ({found['image']}), {healthy}",
        f"root      slot {slot['active'] or 'none'}, {str(slot['rootHash'] or 'no hash')[:16]}, {verified}",
        f"network   {_listed(network['interfaces'])}; addresses: {_listed(network['addresses'])}",
    ]
    for name, row in _object(found["checked"]).items():
        checked = _object(row)
        why = f": {checked['detail']}" if checked["detail"] else ""
        lines.append(f"{name:<10}{checked['verdict']}{why}")
    if ground["missing"]:
        lines.append(f"missing   {_listed(ground['missing'])}")
    rooms = _object(found["rooms"])
    if rooms:
        lines += ["", f"{'room':<16}{'state':<10}{'processor time':>16}   network"]
    for name, row in rooms.items():
        room = _object(row)
        focus = ", has the focus" if name == found["focus"] else ""
        spent = f"{room['cpuUsec']} µs"
        lines.append(f"{name:<16}{room['state']!s:<10}{spent:>16}   {room['network']}{focus}")
    lines += ["", f"{'organ':<12}{'state':<10}{'pid':>6}{'generation':>12}{'up':>10}{'memory':>12}"]
    for name, row in _object(found["organs"]).items():
        organ = _object(row)
        memory = f"{organ['pssKb']} KiB" if organ["pssKb"] is not None else "?"
        up = f"{organ['uptimeS']} s"
        lines.append(
            f"{name:<12}{organ['state']!s:<10}{organ['pid']!s:>6}{organ['generation']!s:>12}{up:>10}{memory:>12}"
        )
    for name, kib in _object(found["pssKb"]).items():
        lines.append(f"{name:<50}{f'{kib} KiB':>12}")
    total = f"{_object(found['memory'])['totalKiB']} KiB"
    lines.append(f"{'in all, pages that are shared counted once':<50}{total:>12}")
    return "\n".join(lines) + "\n"


def _listed(items: object) -> str:
    if not isinstance(items, list) or not items:
        return "none"
    return ", ".join(item if isinstance(item, str) else json.dumps(item) for item in items)


def _object(item: object) -> dict[str, object]:
    if not isinstance(item, dict):
        raise TypeError(f"an object was expected, not {type(item).__name__}")
    return item


def _rows(items: object) -> list[dict[str, object]]:
    """What integrity says of each slot and the ESP, in its order."""
    return [{key: _object(item)[key] for key in CHECKED} for item in _list(items)]


def _list(items: object) -> list[object]:
    if not isinstance(items, list):
        raise TypeError(f"a list was expected, not {type(items).__name__}")
    return items


def _number(item: object) -> float:
    if isinstance(item, bool) or not isinstance(item, int | float):
        raise TypeError(f"a number was expected, not {type(item).__name__}")
    return item
