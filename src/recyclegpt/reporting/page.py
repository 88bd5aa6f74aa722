"""A report as a list of blocks, written as Markdown for a repository and as one interactive HTML file."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from recyclegpt.reporting.figure import Figure

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto; font-size: 13px; }
th, td { padding: 4px 10px; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
"""


@dataclass(frozen=True)
class Heading:
    """Starts a section."""

    text: str


@dataclass(frozen=True)
class Table:
    """Cells of text."""

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
    escape = html.escape
    parts = [f"<h1>{escape(title)}</h1>"]
    for block in blocks:
        match block:
            case Heading(text):
                parts.append(f"<h2>{escape(text)}</h2>")
            case Table(header, rows):
                head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
                body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
                parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
            case Figure():
                parts.append(f"<h3>{escape(block.title)}</h3>{picture(block)}")
            case str():
                parts.append(f"<p>{escape(block)}</p>")
            case _:
                parts.append("<ul>" + "".join(f"<li>{escape(item)}</li>" for item in block) + "</ul>")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style>{script}</head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    text = " ".join(text.split())
    for sign in ("\\", "|", "<", ">", "`", "*", "_", "[", "]"):
        text = text.replace(sign, f"\\{sign}")
    return text
