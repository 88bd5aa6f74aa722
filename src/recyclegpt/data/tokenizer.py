"""Text to token ids and back, around `tokenizers.Tokenizer`. V vocabulary."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Encoding, Tokenizer, decoders, models, pre_tokenizers

from recyclegpt.data.byte_level import BYTE_PIECE, TextStream, byte_symbols, count_bytes, train_bpe
from recyclegpt.data.chat_template import ChatTemplate, read_chat_template, write_chat_template
from recyclegpt.data.gguf_tokenizer import read_gguf_tokenizer
from recyclegpt.errors import ConfigError
from recyclegpt.files import write_whole
from recyclegpt.gguf_header import is_gguf

# The Rust thread pool prints a warning in every forked DataLoader worker unless this was decided before the fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

END_TOKEN = "<|endoftext|>"
KNOWN_END_TOKENS = (END_TOKEN, "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "[EOS]")
_STOP_FILES = ("generation_config.json", "config.json")


@dataclass(frozen=True)
class TokenizerConfig:
    """Which tokenizer to use.

    Raises:
        ConfigError: naming every field that cannot work.
    """

    kind: str = "bpe"
    """`bpe`: byte-level BPE trained on the training split; `byte`: one id per byte; `file`: a `tokenizer.json`."""
    vocab_size: int = 4096
    """Size of a trained vocabulary, its 256 bytes and the end token included; the other kinds bring their own."""
    path: str | None = None
    """A `tokenizer.json`, the folder that holds it, or a GGUF file (kind `file`)."""
    end_token: str | None = None
    """Token that ends a document; null: `<|endoftext|>`, or the usual one that the file holds."""

    def __post_init__(self) -> None:
        problems = []
        if self.kind not in ("bpe", "byte", "file"):
            problems.append(f"tokenizer.kind: {self.kind!r} is unknown; choose bpe, byte or file")
        if self.kind == "bpe" and self.vocab_size < 257:
            problems.append(f"tokenizer.vocab_size: {self.vocab_size} is too small; bytes and end token need 257")
        if self.kind == "file" and not self.path:
            problems.append("tokenizer.path: missing; kind=file needs a tokenizer.json or its folder")
        if self.kind != "file" and self.path:
            problems.append(f"tokenizer.path: {self.path!r} is not read by kind={self.kind}; set tokenizer.kind=file")
        if problems:
            raise ConfigError(problems)


class TextTokenizer:
    """A `tokenizers.Tokenizer` with a known end token.

    Text turns into special tokens only on request: a document that spells the end token stays one document.

    Args:
        tokenizer: any tokenizer; truncation, padding and special tokens around the text are switched off.
        end_token: the token that ends a document; None looks for the usual names.
        stop_tokens: more tokens that end a text the model writes.
        chat: how conversations are written; what ends an answer there is a stop token.

    Raises:
        ConfigError: the end token is not in the vocabulary.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        end_token: str | None = None,
        stop_tokens: Sequence[str] = (),
        chat: ChatTemplate | None = None,
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._content = json.loads(tokenizer.to_str())
        plain, whole = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
        starts = [whole[:length] for length in range(len(whole)) if whole[length : length + len(plain)] == plain]
        self.start_ids: list[int] = starts[0] if plain and starts else []
        """Ids that the tokenizer's own template puts before a text (Llama's and Mistral's `<s>`); often none."""
        tokenizer.encode_special_tokens = True
        self.eos_token, self.eos_id = _find_end_token(tokenizer, end_token)
        turn_end = None if chat is None else chat.end_of_answer(self.special_pattern)
        others = (tokenizer.token_to_id(token) for token in [*stop_tokens, *([turn_end] if turn_end else [])])
        self.stop_ids = list(dict.fromkeys([self.eos_id, *(token for token in others if token is not None)]))
        """The end token first, then the other tokens that end a text the model writes."""
        self.chat = chat
        """The tokenizer's chat template; None where it has none."""

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 4096, end_token: str = END_TOKEN) -> TextTokenizer:
        """Byte-level BPE learned from `texts`; smaller than `vocab_size` where text is scarce."""
        return cls(train_bpe(texts, vocab_size, end_token), end_token)

    @classmethod
    def bytes(cls, end_token: str = END_TOKEN) -> TextTokenizer:
        """One id per byte, id b is byte b, and the end token last: 257 ids."""
        tokenizer = Tokenizer(models.BPE({symbol: byte for byte, symbol in enumerate(byte_symbols())}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([AddedToken(end_token, special=True, normalized=False)])
        return cls(tokenizer, end_token)

    @classmethod
    def from_file(cls, path: str | Path, end_token: str | None = None) -> TextTokenizer:
        """Read a `tokenizer.json`, the one in a folder, or that of a GGUF file. Models also declare what ends a text.

        Raises:
            ConfigError: there is none, or it cannot be parsed.
        """
        if is_gguf(Path(path).expanduser()):
            tokenizer, ends, chat = read_gguf_tokenizer(Path(path).expanduser())
            declared = [*ends, *(name for name in KNOWN_END_TOKENS if tokenizer.token_to_id(name) is not None)]
            return cls(tokenizer, end_token or declared[0], declared, chat)
        tokenizer, file = _read(path)
        declared = read_stop_tokens(file.parent, tokenizer)
        return cls(tokenizer, end_token or next(iter(declared), None), declared, read_chat_template(file.parent))

    @cached_property
    def vocab_size(self) -> int:
        """V, one more than the largest id, so that every id fits an embedding of this many rows."""
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the canonical JSON, and of the tokens that begin and end a document."""
        ends = [self.eos_token, self.start_ids] if self.start_ids else [self.eos_token]
        canonical = json.dumps([self._content, *ends], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def encode(self, text: str, special_tokens: bool = False) -> list[int]:
        """Ids of `text`, without an end token. `special_tokens`: those that it spells become tokens."""
        ids: list[int] = self._encode(text, special_tokens).ids
        return ids

    def encode_prompt(self, text: str, special_tokens: bool = False) -> list[int]:
        """Ids of a text to continue: it begins as documents do, once; an empty one becomes an end token."""
        ids, start = self.encode(text, special_tokens), self.start_ids
        return (ids if start and ids[: len(start)] == start else [*start, *ids]) or [self.eos_id]

    def encode_spans(self, text: str) -> list[tuple[int, int, int, bool]]:
        """Each id of a text with special tokens, the characters it spans (from, up to), and whether it is special."""
        encoded = self._encode(text, special_tokens=True)
        return [(one, *span, one in self.special_ids) for one, span in zip(encoded.ids, encoded.offsets, strict=True)]

    @cached_property
    def special_tokens(self) -> list[str]:
        """The spelling of each special token, longest first."""
        added = [token["content"] for token in self._content["added_tokens"] if token["special"]]
        return sorted(added, key=len, reverse=True)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids of the special tokens."""
        return frozenset(token["id"] for token in self._content["added_tokens"] if token["special"])

    @cached_property
    def special_pattern(self) -> re.Pattern[str]:
        """Finds the special tokens that a text spells."""
        return re.compile("|".join(map(re.escape, self.special_tokens)) or "(?!)")

    def _encode(self, text: str, special_tokens: bool) -> Encoding:
        self._tokenizer.encode_special_tokens = not special_tokens
        try:
            return self._tokenizer.encode(text, add_special_tokens=False)
        finally:
            self._tokenizer.encode_special_tokens = True

    def encode_document(self, text: str) -> list[int]:
        """Ids of a whole document, between the tokens that begin and end one."""
        return [*self.start_ids, *self.encode(text), self.eos_id]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several texts, on all cores."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def decode_stream(self, skip_special_tokens: bool = False) -> TextStream:
        """A decoder that takes ids one at a time and never gives half a character."""
        return TextStream(partial(self.decode, skip_special_tokens=skip_special_tokens), self.byte_ids)

    def token_num_bytes(self, num_ids: int | None = None) -> NDArray[np.int64]:
        """Bytes of UTF-8 text each id stands for, (V,) or (`num_ids`,); special tokens and unused ids stand for none.

        Exact for byte-level vocabularies. Sentencepiece-like ones strip a space at the start of a text, which is
        counted here.
        """
        return count_bytes(self._tokenizer, self._content, num_ids or self.vocab_size)

    @cached_property
    def byte_ids(self) -> frozenset[int]:
        """Ids that stand for a single byte where a character has no id of its own (`<0xE4>`)."""
        vocab = self._tokenizer.get_vocab(with_added_tokens=False)
        return frozenset(token_id for piece, token_id in vocab.items() if BYTE_PIECE.fullmatch(piece))

    def save(self, path: str | Path) -> None:
        """Write a `tokenizer.json` that any `tokenizers` user can read, and the chat template next to it."""
        write_whole(Path(path), json.dumps(self._content, ensure_ascii=False))
        if self.chat is not None:
            write_chat_template(self.chat, Path(path).parent)

    def __getstate__(self) -> dict[str, Any]:
        stops = [self._tokenizer.id_to_token(stop) for stop in self.stop_ids]
        return {"json": json.dumps(self._content), "eos_token": self.eos_token, "stops": stops, "chat": self.chat}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(Tokenizer.from_str(state["json"]), state["eos_token"], state["stops"], state["chat"])  # type: ignore[misc]


def _read(path: str | Path) -> tuple[Tokenizer, Path]:
    path = Path(path).expanduser()
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"tokenizer.path: {file} is no file; give a tokenizer.json or its folder")
    try:
        return Tokenizer.from_file(str(file)), file
    except Exception as error:  # the Rust extension raises bare Exception
        raise ConfigError(f"tokenizer.path: {file} is not a tokenizer.json: {error}") from error


def _find_end_token(tokenizer: Tokenizer, wanted: str | None) -> tuple[str, int]:
    names = (wanted,) if wanted else KNOWN_END_TOKENS
    for name in names:
        token_id = tokenizer.token_to_id(name)
        if token_id is not None:
            return name, token_id
    raise ConfigError(f"tokenizer.end_token: the vocabulary holds no {', '.join(names)}; name what ends a document")


def read_stop_tokens(folder: Path, tokenizer: Tokenizer) -> list[str]:
    """The tokens that end a text, by name, as the configs in a model's folder declare them (`eos_token_id`).

    A chat model declares several, and the first need not be the one that its vocabulary suggests.
    """
    for name in _STOP_FILES:
        try:
            values = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):  # a model that needs the file reports it
            continue
        declared = values.get("eos_token_id") if isinstance(values, dict) else None
        ids = declared if isinstance(declared, list) else [declared]
        found = [tokenizer.id_to_token(one) for one in ids if type(one) is int and 0 <= one < 1 << 32]
        if names := list(dict.fromkeys(name for name in found if name is not None)):
            return names
    return []


def write_stop_tokens(folder: Path, ids: Sequence[int]) -> None:
    """Declare them next to a `tokenizer.json`, where `read_stop_tokens` finds them again."""
    (folder / _STOP_FILES[0]).write_text(json.dumps({"eos_token_id": list(ids)}) + "\n", encoding="utf-8")
