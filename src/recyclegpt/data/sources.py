"""What a corpus is to this room: records of text in two splits, and a fingerprint of its content."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol

from recyclegpt.data.skipped import Skipped

Split = Literal["train", "val"]
SPLITS: tuple[Split, Split] = ("train", "val")


EMPTY = "empty: "
"""How the problem of a document without text begins."""


class Record(NamedTuple):
    """One document or a piece of it, or the reason why there is none."""

    text: str
    problem: str | None = None
    """Where the document stands (file:line) and why it cannot be read, or `EMPTY` and where; None for a good one."""
    ends: bool = True
    """False for a piece that another piece of the same document follows."""


class Source(Protocol):
    """A corpus that can be read from the start, document by document, as often as needed."""

    @property
    def kind(self) -> str:
        """How messages and cache folders call it."""

    def fingerprint(self) -> str:
        """Changes whenever the text or its division into splits does."""

    def records(self, split: Split) -> Iterator[Record]:
        """Documents of one split, always in the same order."""


def documents(source: Source, split: Split, skipped: Skipped) -> Iterator[Record]:
    """The readable, non-empty documents of a split; the others are counted in `skipped`.

    They pass through `datasets`, as every source does; its own file readers cannot name the line of a bad record, so
    that the reading itself is ours.
    """
    import datasets

    stream = datasets.IterableDataset.from_generator(_rows, gen_kwargs={"source": source, "split": split})
    for number, row in enumerate(stream, start=1):
        record = Record(**row)
        if take(record, skipped, f"{source.kind}, {split} document {number}"):
            yield record


def take(record: Record, skipped: Skipped, where: str) -> bool:
    """Whether a record holds text; if not, it is counted, by `where` if it does not say itself where it stands.

    Raises:
        ConfigError: if too many cannot be read.
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


def _rows(source: Source, split: Split) -> Iterator[dict[str, object]]:
    for record in source.records(split):
        yield record._asdict()
