"""A table of a file that is read strictly: each key is asked for by its type, and what is left is refused.

Pure. What a table is of (TOML or JSON), where it stands and how a refusal is told is its reader's affair.
Never: fills in a value, turns one type into another, repeats more of a foreign file than one short word.
Fails: with the exception that the reader's `refuse` makes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Final, TypeVar

T = TypeVar("T")

# Characters of a wrong word that a refusal shows; a word of ours has less.
SHOWN_MAX: Final = 40

_KINDS: Final[Mapping[type, str]] = {
    bool: "true or false",
    int: "an integer",
    str: "a text",
    list: "a list",
    dict: "a table",
}


class Fields(ABC):
    """One table that is being read. `unread` is what nobody asked for yet."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self.values = values
        self.unread = dict(values)

    @abstractmethod
    def refuse(self, key: str, rule: str) -> Exception:
        """The refusal of one key of this table."""

    def end(self) -> None:
        """Refuse what nobody asked for."""
        for key in self.unread:
            raise self.refuse(key, "unknown key")

    def take(self, key: str, kind: type[T]) -> T:
        """The value of `key`, which must be of exactly this type: true is not 1."""
        if key not in self.values:
            raise self.refuse(key, "missing")
        self.unread.pop(key, None)
        value = self.values[key]
        if type(value) is not kind or not isinstance(value, kind):
            raise self.refuse(key, f"must be {_KINDS[kind]}")
        return value

    def number(self, key: str, low: int, high: int) -> int:
        """An integer from `low` to `high`, both allowed."""
        value = self.take(key, int)
        if not low <= value <= high:
            raise self.refuse(key, f"must be from {low} to {high}")
        return value

    def distinct(self, key: str) -> list[str]:
        """A list of texts, none of them twice."""
        found = self.take(key, list)
        if not all(isinstance(word, str) for word in found):
            raise self.refuse(key, "must be a list of texts")
        if len(set(found)) != len(found):
            raise self.refuse(key, "names something twice")
        return found

    def words(self, key: str, allowed: frozenset[str]) -> frozenset[str]:
        """A list of allowed words, none of them twice."""
        found = frozenset(self.distinct(key))
        for word in sorted(found - allowed):
            raise self.refuse(key, f"{word!r:.{SHOWN_MAX}} is not one of {', '.join(sorted(allowed))}")
        return found
