"""A report as a list of blocks, written as Markdown for a repository and as one interactive HTML file."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from recyclegpt.reporting.figure import Figure

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto; font-size: 13px; }
th, td { padding: 4px 10px; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
"""


class Heading(NamedTuple):
    text: str


class Table(NamedTuple):
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


Block = Heading | Table | Figure | str | list[str]
"""A string is a paragraph, a list of strings a list."""


def to_markdown(title: str, blocks: Sequence[Block], picture: Callable[[Figure], str | None]) -> str:
    """The page in Markdown; `picture` gives the path of a figure's file, None where it was not drawn."""
    parts = [f"# {_plain(title)}"]
    for block in blocks:
        match block:
            case Heading(text):
                parts.append(f"## {_plain(text)}")
            case Table(header, rows):
                lines = [[_plain(cell) for cell in line] for line in (header, *rows)]
                lines.insert(1, ["---", *["---:"] * (len(header) - 1)])
                parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
            case Figure():
                if (path := picture(block)) is not None:
                    parts.append(f"![{_plain(block.title)}]({path})")
            case str():
                parts.append(_plain(block))
            case _:
                parts.append("\n".join(f"- {_plain(item)}" for item in block))
    return "\n\n".join(parts) + "\n"


def to_html(title: str, blocks: Sequence[Block], script: str, picture: Callable[[Figure], str]) -> str:
    """The page as one HTML file; `script` goes into its head, for what `picture` returns."""
    head = f'<meta charset="utf-8">{_tagged("title", title)}<style>{STYLE}</style>{script}'
    parts = [f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>', _tagged("h1", title)]
    for block in blocks:
        match block:
            case Heading(text):
                parts.append(_tagged("h2", text))
            case Table(header, rows):
                lines = ["".join(_tagged("th", cell) for cell in header)]
                lines += ["".join(_tagged("td", cell) for cell in row) for row in rows]
                parts.append(f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>")
            case Figure():
                parts += [_tagged("h3", block.title), picture(block)]
            case str():
                parts.append(_tagged("p", block))
            case _:
                parts.append(f"<ul>{''.join(_tagged('li', item) for item in block)}</ul>")
    return "\n".join([*parts, "</body></html>\n"])


def _tagged(tag: str, text: str) -> str:
    return f"<{tag}>{html.escape(text)}</{tag}>"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\|<>`*_\[\]])", r"\\\1", " ".join(text.split()))
