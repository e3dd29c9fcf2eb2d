"""What a refusal about a persona means to the person who named it, and the command that mends it.

Pure. The organs say what is so; a person wants to know what to do. What has no row here is told as it came.
"""

from bus.envelope import Code
from spine.errors import Exit, SpineError
from spine.ground.port import EXITS, PortFailure

_INSTALL = "./spine persona list; ./spine persona install {0}"
_AGAIN = "./spine persona remove {0}; ./spine persona install {0}"
_NO_ROOM = ("{0} has no room", "./spine persona start {0}")

# Of which method, and with which code: what happened, and what mends it. {0} is the persona.
ROWS: dict[tuple[str, Code], tuple[str, str]] = {
    ("freezer.start", Code.NOT_FOUND): ("{0} is not installed", _INSTALL),
    ("freezer.start", Code.BUSY): ("{0} has a room already", "./spine focus {0}"),
    ("freezer.start", Code.CORRUPT): ("{0} is damaged on the disk", _AGAIN),
    ("freezer.start", Code.FULL): ("no room is free for {0}", "./spine status; ./spine persona stop ANOTHER"),
    ("integrity.verify", Code.NOT_FOUND): ("{0} is not installed", _INSTALL),
    ("integrity.verify", Code.CORRUPT): ("{0} is damaged on the disk", _AGAIN),
    ("integrity.remove", Code.NOT_FOUND): ("{0} is not installed", "./spine persona list"),
    ("freezer.focus", Code.NOT_FOUND): _NO_ROOM,
    ("freezer.focus", Code.BUSY): ("the focus cannot go to {0} now", "./spine status; ./spine focus {0}"),
    ("freezer.focus", Code.REFUSED): ("{0} did not get the focus", "./spine status; ./spine log freezer"),
    ("freezer.stop", Code.NOT_FOUND): ("{0} has no room", "./spine status"),
    ("freezer.console", Code.NOT_FOUND): (
        "{0} has no console",
        "./spine status; ./spine persona inspect {0}",
    ),
    ("operator.exec", Code.NOT_FOUND): _NO_ROOM,
    ("operator.exec", Code.FROZEN): ("{0} is FROZEN", "./spine exec --focus {0} -- ..."),
    ("operator.exec", Code.FULL): ("there are as many programs as may be", "end one, then run this again"),
}


def told(persona: str, failure: PortFailure) -> SpineError:
    """The failure as a person needs it who named a persona."""
    code = failure.failure.code
    row = ROWS.get((failure.asked, code))
    if row is None:
        return failure
    what, fix = (text.format(persona) for text in row)
    return SpineError(what, failure.why, fix, EXITS.get(code, Exit.FAILED), failure.code)
