"""`./spine status`: what runs, as the spine itself says; `--json` is a contract for scripts.

Touches: the operator's port. Invents nothing: what the host knows (process, disk, ground), what the operator
answers (organs, memory, network), what integrity says of the disk and of the personas, what the freezer says
of the rooms and the gate of the data are put side by side. An organ that does not answer just now leaves its
part out.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from spine.errors import Exit, SpineError
from spine.ground import state
from spine.ground.attach import add_choice, attach
from spine.ground.port import PortFailure

if TYPE_CHECKING:
    from spine.ground.port import Port

# What `--json` says of each slot and boot volume.
CHECKED = ("name", "verdict", "detail", "differs", "how")
# What `--json` says of both pairs of slot and boot volume.
PAIRS = ("standing", "blessed", "lost", "update", "replacing", "writtenBytes", "totalBytes", "report")
# What it means for a person.
STANDING = {
    "waiting": "the boot is not confirmed healthy yet",
    "reading": "slots and boot volumes are being read",
    "working": "what is not as it should be is put right",
    "blessed": "both are verified, hold the same release and have all tries",
    "update": "a newer release waits for the next restart",
    "irreplaceable": "what is not as it should be cannot be written",
    "lost": "no slot is verified; write the image anew",
    "leaving": "restarting into the other pair",
    "none": "there are no slots here",
}
# What Secure Boot being on or not means, where there is a firmware.
SECURE_BOOT = {
    "on": "secure boot on: it starts what its keys signed, and nothing else",
    "off": "SECURE BOOT OFF: who has the disk in hand can replace the kernel   (docs/keys.md)",
    "unknown": "secure boot unknown: the kernel cannot ask; take it for off   (docs/keys.md)",
}
NOBODY = "nobody has the focus   (./spine focus NAME)"

HELP = "what runs: ground, slot, organs, rooms, focus"

Told = Mapping[str, object]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    add_choice(parser)


def run(args: argparse.Namespace) -> int:
    """Ask and print."""
    ground = state.running(args.ground)
    with attach(ground.kind).port() as port:
        answer = port.call("operator.status")
        slots, rooms, personas, data = (
            _part(port, name)
            for name in ("integrity.slots", "freezer.rooms", "integrity.personas", "gate.data")
        )
    try:
        told = json.loads(str(answer["json"]))
        found = document(ground, told, slots, rooms, personas, data)
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


def _part(port: "Port", name: str) -> Told | None:
    """What an organ says; None when it is being restarted, which its row in the table says."""
    try:
        return port.call(name)
    except PortFailure:
        return None


def document(
    ground: state.Ground,
    told: Told,
    slots: Told | None,
    rooms: Told | None,
    personas: Told | None,
    data: Told | None,
) -> dict[str, object]:
    """The contract's object from what the host knows, what the operator told, and what integrity, the freezer
    and the gate told (None: it did not answer). Pure.

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
            "closed": organ.get("closed") is True,
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
        "pairs": _pairs(slots),
        # on, off, unknown; null: no firmware is asked (a container, or an image that is older than this).
        "secureBoot": None if boot.get("secureBoot") is None else _text(boot["secureBoot"]),
        "checked": {str(row["name"]): row for row in _rows(slots["checked"] if slots else [])},
        "organs": organs,
        "data": _data(data),
        "focus": None if rooms is None else _text(rooms["focus"]) or None,
        "rooms": _rooms(rooms),
        "personas": _personas(personas),
        "network": told["network"],
        "version": boot.get("version"),
        "image": boot.get("image"),
        "pssKb": {name: pss[name] for name in ("bay0", "zygote") if name in pss},
        # All of the spine's processes. A page that several share counts in parts: the sum is what they take.
        "memory": {"totalKiB": sum(int(_number(kib)) for kib in pss.values())},
    }


def _pairs(slots: Told | None) -> dict[str, object] | None:
    """Where the two pairs of slot and boot volume stand, without what is said of each device."""
    return None if slots is None else {name: slots[name] for name in PAIRS}


def _standing(pairs: Told) -> str:
    text = f"{pairs['standing']}: {STANDING[_text(pairs['standing'])]}"
    if pairs["replacing"]:
        done, total = _number(pairs["writtenBytes"]), _number(pairs["totalBytes"])
        text += f"; {pairs['replacing']} is being written, {done * 100 // max(total, 1):.0f} %"
    if pairs["report"]:
        text += f"; last: {pairs['report']}"
    return text


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
    if found["pairs"] is not None:
        lines.append(f"pairs     {_standing(_object(found['pairs']))}")
    if found["secureBoot"] is not None:
        lines.append(f"firmware  {SECURE_BOOT.get(_text(found['secureBoot']), SECURE_BOOT['unknown'])}")
    for name, row in _object(found["checked"]).items():
        checked = _object(row)
        why = f": {checked['detail']}" if checked["detail"] else ""
        lines.append(f"{name:<10}{checked['verdict']}{why}")
    lines += _data_page(found)
    if ground["missing"]:
        lines.append(f"missing   {_listed(ground['missing'])}")
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
    return "\n".join([*lines, "", *_rooms_page(found)]) + "\n"


