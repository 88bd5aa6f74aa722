"""Text as a LightningDataModule, with a state that says exactly which batch was trained on last."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from recyclegpt.data.batch import Batch
from recyclegpt.data.hf_stream import HFStream
from recyclegpt.data.loaders import TrainLoader, ValBatches, workers_that_suit
from recyclegpt.data.open_corpus import Corpus, open_corpus
from recyclegpt.data.packed_rows import PackedRows, State, TrainStream
from recyclegpt.data.packing import Packing
from recyclegpt.data.prompts import choose_prompts
from recyclegpt.data.shards import TokenShards
from recyclegpt.data.shuffled_stream import StreamRows
from recyclegpt.data.sources import Source
from recyclegpt.data.tokenized import Tokenized
from recyclegpt.data.tokenizer import TextTokenizer, TokenizerConfig
from recyclegpt.errors import ConfigError

STATE_FORMAT = 2
_SETTING_NAMES = {"data": "data: its files have changed", "tokenizer": "data.tokenizer: it is another one"}
_log = logging.getLogger(__name__)
_MAX_COUNTED_TOKENS = 50_000_000
_CHUNK = 1 << 22


class TextDataModule(LightningDataModule):
    """One path for every corpus: source, tokenizer, packed rows with shifted views.

    The training stream never ends; an epoch is what `trainer.limit_train_batches` takes of it. The state saved in a
    checkpoint is that of the batch last trained on.

    Args:
        source: where the text comes from.
        tokenizer: how it becomes tokens; None for a tokenized corpus, which brings its own.
        row_length: T, positions of a row.
        batch_size: rows of a batch on each rank.
        num_unrolled: steps of the recyclable module that are trained; rows have 2 + num_unrolled views.
        num_val_batches: validation batches on each rank.
        val_batch_size: rows of a validation batch; None: `batch_size`.
        mask_documents: number the documents inside rows, so that attention can be kept inside them.
        num_workers: processes that read ahead; 0: none; None: by `workers_that_suit`.
        seed: of the order of rows.
        cache_dir: where tokenizers and tokens are kept.
        max_skipped: most documents that may be unreadable.

    Raises:
        ConfigError: naming every setting that cannot work.
    """

    def __init__(
        self,
        source: Source | HFStream | Tokenized,
        tokenizer: TokenizerConfig | None,
        row_length: int,
        batch_size: int,
        num_unrolled: int = 1,
        num_val_batches: int = 16,
        val_batch_size: int | None = None,
        mask_documents: bool = False,
        num_workers: int | None = 0,
        seed: int = 1,
        cache_dir: str | Path = "~/.cache/recyclegpt",
        max_skipped: int = 100,
    ) -> None:
        super().__init__()
        num_workers = workers_that_suit(isinstance(source, HFStream)) if num_workers is None else num_workers
        positive = {"row_length": row_length, "batch_size": batch_size, "num_val_batches": num_val_batches}
        positive |= {} if val_batch_size is None else {"val_batch_size": val_batch_size}
        natural = {"num_unrolled": num_unrolled, "num_workers": num_workers, "seed": seed, "max_skipped": max_skipped}
        problems = [f"data.{name}: {value} is not a positive number" for name, value in positive.items() if value < 1]
        problems += [f"data.{name}: {value} is negative" for name, value in natural.items() if value < 0]
        if isinstance(source, Tokenized) and tokenizer is not None:
            problems.append("data.tokenizer: a tokenized corpus brings its own; set it to null")
        if not isinstance(source, Tokenized) and tokenizer is None:
            problems.append(f"data.tokenizer: missing; {source.kind} is text and needs one")
        if problems:
            raise ConfigError(problems)
        self.source = source
        self.tokenizer_config = tokenizer
        self.row_length = row_length
        self.batch_size = batch_size
        self.num_unrolled = num_unrolled
        self.num_val_batches = num_val_batches
        self.val_batch_size = batch_size if val_batch_size is None else val_batch_size
        self.mask_documents = mask_documents
        self.num_workers = num_workers
        self.seed = seed
        self.cache_dir = Path(cache_dir).expanduser()
        self.max_skipped = max_skipped
        self._corpus: Corpus | None = None
        self._counts: Tensor | None = None
        self._loader: TrainLoader | None = None
        self._state: State | None = None

    def prepare(self) -> None:
        """Build or find tokenizer and tokens. Safe to call again, and by several processes at once."""
        if self._corpus is None:
            self._corpus = open_corpus(self.source, self.tokenizer_config, self.cache_dir, self.max_skipped)

    def prepare_data(self) -> None:
        """Lightning's hook, once a node."""
        self.prepare()

    def setup(self, stage: str) -> None:
        """Lightning's hook, on every rank."""
        self.prepare()

    def teardown(self, stage: str) -> None:
        """Stop the workers; a later `fit` goes on after the batch last trained on."""
        if stage == "fit":
            self._close()

    def on_exception(self, exception: BaseException) -> None:
        """Stop the workers now: left to the garbage collector each takes five seconds to go."""
        self._close()

    def _close(self) -> None:
        if self._loader is not None:
            self._state = self._loader.state
            self._loader.close()
            self._loader = None

    @property
    def corpus(self) -> Corpus:
        """The opened corpus; opens it when need be."""
        self.prepare()
        assert self._corpus is not None
        return self._corpus

    @property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer of the corpus."""
        return self.corpus.tokenizer

    @property
    def vocab_size(self) -> int:
        """V, rows the model's embedding needs at least."""
        return self.tokenizer.vocab_size

    @property
    def train_num_tokens(self) -> int | None:
        """Tokens of the training split; None for a stream of unknown length."""
        train = self.corpus.train
        return train.num_tokens if isinstance(train, TokenShards) else None

    @property
    def settings(self) -> dict[str, str | int | bool]:
        """Everything that decides which rows come in which order."""
        settings: dict[str, str | int | bool] = {
            "data": self.corpus.fingerprint,
            "tokenizer": self.tokenizer.fingerprint,
            "row_length": self.row_length,
            "batch_size": self.batch_size,
            "num_unrolled": self.num_unrolled,
            "mask_documents": self.mask_documents,
            "seed": self.seed,
        }
        if isinstance(self.source, HFStream):
            settings["num_workers"] = max(1, self.num_workers)  # none and one give the same order
            settings["shuffle_buffer"] = self.source.shuffle_buffer
        return settings

    @property
    def fingerprint(self) -> str:
        """sha256 of `settings`."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()

    def train_dataloader(self) -> TrainLoader:
        """Endless batches of this rank."""
        if self._loader is None:
            self._loader = TrainLoader(self._train_stream(), self.num_workers, self.seed, self._state)
        return self._loader

    def val_dataloader(self) -> ValBatches:
        """The fixed validation batches of this rank, with at least three views."""
        rank, world_size = self._rank()
        packing = self._packing(max(3, 2 + self.num_unrolled))
        return ValBatches(self.corpus.val, packing, self.val_batch_size, self.num_val_batches, rank, world_size)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Note the state of a batch that the trainer is about to train on."""
        if self.trainer is not None and self.trainer.training:
            self.trained_on(batch.state)
        return batch

    def trained_on(self, state: State) -> None:
        """Note that the batch with this state has been trained on; the next checkpoint stands after it."""
        if self._loader is None:
            self._state = state
        else:
            self._loader.trained_on(state)

    def state_dict(self) -> dict[str, Any]:
        """Where every rank stands. Collective: where processes train together all of them have to call it."""
        state = self._state if self._loader is None else self._loader.state
        _, world_size = self._rank()
        state = _map_arrays(state, np.ndarray, torch.from_numpy)  # numpy is refused by torch.load(weights_only=True)
        ranks: list[State | None] = [state]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            ranks = [None] * world_size
            torch.distributed.all_gather_object(ranks, state)
        return {
            "format": STATE_FORMAT,
            "world_size": world_size,
            "fingerprint": self.fingerprint,
            "settings": self.settings,
            "ranks": ranks,
        }

    def problems_with(self, state_dict: dict[str, Any], world_size: int) -> list[str]:
        """Why a run of `world_size` processes cannot go on exactly from a saved state; empty if it can."""
        if not isinstance(state_dict, dict) or state_dict.get("format") != STATE_FORMAT:
            found = state_dict.get("format") if isinstance(state_dict, dict) else None
            return [
                f"data: the checkpoint's data state has format {found}, this version reads "
                f"{STATE_FORMAT}; continue with the version that wrote it, or start a new run from its weights"
            ]
        kinds: dict[str, type] = {"world_size": int, "fingerprint": str, "settings": dict, "ranks": list}
        broken = [name for name, kind in kinds.items() if not isinstance(state_dict.get(name), kind)]
        if not broken and state_dict["world_size"] == world_size != len(state_dict["ranks"]):
            broken = ["ranks"]
        if broken or not all(map(self._is_position, state_dict["ranks"])):
            return [
                f"data: the checkpoint's {type(self).__name__} state cannot be used (its "
                f"{', '.join(broken) or 'batch'}); use another checkpoint, or start a new run from its weights"
            ]
        problems = []
        if state_dict["world_size"] != world_size:
            problems.append(
                f"data: the checkpoint was written by {state_dict['world_size']} process(es), this run has "
                f"{world_size}; resume with {state_dict['world_size']}, so that no row is repeated or left out"
            )
        if state_dict["fingerprint"] != self.fingerprint:
            saved = state_dict["settings"]
            problems += [
                f"{_SETTING_NAMES.get(name, f'data.{name}')}: the checkpoint was trained with {saved.get(name)}, "
                f"this run has {value}; resume with the checkpoint's, or start a new run from its weights"
                for name, value in self.settings.items()
                if saved.get(name) != value
            ]
        return problems

    def _is_position(self, state: Any) -> bool:
        """Whether a rank's state is one; None is that before the first batch."""
        if state is None:
            return True
        name, kind = ("workers", dict) if isinstance(self.source, HFStream) else ("batch", int)
        found = state.get(name) if isinstance(state, dict) else None
        return isinstance(found, dict) if kind is dict else isinstance(found, int) and found >= 0

    def check_lengths(self, world_size: int) -> None:
        """Make sure that both splits are long enough, before anything is written.

        Raises:
            ConfigError: naming every split that is too short.
        """
        problems: list[str] = []
        val, train = self.corpus.val, self.corpus.train
        try:
            packing = self._packing(max(3, 2 + self.num_unrolled))
            ValBatches(val, packing, self.val_batch_size, self.num_val_batches, 0, world_size)
        except ConfigError as error:
            problems += error.problems
        try:
            if isinstance(train, TokenShards):
                PackedRows(train, self._packing(2 + self.num_unrolled), self.batch_size, self.seed)
        except ConfigError as error:
            problems += error.problems
        if problems:
            raise ConfigError(problems)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the batch that `state_dict` was saved after.

        Raises:
            ConfigError: naming everything that differs from the run that saved it.
        """
        rank, world_size = self._rank()
        if problems := self.problems_with(state_dict, world_size):
            raise ConfigError(problems)
        self._state = _map_arrays(state_dict["ranks"][rank], Tensor, lambda tensor: tensor.cpu().numpy())
        if self._loader is not None:
            self._loader.restart(self._state)

    def unigram_counts(self) -> Tensor:
        """How often each id occurs in the training split (its first 50M tokens; of a stream 1M), int64 (V,)."""
        if self._counts is None:
            tokens = self.corpus.sample()
            counts = np.zeros(self.vocab_size, np.int64)
            stop = min(tokens.num_tokens, _MAX_COUNTED_TOKENS)
            for start in range(0, stop, _CHUNK):
                counts += np.bincount(tokens.read(start, min(stop, start + _CHUNK)), minlength=self.vocab_size)
            self._counts = torch.from_numpy(counts)
        return self._counts

    def val_tokens(self, limit: int | None = None) -> Tensor:
        """The first tokens of the validation split, int64, at most `limit`."""
        tokens = self.corpus.val
        return torch.from_numpy(tokens.read(0, tokens.num_tokens if limit is None else min(limit, tokens.num_tokens)))

    def val_prompts(self, num: int, length: int) -> Tensor:
        """Beginnings of different validation documents, int64 (num, length); the same at every call.

        Where fewer documents are long enough, more prompts come from inside the split, none twice.

        Raises:
            ConfigError: if the split is shorter than the prompts together.
        """
        tokens = self.val_tokens(_MAX_COUNTED_TOKENS).numpy()
        return torch.from_numpy(choose_prompts(tokens, self.tokenizer.eos_id, num, length))

    def _packing(self, num_views: int) -> Packing:
        return Packing(self.row_length, num_views, self.mask_documents, self.tokenizer.eos_id)

    def _train_stream(self) -> TrainStream:
        rank, world_size = self._rank()
        packing = self._packing(2 + self.num_unrolled)
        train = self.corpus.train
        if isinstance(train, TokenShards):
            rows, dropped = packing.num_rows(train.num_tokens), packing.num_dropped(train.num_tokens)
            _log.info(
                "%d training tokens make %d rows, %d tokens at the end are left over", train.num_tokens, rows, dropped
            )
            return PackedRows(train, packing, self.batch_size, self.seed, rank, world_size)
        train.val_digests()  # once here, not in every worker
        tokenizer, skipped = self.tokenizer, self.max_skipped
        return StreamRows(train, tokenizer, packing, self.batch_size, self.seed, skipped, rank, world_size)

    def _rank(self) -> tuple[int, int]:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        return 0, 1


def _map_arrays(value: Any, kind: type, convert: Callable[[Any], Any]) -> Any:
    """`value` with every array of a kind inside its dicts and lists converted."""
    if isinstance(value, kind):
        return convert(value)
    if isinstance(value, dict):
        return {key: _map_arrays(inner, kind, convert) for key, inner in value.items()}
    if isinstance(value, list):
        return [_map_arrays(inner, kind, convert) for inner in value]
    return value
