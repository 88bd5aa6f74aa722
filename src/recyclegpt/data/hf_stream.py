"""A dataset of the Hugging Face hub, or a local one, as a stream of rows; `datasets` finds and opens its files."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from recyclegpt.data.chat import document_ids, written
from recyclegpt.data.packed_rows import Batch, Packing, State
from recyclegpt.data.readers import suffix_of, unpack
from recyclegpt.data.rows import rows_of
from recyclegpt.data.source import Record, Skipped, Split
from recyclegpt.data.tokenizer import TextTokenizer
from recyclegpt.errors import ConfigError

_SUFFIXES = {"Json": ".jsonl", "Csv": ".csv", "Parquet": ".parquet", "Arrow": ".arrow", "Cache": ".arrow", "Text": ""}
"""What files are, by the class that reads them in `datasets`."""
Position = dict[str, int]


@dataclass(eq=False)
class HFStream:
    """The rows of the files that `datasets.load_dataset` would read.

    Validation text is a named split, or the first documents of the training split; training leaves out every document
    whose text equals one of them.

    Args:
        name: of the dataset, or a local folder, or a builder such as `json` together with `data_files`.
        val_split: None: the first `num_val_documents` of `train_split`.
        num_val_documents: validation documents read at most.
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
            problems.append(f"data.val_split: {self.val_split!r} is the training split; null takes its first documents")
        local = Path(self.name)
        if local.is_file() or any((local / name).is_file() for name in ("state.json", "dataset_dict.json")):
            problems.append(f"data.name: {self.name} is not streamed; use data=text_files 'data.paths=[{self.name}]'")
        if problems:
            raise ConfigError(problems)

    def fingerprint(self) -> str:
        """sha256 of the request: the content of a stream is unknown until it has been read."""
        asked = ("name", "config", "train_split", "val_split", "num_val_documents", "field", "data_files", "revision")
        return hashlib.sha256(json.dumps([self.kind, 2, *(getattr(self, key) for key in asked)]).encode()).hexdigest()

    def records(self, split: Split) -> Iterator[Record]:
        """Documents of a split, in the order of the stream."""
        return (record for record, _ in self.documents(split))

    def documents(
        self, split: Split, part: int = 0, num_parts: int = 1, position: Position | None = None
    ) -> Iterator[tuple[Record, Position]]:
        """Documents of one part of a split, each with the position after it; training leaves out those of validation.

        Args:
            part: number among `num_parts` that share the split: its files, or where those cannot be shared evenly, its
                documents.
            position: resume after the document that came with it; None: from the start.
        """
        found = self._documents(split, part, num_parts, position or {"file": 0, "row": 0, "number": 0})
        if split == "val":
            return itertools.islice(found, self.num_val_documents)
        held_out = self.val_digests()
        return ((record, after) for record, after in found if _digest(record) not in held_out)

    def _documents(
        self, split: Split, part: int, num_parts: int, position: Position
    ) -> Iterator[tuple[Record, Position]]:
        files = self.files(split)
        by_file = len(files) % num_parts == 0
        first, done, number = position["file"], position["row"], position["number"]
        for place in range(first, len(files)):
            if by_file and place % num_parts != part:
                continue
            for row, record in enumerate(self._read(*files[place]), start=1):
                if place == first and row <= done:
                    continue
                number += 1
                if by_file or (number - 1) % num_parts == part:
                    yield record, {"file": place, "row": row, "number": number}

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
                for one in itertools.chain.from_iterable(inside)
            ]
        return self._files[wanted]

    def _read(self, address: str, suffix: str) -> Iterator[Record]:
        """The documents of a file. ConfigError: the connection fails, which `datasets` has retried for minutes."""
        from datasets.utils.file_utils import xopen

        try:
            with xopen(address, "rb") as raw, unpack(raw, address) as opened:
                yield from rows_of(opened, suffix, address, self.field)
        except Exception as error:
            raise self._unreadable(error, f" ({address})") from error

    def val_digests(self) -> frozenset[bytes | None]:
        """Digests of the validation documents, which training leaves out."""
        if self._val_digests is None:
            self._val_digests = frozenset(map(_digest, self.records("val"))) - {None}
        return self._val_digests

    def _unreadable(self, error: Exception, part: str) -> ConfigError:
        return ConfigError(f"data.name: {self.name}{part} cannot be read: {error!r}; check the name and the network")


def _cached(builder: Any, split: str) -> list[str]:
    """Files of a split that `datasets` keeps from when there was a network."""
    tables = sorted(map(str, Path(builder.cache_dir).glob("*.arrow")))
    return [table for table in tables if re.search(rf"-{split}(-\d+-of-\d+)?\.arrow$", table)]


