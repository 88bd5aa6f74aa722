"""Text as a LightningDataModule, with a state that says exactly which batch was trained on last.

At the end the data modules that `conf/data` names: each takes the settings of its source and of `TextDataModule`, flat.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from recyclegpt.data.chat import ids_after_a_turn
from recyclegpt.data.corpus import Corpus, open_corpus
from recyclegpt.data.hf_stream import HFStream, StreamRows
from recyclegpt.data.loaders import TrainLoader, TrainStream, ValBatches, make_state, position_of, state_problems
from recyclegpt.data.packed_rows import Batch, PackedRows, Packing, State
from recyclegpt.data.prompts import choose_prompts
from recyclegpt.data.shards import Tokenized, TokenShards
from recyclegpt.data.source import Source
from recyclegpt.data.text_files import PythonStdlib, TextFiles
from recyclegpt.data.tokenizer import TextTokenizer, TokenizerConfig
from recyclegpt.errors import ConfigError, Problems

_MAX_COUNTED_TOKENS = 50_000_000


class TextDataModule(LightningDataModule):
    """One path for every corpus: source, tokenizer, packed rows with shifted views.

    Call `connect` before the first batch. The training stream never ends; an epoch is what
    `trainer.limit_train_batches` takes of it. The state saved in a checkpoint is that of the batch last trained on.

    Args:
        tokenizer: how it becomes tokens; None for a tokenized corpus, which brings its own.
        num_workers: processes that read ahead; 0: none; None: 2 where there is a GPU, 0 else and of a stream.

    Raises:
        ConfigError: naming every setting that cannot work.
    """

    def __init__(
        self,
        source: Source | HFStream | Tokenized,
        tokenizer: TokenizerConfig | None,
        batch_size: int,
        num_val_batches: int = 16,
        val_batch_size: int | None = None,
        mask_documents: bool = False,
        num_workers: int | None = 0,
        cache_dir: str | Path = "~/.cache/recyclegpt",
        max_skipped: int = 100,
    ) -> None:
        super().__init__()
        if num_workers is None:  # the order of a stream depends on it, and should not depend on the machine
            num_workers = 2 if torch.cuda.is_available() and not isinstance(source, HFStream) else 0
        of_val = 1 if val_batch_size is None else val_batch_size
        least = {"batch_size": (batch_size, 1), "num_val_batches": (num_val_batches, 1), "val_batch_size": (of_val, 1)}
        least |= {"num_workers": (num_workers, 0), "max_skipped": (max_skipped, 0)}
        problems = [f"data.{name}: {value} is less than {low}" for name, (value, low) in least.items() if value < low]
        if isinstance(source, Tokenized) and tokenizer is not None:
            problems.append("data.tokenizer: a tokenized corpus brings its own; set it to null")
        if not isinstance(source, Tokenized) and tokenizer is None:
            problems.append(f"data.tokenizer: missing; {source.kind} is text and needs one")
        if problems:
            raise ConfigError(problems)
        self.source = source
        self.tokenizer_config = tokenizer
        self.batch_size = batch_size
        self.num_val_batches = num_val_batches
        self.val_batch_size = val_batch_size or batch_size
        self.mask_documents = mask_documents
        self.num_workers = num_workers
        self.cache_dir = Path(cache_dir).expanduser()
        self.max_skipped = max_skipped
        self.row_length = self.num_views = self.seed = self.overfit_batches = 0  # by `connect`
        self._loader: TrainLoader | None = None
        self._state: State | None = None

    def connect(self, row_length: int, num_views: int = 3, seed: int = 1, overfit_batches: int = 0) -> None:
        """Fit the rows to a model: what the corpus does not decide.

        Args:
            row_length: T, positions of a row.
            num_views: N, 2 + the number of unrolled steps of the recyclable module that are trained.
            overfit_batches: train on the first n batches again and again; 0: on all.

        Raises:
            ConfigError: naming every number that cannot work.
        """
        Packing(row_length, num_views)
        if seed < 0:
            raise ConfigError(f"seed: {seed} is negative")
        if overfit_batches and isinstance(self.source, HFStream):
            raise ConfigError("trainer.overfit_batches: a stream does not come again; use data=text_files")
        self.overfit_batches = overfit_batches
        self.row_length, self.num_views, self.seed = row_length, num_views, seed

    @cached_property
    def corpus(self) -> Corpus:
        """Tokenizer and tokens, built or found; several processes may do so at once."""
        return open_corpus(self.source, self.tokenizer_config, self.cache_dir, self.max_skipped)

    def setup(self, stage: str = "") -> None:
        """Open the corpus now; Lightning's hook, on every rank."""
        _ = self.corpus

    def on_exception(self, exception: BaseException) -> None:
        """Stop the workers now: left to the garbage collector, each takes five seconds to end."""
        self.teardown("fit")

    def teardown(self, stage: str) -> None:
        """Stop the workers; a later `fit` resumes after the batch last trained on."""
        if stage == "fit" and self._loader is not None:
            self._state = self._loader.state
            self._loader.close()
            self._loader = None

    @property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer of the corpus."""
        return self.corpus.tokenizer

    @property
    def train_num_tokens(self) -> int | None:
        """Tokens of the training split; None for a stream of unknown length."""
        train = self.corpus.train
        return train.num_tokens if isinstance(train, TokenShards) else None

    @property
    def train_num_rows(self) -> int | None:
        """Rows of the training split, by whose numbers batches name them; None for a stream."""
        return None if self.train_num_tokens is None else self._packing().num_rows(self.train_num_tokens)

    @property
    def settings(self) -> dict[str, str | int | bool]:
        """Everything that decides which rows come in which order."""
        settings: dict[str, str | int | bool] = {
            "data": self.corpus.fingerprint,
            "tokenizer": self.tokenizer.fingerprint,
            "row_length": self.row_length,
            "batch_size": self.batch_size,
            "num_unrolled": self.num_views - 2,
            "mask_documents": self.mask_documents,
            "seed": self.seed,
        }
        if self.overfit_batches:
            settings["overfit_batches"] = self.overfit_batches
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
        """The fixed validation batches of this rank."""
        return self._val_batches(*self._rank())

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Note the state of a batch that the trainer is about to train on."""
        if self.trainer is not None and self.trainer.training:
            self.trained_on(batch.state)
        return batch

    def check_lengths(self, world_size: int) -> None:
        """Raises ConfigError naming every split that is too short, before anything is written."""
        problems = Problems()
        with problems.under():
            self._val_batches(0, world_size)
        if isinstance(train := self.corpus.train, TokenShards):
            with problems.under():
                PackedRows(train, self._packing(), self.batch_size, self.seed)
        problems.raise_any()

    def _packing(self) -> Packing:
        if not self.row_length:
            raise RuntimeError("call connect(row_length, num_views, seed) before asking for rows")
        inner = ids_after_a_turn(self.tokenizer) if self.mask_documents else ()
        return Packing(self.row_length, self.num_views, self.mask_documents, self.tokenizer.eos_id, inner)

    def _val_batches(self, rank: int, world_size: int) -> ValBatches:
        tokens, packing = self.corpus.val, self._packing()
        return ValBatches(tokens, packing, self.val_batch_size, self.num_val_batches, rank, world_size)

    def _train_stream(self) -> TrainStream:
        rank, world_size = self._rank()
        train, packing = self.corpus.train, self._packing()
        if isinstance(train, TokenShards):
            return PackedRows(train, packing, self.batch_size, self.seed, rank, world_size, self.overfit_batches)
        train.val_digests()  # once here, not in every worker
        tokenizer, skipped = self.tokenizer, self.max_skipped
        return StreamRows(train, tokenizer, packing, self.batch_size, self.seed, skipped, rank, world_size)

    def _rank(self) -> tuple[int, int]:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        return 0, 1

    def trained_on(self, state: State) -> None:
        """Record that the batch with this state has been trained on; a checkpoint resumes after it."""
        assert self._loader is not None
        self._loader.trained_on(state)

    def state_dict(self) -> dict[str, Any]:
        """The position of every rank. Collective: where processes train together, all of them have to call it."""
        state = self._state if self._loader is None else self._loader.state
        return make_state(state, self.settings, self._rank()[1])

    def problems_with(self, state_dict: Any, world_size: int) -> list[str]:
        """Why a run of `world_size` processes cannot resume exactly from a saved state; empty if it can."""
        return state_problems(state_dict, self.settings, world_size)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume after the batch that `state_dict` was saved after.

        Raises:
            ConfigError: naming everything that differs from the run that saved it.
        """
        rank, world_size = self._rank()
        if problems := self.problems_with(state_dict, world_size):
            raise ConfigError(problems)
        self._state = position_of(state_dict, rank)
        if self._loader is not None:
            self._loader.close()
            self._loader.state = self._state

    def unigram_counts(self) -> Tensor:
        """How often each id occurs in the training split (its first 50M tokens; of a stream 1M), int64 (V,)."""
        tokens = self.corpus.sample()
        counts = np.zeros(self.tokenizer.vocab_size, np.int64)
        stop = min(tokens.num_tokens, _MAX_COUNTED_TOKENS)
        for start in range(0, stop, 1 << 22):
            counts += np.bincount(tokens.read(start, min(stop, start + (1 << 22))), minlength=self.tokenizer.vocab_size)
        return torch.from_numpy(counts)

    def val_tokens(self, limit: int | None = None) -> Tensor:
        """The first tokens of the validation split, int64, at most `limit`."""
        num_tokens = self.corpus.val.num_tokens
        return torch.from_numpy(self.corpus.val.read(0, min(limit or num_tokens, num_tokens)))

    def val_prompts(self, num: int, length: int) -> Tensor:
        """Beginnings of different validation documents, int64 (num, length): see `choose_prompts`."""
        tokens = self.val_tokens(_MAX_COUNTED_TOKENS).numpy()
        return torch.from_numpy(choose_prompts(tokens, self.tokenizer.eos_id, num, length))


class _OfSource(TextDataModule):
    source_type: ClassVar[type[Any]]

    def __init__(self, *arguments: Any, tokenizer: Any = None, **settings: Any) -> None:
        own = inspect.signature(self.source_type).parameters
        given = {key: settings.pop(key) for key in [*settings] if key in own}
        super().__init__(self.source_type(*arguments, **given), tokenizer, **settings)


class TextFilesData(_OfSource):
    """`TextDataModule` of `TextFiles`: any text on disk: files, folders and patterns."""

    source_type = TextFiles


class PythonStdlibData(_OfSource):
    """`TextDataModule` of `PythonStdlib`: the interpreter's own standard library."""

    source_type = PythonStdlib


class HFStreamData(_OfSource):
    """`TextDataModule` of `HFStream`: a dataset of the Hugging Face hub, streamed."""

    source_type = HFStream


class TokenizedData(_OfSource):
    """`TextDataModule` of `Tokenized`: token shards, which bring their own tokenizer."""

    source_type = Tokenized
