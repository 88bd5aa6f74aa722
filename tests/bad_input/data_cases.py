"""Text that cannot be read, in part or at all; tokenizers; token shards that say something else than their index."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recyclegpt.data import TextTokenizer
from tests.small_run import SMALL

from .place import CORPUS, DONE, Case, Payload, Place

GOOD = "def alpha(beta, n=1):\n    return beta + n\n"
LINE = json.dumps({"text": GOOD * 3}) + "\n"
TOKENIZE = ("tokenize", "data=text_files", "data.paths=[corpus]", "data.tokenizer.kind=byte", "output_dir=shards")
TRAIN = ("train", *SMALL, f"data.paths=[{CORPUS}]")
ON_SHARDS = ("train", "debug=smoke", "data=tokenized", "data.path=shards")
SHARD, META = "shards/train-00000.npy", "shards/meta.json"


def parquet() -> bytes:
    """A Parquet file of sixty texts."""
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": [GOOD] * 60}), sink)
    return sink.getvalue()


def _skipped(name: str, file: str, content: bytes) -> Case:
    return Case(name, TOKENIZE, [file], ["corpus"], lambda place: place.write(f"corpus/{file}", content), DONE)


def _no_corpus(name: str, file: str, content: bytes, *words: str, more: tuple[str, ...] = ()) -> Case:
    argv = (*TRAIN[:-1], "data.paths=[texts]", *more)
    return Case(name, argv, words, prepare=lambda place: place.write(f"texts/{file}", content))


def _tokenizer(name: str, content: str | bytes) -> Case:
    argv = (*TRAIN, "data.tokenizer.kind=file", "data.tokenizer.path=mine.json")
    return Case(name, argv, ["tokenizer"], prepare=lambda place: place.write("mine.json", content))


def _byte_tokenizer(**changes: Any) -> str:
    return json.dumps(json.loads(TextTokenizer.bytes()._tokenizer.to_str()) | changes)


def _shards(name: str, prepare: Callable[[Place], Any], *words: str) -> Case:
    return Case(name, ON_SHARDS, words, ["shards"], prepare)


def _first_shard(**values: Any) -> Callable[[Place], None]:
    return lambda place: place.change_json(META, lambda meta: meta["splits"]["train"]["shards"][0].update(values))


def _replace_shard(place: Place, tokens: np.ndarray[Any, Any]) -> None:
    """Another array in place of the training shard, with a checksum and a length that fit."""
    np.save(place.root / SHARD, tokens, allow_pickle=True)
    digest = hashlib.sha256((place.root / SHARD).read_bytes()).hexdigest()
    _first_shard(sha256=digest, num_tokens=int(tokens.shape[0]))(place)


def _out_of_range(place: Place) -> None:
    tokens = np.load(place.root / SHARD)
    tokens[len(tokens) // 2] = 60_000
    _replace_shard(place, tokens)


CASES = [
    # Skipped, counted and named
    _skipped("a line that is not UTF-8", "x.txt", GOOD.encode() * 9 + b"caf\xe9\n" + GOOD.encode() * 9),
    _skipped("a text without bytes", "x.txt", b""),
    _skipped("a JSON line cut off", "x.jsonl", (LINE * 9).encode() + b'{"text": "def al'),
    _skipped("a JSON line whose text is a number", "x.jsonl", (LINE * 9 + '{"text": 5}\n').encode()),
    _skipped("a Parquet file cut off", "x.parquet", parquet()[:-40]),
    Case("a pipe among the texts", TOKENIZE, ["x.txt"], ["corpus"], lambda place: place.pipe("corpus/x.txt"), DONE),
    Case(
        "a link that leads nowhere",
        TOKENIZE,
        ["gone.txt"],
        ["corpus"],
        lambda place: (place.root / "corpus/gone.txt").symlink_to("nothing.txt"),
        DONE,
    ),
    # No corpus
    _no_corpus(
        "more unreadable lines than allowed",
        "x.jsonl",
        b"{\n" * 9,
        "max_skipped",
        "x.jsonl",
        more=("data.max_skipped=3",),
    ),
    _no_corpus("too little text for one row", "x.txt", GOOD.encode() * 40, "row", more=("data.val_fraction=0.97",)),
    Case("a corpus that does not exist", (*TRAIN[:-1], "data.paths=[nowhere]"), ["data.paths", "nowhere"]),
    # Tokenizers
    _tokenizer("a tokenizer that is not JSON", b"<html>"),
    _tokenizer("a tokenizer without an end token", _byte_tokenizer(added_tokens=[])),
    # Token shards
    _shards("a shard is missing", lambda place: (place.root / SHARD).unlink(), SHARD),
    _shards("one bit of a shard flipped", lambda place: place.flip_bit(SHARD, -20), SHARD),
    _shards(
        "a shard of pickled objects", lambda place: _replace_shard(place, np.array([Payload()] * 900, object)), SHARD
    ),
    _shards("a token id beyond the vocabulary", _out_of_range, SHARD),
    _shards("an index that is not JSON", lambda place: place.write(META, "{"), META),
    _shards("a shard outside of the folder", _first_shard(file="../../etc/passwd"), "../../etc/passwd"),
    _shards(
        "another tokenizer next to the shards",
        lambda place: TextTokenizer.bytes().save(place.root / "shards/tokenizer.json"),
        "tokenizer.json",
    ),
]
