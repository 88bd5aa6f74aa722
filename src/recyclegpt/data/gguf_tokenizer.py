"""The tokenizer in a GGUF file's metadata, as its makers built it: llama.cpp names that way in `tokenizer.ggml.pre`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from recyclegpt.data.chat_template import ChatTemplate
from recyclegpt.errors import ConfigError
from recyclegpt.gguf_header import read_header

KEYS = "tokenizer.ggml."
_CONTROL, _USER_DEFINED = 3, 4
_ENDS = ("eos", "eot", "eom")
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LETTERS = r"\p{Lm}\p{Lo}\p{M}"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}{_LETTERS}]*[\p{{Ll}}{_LETTERS}]+"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}{_LETTERS}]+[\p{{Ll}}{_LETTERS}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {
    "llama-bpe": rf"{_WORDS}|\p{{N}}{{1,3}}{_REST}",  # Llama 3
    "qwen2": rf"{_WORDS}|\p{{N}}{_REST}",
    "tekken": _TEKKEN,  # Mistral NeMo
}
_SAME = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}
_WHOLE_WORDS = ("llama-bpe", "tekken")
"""These look a word up before they merge, and begin a text with the start token unless the file says otherwise."""


class GGUFTokenizer(NamedTuple):
    """What a GGUF file holds for `TextTokenizer`."""

    tokenizer: Tokenizer
    end_tokens: list[str]
    """By which the file says that a text or an answer ends."""
    chat: ChatTemplate | None


def read_gguf_tokenizer(path: Path) -> GGUFTokenizer:
    """Build it.

    Raises:
        ConfigError: the file is damaged or holds no tokenizer, or one of another kind.
    """
    metadata = read_header(path).metadata
    found = {key.removeprefix(KEYS): value for key, value in metadata.items() if key.startswith(KEYS)}
    kinds: dict[str, Callable[[dict[str, Any]], Tokenizer]] = {"gpt2": _byte_level, "llama": _sentencepiece}
    if (kind := found.get("model")) not in kinds:
        raise ConfigError(f"{path}: {KEYS}model: {kind} is not supported; supported are {', '.join(kinds)}")
    try:
        tokens, types = found["tokens"], found["token_type"]
        tokenizer = kinds[kind](found)
        for wanted, special in ((_CONTROL, True), (_USER_DEFINED, False)):
            added = [
                AddedToken(token, special=special, normalized=False)
                for token, token_type in zip(tokens, types, strict=True)
                if token_type == wanted
            ]
            (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
        named = {
            f"{name}_token": tokens[found[f"{name}_token_id"]]
            for name in ("bos", *_ENDS)
            if f"{name}_token_id" in found
        }
    except KeyError as error:
        raise ConfigError(f"{path}: {KEYS}{error.args[0]} is missing; take a file with a tokenizer") from error
    except ConfigError as error:
        raise ConfigError([f"{path}: {problem}" for problem in error.problems]) from error
    except Exception as error:  # the Rust extension raises bare Exception
        raise ConfigError(f"{path}: its tokenizer cannot be built ({error}); download it again") from error
    start = named.get("bos_token")
    if start is not None and found.get("add_bos_token", kind == "llama" or _split(found) in _WHOLE_WORDS):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, found["bos_token_id"])]
        )
    template = metadata.get("tokenizer.chat_template")
    ends = [named[f"{name}_token"] for name in _ENDS if f"{name}_token" in named]
    return GGUFTokenizer(tokenizer, ends, None if template is None else ChatTemplate(template, named))


def _split(found: dict[str, Any]) -> str:
    """How the text is cut before pairs are merged."""
    name = found.get("pre", "default")
    return _SAME.get(name, name)


def _byte_level(found: dict[str, Any]) -> Tokenizer:
    name = _split(found)
    vocab = {token: number for number, token in enumerate(found["tokens"])}
    merges = [tuple(merge.split(" ")) for merge in found["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=name in _WHOLE_WORDS))
    tokenizer.decoder = decoders.ByteLevel()
    if name in ("gpt-2", "smollm"):
        bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False)
        one_by_one = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_of_words])
        tokenizer.pre_tokenizer = bytes_of_words if name == "gpt-2" else one_by_one
    elif name in _SPLITS:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_SPLITS[name]), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    else:
        known = ", ".join(["gpt-2", "smollm", *_SPLITS])
        raise ConfigError(f"{KEYS}pre: {name} is not supported; supported are {known}")
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _sentencepiece(found: dict[str, Any]) -> Tokenizer:
    """Of Llama 2 and Mistral: two pieces are merged where the vocabulary holds the whole, best scores first."""
    vocab = {token: number for number, token in enumerate(found["tokens"])}
    scores = found["scores"]
    merges = [
        (scores[number], cut, token)
        for token, number in vocab.items()
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    merges.sort(key=lambda merge: (-merge[0], -merge[1]))
    pairs = [(token[:cut], token[cut:]) for _, cut, token in merges]
    unknown = found["tokens"][found.get("unknown_token_id", 0)]
    tokenizer = Tokenizer(models.BPE(vocab, pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = found.get("add_space_prefix", True)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if prefix else "never", split=False)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return tokenizer
