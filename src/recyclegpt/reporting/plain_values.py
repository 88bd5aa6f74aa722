"""Values read from files: numbers that YAML reads as text, nested mappings as dotted keys."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

Plain = str | int | float | bool | None

# PyYAML follows YAML 1.1, where `1e-3` is text; Hydra reads a number.
_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?")
# The parser in C is ten times as fast, but not in every build of PyYAML.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MOST_ALIASES, _MOST_BRACKETS = 16, 10_000

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
    """`value` if it is a finite number (a bool is not one), else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:
        return None


def flatten(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Plain]]:
    """Leaves of a nested mapping under dotted keys; interpolations stay text."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", plain(value)


def read_yaml(path: Path) -> Any:
    """The document in a YAML file; raises one of `UNREADABLE`."""
    text = _read_text(path)
    # Aliases of aliases fill the memory, and the parser in C nests without a limit.
    aliases = (isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=_LOADER)) if "*" in text else ()
    if text.count("[") + text.count("{") > _MOST_BRACKETS or sum(aliases) > _MOST_ALIASES:
        raise ValueError("has too many aliases or brackets for a config")
    return yaml.load(text, Loader=_LOADER)


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises one of `UNREADABLE`."""
    document = json.loads(_read_text(path))
    if not isinstance(document, dict):
        raise ValueError(f"holds {type(document).__name__}, not a JSON object")
    return document


def _read_text(path: Path) -> str:
    if path.exists() and not path.is_file():  # reading a pipe would block
        raise OSError("is not a regular file")
    return path.read_text(encoding="utf-8")


def override_value(override: str) -> tuple[str, Plain]:
    """Key and value of an override `key=value`, without Hydra's leading `+` or `~`."""
    key, _, value = override.partition("=")
    return key.strip().lstrip("+~"), plain(yaml.load(value, Loader=_LOADER) if value else None)