def _data_page(found: Mapping[str, object]) -> list[str]:
    """What is wrong with the data; nothing while nothing is known to be."""
    if found["data"] is None:
        return []
    data = _object(found["data"])
    lines = []
    if data["closed"]:
        lines += [
            f"data      BAD: {data['closed']}",
            "          nothing is read or written; the slots are not to blame",
            "          ./spine stop, then   ./spine boot to try once more   or   ./spine boot --fresh-data",
            "          to forget what personas stored",
        ]
    for store, why in _object(data["damaged"]).items():
        lines.append(f"data      DAMAGED, of {store} alone: {why}")
    return lines


def _rooms_page(found: Mapping[str, object]) -> list[str]:
    """The rooms, the one with the focus marked, and the personas that have none."""
    if found["rooms"] is None:
        return ["rooms     not known: the freezer does not answer"]
    rooms = _object(found["rooms"])
    lines = []
    if rooms:
        lines.append(f"{'  room':<18}{'state':<10}{'version':>8}{'CPU':>16}  network")
    for name, row in rooms.items():
        room = _object(row)
        mark = "*" if room["focus"] else " "
        cpu = f"{room['cpuUsec']} µs"  # whole: that it stands still must be seen
        network = " ".join(str(word) for word in (room["network"], room["address"]) if word)
        lines.append(f"{mark} {name:<16}{room['state']!s:<10}{room['version']!s:>8}{cpu:>16}  {network}")
        if room["blocker"]:
            lines.append(f"    held up by process {room['blocker']}")
    if rooms:
        lines.append(f"* {found['focus']} has the focus" if found["focus"] else f"  {NOBODY}")
    if found["personas"] is None:
        return [*lines, "personas  not known: integrity does not answer"]
    for name, row in _object(found["personas"]).items():
        if name not in rooms:
            persona = _object(row)
            how = "DAMAGED" if persona["damaged"] else f"version {persona['version']}"
            lines.append(f"  {name:<16}installed, {how}, no room   (./spine persona start {name})")
    return lines or ["rooms     none, and no persona is installed   (./spine persona install linda)"]


def _rooms(told: Told | None) -> dict[str, object] | None:
    """Each room by its name; None: nobody can say."""
    if told is None:
        return None
    rooms: dict[str, object] = {}
    for row in _list(told["rooms"]):
        room = _object(row)
        # `connected 10.0.2.15/24`, or one word.
        network, _, address = _text(room["network"]).partition(" ")
        rooms[_text(room["name"])] = {
            "state": _text(room["state"]),
            "focus": room["name"] == told["focus"],
            "version": room["version"],
            "cpuUsec": room["cpuUsec"],
            "network": network or None,
            "address": address or None,
            "store": _text(room["store"]) or None,
            "blocker": _text(room["blocker"]) or None,
        }
    return rooms


def _data(told: Told | None) -> dict[str, object] | None:
    """Why no data are served, and each damaged store by its name; None: nobody can say."""
    if told is None:
        return None
    rows = [_object(row) for row in _list(told["damaged"])]
    return {
        "closed": _text(told["closed"]) or None,
        "damaged": {_text(row["store"]): _text(row["why"]) for row in rows},
    }


def _personas(told: Told | None) -> dict[str, object] | None:
    """Each installed persona by its name; None: nobody can say."""
    if told is None:
        return None
    rows = sorted((_object(row) for row in _list(told["personas"])), key=lambda row: _text(row["name"]))
    return {
        _text(row["name"]): {
            "version": row["version"],
            "keyId": _text(row["keyId"]),
            "bytes": row["length"],
            # What is on the disk is then not what was installed.
            "damaged": not row["manifest"],
        }
        for row in rows
    }


def _listed(items: object) -> str:
    if not isinstance(items, list) or not items:
        return "none"
    return ", ".join(item if isinstance(item, str) else json.dumps(item) for item in items)


def _object(item: object) -> dict[str, object]:
    if not isinstance(item, dict):
        raise TypeError(f"an object was expected, not {type(item).__name__}")
    return item


def _rows(items: object) -> list[dict[str, object]]:
    """What integrity says of each slot and boot volume, in its order."""
    return [{key: _object(item)[key] for key in CHECKED} for item in _list(items)]


def _list(items: object) -> list[object]:
    if not isinstance(items, list):
        raise TypeError(f"a list was expected, not {type(items).__name__}")
    return items


def _text(item: object) -> str:
    if not isinstance(item, str):
        raise TypeError(f"a text was expected, not {type(item).__name__}")
    return item


def _number(item: object) -> float:
    if isinstance(item, bool) or not isinstance(item, int | float):
        raise TypeError(f"a number was expected, not {type(item).__name__}")
    return item
