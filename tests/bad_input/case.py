"""What a case is: an input that is wrong, the command that meets it, and what has to be said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .place import Place

Prepare = Callable[[Place], Sequence[str]]
"""Makes the bad input in a folder and returns the command line, command word included."""

REFUSED = 2
DONE = 0


@dataclass(frozen=True)
class Case:
    """One malformed input.

    `words` have to stand in the message: the file and line, or the key; and the cause. With `code` 0 what cannot be
    read is left out, counted and named, and the command does its work.
    """

    category: str
    name: str
    prepare: Prepare
    words: tuple[str, ...]
    code: int = REFUSED


class Cases(list[Case]):
    """The cases of one category, added by decorating what prepares them."""

    def __init__(self, category: str) -> None:
        super().__init__()
        self.category = category

    def refused(self, name: str, *words: str) -> Callable[[Prepare], Prepare]:
        """A case that ends in a message and exit code 2, with everything as it was."""
        return self._add(name, words, REFUSED)

    def tolerated(self, name: str, *words: str) -> Callable[[Prepare], Prepare]:
        """A case in which the rest is used, and what is left out is counted and named."""
        return self._add(name, words, DONE)

    def _add(self, name: str, words: tuple[str, ...], code: int) -> Callable[[Prepare], Prepare]:
        def add(prepare: Prepare) -> Prepare:
            self.append(Case(self.category, name, prepare, words, code))
            return prepare

        return add
