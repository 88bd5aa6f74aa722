"""A dataset of the Hugging Face hub, or a local one, read as a stream; `datasets` finds and opens its files."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from recyclegpt.data.readers import suffix_of, unpack
from recyclegpt.data.rows import rows_of
from recyclegpt.data.source import Record, Split
from recyclegpt.errors import ConfigError

_SUFFIXES = {"Json": ".jsonl", "Csv": ".csv", "Parquet": ".parquet", "Arrow": ".arrow", "Cache": ".arrow", "Text": ""}
"""What files are, by the class that reads them in `datasets`."""


@dataclass(eq=False)
class HFStream:
    """The rows of the files that `datasets.load_dataset` would read.

    Validation text is a named split, or the first documents of the training split; training leaves out every document
    whose text equals one of them.

    Args:
        name: of the dataset, or a local folder, or a builder such as `json` together with `data_files`.
        val_split: None: the first `num_val_documents` of `train_split`.
        num_val_documents: validation documents read at most.
        field: the column that holds the text.
        revision: commit or tag on the hub; without one, the hub's files can change between runs.
        shuffle_buffer: rows of each worker among which the next one is drawn; saved with the position.
    """

    kind: ClassVar[str] = "hf_stream"

    name: str
    config: str | None = None
    train_split: str = "train"
    val_split: str | None = None
    num_val_documents: int = 1000
    field: str = "text"
    data_files: str | list[str] | dict[str, Any] | None = None
    revision: str | None = None
    shuffle_buffer: int = 1000

    def __post_init__(self) -> None:
        self._val_digests: frozenset[bytes | None] | None = None
        self._files: dict[str, list[tuple[str, str]]] = {}
        positive = {"num_val_documents": self.num_val_documents, "shuffle_buffer": self.shuffle_buffer}
        problems = [f"data.{name}: {value} is not a positive number" for name, value in positive.items() if value < 1]
        if self.val_split == self.train_split:
            problems.append(
                f"data.val_split: {self.val_split!r} is the training split too; null takes its first documents"
            )
        local = Path(self.name)
        if local.is_file() or any((local / name).is_file() for name in ("state.json", "dataset_dict.json")):
            problems.append(
                f"data.name: {self.name} is not streamed; read it: data=text_files 'data.paths=[{self.name}]'"
            )
        if problems:
            raise ConfigError(problems)

    def fingerprint(self) -> str:
        """sha256 of the request: the content of a stream is unknown until it has been read."""
        asked = ("name", "config", "train_split", "val_split", "num_val_documents", "field", "data_files", "revision")
        return hashlib.sha256(json.dumps([self.kind, 2, *(getattr(self, key) for key in asked)]).encode()).hexdigest()

    def records(self, split: Split) -> Iterator[Record]:
        """Documents of a split, in the order of the stream."""
        return (record for record, _ in DocumentReader(self, split))

    def files(self, split: Split) -> list[tuple[str, str]]:
        """Address and suffix of each file of a split; the dataset is looked up once per process.

        Raises:
            ConfigError: there is no such dataset, configuration or split, or its files hold no rows of text.
        """
        wanted = self.train_split if split == "train" or self.val_split is None else self.val_split
        if wanted not in self._files:
            import datasets

            try:
                found = datasets.load_dataset_builder(
                    self.name, self.config, data_files=self.data_files, revision=self.revision
                )
            except Exception as error:
                raise self._unreadable(error, f" (config {self.config}, split {wanted})") from error
            kinds = {one.__name__ for one in type(found).__mro__} & {*_SUFFIXES}
            splits = found.config.data_files or {name: _cached(found, name) for name in found.info.splits or ()}
            if not kinds:
                why = f"its files are read as {type(found).__name__}, not as rows of text"
                raise ConfigError(f"data.name: {self.name}: {why}; convert it, or read it with data=text_files")
            if not splits.get(wanted):
                known = ", ".join(split for split in splits if splits[split]) or "none"
                raise ConfigError(f"data: {self.name} has no files of a split {wanted}; splits with files: {known}")
            suffix = _SUFFIXES[kinds.pop()]
            manager = datasets.StreamingDownloadManager()
            inside = (
                manager.iter_files(manager.extract(one)) if one.endswith(".zip") else [one] for one in splits[wanted]
            )
            self._files[wanted] = [
                (one, ".tsv" if (suffix, suffix_of(one)) == (".csv", ".tsv") else suffix)
                for many in inside
                for one in many
            ]
        return self._files[wanted]

    def read(self, address: str, suffix: str) -> Iterator[Record]:
        """The documents of a file.

        Raises:
            ConfigError: the connection fails, which `datasets` has retried for minutes.
        """
        from datasets.utils.file_utils import xopen

        try:
            with xopen(address, "rb") as raw, unpack(raw, address) as opened:
                yield from rows_of(opened, suffix, address, self.field)
        except Exception as error:
            raise self._unreadable(error, f" ({address})") from error

    def val_digests(self) -> frozenset[bytes | None]:
        """Digests of the validation documents, which training leaves out."""
        if self._val_digests is None:
            self._val_digests = frozenset(digest(record) for record, _ in DocumentReader(self, "val")) - {None}
        return self._val_digests

    def _unreadable(self, error: Exception, part: str) -> ConfigError:
        return ConfigError(f"data.name: {self.name}{part} cannot be read: {error!r}; check the name and the network")


class DocumentReader:
    """Documents of one part of a stream, each with the state after it.

    Args:
        source: the stream.
        split: which split; validation documents are left out of the training split.
        part: number of this reader among `num_parts` that share the split: its files, or where those cannot be shared
            evenly, its documents.
        state: resume after the document that came with it; None: from the start.
    """

    def __init__(
        self, source: HFStream, split: Split, part: int = 0, num_parts: int = 1, state: dict[str, int] | None = None
    ) -> None:
        self._source = source
        self._split: Split = split
        self._part = part
        self._num_parts = num_parts
        self._state = state or {"file": 0, "row": 0, "number": 0}

    def __iter__(self) -> Iterator[tuple[Record, dict[str, int]]]:
        source = self._source
        if self._split == "val":
            yield from itertools.islice(self._read(), source.num_val_documents)
            return
        held_out = source.val_digests()
        for record, state in self._read():
            if digest(record) not in held_out:
                yield record, state

    def _read(self) -> Iterator[tuple[Record, dict[str, int]]]:
        files = self._source.files(self._split)
        by_file = len(files) % self._num_parts == 0
        first, done, number = self._state["file"], self._state["row"], self._state["number"]
        for place in range(first, len(files)):
            if by_file and place % self._num_parts != self._part:
                continue
            for row, record in enumerate(self._source.read(*files[place]), start=1):
                if place == first and row <= done:
                    continue
                number += 1
                if by_file or (number - 1) % self._num_parts == self._part:
                    yield record, {"file": place, "row": row, "number": number}


def _cached(builder: Any, split: str) -> list[str]:
    """Files of a split that `datasets` keeps from when there was a network."""
    tables = sorted(map(str, Path(builder.cache_dir).glob("*.arrow")))
    return [table for table in tables if re.search(rf"-{split}(-\d+-of-\d+)?\.arrow$", table)]


def digest(record: Record) -> bytes | None:
    """Equal for equal documents; None of one that cannot be read."""
    if record.problem is not None and record.messages is None:
        return None
    text = record.text or json.dumps(record.messages, sort_keys=True)
    return hashlib.sha256(text.encode()).digest()[:16]
