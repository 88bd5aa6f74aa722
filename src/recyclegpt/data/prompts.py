"""Prompts for decoding: beginnings of documents, or what people bring, from a file of JSON lines or one at a time."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recyclegpt.data.chat import render_chat
from recyclegpt.data.chat_template import CHATS, Messages, read_messages
from recyclegpt.data.packed_rows import Tokens
from recyclegpt.data.readers import open_file
from recyclegpt.data.rows import DAMAGE, json_values
from recyclegpt.data.tokenizer import TextTokenizer
from recyclegpt.errors import ConfigError

_CHUNK = 1 << 22


def choose_prompts(tokens: NDArray[np.int64], eos_id: int, num: int, length: int) -> NDArray[np.int64]:
    """Beginnings of different documents, (num, length); the same at every call.

    If too few documents are long enough, more prompts come from inside documents. No two overlap.

    Raises:
        ConfigError: the tokens do not hold `num` prompts.
    """
    starts = np.concatenate([[0], np.flatnonzero(tokens == eos_id) + 1])
    stops = np.append(starts[1:] - 1, len(tokens))
    fitting = starts[stops - starts >= length]
    if len(fitting) > num:
        fitting = fitting[np.linspace(0, len(fitting), num, endpoint=False).astype(int)]
    chosen: list[int] = fitting.tolist()
    for start in range(0, len(tokens) - length + 1, length):
        if len(chosen) >= num:
            break
        if all(abs(start - other) >= length for other in chosen):
            chosen.append(start)
    if len(chosen) < num:
        found = f"{num} prompts of {length} tokens do not fit into {len(tokens)} validation tokens"
        raise ConfigError(f"data: {found}; ask for fewer or shorter ones, or give more text")
    return np.stack([tokens[start : start + length] for start in chosen])


def draw_prompts(tokens: Tokens, eos_id: int, num: int, length: int, seed: int) -> NDArray[np.int64]:
    """Beginnings of documents drawn at random, (num, length), none twice; the same for the same seed.

    If too few documents are long enough, the rest are windows drawn from inside documents: these may overlap, but no
    two start at the same place, and none crosses the end of its document.

    Raises:
        ConfigError: the tokens do not hold `num` prompts.
    """
    ends = [np.empty(0, np.int64)]
    for start in range(0, tokens.num_tokens, _CHUNK):
        read = tokens.read(start, min(start + _CHUNK, tokens.num_tokens))
        ends.append(np.flatnonzero(read == eos_id) + start)
    stops = np.append(np.concatenate(ends), tokens.num_tokens)
    starts = np.concatenate([[0], stops[:-1] + 1])
    fits = stops - starts >= length
    starts, stops = starts[fits], stops[fits]
    draw = np.random.default_rng(seed)
    chosen = draw.permutation(starts)[:num]
    if (num_missing := num - len(chosen)) > 0:
        # A document of n tokens holds n - length windows besides its beginning; number them all.
        upto = np.cumsum(stops - starts - length)
        num_windows = int(upto[-1]) if len(upto) else 0
        if num_windows < num_missing:
            held = f"{len(chosen) + num_windows} of {num} prompts of {length} tokens"
            raise ConfigError(f"data: the split holds {held}; ask for fewer or shorter ones")
        number = draw.choice(num_windows, num_missing, replace=False)
        document = np.searchsorted(upto, number, side="right")
        chosen = np.concatenate([chosen, stops[document] - length - (upto[document] - 1 - number)])
    return np.stack([tokens.read(start, start + length) for start in chosen.tolist()])


log = logging.getLogger("recyclegpt")
OVERALL = "overall"
"""Name of a benchmark's last row, and of no category."""
UNNAMED = "all"
"""Category of lines that name none."""


class Prompt(NamedTuple):
    """A plain text, a chat whose answer comes next, or a question that is either, as the tokenizer allows."""

    text: str | None
    messages: Messages | None = None
    category: str = UNNAMED


