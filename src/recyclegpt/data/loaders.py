"""What Lightning iterates over, and what a checkpoint holds of it: every rank's position, and what decides the order.

A training loader continues from epoch to epoch; validation batches are fixed.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from recyclegpt.data.hf_stream import StreamRows
from recyclegpt.data.packed_rows import Batch, PackedRows, Packing, State, Tokens, read_windows
from recyclegpt.errors import ConfigError

STATE_FORMAT = 2
_SETTING_KEYS = {
    "data": "data: its files have changed",
    "tokenizer": "data.tokenizer: it is another one",
    "row_length": "model.context_length",
    "num_unrolled": "loss.num_unrolled",
    "seed": "seed",
    "world_size": "trainer.devices and trainer.num_nodes, the number of processes",
}
"""How a problem with a setting begins; default: `data.NAME`."""


def make_state(state: State | None, settings: Mapping[str, Any], world_size: int) -> dict[str, Any]:
    """The positions of all ranks. Collective: where processes train together, all of them have to call it."""
    state = _map_arrays(state, np.ndarray, torch.from_numpy)  # torch.load(weights_only=True) refuses numpy
    ranks: list[State | None] = [state]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        ranks = [None] * world_size
        torch.distributed.all_gather_object(ranks, state)
    return {"format": STATE_FORMAT, "world_size": world_size, "settings": settings, "ranks": ranks}


def state_in(checkpoint: Mapping[str, Any]) -> Any:
    """The state of a data module in a checkpoint, where Lightning files it under the name of its class; or None."""
    return next((one for one in checkpoint.values() if isinstance(one, dict) and {"settings", "ranks"} <= {*one}), None)


def position_of(state_dict: Mapping[str, Any], rank: int) -> State | None:
    """The position of one rank in a state without problems; None: before the first batch."""
    position: State | None = _map_arrays(state_dict["ranks"][rank], Tensor, lambda tensor: tensor.cpu().numpy())
    return position


def state_problems(state_dict: Any, settings: Mapping[str, Any], world_size: int) -> list[str]:
    """Why a run of `world_size` processes with these settings cannot resume exactly from a state; empty if it can."""
    found = state_dict.get("format") if isinstance(state_dict, dict) else None
    remedy = "or start a new run from its weights"
    if found != STATE_FORMAT:
        return [
            f"data: the checkpoint's data state has format {found}, this version reads {STATE_FORMAT}; resume with "
            f"the version that wrote it, {remedy}"
        ]
    saved = {**state_dict["settings"], "world_size": state_dict["world_size"]}
    return [
        f"{_SETTING_KEYS.get(name, f'data.{name}')}: the checkpoint was trained with {saved.get(name)}, "
        f"this run has {value}; resume with the checkpoint's, {remedy}"
        for name, value in {**settings, "world_size": world_size}.items()
        if saved.get(name) != value
    ]


def _map_arrays(value: Any, kind: type, convert: Callable[[Any], Any]) -> Any:
    """`value` with every array of a kind inside its dicts converted."""
    if isinstance(value, dict):
        return {key: _map_arrays(inner, kind, convert) for key, inner in value.items()}
    return convert(value) if isinstance(value, kind) else value


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""Sent to all processes of a run at once to end it."""
SAVING_S = 300
"""Seconds that the process that trains may take to finish its step and save after such a signal."""

TrainStream = PackedRows | StreamRows
"""Endless batches of one rank, in the same order whenever they start from the same state."""


