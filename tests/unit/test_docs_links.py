"""Every link in a Markdown page leads somewhere: to a file of this repository, or to a heading in one."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)|^\[[^\]]+\]:\s*(\S+)|(?:src|srcset|href)=\"([^\"]+)\"", re.MULTILINE)
HEADING = re.compile(r"^#{1,6} +(.+?)\s*#*$", re.MULTILINE)
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def pages(root: Path) -> list[Path]:
    folders = [root, root / "docs", root / "experiments", root / "notebooks", root / ".github"]
    found = [*root.glob("*.md"), *(page for folder in folders[1:] for page in folder.rglob("*.md"))]
    return sorted(found)


def links(text: str) -> Iterator[str]:
    prose = CODE.sub("", FENCE.sub("", text))
    for match in LINK.finditer(prose):
        yield match[1] or match[2] or match[3]


def anchors(text: str) -> set[str]:
    """The names GitHub gives to headings; the second of the same text ends in -1, the third in -2."""
    found: set[str] = set()
    for heading in HEADING.findall(FENCE.sub("", text)):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        number = next(n for n in range(len(found) + 1) if (f"{slug}-{n}" if n else slug) not in found)
        found.add(f"{slug}-{number}" if number else slug)
    return found


def broken_links(root: Path) -> list[str]:
    problems = []
    for page in pages(root):
        for link in links(page.read_text(encoding="utf-8")):
            if ELSEWHERE.match(link):
                continue
            place, _, anchor = unquote(link).partition("#")
            base = root if place.startswith("/") else page.parent
            target = (base / place.lstrip("/")).resolve() if place else page
            where = f"{page.relative_to(root)}: {link}"
            if not target.exists():
                problems.append(f"{where}: no such file")
            elif not target.is_relative_to(root):
                problems.append(f"{where}: outside the repository")
            elif anchor and target.suffix == ".md" and anchor not in anchors(target.read_text(encoding="utf-8")):
                problems.append(f"{where}: no such heading")
    return problems


def test_links_lead_somewhere() -> None:
    assert pages(ROOT)
    assert broken_links(ROOT) == []


def test_figures_are_drawn_by_the_script_beside_them() -> None:
    folder = ROOT / "docs" / "figures"
    script = (folder / "draw.py").read_text(encoding="utf-8")
    drawn = sorted(path.stem for path in folder.glob("*.svg"))
    assert drawn
    assert [name for name in drawn if f'"{name}"' not in script] == []


def test_linked_files_are_not_ignored_by_git() -> None:
    """An ignored file exists here and not in a clone."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    targets = [
        str((page.parent / unquote(link).partition("#")[0]).resolve())
        for page in pages(ROOT)
        for link in links(page.read_text(encoding="utf-8"))
        if not ELSEWHERE.match(link) and not link.startswith("#")
    ]
    if targets:
        run = subprocess.run(["git", "check-ignore", *targets], cwd=ROOT, capture_output=True, text=True, check=False)
        assert run.stdout == ""
