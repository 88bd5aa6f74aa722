"""Conversations to token ids, as the chat template of a tokenizer writes them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from recyclegpt.data.chat_template import Messages
from recyclegpt.data.source import Record, Skipped
from recyclegpt.data.tokenizer import TextTokenizer
from recyclegpt.errors import ConfigError

_MARK = "\ufdd0"
"""Stands inside the special tokens that a message spells; Unicode assigns it no character."""


def render_chat(tokenizer: TextTokenizer, messages: Messages, add_generation_prompt: bool = True) -> list[int]:
    """Ids of a conversation. Special tokens of the template are tokens; those that a message spells are characters.

    Args:
        add_generation_prompt: end with what begins the model's answer.

    Raises:
        ConfigError: the tokenizer has no template, or the template refuses the messages.
    """
    return encode_marked(tokenizer, render_marked(tokenizer, messages, add_generation_prompt))


def render_marked(tokenizer: TextTokenizer, messages: Messages, add_generation_prompt: bool = True) -> str:
    """The conversation as a text for `encode_marked`; the special tokens that messages spell are marked.

    Raises:
        ConfigError: as `render_chat`.
    """
    if tokenizer.chat is None:
        raise ConfigError("tokenizer: it has no chat template (chat_template.jinja, or in tokenizer_config.json)")
    # Marked rather than cut out: the template may trim, split or leave out what a message says.
    marked = _map_texts(messages, lambda text: mark(tokenizer, text))
    return tokenizer.chat.render(marked, add_generation_prompt)


def mark(tokenizer: TextTokenizer, text: str) -> str:
    """The text with a mark in each special token that it spells."""
    return tokenizer.special_pattern.sub(lambda match: match[0][0] + _MARK + match[0][1:], text.replace(_MARK, ""))


def encode_marked(tokenizer: TextTokenizer, text: str) -> list[int]:
    """Ids of a text: special tokens are tokens, and characters where they are marked."""
    ids: list[int] = []
    since: list[int] = []  # the last special token
    start = 0
    for token_id, begin, end, is_special in [*tokenizer.encode_spans(text), (-1, len(text), len(text), True)]:
        if not is_special:
            since.append(token_id)
            continue
        piece = text[start:begin]
        ids += tokenizer.encode(piece.replace(_MARK, "")) if _MARK in piece else since
        ids.append(token_id)
        since, start = [], end
    return ids[:-1]


def documents(records: Iterable[Record], skipped: Skipped, tokenizer: TextTokenizer | None = None) -> Iterator[Record]:
    """The readable, non-empty documents among records, conversations as ids; the others are counted in `skipped`.

    Raises:
        ConfigError: more documents are unreadable than `skipped` allows.
    """
    for number, record in enumerate(records, start=1):
        record = record if tokenizer is None else written(record, tokenizer)
        if skipped.is_readable(record, f"{skipped.corpus}, document {number}"):
            yield record


def written(record: Record, tokenizer: TextTokenizer) -> Record:
    """A record that holds a conversation, as ids where the tokenizer can write it; any other as it is."""
    if record.messages is None or tokenizer.chat is None:
        return record
    try:
        return Record("", ids=render_chat(tokenizer, record.messages, add_generation_prompt=False))
    except ConfigError as error:
        return Record("", f"{(record.problem or '').partition(': ')[0]}: {error}")


def ids_after_a_turn(tokenizer: TextTokenizer) -> list[int]:
    """What follows the end token inside a conversation, where that token ends a turn, and begins none."""
    talk = [{"role": role, "content": "a"} for role in ("user", "assistant") * 2]
    try:
        ids = render_chat(tokenizer, talk, add_generation_prompt=False)
    except ConfigError:
        return []
    return sorted({after for token, after in itertools.pairwise(ids) if token == tokenizer.eos_id} - {*ids[:1]})


def document_ids(record: Record, tokenizer: TextTokenizer) -> list[int]:
    """A whole document, between the tokens that begin and end one; a conversation begins as its template says."""
    if record.ids is None:
        return tokenizer.encode_document(record.text)
    return record.ids if record.ids[-1] == tokenizer.eos_id else [*record.ids, tokenizer.eos_id]


def _map_texts(value: Any, function: Callable[[str], str]) -> Any:
    """`value` with every text inside its lists and dicts converted."""
    if isinstance(value, Mapping):
        return {key: _map_texts(inner, function) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_map_texts(inner, function) for inner in value]
    return function(value) if isinstance(value, str) else value
