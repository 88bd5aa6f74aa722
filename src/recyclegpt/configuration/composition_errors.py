"""What Hydra refuses, in one line: the key or choice, what is wrong with it, and the nearest name that exists."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

_NEEDED = re.compile(r"You must specify '(\w+)'.*Available options:(.*)", re.DOTALL)


def explain_composition(error: BaseException) -> str:
    """One line for an exception of Hydra or OmegaConf, without their advice on search paths and links."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        near = difflib.get_close_matches(choice, error.options, n=1)
        hint = f"did you mean {group}={near[0]}? " if near else ""
        return f"{group}={choice}: no such choice; {hint}choose from: {', '.join(sorted(error.options))}"
    if isinstance(error, OverrideParseException):
        override = str(error.override)
        if "=" not in override:
            return f"{override}: is not KEY=VALUE"
        hint = """put each text in it in double quotes, and all of it in single ones: 'KEY=["~/a (1)"]'"""
        return f"{override}: cannot be read, since text with characters like ~ ( ) # = needs quotes; {hint}"
    if several := re.match(r"Ambiguous value for argument '(.*?)'", str(error)):
        return f"{several[1]}: several values are a sweep, which -m starts; a list has brackets, KEY=[A,B]"
    if needed := _NEEDED.match(str(error)):
        names = sorted({*needed[2].split()} - {"default"})
        return f"{needed[1]}: has to be chosen: {needed[1]}=NAME, one of {', '.join(names)}"
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__ or error.__context__
    if isinstance(cause, (ConfigAttributeError, ConfigKeyError)) and isinstance(cause.parent_node, DictConfig):
        return _unknown_key(str(cause.full_key), cause.parent_node)
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        return f"{cause.full_key}: {_first_line(cause)}"
    text = re.split(r"\n?Config search path:|\nSee https?:", str(error))[0]
    return " ".join(part.strip() for part in text.splitlines() if part.strip())


def value_problems(cfg: DictConfig) -> list[str]:
    """One line for every mandatory value that is not given; or the first interpolation that does not resolve."""
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
        if not missing:
            OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        hint = "; a dollar sign of the text itself is written \\${" if "Interpolation" in str(error) else ""
        return [f"{error.full_key}: {_first_line(error)}{hint}"]
    return [f"{key}: has no value; set {key}=..." for key in missing]


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0].rstrip(".")


def _unknown_key(key: str, section: DictConfig) -> str:
    """The nearest key of the section or below it: `lr` may mean `optimizer.lr`."""
    parent = key.rpartition(".")[0]
    below = {name.rpartition(".")[2]: name for name in reversed(list(_dotted_keys(OmegaConf.to_container(section))))}
    if near := difflib.get_close_matches(key.rpartition(".")[2], below, n=1, cutoff=0.7):
        return f"unknown key {key}: did you mean {f'{parent}.' if parent else ''}{below[near[0]]}?"
    return f"unknown key {key}: {f'keys of {parent}' if parent else 'keys'} are {', '.join(map(str, section))}"


def _dotted_keys(section: Any, path: str = "") -> Iterator[str]:
    for key, value in section.items():
        yield f"{path}{key}"
        if isinstance(value, dict) and key != "hydra":
            yield from _dotted_keys(value, f"{path}{key}.")
