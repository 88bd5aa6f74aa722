"""The chat template of a tokenizer: how conversations become one text."""

from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from recyclegpt.errors import ConfigError

Messages = Sequence[Mapping[str, Any]]
"""`{"role": ..., "content": ...}` each."""
_ANSWER = "\ufdd0"
"""Stands for an answer; Unicode assigns it no character."""
log = logging.getLogger("recyclegpt")
TEMPLATE_FILE, SPECIAL_FILE = "chat_template.jinja", "tokenizer_config.json"


CHATS = ("messages", "conversations")
"""Fields that hold a conversation: its messages, or as ShareGPT has them."""
_ROLES = {"human": "user", "gpt": "assistant"}
"""ShareGPT's."""


def read_messages(value: Any) -> list[dict[str, Any]]:
    """The messages in a value of a file, checked; content in text parts is joined, ShareGPT's keys are translated.

    Raises:
        ValueError: saying what is wrong.
    """
    if not isinstance(value, list) or not value:
        raise ValueError("messages are not a list with at least one message")
    return [_message(number, message) for number, message in enumerate(value, start=1)]


def _message(number: int, message: Any) -> dict[str, Any]:
    message = message if isinstance(message, dict) else {}
    role, content = message.get("role"), message.get("content")
    if role is None and isinstance(role := message.get("from"), str):
        role, content, message = _ROLES.get(role, role), message.get("value"), {}
    if isinstance(content, list) and all(isinstance(part, dict) and "text" in part for part in content):
        content = "".join(str(part["text"]) for part in content)
    if isinstance(content, str) and isinstance(role, str):
        content.encode()  # JSON can spell half of a surrogate pair, which no tokenizer takes
        # Columns of a table hold None where a message lacks a key.
        return {**{key: one for key, one in message.items() if one is not None}, "role": role, "content": content}
    raise ValueError(f"message {number} is not an object with a role and a content of text")


class ChatTemplate(NamedTuple):
    """How a model was taught to read conversations."""

    source: str
    """In Jinja."""
    special_tokens: dict[str, str]
    """What the template may name: `bos_token` and the like."""

    def render(self, messages: Messages, add_generation_prompt: bool) -> str:
        """The conversation as one text, as `transformers` renders it.

        Raises:
            ConfigError: the template refuses the messages, or it is broken.
        """
        given = {"messages": messages, "add_generation_prompt": add_generation_prompt, "tools": None, "documents": None}
        try:
            return _compiled(self.source).render(**self.special_tokens, **given)
        except Exception as error:  # a template is a program, and fails in every way that programs do
            raise ConfigError(f"the chat template refuses the messages: {error}") from error

    def after_answer(self) -> str:
        """What it writes after an answer.

        Raises:
            ConfigError: as `render`.
        """
        talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _ANSWER}]
        return self.render(talk, False).partition(_ANSWER)[2]

    def end_of_answer(self, special: re.Pattern[str]) -> str | None:
        """The special token, of those that the pattern finds, that ends an answer; None if there is none."""
        try:
            found = special.search(self.after_answer())
        except ConfigError:
            return None
        return found.group() if found else None


def read_chat_template(folder: Path) -> ChatTemplate | None:
    """The template of a tokenizer's folder, from `chat_template.jinja` or `tokenizer_config.json`; None without one.

    Raises:
        ConfigError: `chat_template.jinja` is not UTF-8 text.
    """
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", SPECIAL_FILE):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        settings |= found if isinstance(found, dict) else {}
    source = settings.get("chat_template")
    if isinstance(source, list):  # several, by name
        named = {one.get("name"): one.get("template") for one in source if isinstance(one, dict)}
        source = named.get("default") or (named.popitem()[1] if len(named) == 1 else None)
        if source is None and not (folder / TEMPLATE_FILE).is_file():
            names = ", ".join(map(str, named))
            log.warning(
                "%s: none of its chat templates (%s) is the default; write one to %s", folder, names, TEMPLATE_FILE
            )
    if (folder / TEMPLATE_FILE).is_file():
        try:
            source = (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{folder / TEMPLATE_FILE}: cannot be read as UTF-8 text ({error})") from error
    if not isinstance(source, str):
        return None
    special = {name: value["content"] if isinstance(value, dict) else value for name, value in settings.items()}
    return ChatTemplate(
        source, {name: value for name, value in special.items() if name.endswith("_token") and isinstance(value, str)}
    )


def write_chat_template(chat: ChatTemplate, folder: Path) -> None:
    """Write it next to a `tokenizer.json`, where `read_chat_template` and `transformers` find it."""
    (folder / TEMPLATE_FILE).write_text(chat.source, encoding="utf-8")
    (folder / SPECIAL_FILE).write_text(json.dumps(chat.special_tokens, ensure_ascii=False) + "\n", encoding="utf-8")


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)  # Jinja's own escapes HTML
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    # A block that only marks what the model wrote.
    source = re.sub(r"(\{%[-+]?\s*)generation(\s*[-+]?%\})", r"\1if true\2", source)
    source = re.sub(r"(\{%[-+]?\s*)endgeneration(\s*[-+]?%\})", r"\1endif\2", source)
    return environment.from_string(source)
