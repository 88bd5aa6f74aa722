"""Token shards that are missing, damaged, changed, or say something else than their description."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .case import Cases
from .place import MARKER, ON_SHARDS, Place

CASES = Cases("shards")
TRAIN = "shards/train-00000.npy"
META = "shards/meta.json"


def replace_shard(place: Place, tokens: np.ndarray[Any, Any], **how: Any) -> None:
    """Write another array in place of the training shard, with a checksum and a length that fit."""
    np.save(place.root / TRAIN, tokens, **how)
    digest = hashlib.sha256((place.root / TRAIN).read_bytes()).hexdigest()
    place.change_json(
        META,
        lambda meta: meta["splits"]["train"]["shards"][0].update(sha256=digest, num_tokens=int(tokens.shape[0])),
    )


def _shards(name: str, change: Callable[[Place], Any], *words: str, more: Sequence[str] = ()) -> None:
    @CASES.refused(name, *words)
    def _(place: Place) -> Sequence[str]:
        place.copy("shards")
        change(place)
        return ("train", *ON_SHARDS, *more)


def _meta(name: str, change: Callable[[Any], Any], *words: str) -> None:
    _shards(name, lambda place: place.change_json(META, change), META, *words)


def _meta_bytes(name: str, content: str | bytes, *words: str) -> None:
    _shards(name, lambda place: place.write(META, content), META, *words)


def tokens_of(place: Place) -> np.ndarray[Any, Any]:
    """The tokens of the training shard."""
    return np.load(place.root / TRAIN)


class Payload:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {MARKER}",)


def _flip(place: Place) -> None:
    content = bytearray((place.root / TRAIN).read_bytes())
    content[-20] ^= 1
    (place.root / TRAIN).write_bytes(content)


def _cut(place: Place) -> None:
    content = (place.root / TRAIN).read_bytes()
    (place.root / TRAIN).write_bytes(content[: len(content) // 2])


def _pipe(place: Place) -> None:
    (place.root / TRAIN).unlink()
    os.mkfifo(place.root / TRAIN)


def _out_of_range(place: Place) -> None:
    tokens = tokens_of(place)
    tokens[len(tokens) // 2] = 60_000
    replace_shard(place, tokens)


_shards("a shard is missing", lambda place: (place.root / TRAIN).unlink(), TRAIN, "No such file")
_shards("a shard is cut off", _cut, TRAIN, "cannot be opened")
_shards("one bit of a shard flipped", _flip, TRAIN, "its checksum differs")
_shards("a shard without bytes", lambda place: place.write(TRAIN, b""), TRAIN, "cannot be opened")
_shards("a shard that is a text", lambda place: place.write(TRAIN, b"tokens"), TRAIN, "cannot be opened")
_shards("a shard that is a pipe", _pipe, TRAIN, "no regular file")
_shards("a shard of floats", lambda place: replace_shard(place, tokens_of(place).astype(np.float32)), TRAIN, "float32")
_shards(
    "a shard of negative numbers",
    lambda place: replace_shard(place, -tokens_of(place).astype(np.int32)),
    TRAIN,
    "int32",
)
_shards(
    "a shard of pickled objects",
    lambda place: replace_shard(place, np.array([Payload()] * 900, object), allow_pickle=True),
    TRAIN,
    "cannot be opened",
)
_shards("a shard of two dimensions", lambda place: replace_shard(place, tokens_of(place)[:900].reshape(30, 30)), TRAIN)
_shards("a token id beyond the vocabulary", _out_of_range, TRAIN, "60,000", "its tokenizer has 291")
_shards(
    "a token id beyond the vocabulary, checksums not compared",
    _out_of_range,
    TRAIN,
    "60,000",
    "its tokenizer has 291",
    more=["data.verify=false"],
)
_shards(
    "a shard shorter than one row",
    lambda place: replace_shard(place, tokens_of(place)[:20]),
    "data: 20 training tokens do not fill one row",
)

_shards("no description of the shards", lambda place: (place.root / META).unlink(), "holds no meta.json")
_meta_bytes("a description that is not JSON", "{", "cannot be read")
_meta_bytes("a description that is not UTF-8", b"\xff\xfe", "cannot be read")
_meta_bytes("a description nested without end", "[" * 200_000, "cannot be read")
_meta_bytes("a description that is a list", "[1]", "cannot be read")
_meta("a description of a later format", lambda meta: meta.update(format=9), "has format 9, this version reads")
_meta("a description without splits", lambda meta: meta.update(splits=None), "splits")
_meta("a description without an end token", lambda meta: meta.update(eos_token=None), "eos_token")
_meta("splits that are a list", lambda meta: meta.update(splits=[]), "splits")
_meta(
    "a negative number of tokens",
    lambda meta: meta["splits"]["train"]["shards"][0].update(num_tokens=-5),
    "num_tokens",
    "-5",
)
_meta(
    "a number of tokens that is a text",
    lambda meta: meta["splits"]["train"]["shards"][0].update(num_tokens="many"),
    "num_tokens",
    "many",
)
_meta("a shard without a checksum", lambda meta: meta["splits"]["train"]["shards"][0].update(sha256=None), "sha256")
_meta(
    "a shard outside of the folder",
    lambda meta: meta["splits"]["train"]["shards"][0].update(file="../../etc/passwd"),
    "../../etc/passwd",
    "file",
)
_meta(
    "a shard by an absolute path",
    lambda meta: meta["splits"]["train"]["shards"][0].update(file="/etc/passwd"),
    "/etc/passwd",
    "file",
)
_shards("the folder does not exist", lambda _: None, "nowhere holds no meta.json", more=["data.path=nowhere"])
_shards("a file in place of the folder", lambda _: None, "meta.json", more=["data.path=shards/meta.json"])


@CASES.refused(
    "a shard changed since the checkpoint",
    "data: its files have changed",
    "the checkpoint was trained with",
    "this run",
)
def _(place: Place) -> Sequence[str]:
    place.copy("shards", "run_on_shards")
    tokens = tokens_of(place)
    tokens[:9] = tokens[9:18]
    replace_shard(place, tokens)
    return ("train", *ON_SHARDS, "resume=run_on_shards/checkpoints/step_0000002.ckpt", "trainer.max_epochs=2")


@CASES.refused("a shard changed since the run that is evaluated", "shards/train-00000.npy", "checksum")
def _(place: Place) -> Sequence[str]:
    place.copy("shards", "run_on_shards")
    _flip(place)
    return ("evaluate", "checkpoint=run_on_shards")


@CASES.refused("tokens are tokenized again", "data=tokenized is tokenized already")
def _(place: Place) -> Sequence[str]:
    place.copy("shards")
    return ("tokenize", "data=tokenized", "data.path=shards", "output=again")


@CASES.refused("the folder for the shards is not empty", "corpus exists already")
def _(place: Place) -> Sequence[str]:
    place.copy("corpus")
    return ("tokenize", "data=text_files", "data.paths=[corpus]", "output=corpus")
