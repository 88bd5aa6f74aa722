"""What `recyclegpt COMMAND --help` prints: usage, the settings with their comments from `conf/`, and examples."""

from __future__ import annotations

import re
import textwrap
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from types import ModuleType

import yaml

from recyclegpt.configuration.compose import find_conf

EXPLAINED = ("decoding", "bench")
"""Groups whose settings are shown with the command's own: everyone turns them, and they belong to no one command."""
UNEXPLAINED = ("defaults", "hydra", "paths")
"""Sections and groups that are about Hydra and where things lie."""
WIDTH = 110


def help_text(name: str, module: ModuleType, summary: str) -> str:
    """The page of one command.

    Args:
        name: the command, as it is typed.
        module: `EXAMPLES` (what it does, arguments) and, where it has options of its own, `parser()`.
        summary: one line on what it does, for a command without a config file.
    """
    parser: ArgumentParser | None = module.parser() if hasattr(module, "parser") else None
    file = find_conf() / f"{name.replace('-', '_')}.yaml"
    description, groups, settings = _read(file) if file.is_file() else ("", {}, "")
    description = description or f"{summary[0].upper()}{summary[1:]}."
    if parser is not None:
        parser.description = " ".join(text for text in (description, parser.description) if text)
        blocks = [parser.format_help().rstrip()]
    else:
        usage = f"usage: recyclegpt {name} [GROUP=NAME ...] [KEY=VALUE ...]"
        blocks = [usage, textwrap.fill(description, WIDTH)]
    if groups:
        width = max(map(len, groups))
        blocks.append("\n".join(["groups:", *(f"  {group:{width}}  {line}" for group, line in groups.items())]))
    if settings:
        blocks.append("settings:\n" + textwrap.indent(settings, "  "))
    examples = [
        f"  # {what}\n  recyclegpt {name} {arguments}".rstrip() for what, arguments in getattr(module, "EXAMPLES", ())
    ]
    blocks.append("\n".join(["examples:", *examples]))
    return "\n\n".join(blocks)


def _read(file: Path) -> tuple[str, dict[str, str], str]:
    """Description, groups with their choices, and settings of a config file and of those it extends."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    head = list(takewhile(lambda line: line.startswith("#"), lines))
    description = " ".join(line.strip("# ") for line in head if not line.startswith("# @"))
    groups: dict[str, str] = {}
    settings = [block for block in _blocks(lines[len(head) :]) if not _names(block) & {*UNEXPLAINED}]
    for entry in yaml.safe_load(text).get("defaults", []):
        if isinstance(entry, str) and entry != "_self_" and (file.parent / f"{entry}.yaml").is_file():
            _, inherited, more = _read(file.parent / f"{entry}.yaml")
            groups = inherited | groups
            settings.insert(0, more)
        for group, choice in entry.items() if isinstance(entry, dict) else ():
            folder = file.parent / group
            names = sorted(path.stem for path in folder.glob("*.yaml"))
            if len(names) > 1 and group not in UNEXPLAINED:
                groups[group] = ", ".join(names) + (f" (default: {choice})" if choice else "")
            if group in EXPLAINED:
                blocks = _blocks((folder / f"{choice}.yaml").read_text(encoding="utf-8").splitlines())
                own = "\n".join(block for block in blocks if not _names(block) & {*UNEXPLAINED})
                settings.append(f"{group}:\n{textwrap.indent(own, '  ')}")
    return description, groups, "\n".join(part for part in settings if part)


def _blocks(lines: Sequence[str]) -> Iterator[str]:
    """Top-level keys, each with the comments above it and everything indented below it."""
    block: list[str] = []
    has_key = False
    for line in lines:
        if has_key and line[:1] not in ("", " ", "-"):
            yield "\n".join(block).strip("\n")
            block, has_key = [], False
        block.append(line)
        has_key = has_key or bool(re.match(r"\w", line))
    yield "\n".join(block).strip("\n")


def _names(block: str) -> set[str]:
    return set(re.findall(r"^(\w+):", block, re.MULTILINE))
