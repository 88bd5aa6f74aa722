"""The arguments of `recyclegpt generate`, apart, so that `--help` answers without importing torch."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import yaml

from recyclegpt.configuration.compose import find_conf
from recyclegpt.errors import ConfigError


def parser() -> argparse.ArgumentParser:
    """Options of this command, as opposed to Hydra overrides: a prompt never goes through Hydra's grammar."""
    own = argparse.ArgumentParser(prog="recyclegpt generate", allow_abbrev=False, add_help=False)
    source = own.add_mutually_exclusive_group()
    source.add_argument("--prompt", metavar="TEXT", help="the text to continue")
    source.add_argument("--prompt-file", metavar="FILE", type=Path, help="a file that holds it, or a chat's messages")
    own.add_argument(
        "--chat", metavar="TEXT", nargs="?", const=True,
        help="ask the text, or what --prompt, --prompt-file or stdin holds, by the tokenizer's chat template; with "
        "none of them, on a terminal, talk",
    )  # fmt: skip
    own.add_argument("--mark", action="store_true", help="show drafted tokens in colour (on a terminal)")
    own.add_argument("--no-prompt", action="store_true", help="print the continuation alone")
    own.add_argument("--stats", action="store_true", help="print speed and acceptance rate to stderr")
    own.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings, see below")
    return own


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The options; what looks like a setting after a bare `--chat` is one.

    Raises:
        ConfigError: two prompts are given; or one that looks like a setting, and there is none of its name.
    """
    arguments = parser().parse_intermixed_args(list(argv))
    if isinstance(arguments.chat, str):
        setting = re.fullmatch(r"[+~]*(\w+)[\w./@]*=\S*", arguments.chat)
        if setting and f"--chat={arguments.chat}" not in argv:
            known = {"decoding", "hydra", *yaml.safe_load((find_conf() / "generate.yaml").read_text(encoding="utf-8"))}
            if setting[1] not in known:
                remedy = f"as a question it needs an equals sign, --chat={shlex.quote(arguments.chat)}"
                raise ConfigError(f"--chat: {arguments.chat} reads as a setting, which {setting[1]} is not; {remedy}")
            arguments.overrides.append(arguments.chat)
            arguments.chat = True
        elif arguments.prompt is not None or arguments.prompt_file is not None:
            raise ConfigError("--chat: its text and another prompt were given; give one of them")
    return arguments
