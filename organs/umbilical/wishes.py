"""Wishes: which organ is asked for what a persona wants, and the answer as the persona gets it.

Pure: the values of a `Request` in, a call out; the results of the call in, the values of a `Response` out.
Whose wish it is comes from the socket that it came in by. Nothing in a request can name another's store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

# The answer to every request has all fields; those that its verb does not fill stand at these.
EMPTY: Final[Mapping[str, object]] = {
    "id": 0,
    "code": "ok",
    "message": "",
    "value": b"",
    "seq": 0,
    "existed": False,
    "keys": [],
    "more": False,
    "persona": "",
    "usedBytes": 0,
    "quotaBytes": 0,
    "thawed": False,
    "gapNs": 0,
    "ticket": 0,
    "slot": "",
    "version": "",
}
# Answers that may be as large as the largest value.
LARGE: Final = frozenset({"get", "list"})
# The verbs of a persona that was granted to bring updates of the system.
UPDATE: Final = frozenset({"beginUpdate", "updateChunk", "commitUpdate"})


@dataclass(frozen=True, slots=True)
class Wish:
    """One call to another organ."""

    organ: str
    method: str
    params: Mapping[str, object]


def granted(request: Mapping[str, object], *, may_update: bool) -> bool:
    """Whether the persona of a room was granted what it asks for, as far as the umbilical knows."""
    return may_update or request["verb"] not in UPDATE  # INV-UPDATE-6


def wish(room: str, store: str, request: Mapping[str, object]) -> Wish:
    """What to call for a request that came out of this room, whose state is kept in this store."""
    verb, key = str(request["verb"]), request["key"]
    match verb:
        case "put":
            return Wish("gate", "put", {"persona": store, "key": key, "value": request["value"]})  # INV-UMB-1
        case "get" | "delete":
            return Wish("gate", verb, {"persona": store, "key": key})
        case "list":
            return Wish("gate", "list", {"persona": store, "after": key, "limit": request["limit"]})
        case "status":
            return Wish("gate", "usage", {"persona": store})
        case "focus":
            return Wish("freezer", "requestFocus", {"room": room, "persona": request["persona"]})
        case "beginUpdate":
            return Wish("integrity", verb, {"manifest": request["value"], "bytes": request["bytes"]})
        case "updateChunk":
            piece = {"ticket": request["ticket"], "offset": request["offset"], "data": request["value"]}
            return Wish("integrity", verb, piece)
        case "commitUpdate":
            return Wish("integrity", verb, {"ticket": request["ticket"], "reboot": request["reboot"]})
        case _:
            raise AssertionError(f"the schema has no verb {verb}")


def answer(room: str, request: Mapping[str, object], results: Mapping[str, object]) -> dict[str, object]:
    """The response to a request whose call ended well."""
    if request["verb"] == "status":
        results = {"persona": room, "usedBytes": results["bytes"], "quotaBytes": results["quotaBytes"]}
    return {**EMPTY, "id": request["id"], **results}


def refusal(request_id: int, code: str, message: str) -> dict[str, object]:
    """The response to a request that did not end well. `code` as the schema calls it."""
    return {**EMPTY, "id": request_id, "code": code, "message": message}


def code_name(upper: str) -> str:
    """The schema's name of a code of the bus: NOT_FOUND is `notFound`."""
    first, *rest = upper.lower().split("_")
    return first + "".join(word.capitalize() for word in rest)


def thawed(gap_ns: int) -> dict[str, object]:
    """The news that the room stood still."""
    return {**EMPTY, "thawed": True, "gapNs": gap_ns}
