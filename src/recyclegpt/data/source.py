"""What a corpus is to this room: records of text in two splits, and a count of what could not be read."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

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

    def add(self, problem: str) -> None:
        """Count one unreadable document.

        Raises:
            ConfigError: naming every document left out, when there are more than `limit`.
        """
        self.problems.append(problem)
        if len(self.problems) > self.limit:
            limit = f"more than data.max_skipped={self.limit} documents cannot be read"
            raise ConfigError([f"{self.corpus}: {limit}; repair them or raise data.max_skipped", *self.problems])

    def is_readable(self, record: Record, where: str = "") -> bool:
        """Whether a record holds text. If not, it is counted; `where` names it if the record does not.

        Raises:
            ConfigError: more documents are unreadable than allowed.
        """
        problem = record.problem or ("" if record.text or not record.ends else EMPTY + where)
        if problem.startswith(EMPTY):
            self.num_empty += 1
            if len(self.empty) < _NUM_SHOWN:
                self.empty.append(problem.removeprefix(EMPTY))
        elif problem:
            self.add(problem)
        return not problem

    def report(self) -> None:
        """Warn of what was left out, once for each kind."""
        kinds = [(self.empty, self.num_empty, "are empty"), (self.problems, len(self.problems), "cannot be read")]
        for names, total, why in kinds:
            if total:
                shown = "".join(f"\n  {name}" for name in names[:_NUM_SHOWN])
                more = f"\n  and {total - _NUM_SHOWN} more" if total > _NUM_SHOWN else ""
                _log.warning("%s: left out documents that %s: %d%s%s", self.corpus, why, total, shown, more)


def documents(source: Source, split: Split, skipped: Skipped) -> Iterator[Record]:
    """The readable, non-empty documents of a split; the others are counted in `skipped`.

    Raises:
        ConfigError: more documents are unreadable than `skipped` allows.
    """
    for number, record in enumerate(source.records(split), start=1):
        if skipped.is_readable(record, f"{source.kind}, {split} document {number}"):
            yield record


def sha256_of(file: Path) -> str:
    """Checksum of a file's content, read in pieces."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