def _digest(record: Record) -> bytes | None:
    """Equal for equal documents; None of one that cannot be read."""
    if record.problem is not None and record.messages is None:
        return None
    text = record.text or json.dumps(record.messages, sort_keys=True)
    return hashlib.sha256(text.encode()).digest()[:16]


@dataclass(eq=False)
class StreamRows(IterableDataset[Batch]):
    """Documents to tokens to rows to a shuffle buffer, for ever; every worker of every rank reads its own share.

    The order depends on the number of workers and ranks. The state holds, for each worker, its position in the stream,
    the tokens that do not fill a row yet and the whole shuffle buffer, so that nothing is lost or repeated on resume;
    and which worker comes next.
    """

    source: HFStream
    tokenizer: TextTokenizer
    packing: Packing
    batch_size: int
    seed: int
    max_skipped: int
    rank: int = 0
    world_size: int = 1
    _resumed: State | None = None

    def resume(self, state: State | None) -> None:
        """Start from `state` (of `merge`) at the next iteration; None: from the beginning."""
        self._resumed = state

    def merge(self, state: State | None, batch_state: State) -> State:
        """The whole state of the rank once a batch has been trained on: the newest of each worker, and who is next."""
        workers = {**(state["workers"] if state else {}), batch_state["worker"]: batch_state}
        return {"workers": workers, "next_worker": (batch_state["worker"] + 1) % batch_state["num_workers"]}

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        place, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        # A DataLoader asks its first process first, so that one takes the part of the worker that comes next.
        state = self._resumed or {"workers": {}, "next_worker": 0}
        worker = (place + state["next_worker"]) % num_workers
        return self._batches(worker, num_workers, state["workers"].get(worker))

    def _batches(self, worker: int, num_workers: int, state: State | None) -> Iterator[Batch]:
        part, num_parts = self.rank * num_workers + worker, self.world_size * num_workers
        rng = np.random.default_rng((self.seed, part))
        place: State = {"num_rows": 0, "position": None, "tokens": np.empty(0, np.int32)}
        buffer = np.empty((0, self.packing.window), np.int32)
        names = np.empty(0, np.int64)
        number = 0
        if state is not None:
            place, number = dict(state["rows"]), state["batch"]
            rng.bit_generator.state = state["rng"]
            buffer, names = np.array(state["buffer"]), np.array(state["names"])
        rows = self._windows(place, part, num_parts)
        if missing := self.source.shuffle_buffer - len(buffer):
            first_names, windows = zip(*itertools.islice(rows, missing), strict=True)
            buffer, names = np.concatenate([buffer, windows]), np.concatenate([names, first_names])
        while True:
            windows_BW = np.empty((self.batch_size, self.packing.window), np.int32)
            given = np.empty(self.batch_size, np.int64)
            for index in range(self.batch_size):
                drawn = rng.integers(len(buffer))
                windows_BW[index], given[index] = buffer[drawn], names[drawn]
                names[drawn], buffer[drawn] = next(rows)
            number += 1
            views, documents = self.packing.views(windows_BW)
            after = {
                "batch": number,
                "worker": worker,
                "num_workers": num_workers,
                "rows": {**place, "tokens": place["tokens"].copy()},
                "rng": rng.bit_generator.state,
                "buffer": buffer.copy(),
                "names": names.copy(),
            }
            yield Batch(views, documents, after, given)

    def _windows(self, state: State, part: int, num_parts: int) -> Iterator[tuple[int, NDArray[np.int32]]]:
        """Windows of one share of the documents, pass after pass, each with a number that no other share uses.

        `state` is kept up to date: how many windows there were, the position, and the tokens that fill none yet.
        """
        documents = self._tokens(state, part, num_parts)
        while True:
            pieces, length = [state["tokens"]], len(state["tokens"])
            while length < self.packing.window:
                pieces.append(next(documents))
                length += len(pieces[-1])
            tokens = np.concatenate(pieces)
            state["tokens"] = tokens[self.packing.row_length :]
            state["num_rows"] += 1
            yield part + num_parts * (state["num_rows"] - 1), tokens[: self.packing.window]

    def _tokens(self, state: State, part: int, num_parts: int) -> Iterator[NDArray[np.int32]]:
        while True:
            found = state["position"] is not None
            skipped = Skipped(self.max_skipped, self.source.name)
            for record, position in self.source.documents("train", part, num_parts, state["position"]):
                state["position"] = position
                record = written(record, self.tokenizer)
                if skipped.is_readable(record):
                    found = True
                    yield np.array(document_ids(record, self.tokenizer), np.int32)
            skipped.report()
            if not found:
                share = f"part {part + 1} of {num_parts} of {self.source.name}"
                raise ConfigError(f"data.name: {share} has no training document; use fewer workers or ranks")
            state["position"] = None
