"""One report as files: tables, pictures, a Markdown page and an interactive one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recyclegpt.reporting.draw_html import draw_html, plotly_script
from recyclegpt.reporting.draw_png import draw_png
from recyclegpt.reporting.figure import Figure
from recyclegpt.reporting.page import Block, to_html, to_markdown
from recyclegpt.reporting.plain_values import Plain
from recyclegpt.reporting.tables import write_csv


@dataclass
class WrittenFiles:
    """What a report has left."""

    files: list[Path]
    not_drawn: list[str]
    """Packages that were missing, so that figures or the interactive page are."""


def write_pages(
    output: Path,
    title: str,
    blocks: Sequence[Block],
    figures: Sequence[Figure],
    tables: Mapping[str, Sequence[dict[str, Plain]]],
) -> WrittenFiles:
    """Write the `tables` by their names, `figures/*.png`, `report.md` and `report.html` into `output`.

    Raises:
        OSError: `output` cannot be written.
    """
    written = WrittenFiles([], [])
    output.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        write_csv(output / name, rows)
        written.files.append(output / name)
    drawn = _draw_all(figures, output, written)
    markdown = output / "report.md"
    markdown.write_text(to_markdown(title, blocks, lambda figure: drawn.get(figure.name)), encoding="utf-8")
    written.files.append(markdown)
    try:
        script = plotly_script() if figures else ""
    except ImportError:
        written.not_drawn.append("plotly")
        return written
    page = output / "report.html"
    page.write_text(to_html(title, blocks, script, draw_html), encoding="utf-8")
    written.files.append(page)
    return written


def _draw_all(figures: Iterable[Figure], output: Path, written: WrittenFiles) -> dict[str, str]:
    drawn = {}
    for figure in figures:
        path = output / "figures" / f"{figure.name}.png"
        try:
            draw_png(figure, path)
        except ImportError:
            written.not_drawn.append("matplotlib")
            return {}
        drawn[figure.name] = f"figures/{path.name}"
        written.files.append(path)
    return drawn
