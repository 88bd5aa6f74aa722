"""What `recyclegpt COMMAND --help` prints: usage, the settings with their comments from `conf/`, and examples."""

from __future__ import annotations

import re
import textwrap
from argparse import ArgumentParser
from importlib import import_module
from itertools import takewhile
from pathlib import Path

import yaml

from recyclegpt.configuration.compose import find_conf

EXPLAINED = ("decoding", "bench")
"""Groups whose settings are shown with the command's own: everyone turns them, and they belong to no one command."""
UNEXPLAINED = r"^(defaults|hydra|paths)\b"
"""Sections and groups that are about Hydra and where things lie."""
PARTS = ("default", "base")
"""Files of a group that its choices are made from."""
PARSERS = {"generate": "prompt_arguments", "doctor": "doctor", "report": "report"}
"""Modules with the parsers of the commands that have one; a command itself may take seconds to import."""
EXAMPLES = Path(__file__).with_name("examples.yaml")
WIDTH = 110


def help_text(name: str, summary: str) -> str:
    """The page of a command; `summary` is for one without a config file."""
    file = find_conf() / f"{name.replace('-', '_')}.yaml"
    description, groups, settings = _read(file) if file.is_file() else ("", {}, "")
    description = description or f"{summary[0].upper()}{summary[1:]}."
    if name in PARSERS:
        parser: ArgumentParser = import_module(f"recyclegpt.commands.{PARSERS[name]}").parser()
        parser.description = " ".join(text for text in (description, parser.description) if text)
        blocks = [parser.format_help().rstrip()]
    else:
        usage = f"usage: recyclegpt {name}{' [GROUP=NAME ...]' if groups else ''} [KEY=VALUE ...]"
        blocks = [usage, textwrap.fill(description, WIDTH)]
    if groups:
        width = max(map(len, groups))
        blocks.append("\n".join(["groups:", *(f"  {group:{width}}  {line}" for group, line in groups.items())]))
    if settings:
        blocks.append("settings:\n" + textwrap.indent(settings, "  "))
    own = yaml.safe_load(EXAMPLES.read_text(encoding="utf-8"))[name].items()
    examples = [f"  # {what}\n  recyclegpt {name} {arguments}".rstrip() for what, arguments in own]
    return "\n\n".join([*blocks, "\n".join(["examples:", *examples])])


def _read(file: Path) -> tuple[str, dict[str, str], str]:
    """Description, groups with their choices, and settings of a config file and of those it extends."""
    text = file.read_text(encoding="utf-8")
    head = takewhile(lambda line: line.startswith("#"), text.splitlines())
    description = " ".join(line.strip("# ") for line in head if not line.startswith("# @"))
    groups: dict[str, str] = {}
    settings = [_settings(text)]
    for entry in yaml.safe_load(text).get("defaults", []):
        if isinstance(entry, str) and (file.parent / f"{entry}.yaml").is_file():
            _, inherited, more = _read(file.parent / f"{entry}.yaml")
            groups = inherited | groups
            settings.insert(0, more)
        for key, choice in entry.items() if isinstance(entry, dict) else ():
            group = key.removeprefix("override ")
            names = sorted(path.stem for path in (file.parent / group).glob("*.yaml"))
            if len(names) > 1 and not re.match(UNEXPLAINED, group):
                shown = [name for name in names if name == choice or name not in PARTS]
                groups[group] = ", ".join(shown) + (f" (default: {choice})" if choice not in (None, "???") else "")
            if group in EXPLAINED:
                own = _settings((file.parent / group / f"{choice}.yaml").read_text(encoding="utf-8"))
                settings.append(f"{group}:\n{textwrap.indent(own, '  ')}")
    return description, groups, "\n".join(part for part in settings if part)


def _settings(text: str) -> str:
    """The top-level keys of a file with the comments above them and all below; without the comment that heads it."""
    body = re.sub(r"\A(#.*\n)+(?=defaults:)", "", text)
    blocks = re.findall(r"^(?:#.*\n)*\w+:.*\n?(?:(?:[ -].*)?\n)*?(?=#|\w|\Z)", body, re.MULTILINE)
    return "\n".join(block.strip("\n") for block in blocks if not re.search(UNEXPLAINED, block, re.MULTILINE))
