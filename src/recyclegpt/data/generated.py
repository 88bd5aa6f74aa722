"""A corpus that a model writes: kept piece by piece beside its folder, and token shards once every piece is there.

The pieces lie in `FOLDER.unfinished`, each written whole or not at all, with the corpus's identity: all that decides
what it says. The finished folder holds that identity in its `meta.json`, so that the same corpus is not written twice
and another is never mistaken for it.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from recyclegpt.data.shard_writer import TOKENS_PER_SHARD, TokenPiece, write_token_shards
from recyclegpt.data.shards import read_meta
from recyclegpt.data.sources import SPLITS, Split
from recyclegpt.data.tokenized import Tokenized
from recyclegpt.data.tokenizer import TextTokenizer
from recyclegpt.errors import ConfigError

FACTS = "generated"
"""Entry of `meta.json` that says how the corpus was made."""
_IDENTITY = "identity.json"
_log = logging.getLogger(__name__)


class GeneratedPiece(NamedTuple):
    """Some documents, one after another."""

    tokens: NDArray[Any]
    num_new: NDArray[np.int64]
    """For each document the tokens that the model wrote."""
    ends: NDArray[np.int64]
    """For each document how it ended, as a number of the caller's."""


class GeneratedCorpus:
    """One corpus, finished or on its way.

    Args:
        folder: where the token shards will be.
        identity: what decides every token, in plain values that JSON gives back as they are.
        made_with: what may decide a rounding: versions, device. The first process's is kept.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], made_with: Mapping[str, Any]) -> None:
        self.folder = folder
        self.identity = dict(identity)
        self.made_with = dict(made_with)
        self.unfinished = folder.with_name(f"{folder.name}.unfinished")

    def finished(self) -> dict[str, Any] | None:
        """What `meta.json` says of the finished corpus; None if it is not finished.

        Raises:
            ConfigError: the folder holds something else, another corpus, or one that is damaged.
        """
        if not self.folder.exists() or (self.folder.is_dir() and not any(self.folder.iterdir())):
            return None
        remedy = "choose another folder with bulk.out=..., or remove it"
        if not self.folder.is_dir() or not (self.folder / "meta.json").is_file():
            raise ConfigError(f"bulk.out: {self.folder} exists and holds no generated corpus; {remedy}")
        meta = read_meta(self.folder)
        facts = meta.get(FACTS)
        if not isinstance(facts, dict) or not isinstance(facts.get("identity"), dict):
            raise ConfigError(f"bulk.out: {self.folder} holds a corpus that was not generated; {remedy}")
        self._compare(facts["identity"], self.folder)
        Tokenized(str(self.folder)).open(0)  # compares every checksum
        return meta

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other processes from the pieces, take over those of an earlier one.

        Raises:
            ConfigError: another process writes them, they belong to another corpus, or nothing can be written there.
        """
        try:
            self.unfinished.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"bulk.out: {self.folder} cannot be written ({error.strerror}); choose another"
            ) from error
        lock = FileLock(self.unfinished / "lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise ConfigError(
                f"bulk.out: another process is writing {self.folder}; wait for it, or choose another folder"
            ) from None
        try:
            for leftover in self.folder.parent.glob(f"{self.folder.name}.partial-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            self._take_over()
            yield
        finally:
            lock.release()

    def read(self, split: Split, number: int) -> GeneratedPiece | None:
        """A piece written earlier; None if it is not there, or damaged, so that it has to be written again."""
        file = self._file(split, number)
        try:
            with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
                return GeneratedPiece(*(arrays[name] for name in GeneratedPiece._fields))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            _log.warning("%s is damaged and is written again (%s)", file, error)
            return None

    def write(self, split: Split, number: int, piece: GeneratedPiece) -> None:
        """Keep a piece."""
        file = self._file(split, number)
        temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open("xb") as opened:
                np.savez(opened, allow_pickle=False, **piece._asdict())
                opened.flush()
                os.fsync(opened.fileno())
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)

    def finish(
        self,
        num_pieces: Mapping[Split, int],
        tokenizer: TextTokenizer,
        ends: Sequence[str],
        tokens_per_shard: int = TOKENS_PER_SHARD,
    ) -> dict[str, Any]:
        """Make the pieces token shards, take them away, and return the meta.

        Args:
            num_pieces: of each split; all of them have to be there.
            tokenizer: whose ids they hold.
            ends: names of the ways in which documents ended.
            tokens_per_shard: as for `write_token_shards`.
        """
        num_bytes_V = tokenizer.token_num_bytes()
        totals: dict[str, dict[str, int]] = {}
        for split in SPLITS:
            pieces = [self._present(split, number) for number in range(num_pieces[split])]
            counts = np.bincount(np.concatenate([piece.ends for piece in pieces]), minlength=len(ends))
            totals[split] = {
                "num_new_tokens": int(sum(piece.num_new.sum() for piece in pieces)),
                **{f"num_{name}": int(count) for name, count in zip(ends, counts, strict=True)},
            }

        def stored(split: Split) -> Iterator[TokenPiece]:
            for number in range(num_pieces[split]):
                piece = self._present(split, number)
                yield TokenPiece(piece.tokens, len(piece.ends), int(num_bytes_V[piece.tokens].sum()))

        if self.folder.is_dir():
            self.folder.rmdir()  # an empty one the user made
        meta = write_token_shards(
            stored,
            tokenizer,
            self.folder,
            facts={FACTS: {"identity": self.identity, "made_with": self.made_with, "totals": totals}},
            tokens_per_shard=tokens_per_shard,
        )
        self.clear()
        return meta

    def clear(self) -> None:
        """Take the pieces away."""
        shutil.rmtree(self.unfinished, ignore_errors=True)

    def _take_over(self) -> None:
        file = self.unfinished / _IDENTITY
        if not file.exists():
            temporary = file.with_suffix(".tmp")
            content = {"identity": self.identity, "made_with": self.made_with}
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
            temporary.replace(file)
            return
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            identity, made_with = dict(content["identity"]), dict(content["made_with"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"bulk.out: {file} cannot be read ({error}); remove {self.unfinished}") from error
        self._compare(identity, self.unfinished)
        for name, value in self.made_with.items():
            if made_with.get(name) != value:
                _log.warning(
                    "%s was begun with %s %s and goes on with %s: roundings may differ, and what they decide",
                    *(self.folder, name, made_with.get(name), value),
                )
        self.made_with = made_with

    def _compare(self, found: Mapping[str, Any], where: Path) -> None:
        names = [name for name in {**found, **self.identity} if found.get(name) != self.identity.get(name)]
        if names:
            raise ConfigError(
                [
                    f"{name}: {where} has {_shown(found.get(name))}, this command {_shown(self.identity.get(name))}"
                    for name in names
                ]
                + [f"bulk.out: {where} is of another corpus; choose another folder, or remove it"]
            )

    def _present(self, split: Split, number: int) -> GeneratedPiece:
        piece = self.read(split, number)
        if piece is None:
            raise ConfigError(f"bulk.out: {self._file(split, number)} has gone meanwhile; give the same command again")
        return piece

    def _file(self, split: Split, number: int) -> Path:
        return self.unfinished / f"{split}-{number:06d}.npz"


def _shown(value: Any) -> str:
    shown = value if isinstance(value, str) else json.dumps(value)
    return shown if len(shown) <= 24 else f"{shown[:12]}..."  # of a checksum the beginning will do
