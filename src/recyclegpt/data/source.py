"""What a corpus is to this room: records of text in two splits, and a count of what could not be read."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Protocol

from recyclegpt.errors import ConfigError

Split = Literal["train", "val"]
SPLITS: tuple[Split, Split] = ("train", "val")

EMPTY = "empty: "
"""Prefix of `Record.problem` for a document without text."""
_NUM_SHOWN = 20
_log = logging.getLogger(__name__)


class Record(NamedTuple):
    """One document or a piece of it, or the reason why it cannot be read."""

    text: str
    problem: str | None = None
    """Where the document is (file:line) and why it cannot be read, or `EMPTY` and where; None for a good one."""
    ends: bool = True
    """False for a piece that is followed by another piece of the same document."""
    messages: list[dict[str, Any]] | None = None
    """A conversation, which only a chat template can write; for a tokenizer without one `problem` says so."""
    ids: list[int] | None = None
    """Of a conversation that has been written."""


class Source(Protocol):
    """A corpus that can be read from the start, document by document, as often as needed."""

    @property
    def kind(self) -> str:
        """Its name in messages and cache folders."""

    def fingerprint(self) -> str:
        """Changes whenever the text or its division into splits does."""

    def records(self, split: Split) -> Iterator[Record]:
        """Documents of one split, always in the same order."""


class Skipped:
    """The documents left out of one reading of `corpus`: at most `limit` unreadable ones, and any number of empty ones.

    Empty documents lose nothing, and some public datasets hold one for every blank line.
    """

    def __init__(self, limit: int, corpus: str = "corpus") -> None:
        self.limit = limit
        self.corpus = corpus
        self.problems: list[str] = []
        """Every unreadable document: where it is and why it cannot be read."""
        self.empty: list[str] = []
        """The first documents without text."""
        self.num_empty = 0
        self.num_spelled = 0
        """Documents that spell a special token, and the first that one of them spells."""
        self.spelled = ""

    def add(self, problem: str) -> None:
        """Count one unreadable document.

        Raises:
            ConfigError: naming every document left out, when there are more than `limit`.
        """
        self.problems.append(problem)
        if len(self.problems) > self.limit:
            limit = f"more than data.max_skipped={self.limit} documents cannot be read"
            raise self.error(f"{self.corpus}: {limit}; repair them or raise data.max_skipped")

    def error(self, message: str) -> ConfigError:
        """An error that names what was left out, each kind once."""
        return ConfigError([message, *_kinds(self.problems), *(f"{where}: is empty" for where in self.empty)])

    def is_readable(self, record: Record, where: str = "") -> bool:
        """Whether a record holds text or ids. If not, it is counted; `where` names it if the record does not.

        Raises:
            ConfigError: more documents are unreadable than allowed.
        """
        problem = record.problem or ("" if record.text or record.ids or not record.ends else EMPTY + where)
        if problem.startswith(EMPTY):
            self.num_empty += 1
            if len(self.empty) < _NUM_SHOWN:
                self.empty.append(problem.removeprefix(EMPTY))
        elif problem:
            self.add(problem)
        return not problem

    def spells(self, text: str, special: re.Pattern[str]) -> bool:
        """Whether a text spells a special token, which stays characters; the first time it is counted and named."""
        found = special.search(text)
        if found:
            self.num_spelled += 1
            self.spelled = self.spelled or found[0]
        return found is not None

    def report(self) -> None:
        """Warn of what was left out, and of what was read as characters."""
        kinds = [(self.empty, self.num_empty, "are empty"), (self.problems, len(self.problems), "cannot be read")]
        for names, total, why in kinds:
            if total:
                lines = _kinds(names)
                shown = "".join(f"\n  {line}" for line in lines[:_NUM_SHOWN])
                more = f"\n  and {len(lines) - _NUM_SHOWN} more kinds" if len(lines) > _NUM_SHOWN else ""
                _log.warning("%s: left out documents that %s: %d%s%s", self.corpus, why, total, shown, more)
        if self.num_spelled:
            message = "%s: %d documents spell a special token (%s in the first), which stays characters"
            _log.warning(message, self.corpus, self.num_spelled, self.spelled)


def _kinds(problems: list[str]) -> list[str]:
    """The first problem of each kind, and how many there are: of a wrong column one line, not a thousand."""
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        _, _, why = problem.partition(": ")
        kinds.setdefault(re.sub(r"\b0x\w+|\d+", "#", why or problem), []).append(problem)
    return [
        found[0] if len(found) == 1 else f"{found[0]} (and {len(found) - 1} more like it)" for found in kinds.values()
    ]