class TrainLoader:
    """One running iterator over an endless stream; each epoch continues where the last one stopped.

    Workers start once and read ahead during validation. The data module saves the position after the batch last trained
    on; the loader knows only the batches read ahead.
    """

    def __init__(self, stream: TrainStream, num_workers: int, seed: int, state: State | None) -> None:
        self._stream = stream
        self._num_workers = num_workers
        self._seed = seed
        self._running: Iterator[Batch | ConfigError] | None = None  # Lightning shuts down what it finds as `_iterator`
        self._given: State | None = None
        self._trained_batch: State | None = None
        self.state = state
        """The rank's position after the batch last trained on; None before the first."""

    def trained_on(self, batch_state: State) -> None:
        """Record that the batch with this state has been trained on."""
        self.state = self._stream.merge(self.state, batch_state)
        self._trained_batch = batch_state

    def state_dict(self) -> dict[str, Any]:
        """Empty: without one, Lightning warns at every resume that the loader cannot be resumed."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Does nothing, see `state_dict`."""

    def close(self) -> None:
        """Stop the workers. The next iteration starts after the batch last trained on."""
        self._running = self._given = self._trained_batch = None

    def __iter__(self) -> Iterator[Batch]:
        interrupted = self._trained_batch is not None and _name(self._trained_batch) != _name(self._given)
        if self._running is None or interrupted:  # a batch was given out and not trained on
            self.close()
            # Workers inherit what is blocked, so no signal reaches them before `_ignore_stop_signals` ran.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
            try:
                self._running = iter(self._start())
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        while True:
            batch = next(self._running)
            if isinstance(batch, ConfigError):
                raise batch
            self._given = batch.state
            yield batch

    def _start(self) -> DataLoader[Batch | ConfigError]:
        self._stream.resume(self.state)
        return DataLoader(
            _ErrorsAsItems(self._stream),
            batch_size=None,
            collate_fn=_identity,
            num_workers=self._num_workers,
            worker_init_fn=_ignore_stop_signals if self._num_workers else None,
            pin_memory=torch.cuda.is_available(),
            # Otherwise starting an iterator draws from the global generator.
            generator=torch.Generator().manual_seed(self._seed),
        )


class _ErrorsAsItems(IterableDataset[Batch | ConfigError]):
    """Yields an error as an item: raised in a worker, it would arrive as a traceback inside a message."""

    def __init__(self, stream: TrainStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[Batch | ConfigError]:
        try:
            yield from self._stream
        except ConfigError as error:
            yield error


class ValBatches:
    """A fixed number of validation batches: the same rows each time, spread over the split, never shuffled.

    Every rank gets the same number of batches, at most `num_batches`, and all together the rows of one process.

    Raises:
        ConfigError: the split does not fill one batch on every rank.
    """

    def __init__(
        self, tokens: Tokens, packing: Packing, batch_size: int, num_batches: int, rank: int = 0, world_size: int = 1
    ) -> None:
        num_rows = packing.num_rows(tokens.num_tokens)
        at_once = batch_size * world_size
        self.num_batches = min(num_batches, num_rows // at_once)
        if self.num_batches == 0:
            rows = f"{at_once} rows of {packing.row_length} tokens, and the split has {num_rows}"
            raise ConfigError(f"data.val_batch_size: {batch_size} on {world_size} rank(s) needs {rows}; lower it")
        self._tokens = tokens
        self._packing = packing
        chosen = np.linspace(0, num_rows, self.num_batches * at_once, endpoint=False).astype(int)
        self.rows = chosen.reshape(self.num_batches, world_size, batch_size)[:, rank]
        """Rows of this rank's batches, (num_batches, B)."""

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Batch]:
        for number, rows in enumerate(self.rows.tolist(), start=1):
            views, documents = self._packing.views(read_windows(self._tokens, self._packing, rows))
            yield Batch(views, documents, {"batch": number}, np.array(rows))


def _ignore_stop_signals(_worker: int) -> None:
    """Leave a signal to all processes of a run to the one that trains. It ends the workers once it has saved; a worker
    that died before would end it in the middle of a step.

    SIGTERM is also how a worker that does not answer is ended, so it takes effect after `SAVING_S`.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(SAVING_S))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _identity(batch: Any) -> Any:
    return batch


def _name(state: State | None) -> Any:
    """What tells one batch's state from another's, without comparing buffers."""
    return None if state is None else (state.get("worker"), state["batch"])
