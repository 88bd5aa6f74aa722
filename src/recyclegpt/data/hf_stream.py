"""A dataset of the Hugging Face hub, or a local one, read as a stream through `datasets`."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from recyclegpt.data.readers import parse_json, row_record
from recyclegpt.data.source import Record, Split
from recyclegpt.errors import ConfigError


@dataclass(eq=False)
class HFStream:
    """What `datasets.load_dataset(..., streaming=True)` gives.

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
        self._json: set[str] = set()
        """Splits that are read as lines of JSON."""
        self._datasets: dict[str, bytes] = {}
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
        return hashlib.sha256(json.dumps([self.kind, 1, *(getattr(self, key) for key in asked)]).encode()).hexdigest()

    def records(self, split: Split) -> Iterator[Record]:
        """Documents of a split, in the order of the stream."""
        return (record for record, _ in DocumentReader(self, split))

    def load(self, split: Split) -> Any:
        """A streaming dataset of a split, independent of earlier ones; the source is looked up once per process.

        Raises:
            ConfigError: there is no such dataset, configuration, split or column.
        """
        wanted = self._split_name(split)
        if wanted not in self._datasets:
            files = {"data_files": self.data_files, "revision": self.revision}
            try:
                dataset = self._load(wanted, files)
            except Exception as error:
                raise self.unreadable(error, f" (config {self.config}, split {wanted})") from error
            if wanted not in self._json and dataset.column_names is not None and self.field not in dataset.column_names:
                known = ", ".join(sorted(dataset.column_names))
                raise ConfigError(f"data.field: {self.name} has no column {self.field!r}; choose from {known}")
            self._datasets[wanted] = pickle.dumps(dataset)
        # A dataset holds its position, so two readers must not share one.
        return pickle.loads(self._datasets[wanted])

    def is_json(self, split: Split) -> bool:
        """Whether a split that has been loaded gives lines of JSON in a column `text`."""
        return self._split_name(split) in self._json

    def _split_name(self, split: Split) -> str:
        return self.train_split if split == "train" or self.val_split is None else self.val_split

    def _load(self, wanted: str, files: dict[str, Any]) -> Any:
        """Only the column of the text matters: others may come and go from file to file, or change their type."""
        import datasets
        from datasets.utils.file_utils import xopen

        builder = datasets.load_dataset_builder(self.name, self.config, **files)
        kinds, found = {one.__name__ for one in type(builder).__mro__}, (builder.config.data_files or {}).get(wanted)
        if "Json" in kinds and found:
            with xopen(found[0], "rb") as first:
                is_array = first.read(64).lstrip().startswith(b"[")
            if not is_array:  # read line by line, so that a bad one costs only itself; Latin-1 keeps every byte
                self._json.add(wanted)
                lines = {"data_files": {wanted: list(found)}, "encoding": "latin-1"}
                return datasets.load_dataset("text", split=wanted, streaming=True, **lines)
        dataset = datasets.load_dataset(self.name, self.config, split=wanted, streaming=True, **files)
        options: dict[str, Any] = {}
        if "Parquet" in kinds and self.field in (dataset.column_names or (self.field,)):
            options = {"columns": [self.field]}
        elif "Csv" in kinds:  # with `usecols`, pandas cuts rows with too many cells in silence
            options = {"on_bad_lines": "warn"}
        if options:
            files |= options
            dataset = datasets.load_dataset(self.name, self.config, split=wanted, streaming=True, **files)
        return dataset

    def val_digests(self) -> frozenset[bytes | None]:
        """Digests of the validation documents, which training leaves out."""
        if self._val_digests is None:
            self._val_digests = frozenset(digest(record) for record, _ in DocumentReader(self, "val")) - {None}
        return self._val_digests

    def unreadable(self, error: Exception, part: str = "") -> ConfigError:
        """What to raise; `datasets` has retried a failing connection for minutes."""
        return ConfigError(f"data.name: {self.name}{part} cannot be read: {error!r}; check the name and the network")


class DocumentReader:
    """Documents of one part of a stream, each with the state after it.

    Args:
        source: the stream.
        split: which split; validation documents are left out of the training split.
        part: number of this reader among `num_parts` that share the split; each document is read by one of them.
        state: resume after the document that came with it; None: from the start.
    """

    def __init__(self, source: HFStream, split: Split, part: int = 0, num_parts: int = 1, state: Any = None) -> None:
        self._source = source
        self._split: Split = split
        self._part = part
        self._num_parts = num_parts
        self._state = state

    def __iter__(self) -> Iterator[tuple[Record, Any]]:
        source = self._source
        if self._split == "val":
            for number, pair in enumerate(self._read()):
                if number == source.num_val_documents:
                    return
                yield pair
            return
        held_out = source.val_digests()
        for record, state in self._read():
            if digest(record) not in held_out:
                yield record, state

    def _read(self) -> Iterator[tuple[Record, Any]]:
        from datasets.distributed import split_dataset_by_node

        dataset = self._source.load(self._split)
        self._is_json = self._source.is_json(self._split)
        if self._num_parts > 1:
            dataset = split_dataset_by_node(dataset, rank=self._part, world_size=self._num_parts)
        if self._state is not None:
            dataset.load_state_dict(self._state)
        # `iter` and not `__iter__`: inside a worker the latter would divide the documents a second time.
        batches = enumerate(dataset.iter(batch_size=1), start=1)
        while True:
            try:
                number, batch = next(batches)
            except StopIteration:
                return
            except Exception as error:
                raise self._source.unreadable(error) from error
            if (record := self._record(batch, number)) is not None:
                yield record, dataset.state_dict()

    def _record(self, batch: dict[str, list[Any]], number: int) -> Record | None:
        """A document; None of a blank line."""
        source, row = self._source, {name: values[0] for name, values in batch.items()}
        since = "" if self._state is None else " since the run was resumed"
        where = f"{source.name}, {self._split}, part {self._part + 1} of {self._num_parts}, document {number}{since}"
        if self._is_json:
            line = row["text"].encode("latin-1")
            return row_record(parse_json(line), source.field, where) if line.strip() else None
        return row_record(row, source.field, where)


def digest(record: Record) -> bytes | None:
    """Equal for equal documents; None of one that cannot be read."""
    if record.problem is not None and record.messages is None:
        return None
    text = record.text or json.dumps(record.messages, sort_keys=True)
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:16]
