"""What a corpus is to this room: records of text in two splits, and a fingerprint of its content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from recyclegpt.data.skipped import Skipped

Split = Literal["train", "val"]
SPLITS: tuple[Split, Split] = ("train", "val")

EMPTY = "empty: "
"""Prefix of `Record.problem` for a document without text."""


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


def documents(source: Source, split: Split, skipped: Skipped) -> Iterator[Record]:
    """The readable, non-empty documents of a split; the others are counted in `skipped`.

    Raises:
        ConfigError: more documents are unreadable than `skipped` allows.
    """
    for number, record in enumerate(source.records(split), start=1):
        if is_readable(record, skipped, f"{source.kind}, {split} document {number}"):
            yield record


def is_readable(record: Record, skipped: Skipped, where: str = "") -> bool:
    """Whether a record holds text. If not, it is counted in `skipped`; `where` names it if the record does not.

    Raises:
        ConfigError: more documents are unreadable than `skipped` allows.
    """
    if record.problem is not None and record.problem.startswith(EMPTY):
        skipped.add_empty(record.problem.removeprefix(EMPTY))
    elif record.problem is not None:
        skipped.add(record.problem)
    elif not record.text and record.ends:
        skipped.add_empty(where)
    else:
        return True
    return False


def sha256_of(file: Path) -> str:
    """Checksum of a file's content, read in pieces."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
