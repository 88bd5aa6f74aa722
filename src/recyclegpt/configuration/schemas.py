"""Schemas: dataclasses that say which keys a config has and of which type, as OmegaConf checks them.

Sections that no `_target_` owns are typed while Hydra composes them (`ConfigStore`). A node whose `_target_` is a
dataclass is held against that dataclass when it is built (`instantiate`), so its fields stand in one place.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, Union

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from recyclegpt.decoding.config import DecodingConfig
from recyclegpt.errors import ConfigError

T = TypeVar("T")
_LONGEST_NAME = 200
_PRIMITIVES = (int, float, bool, str)


@dataclass
class Backbone:
    """Where the backbone's weights come from, and whether they are trained."""

    checkpoint: str | None = None
    frozen: bool = False


@dataclass
class Training:
    """How the layers are run while they learn."""

    compile: Any = "auto"
    activation_checkpointing: Any = False
    max_skipped_steps: int = 10

    def __post_init__(self) -> None:
        problems = []
        if not isinstance(self.compile, bool) and self.compile != "auto":
            problems.append(f"compile: {self.compile} is neither true, false nor auto")
        if not isinstance(self.activation_checkpointing, int) or self.activation_checkpointing < 0:
            problems.append(
                f"activation_checkpointing: {self.activation_checkpointing} is neither true nor false; "
                "a whole number n stands for every n-th layer"
            )
        if self.max_skipped_steps < 0:
            problems.append(f"max_skipped_steps: {self.max_skipped_steps} is negative")
        if problems:
            raise ConfigError(problems)


@dataclass
class Checkpointing:
    """When checkpoints are written, and how many are kept."""

    every_n_steps: int = 500
    keep: int = 2
    max_failed: int = 3

    def __post_init__(self) -> None:
        counts = {"every_n_steps": self.every_n_steps, "keep": self.keep}
        problems = [f"{key}: {value} is not positive" for key, value in counts.items() if value < 1]
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

    def __post_init__(self) -> None:
        if problems := [*_folder_problems("name", self.name), *_folder_problems("tag", self.tag)]:
            raise ConfigError(problems)


@dataclass
class Train:
    """The root of `train` and `adapt`. Groups are typed by what their `_target_` builds."""

    name: str = "default"
    seed: int = 1
    resume: str = "never"
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
    store.store(group="decoding", name="schema", node=schema_of(DecodingConfig), provider="recyclegpt")


def section_problems(cfg: DictConfig) -> list[str]:
    """What the dataclasses of a training config's own sections refuse, all of it."""
    problems = _folder_problems("name", cfg.name)
    if not 0 <= cfg.seed < 2**32:
        problems.append(f"seed: {cfg.seed} is not a whole number from 0 to 4294967295")
    for key, kind in (("training", Training), ("checkpointing", Checkpointing), ("sweep", Sweep)):
        problems += problems_of(kind, cfg[key], key)
    return problems + problems_of(DecodingConfig, cfg.decoding, "decoding")


def schema_of(target: type) -> type:
    """A dataclass with the fields of `target` that OmegaConf can hold: not frozen, and nothing that it cannot express.

    OmegaConf 2.3 knows neither `Literal` nor `int | list[int]`: the first is held as its plain type and the second as
    anything, and the dataclass itself looks closer.
    """
    hints = typing.get_type_hints(target)
    fields = []
    for own in dataclasses.fields(target):
        if own.default_factory is not dataclasses.MISSING:
            default: Any = field(default_factory=own.default_factory)
        else:
            default = field(default=MISSING if own.default is dataclasses.MISSING else own.default)
        kind = _expressible(hints[own.name])
        if kind is Any and dataclasses.is_dataclass(hints[own.name]):
            default = field(default=None)
        fields.append((own.name, kind, default))
    return dataclasses.make_dataclass(target.__name__, fields)


def to_dataclass(kind: type[T], section: Mapping[str, Any] | DictConfig, path: str) -> T:
    """A section as an instance of a dataclass.

    Raises:
        ConfigError: every key that the dataclass does not have, every value of a wrong type and every mandatory value
            that is missing; or all that its `__post_init__` refuses. Each begins with the path of its key.
    """
    typed = OmegaConf.structured(schema_of(kind))
    plain: Any = OmegaConf.to_container(section, resolve=True) if isinstance(section, DictConfig) else dict(section)
    problems = []
    for key, value in plain.items():
        try:
            typed[key] = value
        except (ConfigAttributeError, ConfigKeyError):
            names = ", ".join(own.name for own in dataclasses.fields(kind))  # type: ignore[arg-type]
            problems.append(f"{path}.{key}: unknown key; choose from: {names}")
        except OmegaConfBaseException as error:
            problems.append(f"{path}.{key}: {str(error).splitlines()[0]}")
    missing = [key for key in sorted(OmegaConf.missing_keys(typed)) if plain.get(key, MISSING) == MISSING]
    problems += [f"{path}.{key}: has no value; set {path}.{key}=..." for key in missing]
    if problems:
        raise ConfigError(problems)
    values: Any = OmegaConf.to_container(typed)
    try:
        return kind(**{key: values[key] for key in plain})
    except ConfigError as error:
        raise ConfigError([f"{path}.{problem}" for problem in error.problems]) from error


def problems_of(kind: type, section: Mapping[str, Any] | DictConfig, path: str) -> list[str]:
    """What `to_dataclass` would refuse."""
    try:
        to_dataclass(kind, section, path)
    except ConfigError as error:
        return error.problems
    return []


def _folder_problems(key: str, value: str) -> list[str]:
    if value in ("", ".", "..") or set(value) & set("/\\=,") or not value.isprintable():
        return [f"{key}: {value!r:.80} is not a folder's name; use letters, digits, - and _"]
    if len(value.encode()) > _LONGEST_NAME:
        return [f"{key}: is too long for a folder's name; {_LONGEST_NAME} bytes are allowed"]
    return []


def _expressible(hint: Any) -> Any:
    """A type hint as OmegaConf knows it; `Any` where it has none."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _PRIMITIVES or hint is type(None):
        return hint
    if origin is Literal:
        kinds = {type(argument) for argument in arguments}
        return kinds.pop() if len(kinds) == 1 else Any
    if origin in (Union, types.UnionType):
        members = [_expressible(argument) for argument in arguments]
        others = [kind for kind in members if kind is not type(None)]
        simple = len(others) == 1 or all(kind in _PRIMITIVES for kind in others)
        return Union[tuple(members)] if simple and Any not in members else Any  # noqa: UP007 - made at run time
    if origin in (list, tuple) and all(argument in _PRIMITIVES for argument in arguments):
        return hint
    return Any
