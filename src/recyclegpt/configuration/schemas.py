"""Schemas: dataclasses that say which keys a config has and of which type, as OmegaConf checks them.

Sections that no `_target_` owns are typed while Hydra composes them (`ConfigStore`). A node whose `_target_` is a
dataclass is held against that dataclass when it is built (`instantiate`), so its fields stand in one place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from recyclegpt.decoding import DecodingConfig
from recyclegpt.errors import ConfigError, Problems

T = TypeVar("T")


def not_positive(settings: Any, *names: str) -> list[str]:
    """A problem for each of these fields, or members of a field that is a list, that is below 1; null is none."""
    given = {name: getattr(settings, name) for name in names}
    return [
        f"{name}: {value} is not a positive whole number"
        for name, values in given.items()
        for value in (values if isinstance(values, list | tuple) else [values])
        if value is not None and value < 1
    ]


@dataclass
class Backbone:
    """Where the backbone's weights come from, and whether they are trained."""

    checkpoint: str | None = None
    frozen: bool = False


@dataclass
class Training:
    """How the layers are run while they learn."""

    compile: bool = False
    activation_checkpointing: bool | int = False
    max_skipped_steps: int = 10
    cache_states: bool = False

    def __post_init__(self) -> None:
        counts = ("activation_checkpointing", "max_skipped_steps")
        problems = [f"{key}: {getattr(self, key)} is negative" for key in counts if getattr(self, key) < 0]
        if problems:
            raise ConfigError(problems)


@dataclass
class Checkpointing:
    """When checkpoints are written, and how many are kept."""

    every_n_steps: int = 500
    keep: int = 2
    max_failed: int = 3

    def __post_init__(self) -> None:
        problems = not_positive(self, "every_n_steps", "keep")
        if self.max_failed < 0:
            problems.append(f"max_failed: {self.max_failed} is negative")
        if problems:
            raise ConfigError(problems)


@dataclass
class Sweep:
    """The folder a sweep is kept in, and the control that a run of it is."""

    name: str = "adhoc"
    tag: str = MISSING
    control: str | None = None


@dataclass
class Train:
    """The root of `train` and `adapt`. Groups are typed by what their `_target_` builds."""

    name: str = "default"
    seed: int = 1
    resume: str = "never"
    module: str | None = None
    model: Any = None
    recycle: Any = None
    loss: Any = None
    data: Any = None
    optimizer: Any = None
    scheduler: Any = None
    trainer: Any = None
    callbacks: Any = None
    logger: Any = None
    decoding: Any = None
    paths: Any = None
    backbone: Backbone = field(default_factory=Backbone)
    training: Training = field(default_factory=Training)
    checkpointing: Checkpointing = field(default_factory=Checkpointing)
    sweep: Sweep = field(default_factory=Sweep)


def register_schemas() -> None:
    """Put the schemas where the `defaults` lists of `conf/` find them."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=Train, provider="recyclegpt")
    store.store(group="decoding", name="schema", node=DecodingConfig, provider="recyclegpt")


def section_problems(cfg: DictConfig) -> list[str]:
    """What the dataclasses of a training config's own sections refuse, all of it."""
    problems = Problems()
    if not 0 <= cfg.seed < 2**32:
        problems.found.append(f"seed: {cfg.seed} is not a whole number from 0 to 4294967295")
    for key, kind in (("training", Training), ("checkpointing", Checkpointing), ("decoding", DecodingConfig)):
        with problems.under():
            to_dataclass(kind, cfg[key], key)
    return problems.found


def to_dataclass(kind: type[T], section: Mapping[str, Any] | DictConfig, path: str = "") -> T:
    """A section as an instance of a dataclass.

    Raises:
        ConfigError: every key that the dataclass does not have, every value of a wrong type and every mandatory value
            that is missing; or all that its `__post_init__` refuses. Each begins with the path of its key.
    """
    typed = OmegaConf.structured(kind)
    OmegaConf.set_readonly(typed, False)  # a frozen dataclass is
    plain: Any = OmegaConf.to_container(section, resolve=True) if isinstance(section, DictConfig) else dict(section)
    prefix = f"{path}." if path else ""
    problems = []
    for key, value in plain.items():
        try:
            typed[key] = value
        except (ConfigAttributeError, ConfigKeyError):
            names = ", ".join(own.name for own in dataclasses.fields(kind))  # type: ignore[arg-type]
            problems.append(f"{prefix}{key}: unknown key; choose from: {names}")
        except OmegaConfBaseException as error:
            problems.append(f"{prefix}{key}: {str(error).splitlines()[0]}")
    missing = [key for key in sorted(OmegaConf.missing_keys(typed)) if plain.get(key, MISSING) == MISSING]
    problems += [f"{prefix}{key}: has no value; set {prefix}{key}=..." for key in missing]
    if problems:
        raise ConfigError(problems)
    values: Any = OmegaConf.to_container(typed)
    found = Problems()
    with found.under(prefix):
        return kind(**{key: values[key] for key in plain})
    raise ConfigError(found.found)


def read_settings(kind: type[T], section: DictConfig, path: str = "") -> T:
    """The fields of a dataclass from a section that may hold more.

    Raises:
        ConfigError: as `to_dataclass`.
    """
    names = [own.name for own in dataclasses.fields(kind)]  # type: ignore[arg-type]
    return to_dataclass(kind, OmegaConf.masked_copy(section, names), path)
