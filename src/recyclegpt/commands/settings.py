"""The settings of a command: its config, or a section of it, as a dataclass."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, OmegaConf

from recyclegpt.configuration.schemas import to_dataclass

T = TypeVar("T")


def read_settings(kind: type[T], section: DictConfig, path: str = "") -> T:
    """The fields of a dataclass from a section that may hold more.

    Raises:
        ConfigError: naming every value of another type, or else every value that the dataclass refuses.
    """
    names = [field.name for field in dataclasses.fields(cast("Any", kind))]
    return to_dataclass(kind, OmegaConf.masked_copy(section, names), path)


def not_positive(settings: Any, *names: str) -> list[str]:
    """A problem for each of these fields, or members of a field that is a list, that is below 1."""
    problems = []
    for name in names:
        given = getattr(settings, name)
        values = given if isinstance(given, list) else [given]
        problems += [f"{name}: {value} is not a positive whole number" for value in values if value < 1]
        if not values:
            problems.append(f"{name}: the list is empty; give at least one value")
    return problems