def encode_prompts(tokenizer: TextTokenizer, prompts: Sequence[Prompt], special_tokens: str) -> list[list[int]]:
    """Token ids of each prompt. Where plain ones spell special tokens, one warning says how those were read.

    Args:
        special_tokens: how those that a plain prompt spells are read: `tokens`, `characters`, or `auto`: as tokens
            where the tokenizer has a chat template.

    Raises:
        ConfigError: there is no such way, or a chat cannot be rendered; naming the first.
    """
    if special_tokens not in ("auto", "tokens", "characters"):
        raise ConfigError(f"prompt_special_tokens: {special_tokens!r} is unknown; choose auto, tokens or characters")
    has_template = tokenizer.chat is not None
    as_tokens = special_tokens == "tokens" or (special_tokens == "auto" and has_template)
    rows, spelt, num_spelling, num_answered = [], set(), 0, 0
    for number, prompt in enumerate(prompts, start=1):
        if prompt.messages is not None and (has_template or prompt.text is None):
            answered = prompt.messages[-1].get("role") == "assistant"
            num_answered += answered
            try:
                rows.append(render_chat(tokenizer, prompt.messages[: -1 if answered else None], True))
            except ConfigError as error:
                raise ConfigError([f"prompt {number}: {problem}" for problem in error.problems]) from error
        else:
            text = prompt.text or ""
            found = set(tokenizer.special_pattern.findall(text))
            num_spelling += bool(found)
            spelt |= found
            rows.append(tokenizer.encode_prompt(text, special_tokens=as_tokens))
    if num_answered:
        log.warning(
            "%d of %d chats end with an answer, which is left out: the model writes its own", num_answered, len(prompts)
        )
    if spelt:
        read, other = ("tokens", "characters") if as_tokens else ("characters", "tokens")
        log.warning(
            "%d of %d prompts spell special tokens (%s), which are read as %s; prompt_special_tokens=%s reads them as "
            "%s", num_spelling, len(prompts), ", ".join(sorted(spelt)), read, other, other,
        )  # fmt: skip
    return rows


def chat_in(text: str) -> list[dict[str, Any]] | None:
    """The messages of a text that is one JSON object `{"messages": [...]}` or their list; None if it is any other text.

    Raises:
        ValueError: the messages are faulty, lines with more of them follow, or it is a row of a file of prompts.
    """
    try:
        first, end = json.JSONDecoder().raw_decode(text.lstrip())
    except (ValueError, RecursionError):
        return None
    if isinstance(first, list) and first and all(isinstance(one, dict) and {"role", "from"} & {*one} for one in first):
        first = {CHATS[0]: first}
    key = next((key for key in CHATS if isinstance(first, dict) and key in first), None)
    if isinstance(first, dict) and key is None and {"prompt", "turns", "role"} & {*first}:
        raise ValueError('it is a row of prompts; give the text itself, {"messages": [...]}, or bench prompts=FILE')
    if key is None:
        return None
    if text.lstrip()[end:].strip():
        raise ValueError("more follows the first chat; give one, or many to `recyclegpt bench prompts=FILE`")
    return read_messages(first[key])


def read_prompts(path: str | Path, as_chats: bool = False) -> list[Prompt]:
    """The prompts of a file of JSON, one a line or in a list, each with a category if it likes.

    A line holds `prompt`, a plain text, or a question with `as_chats`; or `messages`, a chat; or `turns`, Spec-Bench's
    questions, of which the first is asked, since those after it follow an answer of another model's.

    Raises:
        ConfigError: the file cannot be read or holds nothing, or a line is something else; naming the first.
    """
    path = Path(path).expanduser()
    prompts: list[Prompt] = []
    num_longer = 0
    try:
        with open_file(path) as opened:
            for where, values in json_values(opened):
                try:
                    prompts.append(_prompt(values, as_chats))
                except ValueError as error:
                    raise ConfigError(f"prompts: {path}{where}: {error}") from error
                num_longer += not {*CHATS} & {*values} and len(values.get("turns") or ()) > 1
    except (OSError, *DAMAGE) as error:
        raise ConfigError(f"prompts: {path} cannot be read ({error})") from error
    if not prompts:
        raise ConfigError(f'prompts: {path} is empty; give a line {{"category": "...", "prompt": "..."}} for each')
    if num_longer:
        log.warning("%d of %d prompts have several turns; the first of each is decoded", num_longer, len(prompts))
    return prompts


def _prompt(values: Any, as_chats: bool) -> Prompt:
    """The prompt of a line. ValueError says what is wrong with the line."""
    if isinstance(values, ValueError):
        raise values
    values = values if isinstance(values, dict) else {}
    category, turns = values.get("category") or UNNAMED, values.get("turns") or [values.get("prompt")]
    if not isinstance(category, str) or category == OVERALL:
        raise ValueError(f"its category is {category!r}; choose a text other than {OVERALL!r}")
    for key in CHATS:
        if key in values:
            return Prompt(None, read_messages(values[key]), category)
    text = turns[0] if isinstance(turns, list) else None
    if not isinstance(text, str) or not text:
        raise ValueError("lacks a prompt, messages, or turns that begin with a text that is not empty")
    text.encode()  # JSON can spell half of a surrogate pair, which no tokenizer takes
    return Prompt(text, [{"role": "user", "content": text}] if as_chats or values.get("turns") else None, category)
