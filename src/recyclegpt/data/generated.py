"""A corpus that a model writes: kept piece by piece next to its folder, then turned into token shards.

The pieces are in `FOLDER.unfinished` with the corpus's identity: everything that decides its tokens. The finished
folder holds it in its `meta.json`, so that the same corpus is not written twice and another is not mistaken for it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from recyclegpt.data.shards import TOKENS_PER_SHARD, Tokenized, TokenPiece, read_meta, write_shards
from recyclegpt.data.source import Split
from recyclegpt.data.tokenizer import TextTokenizer
from recyclegpt.errors import ConfigError
from recyclegpt.files import atomic_write, write_json

FACTS = "generated"
"""Entry of `meta.json` that says how the corpus was made."""


class GeneratedPiece(NamedTuple):
    """Consecutive documents."""

    tokens: NDArray[Any]
    lengths: NDArray[np.int64]
    """For each document its number of tokens."""
    num_prompt: NDArray[np.int64]
    """For each document how many of them are its prompt."""
    num_new: NDArray[np.int64]
    """For each document the number of tokens that the model wrote."""
    ends: NDArray[np.int64]
    """For each document how it ended, as a number of the caller's."""


class GeneratedCorpus:
    """One corpus, finished or unfinished: its folder, and what decides every token, in values that JSON can hold."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.identity = dict(identity)
        self.unfinished = folder.with_name(f"{folder.name}.unfinished")

    def finished(self) -> dict[str, Any] | None:
        """The `meta.json` of the finished corpus; None if it is not finished.

        Raises:
            ConfigError: the folder holds something else, another corpus, or one that is damaged.
        """
        if not self.folder.exists() or (self.folder.is_dir() and not any(self.folder.iterdir())):
            return None
        meta = read_meta(self.folder) if (self.folder / "meta.json").is_file() else {}
        if FACTS not in meta:
            found = f"{self.folder} exists and holds no generated corpus"
            raise ConfigError(f"output_dir: {found}; choose another folder, or remove it")
        self._compare(meta[FACTS]["identity"], self.folder)
        Tokenized(self.folder).open(0)  # compares every checksum
        return meta

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Lock the pieces against other processes, and resume from those that are there.

        Raises:
            ConfigError: another process writes them, they belong to another corpus, or nothing can be written there.
        """
        lock = FileLock(self.unfinished / "lock", timeout=0)
        try:
            self.unfinished.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            found = f"another process is writing {self.folder}"
            raise ConfigError(f"output_dir: {found}; wait for it, or choose another folder") from None
        except OSError as error:
            why = f"{self.folder} cannot be written ({error.strerror})"
            raise ConfigError(f"output_dir: {why}; choose another") from error
        try:
            file = self.unfinished / "identity.json"
            if file.exists():
                self._compare(json.loads(file.read_text(encoding="utf-8")), self.unfinished)
            else:
                write_json(file, self.identity)
            yield
        finally:
            lock.release()

    def read(self, split: Split, number: int) -> GeneratedPiece | None:
        """A piece written earlier; None if it is not there."""
        file = self._file(split, number)
        if not file.exists():
            return None
        with np.load(file, allow_pickle=False) as arrays:
            return GeneratedPiece(*(arrays[name] for name in GeneratedPiece._fields))

    def write(self, split: Split, number: int, piece: GeneratedPiece) -> None:
        """Keep a piece."""
        with atomic_write(self._file(split, number)) as opened:
            np.savez(opened, allow_pickle=False, **piece._asdict())

    def finish(
        self,
        num_pieces: Mapping[Split, int],
        tokenizer: TextTokenizer,
        ends: Sequence[str],
        tokens_per_shard: int = TOKENS_PER_SHARD,
    ) -> dict[str, Any]:
        """Turn the pieces, `num_pieces` of each split, into token shards, remove them, and return the meta.

        `ends` names the ways in which documents ended.
        """
        num_bytes_V = tokenizer.token_num_bytes()
        totals: dict[Split, dict[str, int]] = {}

        def pieces(split: Split) -> Iterator[TokenPiece]:
            of_split = totals[split] = dict.fromkeys(("num_new_tokens", *(f"num_{name}" for name in ends)), 0)
            for number in range(num_pieces[split]):
                piece = self.read(split, number)
                assert piece is not None
                of_split["num_new_tokens"] += int(piece.num_new.sum())
                for end in piece.ends.tolist():
                    of_split[f"num_{ends[end]}"] += 1
                documents = np.stack([piece.lengths, piece.num_prompt], axis=1)
                yield TokenPiece(piece.tokens, len(piece.ends), int(num_bytes_V[piece.tokens].sum()), documents)

        facts = {"identity": self.identity, "totals": totals}
        meta = write_shards(pieces, tokenizer, self.folder, {FACTS: facts}, tokens_per_shard)
        self.clear()
        return meta

    def clear(self) -> None:
        """Remove the pieces."""
        shutil.rmtree(self.unfinished, ignore_errors=True)

    def _file(self, split: Split, number: int) -> Path:
        return self.unfinished / f"{split}-{number:06d}.npz"

    def _compare(self, found: Mapping[str, Any], where: Path) -> None:
        problems = [
            f"{name}: {where} has {found.get(name)}, this command {self.identity.get(name)}"
            for name in {**found, **self.identity}
            if found.get(name) != self.identity.get(name)
        ]
        if problems:
            remedy = f"output_dir: {where} holds another corpus; choose another folder, or remove it"
            raise ConfigError([*problems, remedy])
