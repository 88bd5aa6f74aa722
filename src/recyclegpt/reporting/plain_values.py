"""Values as files spell them, made plain: numbers that YAML reads as text, nested mappings as dotted keys."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

Plain = str | int | float | bool | None

# PyYAML follows YAML 1.1, for which `1e-3` is text; Hydra reads a number there, and so does whoever typed it.
_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?")
_MOST_ALIASES = 16
_MOST_BRACKETS = 10_000
# The parser in C is ten times as fast, and not in every build of PyYAML.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

UNREADABLE = (OSError, ValueError, RecursionError, yaml.YAMLError)
"""What reading a half-written, corrupt or foreign file may raise."""


def plain(value: Any) -> Plain:
    """`value` as number, text, bool or None; number-like text becomes a number, lists become JSON."""
    if isinstance(value, str):
        if _NUMBER.fullmatch(value):
            return float(value) if re.search(r"[.eE]", value) else int(value)
        return value
    if value is None or isinstance(value, bool | int | float):
        return value
    return json.dumps(value, default=str)


def number(value: Any) -> float | None:
    """`value` where it is a finite number, else None (a bool is not one)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:
        return None


def flatten(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Plain]]:
    """Leaves of a nested mapping under dotted keys. Interpolations stay the text they are."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{name}.")
        else:
            yield name, plain(value)


def read_yaml(path: Path) -> Any:
    """The document in a YAML file.

    Raises:
        OSError, ValueError, RecursionError, yaml.YAMLError: see `UNREADABLE`.
    """
    text = _read_text(path)
    if "*" in text:
        _check_aliases(text)
    if text.count("[") + text.count("{") > _MOST_BRACKETS:  # the parser in C has no limit of its own
        raise ValueError("is nested too deeply or too long for a config")
    return yaml.load(text, Loader=_LOADER)


def _read_text(path: Path) -> str:
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise OSError("is no regular file")
    return path.read_text(encoding="utf-8")


def _check_aliases(text: str) -> None:
    """Refuse what a few aliases blow up: an alias of an alias of an alias."""
    num_aliases = sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader))
    if num_aliases > _MOST_ALIASES:
        raise ValueError(f"holds {num_aliases} aliases, more than any config of ours")


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        OSError, ValueError, RecursionError: see `UNREADABLE`.
    """
    document = json.loads(_read_text(path))
    if not isinstance(document, dict):
        raise ValueError(f"holds {type(document).__name__}, not a JSON object")
    return document


def override_value(override: str) -> tuple[str, Plain]:
    """Key and value of `key=value`, without the signs Hydra puts in front.

    Raises:
        yaml.YAMLError: the value is not one.
    """
    key, _, value = override.partition("=")
    return key.strip().lstrip("+~"), plain(yaml.load(value, Loader=_LOADER) if value else None)
