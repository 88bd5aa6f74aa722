"""Chats as token ids.

Special tokens that a chat template writes become tokens; those spelt inside a message stay characters. To tell the two
apart, the second kind is put between marks, two code points that no text may hold.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from recyclegpt.data.chat_template import Message, spelling
from recyclegpt.data.tokenizer import TextTokenizer

_BEGIN, _END = "\ufdd0", "\ufdd1"
_MARKED = re.compile(f"{_BEGIN}([^{_BEGIN}{_END}]*){_END}|[{_BEGIN}{_END}]")


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
        return {**message, "content": content}
    raise ValueError(f"message {number} is not an object with a role and a content of text")


def render_chat(tokenizer: TextTokenizer, messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
    """Token ids of a chat; with the generation prompt they end where the answer begins.

    Raises:
        ValueError: the tokenizer has no template, or it refuses the messages.
    """
    return encode_marked(tokenizer, render_marked(tokenizer, messages, add_generation_prompt))


def render_marked(tokenizer: TextTokenizer, messages: Sequence[Message], add_generation_prompt: bool) -> str:
    """The chat as text for `encode_marked`, special tokens that messages spell between marks.

    Raises:
        ValueError: the tokenizer has no template, or it refuses the messages.
    """
    if tokenizer.chat is None:
        raise ValueError("the tokenizer has no chat template; give plain prompts, or a tokenizer with one")
    pattern = spelling(tokenizer.special_tokens)
    return tokenizer.chat.render([_mark(message, pattern) for message in messages], add_generation_prompt)


def mark(tokenizer: TextTokenizer, text: str) -> str:
    """The text with the special tokens it spells between marks."""
    return str(_mark(text, spelling(tokenizer.special_tokens)))


def unmark(text: str) -> str:
    """The text without marks."""
    return text.replace(_BEGIN, "").replace(_END, "")


def encode_marked(tokenizer: TextTokenizer, text: str) -> list[int]:
    """Token ids: what stands between marks as characters, special tokens elsewhere as tokens."""
    first, *rest = _MARKED.split(text)
    ids = tokenizer.encode(first, special_tokens=True)
    newline = tokenizer.encode("\n")
    for number, piece in enumerate(rest):
        if piece:  # None where a template has torn a pair of marks apart
            # After a newline, since some tokenizers put a space before what begins a text.
            inside = tokenizer.encode("\n" + piece, special_tokens=number % 2 == 1)
            begun = inside[: len(newline)] == newline
            ids += inside[len(newline) :] if begun else tokenizer.encode(piece, special_tokens=number % 2 == 1)
    return ids


def _mark(value: Any, pattern: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        return pattern.sub(rf"{_BEGIN}\g<0>{_END}", unmark(value))
    if isinstance(value, dict):
        return {key: _mark(item, pattern) for key, item in value.items()}
    return [_mark(item, pattern) for item in value] if isinstance(value, list) else value
