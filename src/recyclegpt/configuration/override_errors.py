"""What is wrong with one override, in words for the person who typed it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf

from recyclegpt.errors import ConfigError

EXTRA_LAUNCHERS = ("joblib", "submitit_local", "submitit_slurm")
"""Of the extra `sweep`."""


class Group(NamedTuple):
    """A config group and its options."""

    name: str
    options: tuple[str, ...]


def explain_parse(line: str, message: str) -> str:
    """An override that Hydra's grammar cannot read: what it is missing, or how to quote its value."""
    key, equals, value = line.partition("=")
    if line.startswith("-") or not equals:
        return f"{line}: is not KEY=VALUE{' and no flag of this command' if line.startswith('-') else ''}"
    if not key.strip():
        return f"{line}: has no key; write KEY=VALUE"
    reason = message.splitlines()
    detail = next((text for text in reason if not text.startswith(("Error parsing", "See http"))), "")
    detail = re.sub(r" expecting .*", "", detail)
    if detail.startswith("LexerNoViableAlt"):
        detail = "it holds a character with a meaning of its own"
    quote = '"' if "'" in value else "'"
    quoted = f"{quote}{value}{quote}"
    shell = f"'{key}={quoted}'" if quote == '"' else f'"{key}={quoted}"'
    return f"{line}: cannot be read ({detail}); if it is a text, quote it for the shell and for Hydra: {shell}"


def explain_override(line: str, error: Exception, cfg: DictConfig, group: Group | None) -> str:
    """An override that can be read but not composed.

    Args:
        line: the override.
        error: what Hydra raised.
        cfg: the config without it, whose keys are what may be overridden.
        group: the config group the override's key names, if any.
    """
    (override,) = OverridesParser.create().parse_overrides([line])
    key, value = override.key_or_group, override.value()
    message = str(error)
    if not key:
        return f"{line}: has no key; write KEY=VALUE"
    if group is not None:
        return _explain_choice(line, key, value, error, group)
    if "Could not append to config" in message:
        return f"{line}: {key} is already there; write {line.lstrip('+')}"
    unknown = ("Could not override", "Could not delete", "looks like a config group")
    if message.startswith(unknown) or (error.__cause__ is not None and "not in" in str(error.__cause__)):
        return _explain_unknown(key, cfg)
    return f"{line}: {explain_section(error)}"


def explain_section(error: BaseException) -> str:
    """Hydra's message without its advice on search paths and links."""
    found: BaseException | None = error
    while found is not None:  # a file that we have refused ourselves
        if isinstance(found, ConfigError):
            return "; ".join(found.problems)
        found = found.__cause__ or found.__context__
    text = str(error) or str(error.__cause__ or type(error).__name__)
    if error.__cause__ is not None and str(error.__cause__) not in text:
        text = f"{text}: {str(error.__cause__).splitlines()[0]}"
    text = re.split(r"\n?Config search path:|\nSee https?:", text)[0]
    return " ".join(part.strip() for part in text.splitlines() if part.strip())


def flat_keys(cfg: DictConfig) -> list[str]:
    """Dotted names of all sections and values, `hydra`'s own among them."""
    return list(_walk(cfg, ""))


def _explain_choice(line: str, key: str, value: object, error: Exception, group: Group) -> str:
    options = ", ".join(group.options)
    message = str(error)
    if "Multiple values for" in message or "appears more than once" in message:
        return f"{line}: a choice of {key} is already made; write {line.lstrip('+')}"
    if "No match in the defaults list" in message or "To append to your default" in message:
        return f"{line}: {key} has no place in this command's config; +{line} adds it, choose from: {options}"
    if not isinstance(value, (str, list)):
        return f"{line}: {key} is chosen by name; choose from: {options}; ~{key} leaves it out"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file == f"{key}/{value}":
        if key == "hydra/launcher" and value in EXTRA_LAUNCHERS:
            return f"{line}: its plugin is not installed; pip install 'recyclegpt[sweep]'"
        near = difflib.get_close_matches(str(value), group.options, n=1)
        hint = f"did you mean {key}={near[0]}? " if near else ""
        return f"{line}: no such choice; {hint}choose from: {options}"
    return f"{line}: {explain_section(error)}"


def _explain_unknown(key: str, cfg: DictConfig) -> str:
    # Hydra's own settings are many and alike; they are proposed only to someone who means one.
    names = [name for name in flat_keys(cfg) if name.startswith("hydra") == key.startswith("hydra")]
    if key.replace("/", ".") in names:
        return f"unknown key {key}: did you mean {key.replace('/', '.')}?"
    parent, _, leaf = key.rpartition(".")
    siblings = _inside(parent, names)
    by_leaf = {name.rpartition(".")[2]: name for name in reversed(names)}
    near = [f"{parent}.{match}" for match in difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.65)]
    if leaf in by_leaf:
        near.append(by_leaf[leaf])
    if not siblings and parent in names:
        return f"unknown key {key}: {parent} is a value and has no keys"
    if not siblings or not parent:  # the section may be misspelt, or left out
        near += difflib.get_close_matches(key, names, n=1, cutoff=0.75)
        near += [by_leaf[match] for match in difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=0.75)]
    if near:
        return f"unknown key {key}: did you mean {near[0].lstrip('.')}?"
    if siblings:
        return f"unknown key {key}: {f'keys of {parent}' if parent else 'keys'} are {', '.join(siblings)}"
    return f"unknown key {key}: there is no {parent}; top-level keys are {', '.join(_inside('', names))}"


def _inside(parent: str, names: list[str]) -> list[str]:
    prefix = f"{parent}." if parent else ""
    rest = [name[len(prefix) :] for name in names if name.startswith(prefix)]
    return [name for name in rest if name and "." not in name and name != "hydra"]


def _walk(node: DictConfig, path: str) -> Iterator[str]:
    for key in list(node):
        name = f"{path}.{key}" if path else str(key)
        yield name
        if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
            continue
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            yield from _walk(child, name)
