"""Plain values that come back from a checkpoint or a JSON file, which may be other than what went in."""

from __future__ import annotations

from typing import Any


def is_of(value: Any, kind: Any) -> bool:
    """Whether a value is what a field of this type holds: a float may be a whole number, and no number is a bool."""
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, int | float if kind is float else kind)
