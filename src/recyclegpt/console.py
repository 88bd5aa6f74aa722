"""Plain text for a terminal: aligned tables, and colour only where someone is looking."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence

STYLES = {"bold": "1", "red": "31", "green": "32", "yellow": "33"}


def format_table(rows: Sequence[Sequence[object]], header: Sequence[str] | None = None) -> str:
    """Columns padded to the same width, numbers to the right, two spaces between; no newline at the end.

    None and NaN print as "-", a float with four significant digits (none after the point from 10,000 on).

    Raises:
        ValueError: a row has more or fewer cells than the others.
    """
    lines = [*([header] if header is not None else []), *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = [all(map(_is_number, column)) for column in zip(*rows, strict=True)] or [False] * len(widths)
    if header is not None:
        lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def print_table(rows: Sequence[Sequence[object]], header: Sequence[str] | None = None) -> None:
    """Print `format_table`, its header in bold on a terminal."""
    table = format_table(rows, header)
    if header is not None:
        first, _, rest = table.partition("\n")
        table = f"{paint(first, 'bold')}\n{rest}"
    print(table)


def paint(text: str, style: str) -> str:
    """`text` in a style of `STYLES` on a terminal, unless NO_COLOR (no-color.org) or a dumb terminal says otherwise."""
    wanted = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\x1b[{STYLES[style]}m{text}\x1b[0m" if wanted else text


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 or math.isinf(value) else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
