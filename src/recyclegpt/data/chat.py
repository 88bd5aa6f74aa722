"""Conversations to token ids, as the chat template of a tokenizer writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from recyclegpt.data.chat_template import Messages
from recyclegpt.data.source import Record, Skipped, Source, Split
from recyclegpt.data.tokenizer import TextTokenizer
from recyclegpt.errors import ConfigError

_MARK = "\ufdd0"
"""Stands inside the special tokens that a message spells; Unicode assigns it no character."""


def read_messages(value: Any) -> list[dict[str, Any]]:
    """The messages in a value of a file, checked; content in text parts is joined.

    Raises:
        ValueError: saying what is wrong.
    """
    if not isinstance(value, list) or not value:
        raise ValueError("messages are not a list with at least one message")
    return [_message(number, message) for number, message in enumerate(value, start=1)]


def _message(number: int, message: Any) -> dict[str, Any]:
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list) and all(isinstance(part, dict) and "text" in part for part in content):
        content = "".join(str(part["text"]) for part in content)
    if isinstance(content, str) and isinstance(message.get("role"), str):
        content.encode()  # JSON can spell half of a surrogate pair, which no tokenizer takes
        return {**message, "content": content}
    raise ValueError(f"message {number} is not an object with a role and a content of text")


def render_chat(tokenizer: TextTokenizer, messages: Messages, add_generation_prompt: bool = True) -> list[int]:
    """Ids of a conversation. Special tokens of the template are tokens; those that a message spells are characters.

    Args:
        tokenizer: one with a chat template (`tokenizer.chat`).
        messages: the conversation.
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


def documents(
    source: Source, split: Split, skipped: Skipped, tokenizer: TextTokenizer | None = None
) -> Iterator[Record]:
    """The readable, non-empty documents of a split, conversations as ids; the others are counted in `skipped`.

    Raises:
        ConfigError: more documents are unreadable than `skipped` allows.
    """
    for number, record in enumerate(source.records(split), start=1):
        record = record if tokenizer is None else written(record, tokenizer)
        if skipped.is_readable(record, f"{source.kind}, {split} document {number}"):
            yield record


def written(record: Record, tokenizer: TextTokenizer) -> Record:
    """A record that holds a conversation, as ids where the tokenizer can write it; any other as it is."""
    if record.messages is None or tokenizer.chat is None:
        return record
    where = (record.problem or "").partition(": ")[0]
    try:
        messages = read_messages(record.messages)
        return Record("", ids=render_chat(tokenizer, messages, add_generation_prompt=False))
    except ValueError as error:
        return Record("", f"{where}: {error}")


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
