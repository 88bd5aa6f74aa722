"""Text and JSON files that readers see whole, old or new, never in part; plain values and paths for documents."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp"
"""How the name of a file that is being written ends."""


def temporary_beside(path: Path) -> Path:
    """A name nobody else uses, in the same folder: a renaming is atomic only inside one file system."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")


def write_whole(path: Path, text: str) -> None:
    """Write a text file, brought to the disk before it takes its name.

    Raises:
        OSError: it cannot be written; an earlier file of this name is as it was.
    """
    temporary = temporary_beside(path)
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON document so that readers see the old file or the whole new one, never a part.

    NaN and infinities become null, which every JSON reader accepts. Missing parent folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(finite(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(path, text)


def finite(value: Any) -> Any:
    """The same lists and dicts, NaN and infinities as null."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def matches_type(value: Any, kind: Any) -> bool:
    """Whether a stored value has a field's type: an integer may stand for a float, and a bool is never a number."""
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, int | float if kind is float else kind)


def relative(folder: Path) -> Path:
    """As a user would type it from where they stand."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
