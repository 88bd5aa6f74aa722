"""A report as a row of blocks, and the two ways to write it down: Markdown for a repository, HTML to play with."""

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
th { cursor: pointer; background: #f4f4f4; }
th:hover { background: #e4e4e4; }
code { background: #f4f4f4; padding: 1px 4px; }
"""
SORT = """
document.querySelectorAll("th").forEach(head => head.addEventListener("click", () => {
  const table = head.closest("table"), column = [...head.parentNode.children].indexOf(head);
  const rising = head.dataset.rising !== "yes";
  const key = row => {
    const text = row.children[column].textContent.replaceAll(",", "");
    const number = parseFloat(text);
    return isNaN(number) ? (text === "-" ? Infinity : text) : number;
  };
  [...table.tBodies[0].rows]
    .sort((a, b) => { const x = key(a), y = key(b); return (x > y ? 1 : x < y ? -1 : 0) * (rising ? 1 : -1); })
    .forEach(row => table.tBodies[0].append(row));
  head.dataset.rising = rising ? "yes" : "no";
}));
"""


@dataclass(frozen=True)
class Heading:
    """A section begins."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """A sentence or several."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Cells of text."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A figure stands here."""

    figure: Figure


Block = Heading | Paragraph | Bullets | Table | Picture


def to_markdown(title: str, blocks: Sequence[Block], picture: Callable[[Figure], str | None]) -> str:
    """The page in Markdown; `picture` gives the path of a figure's file, None where it was not drawn."""
    parts = [f"# {_plain(title)}"]
    for block in blocks:
        match block:
            case Heading(text):
                parts.append(f"## {_plain(text)}")
            case Paragraph(text):
                parts.append(_plain(text))
            case Bullets(items):
                parts.append("\n".join(f"- {_plain(item)}" for item in items))
            case Table(header, rows):
                lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
                cells = [[cell if i == 1 else _plain(cell) for cell in line] for i, line in enumerate(lines)]
                parts.append("\n".join(f"| {' | '.join(line)} |" for line in cells))
            case Picture(figure):
                path = picture(figure)
                if path is not None:
                    parts.append(f"![{_plain(figure.title)}]({path})")
    return "\n\n".join(parts) + "\n"


def to_html(title: str, blocks: Sequence[Block], script: str, picture: Callable[[Figure], str]) -> str:
    """The page as one HTML file; `script` is what `picture`'s results need, and goes into its head."""
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for block in blocks:
        match block:
            case Heading(text):
                parts.append(f"<h2>{html.escape(text)}</h2>")
            case Paragraph(text):
                parts.append(f"<p>{html.escape(text)}</p>")
            case Bullets(items):
                parts.append("<ul>" + "".join(f"<li>{html.escape(item)}</li>" for item in items) + "</ul>")
            case Table(header, rows):
                head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
                body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
                parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
            case Picture(figure):
                parts.append(f"<h3>{html.escape(figure.title)}</h3>{picture(figure)}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style>{script}</head>\n<body>\n"
        + "\n".join(parts)
        + f"\n<script>{SORT}</script></body></html>\n"
    )


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    text = " ".join(text.split())
    for sign in ("\\", "|", "<", ">", "`", "*", "_", "[", "]"):
        text = text.replace(sign, f"\\{sign}")
    return text
