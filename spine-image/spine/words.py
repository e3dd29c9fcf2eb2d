"""The words of a verb that has several, such as `make` of `./spine update make`.

Touches: the parser it is given. Fails: not at all; what a person types wrongly is argparse's to refuse.
"""

import argparse
from collections.abc import Callable, Mapping


class Words:
    """The words of one verb; each has arguments of its own and says what runs it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._words = parser.add_subparsers(dest="word", metavar="WORD", required=True)

    def add(
        self, name: str, about: str, run: Callable[[argparse.Namespace], Mapping[str, object] | None]
    ) -> argparse.ArgumentParser:
        """One more word; the parser of its arguments."""
        found = self._words.add_parser(name, help=about, description=about, allow_abbrev=False)
        # Also behind the word; left out there, it must not undo the one before it.
        found.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="one JSON object")
        found.set_defaults(run=run)
        return found
