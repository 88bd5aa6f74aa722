"""A report as a list of blocks: Markdown for a repository, and from it one interactive HTML file."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence

import markdown

from recyclegpt.reporting.figure import Figure

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto; font-size: 13px; }
th, td { padding: 4px 10px; border-bottom: 1px solid #ddd; white-space: nowrap; }
"""

Block = Figure | str
"""A string is Markdown."""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, numbers to the right of the first column."""
    lines = [[escaped(cell) for cell in line] for line in (header, *rows)]
    lines.insert(1, ["---", *["---:"] * (len(header) - 1)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bullets(items: Sequence[str]) -> str:
    """A list."""
    return "\n".join(f"- {escaped(item)}" for item in items)


def escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\|`*_\[\]])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def to_markdown(title: str, blocks: Sequence[Block], picture: Callable[[Figure], str | None]) -> str:
    """The page in Markdown; `picture` gives the path of a figure's file, None where it was not drawn."""
    parts: list[str] = [f"# {escaped(title)}"]
    for block in blocks:
        if isinstance(block, str):
            parts.append(block)
        elif (path := picture(block)) is not None:
            parts.append(f"![{escaped(block.title)}]({path})")
    return "\n\n".join(parts) + "\n"


def to_html(title: str, blocks: Sequence[Block], script: str, picture: Callable[[Figure], str]) -> str:
    """The page as one HTML file; `script` goes into its head, for what `picture` returns."""
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>{script}'
    parts = [f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><h1>{html.escape(title)}</h1>']
    for block in blocks:
        if isinstance(block, str):
            parts.append(markdown.markdown(block, extensions=["tables"]))
        else:
            parts += [f"<h3>{html.escape(block.title)}</h3>", picture(block)]
    return "\n".join([*parts, "</body></html>\n"])
