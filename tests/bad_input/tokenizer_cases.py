"""Tokenizers that are none, lack something, or belong to another model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from recyclegpt.data import TextTokenizer

from .case import Cases
from .place import NEWEST, ON_SHARDS, SMALL, Place

CASES = Cases("tokenizer")
FILE = "run/checkpoints/tokenizer.json"
GENERATE = ("generate", f"checkpoint=run/checkpoints/{NEWEST}", "--prompt", "def")


def _exchanged(name: str, content: str | bytes, *words: str) -> None:
    @CASES.refused(name, FILE, *words)
    def _(place: Place) -> Sequence[str]:
        place.copy("run")
        place.write(FILE, content)
        return GENERATE


def _given(name: str, content: str | bytes, *words: str) -> None:
    @CASES.refused(name, "mine.json", *words)
    def _(place: Place) -> Sequence[str]:
        place.copy("corpus")
        place.write("mine.json", content)
        return ("train", *SMALL, "data.tokenizer.kind=file", "data.tokenizer.path=mine.json")


def bytes_tokenizer(**changes: Any) -> dict[str, Any]:
    """A byte tokenizer's document, with some of its parts changed."""
    return json.loads(TextTokenizer.bytes()._tokenizer.to_str()) | changes


NOT_ONE = {
    "that is not JSON": b"<html>",
    "that is JSON and no tokenizer": b'{"format": 1}',
    "without bytes": b"",
    "that is not UTF-8": b"\xff\xfe{\x00}\x00",
    "nested without end": b"[" * 100_000,
    "cut off": json.dumps(bytes_tokenizer())[:900].encode(),
}
for kind, content in NOT_ONE.items():
    _given(f"a file {kind}", content, "is not a tokenizer.json")
_exchanged("beside a checkpoint, a file that is not JSON", b"<html>", "is not a tokenizer.json")
_given(
    "no end token",
    json.dumps(bytes_tokenizer(added_tokens=[])),
    "tokenizer.end_token: none of",
    "is in the vocabulary",
)
_given(
    "an id beyond any embedding",
    json.dumps(
        bytes_tokenizer(
            model={"type": "BPE", "vocab": {"a": 0, "b": 4_000_000_000}, "merges": []},
        )
    ),
    "4,000,000,000",
)
_exchanged(
    "the tokenizer beside a checkpoint is a larger one",
    json.dumps(
        bytes_tokenizer(
            model={"type": "BPE", "vocab": {chr(1000 + i): i for i in range(900)}, "merges": []},
        )
    ),
    "is not the one",
)


@CASES.refused("the tokenizer beside a checkpoint is another one that would fit", FILE, "is not the one")
def _(place: Place) -> Sequence[str]:
    place.copy("run")
    TextTokenizer.bytes().save(place.root / FILE)
    return GENERATE


@CASES.refused("the tokenizer beside a checkpoint is missing", FILE, "is missing")
def _(place: Place) -> Sequence[str]:
    place.copy("run")
    (place.root / FILE).unlink()
    return GENERATE


@CASES.refused("the tokenizer beside a checkpoint is a pipe", FILE)
def _(place: Place) -> Sequence[str]:
    place.copy("run")
    (place.root / FILE).unlink()
    os.mkfifo(place.root / FILE)
    return GENERATE


def _in_shards(name: str, change: Callable[[Place], Any], *words: str) -> None:
    @CASES.refused(name, "shards", *words)
    def _(place: Place) -> Sequence[str]:
        place.copy("shards")
        change(place)
        return ("train", *ON_SHARDS)


_in_shards(
    "the tokenizer of the shards is another one",
    lambda place: TextTokenizer.bytes().save(place.root / "shards/tokenizer.json"),
    "tokenizer.json is not the tokenizer that wrote the shards",
)
_in_shards(
    "the shards lack their tokenizer",
    lambda place: (place.root / "shards/tokenizer.json").unlink(),
    "tokenizer.json does not exist",
)


@CASES.refused("a corpus of another tokenizer is evaluated", "its tokenizer differs", "data.tokenizer.kind=file")
def _(place: Place) -> Sequence[str]:
    place.copy("corpus", "run")
    TextTokenizer.bytes().save(place.root / "bytes.json")
    argv = ["data=text_files", "data.paths=[corpus]", "data.tokenizer.kind=byte", "output=other"]
    _tokenize(place, argv)
    return ("evaluate", "checkpoint=run", "data=tokenized", "data.path=other")


def _tokenize(place: Place, argv: Sequence[str]) -> None:
    from .place import run_in

    code, text = run_in(place.root, ["tokenize", *argv])
    assert code == 0, text


@CASES.refused("an end token that is not in the file", "end_token", "'<over>' is not in the vocabulary")
def _(place: Place) -> Sequence[str]:
    place.copy("corpus")
    TextTokenizer.bytes().save(place.root / "mine.json")
    own = ["data.tokenizer.kind=file", "data.tokenizer.path=mine.json", "data.tokenizer.end_token='<over>'"]
    return ("train", *SMALL, *own)


@CASES.refused("a vocabulary too small for bytes", "data.tokenizer.vocab_size: 12 is too small")
def _(place: Place) -> Sequence[str]:
    place.copy("corpus")
    return ("train", *SMALL, "data.tokenizer.vocab_size=12")


@CASES.refused("a path for a tokenizer that is trained", "data.tokenizer.path", "is not read by kind=bpe")
def _(place: Place) -> Sequence[str]:
    place.copy("corpus")
    return ("train", *SMALL, "data.tokenizer.path=/etc/passwd")
