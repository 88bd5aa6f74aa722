"""What Hydra refuses, in one line: the key or choice, what is wrong with it, and the nearest name that exists."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException


def explain_composition(error: BaseException) -> str:
    """One line for an exception of Hydra or OmegaConf, without their advice on search paths and links."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        near = difflib.get_close_matches(choice, error.options, n=1)
        hint = f"did you mean {group}={near[0]}? " if near else ""
        return f"{group}={choice}: no such choice; {hint}choose from: {', '.join(sorted(error.options))}"
    if isinstance(error, OverrideParseException):
        key, _, value = str(error.override).partition("=")
        reason = str(error.message).splitlines()[0]
        return f"{error.override}: cannot be read ({reason}); a text is quoted twice: \"{key}='{value}'\""
    cause = next((found for found in _chain(error) if isinstance(found, OmegaConfBaseException)), None)
    if isinstance(cause, (ConfigAttributeError, ConfigKeyError)) and isinstance(cause.parent_node, DictConfig):
        return _unknown_key(str(cause.full_key), cause.parent_node)
    if cause is not None and cause.full_key:
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
        return [f"{error.full_key}: {_first_line(error)}"]
    return [f"{key}: has no value; set {key}=..." for key in missing]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0].rstrip(".")


def _unknown_key(key: str, section: DictConfig) -> str:
    """The nearest key of the section; else a key of that name, or nearly, anywhere below it (`lr`: `optimizer.lr`)."""
    parent, _, leaf = key.rpartition(".")
    below = list(_dotted_keys(section))
    own = [name for name in below if "." not in name and name != "hydra"]
    by_leaf = {name.rpartition(".")[2]: name for name in reversed(below) if not name.startswith("hydra.")}
    near = difflib.get_close_matches(leaf, own, n=1) or [
        by_leaf[name] for name in difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=0.75)
    ]
    if near:
        return f"unknown key {key}: did you mean {f'{parent}.' if parent else ''}{near[0]}?"
    return f"unknown key {key}: {f'keys of {parent}' if parent else 'keys'} are {', '.join(own)}"


def _dotted_keys(section: DictConfig, path: str = "") -> Iterator[str]:
    for key in map(str, section):
        name = f"{path}{key}"
        yield name
        if OmegaConf.is_missing(section, key) or OmegaConf.is_interpolation(section, key):
            continue
        if isinstance(section[key], DictConfig):
            yield from _dotted_keys(section[key], f"{name}.")
