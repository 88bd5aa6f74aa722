"""Values read from files: documents, nested mappings as dotted keys, finite numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

Plain = str | int | float | bool | None

UNREADABLE = (OSError, ValueError, RecursionError, yaml.YAMLError)
"""What reading a half-written, corrupt or foreign file may raise."""


def plain(value: Any) -> Plain:
    """`value` as number, text, bool or None; a list becomes JSON."""
    return value if value is None or isinstance(value, str | bool | int | float) else json.dumps(value, default=str)


def number(value: Any) -> float | None:
    """`value` if it is a finite number (a bool is not one), else None."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


def flatten(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Plain]]:
    """Leaves of a nested mapping under dotted keys; interpolations stay text."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", plain(value)


def read_yaml(path: Path) -> Any:
    """The document in a YAML file; raises one of `UNREADABLE`."""
    # The parser in C is ten times as fast, but not in every build of PyYAML.
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(path.read_text(encoding="utf-8"), Loader=loader)


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises one of `UNREADABLE`."""
    document = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(document, dict):
        raise ValueError(f"holds {type(document).__name__}, not a JSON object")
    return document
