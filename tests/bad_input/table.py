"""Writes `docs/bad-input.md`, every case with the message it really got: `python -m tests.bad_input.table`."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "bad-input.md"
LONGEST = 260
LONGEST_COMMAND = 90
HEAD = """# Bad input

What the program answers to input that is damaged, foreign, malicious or mistyped. Every line below is a test
(`tests/bad_input/`), which also makes sure that there is no traceback, that a refused command leaves every file as it
was, and that what is left out is counted and named.

Exit 2 is a refusal. With exit 0 the rest is used; at most `data.max_skipped` documents may be left out. Long commands
and messages are shortened (`…`), and settings that only make the tests quick are left out. `python -m
tests.bad_input.table` writes this page anew.
"""


def main() -> int:
    """Run every case in an empty folder and write the page."""
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", PWD="/home/you")
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["RECYCLEGPT_CACHE"] = f"{scratch}/cache"
        PAGE.write_text(page(Path(scratch)), encoding="utf-8")
    return 0


def page(scratch: Path) -> str:
    """The page; `scratch` is an empty folder."""
    from .cases import CASES
    from .place import Place, make_base, run_in

    base = scratch / "base"
    base.mkdir()
    make_base(base)
    lines, category = [HEAD], ""
    for number, case in enumerate(CASES):
        if case.category != category:
            category = case.category
            lines.append(f"\n## {category.capitalize()}\n\n| input | command | exit | message |\n|---|---|---|---|")
        folder = scratch / str(number)
        folder.mkdir()
        argv = case.prepare(Place(folder, base))
        code, text = run_in(folder, argv)
        told = _told(text, case.words, folder)
        lines.append(f"| {_cell(case.name)} | {_cell(_command(argv))} | {code} | {_cell(told)} |")
    return "\n".join(lines) + "\n"


def listed(text: str) -> list[tuple[str, str]]:
    """Category and name of every line of the page."""
    found, category = [], ""
    for line in text.splitlines():
        if line.startswith("## "):
            category = line.removeprefix("## ").lower()
        elif line.startswith("| ") and not line.startswith("| input "):
            found.append((category, re.split(r"(?<!\\) \| ", line.removeprefix("| "))[0]))
    return found


def _command(argv: object) -> str:
    from .place import SETTINGS

    words = [str(word) for word in argv if word not in SETTINGS]  # type: ignore[attr-defined]
    return _shortened(" ".join(repr(word)[1:-1] if not word.isprintable() else word for word in words), LONGEST_COMMAND)


def _told(text: str, words: tuple[str, ...], folder: Path) -> str:
    """The lines of a message that hold what the case waits for."""
    text = text.replace(str(folder.resolve()), ".").replace(str(folder), ".")
    text = re.sub(r"\[\d{4}-\d\d-\d\d [\d:,]+\]|\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", "TIME", text)
    lines = [line.strip(" -") for line in re.split(r"[\n\r]", text) if line.strip()]
    wanted = [line for line in lines if any(word in line for word in words)] or lines[-1:]
    return _shortened(" / ".join(dict.fromkeys(wanted)), LONGEST)


def _shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest * 2 // 3]} … {text[-(longest // 3) :]}"


def _cell(text: str) -> str:
    text = "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("`", "'")


if __name__ == "__main__":
    sys.exit(main())
