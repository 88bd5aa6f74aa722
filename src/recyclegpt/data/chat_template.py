"""A tokenizer's chat template: the Jinja program that turns messages into text."""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from recyclegpt.files import write_whole

Message = Mapping[str, Any]
"""`{"role": ..., "content": ...}`, and whatever else the template reads."""
JINJA, CONFIG = "chat_template.jinja", "tokenizer_config.json"
_ANSWER = "\ufdd0"
"""Stands for an answer in a chat; no text may hold this code point."""


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template as `transformers` runs it, and the special tokens that it may name."""

    source: str
    variables: Mapping[str, str]

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        """The chat as text.

        Raises:
            ValueError: the template is faulty, or refuses these messages.
        """
        import jinja2

        try:
            return str(
                _compiled(self.source).render(
                    **self.variables, messages=messages, add_generation_prompt=add_generation_prompt, tools=None
                )
            )
        except (jinja2.TemplateError, TypeError, AttributeError, LookupError) as error:
            raise ValueError(f"the chat template cannot render these messages ({error})") from error

    def turn_end(self, special_tokens: Sequence[str]) -> str | None:
        """The special token that ends an answer; None if the template writes none."""
        try:
            question, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": _ANSWER}
            rest = self.render([question, answer], False).partition(_ANSWER)[2]
        except ValueError:
            return None
        found = spelling(special_tokens).search(rest)
        return found.group() if found else None


def read_template(folder: Path) -> ChatTemplate | None:
    """The default template in a tokenizer's folder, in either place where `transformers` keeps it; None without one."""
    values: dict[str, Any] = {}
    for name in ("special_tokens_map.json", CONFIG):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        values |= found if isinstance(found, dict) else {}
    source = values.get("chat_template")
    if isinstance(source, list):  # several, by name
        source = {one.get("name"): one.get("template") for one in source if isinstance(one, dict)}.get("default")
    with contextlib.suppress(OSError, UnicodeDecodeError):  # then the other place counts
        source = (folder / JINJA).read_text(encoding="utf-8")
    if not isinstance(source, str):
        return None
    named = {name: value.get("content") if isinstance(value, dict) else value for name, value in values.items()}
    return ChatTemplate(
        source, {name: value for name, value in named.items() if name.endswith("_token") and isinstance(value, str)}
    )


def write_template(template: ChatTemplate, folder: Path) -> None:
    """Write it where `read_template` and `transformers` find it."""
    values = {**template.variables, "chat_template": template.source}
    write_whole(folder / CONFIG, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def spelling(special_tokens: Sequence[str]) -> re.Pattern[str]:
    """Finds special tokens in text, the longest first; with no special token, nothing."""
    return re.compile("|".join(map(re.escape, sorted(special_tokens, key=len, reverse=True))) or "(?!)")


@functools.lru_cache
def _compiled(source: str) -> Any:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, indent: int | None = None, **_: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson  # Jinja's own escapes HTML
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    # `{% generation %}` marks an answer for training tools; here it means nothing.
    return environment.from_string(re.sub(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}", r"{#\1 \2#}", source))
