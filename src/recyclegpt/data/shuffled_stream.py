"""Endless training rows from a pure stream, with a shuffle buffer whose content is part of the state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from recyclegpt.data.chat import document_ids, written
from recyclegpt.data.hf_stream import DocumentReader, HFStream
from recyclegpt.data.packed_rows import Batch, Packing, State
from recyclegpt.data.source import Skipped
from recyclegpt.data.tokenizer import TextTokenizer
from recyclegpt.errors import ConfigError


@dataclass(eq=False)
class StreamRows(IterableDataset[Batch]):
    """Documents to tokens to rows to a shuffle buffer; every worker of every rank reads its own share of the documents.

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
            place = dict(state["rows"])
            rng.bit_generator.state = state["rng"]
            buffer, names = np.array(state["buffer"]), np.array(state["names"])
            number = state["batch"]
        rows = self._windows(place, part, num_parts)
        while len(buffer) < self.source.shuffle_buffer:
            missing = self.source.shuffle_buffer - len(buffer)
            read = [next(rows) for _ in range(min(missing, 256))]
            buffer = np.concatenate([buffer, [window for _, window in read]])
            names = np.concatenate([names, [name for name, _ in read]])
        while True:
            windows = np.empty((self.batch_size, self.packing.window), np.int32)
            given = np.empty(self.batch_size, np.int64)
            for index in range(self.batch_size):
                drawn = rng.integers(len(buffer))
                windows[index], given[index] = buffer[drawn], names[drawn]
                names[drawn], buffer[drawn] = next(rows)
            number += 1
            views, documents = self.packing.views(windows)
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
        documents = self._documents(state, part, num_parts)
        while True:
            pieces, length = [state["tokens"]], len(state["tokens"])
            while length < self.packing.window:
                pieces.append(next(documents))
                length += len(pieces[-1])
            tokens = np.concatenate(pieces)
            state["tokens"] = tokens[self.packing.row_length :]
            state["num_rows"] += 1
            yield part + num_parts * (state["num_rows"] - 1), tokens[: self.packing.window]

    def _documents(self, state: State, part: int, num_parts: int) -> Iterator[NDArray[np.int32]]:
        while True:
            found = state["position"] is not None
            skipped = Skipped(self.max_skipped, self.source.name)
            for record, position in DocumentReader(self.source, "train", part, num_parts, state["position"]):
                state["position"] = position
                record = written(record, self.tokenizer)
                if skipped.is_readable(record):
                    found = True
                    yield np.array(document_ids(record, self.tokenizer), np.int32)
            skipped.report()
            if not found:
                raise ConfigError(
                    f"data.name: part {part + 1} of {num_parts} of {self.source.name} has no training document; "
                    "use fewer workers or ranks, or fewer data.num_val_documents"
                )
            state["position"] = None
