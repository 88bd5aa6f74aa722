"""Plain text for a terminal: aligned tables, and colour only where someone is looking."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from typing import TextIO

STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34", "cyan": "36"}


def format_table(rows: Sequence[Sequence[object]], header: Sequence[str] | None = None) -> str:
    """Columns padded to the same width, numbers to the right, two spaces between; no newline at the end.

    None and NaN print as "-", a float with four significant digits (none after the point from 10,000 on).

    Raises:
        ValueError: a row has more or fewer cells than the others.
    """
    lines = [[_cell(value) for value in row] for row in rows]
    widths = {len(line) for line in [*lines, *([header] if header is not None else [])]}
    if len(widths) > 1:
        raise ValueError(f"rows of {sorted(widths)} cells do not make a table")
    num_columns = widths.pop() if widths else 0
    right = [bool(rows) and all(_is_number(row[column]) for row in rows) for column in range(num_columns)]
    if header is not None:
        lines = [list(header), [], *lines]
    width = [max((len(line[column]) for line in lines if line), default=0) for column in range(num_columns)]
    return "\n".join(
        "  ".join(
            cell.rjust(width[column]) if right[column] else cell.ljust(width[column])
            for column, cell in enumerate(line or ["-" * w for w in width])
        ).rstrip()
        for line in lines
    )


def print_table(
    rows: Sequence[Sequence[object]], header: Sequence[str] | None = None, file: TextIO | None = None
) -> None:
    """Print `format_table`, its header in bold on a terminal."""
    out = sys.stdout if file is None else file
    table = format_table(rows, header)
    if header is not None:
        first, _, rest = table.partition("\n")
        table = f"{paint(first, 'bold', out)}\n{rest}"
    print(table, file=out)


def paint(text: str, style: str, file: TextIO | None = None) -> str:
    """`text` in a style of `STYLES` where `file` (default: standard output) wants colour, else as it is."""
    out = sys.stdout if file is None else file
    return f"\x1b[{STYLES[style]}m{text}\x1b[0m" if wants_colour(out) else text


def wants_colour(file: TextIO) -> bool:
    """Whether `file` is a terminal, and neither NO_COLOR (no-color.org) nor a dumb terminal says otherwise."""
    return file.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


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
