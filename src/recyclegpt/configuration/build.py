"""From a config to objects: schemas say which keys it has and of which type, and `_target_` nodes are built.

Sections that no `_target_` owns are typed while Hydra composes them (`ConfigStore`). A node whose `_target_` is a
dataclass is held against that dataclass when it is built, so its fields stand in one place. Only classes and functions
of an allow-list are ever built: a config may come out of somebody else's checkpoint, and Hydra's own block-list lets
loaders of pickles pass.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from hydra.core.config_store import ConfigStore
from hydra.utils import get_object
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
    """Where the backbone's weights come from, whether they are trained, and whether the module begins with them."""

    checkpoint: str | None = None
    frozen: bool = False
    copy_last_layers: bool = False


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


def read_settings(kind: type[T], section: DictConfig) -> T:
    """The fields of a dataclass from a section that may hold more.

    Raises:
        ConfigError: as `to_dataclass`.
    """
    names = [own.name for own in dataclasses.fields(kind)]  # type: ignore[arg-type]
    return to_dataclass(kind, OmegaConf.masked_copy(section, names))


TARGET, PARTIAL = "_target_", "_partial_"
PACKAGES = (
    "recyclegpt.models",
    "recyclegpt.data",
    "recyclegpt.training",
    "recyclegpt.callbacks",
    "lightning.pytorch",
    "torch.optim",
)
"""Packages whose classes may be built."""
FUNCTIONS = tuple(f"recyclegpt.training.{name}" for name in ("adamw", "constant", "cosine", "wsd"))
OTHERS = ("datetime.timedelta",)
"""Single targets besides; `timedelta` is how a process group's timeout is given."""
REFUSED = ("lightning.pytorch.cli",)  # its parts build any class they are given


def locate(target: Any) -> Callable[..., Any]:
    """The class or function an allowed `_target_` names.

    Raises:
        ConfigError: it is not allowed, or does not exist.
    """
    name = str(target)
    if name in OTHERS:
        return cast("Callable[..., Any]", get_object(name))
    if not _is_in(name, PACKAGES) or _is_in(name, REFUSED):
        allowed = ", ".join([*(f"{package}.*" for package in PACKAGES), *OTHERS])
        raise ConfigError(f"_target_: {name} is not allowed; a target is one of {allowed}")
    try:
        found: Any = get_object(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"_target_: {name} does not exist ({str(error).splitlines()[0]})") from error
    # What a module imported for its own use (`os`, `torch.load`) can be reached through it, but belongs elsewhere.
    home = f"{getattr(found, '__module__', '')}."
    if not _is_in(home, PACKAGES) or not (inspect.isclass(found) or name in FUNCTIONS):
        raise ConfigError(f"_target_: {name} is not allowed; only classes, and {', '.join(FUNCTIONS)}")
    return cast("Callable[..., Any]", found)


def build(node: Any, path: str = "", /, **extra: Any) -> Any:
    """Build the object a node describes, from plain Python containers.

    Args:
        node: a config with `_target_`, or a mapping or list of such; anything else is returned as it is.
        **extra: arguments the config does not hold; they win over the node's.

    Returns:
        The object; of `_partial_: true` a `functools.partial`; of a mapping without `_target_` a dict of objects.

    Raises:
        ConfigError: targets that are not allowed; or what constructors refused, prefixed with the path of the node.
    """
    plain: Any = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    if isinstance(plain, list):
        return [build(item, f"{path}[{index}]") for index, item in enumerate(plain)]
    if not isinstance(plain, dict):
        return plain
    problems, target = Problems(), None
    if TARGET in plain:
        with problems.under(f"{path}." if path else ""):
            target = locate(plain[TARGET])
    settings = {key: value for key, value in plain.items() if key not in (TARGET, PARTIAL)}
    if dataclasses.is_dataclass(target) and isinstance(target, type):
        return to_dataclass(target, settings | extra, path)
    arguments = dict(extra)
    for key, value in settings.items():
        with problems.under():
            arguments.setdefault(key, build(value, f"{path}.{key}" if path else str(key)))
    problems.raise_any()
    if target is None:
        return arguments
    try:
        return functools.partial(target, **arguments) if plain.get(PARTIAL) else target(**arguments)
    except ConfigError as error:
        raise ConfigError([_under(path, problem) for problem in error.problems]) from error
    except ModuleNotFoundError as error:  # a logger whose package is optional
        raise ConfigError(f"{path}: {plain[TARGET]} needs a package that is not installed ({error})") from error
    except _refusals() as error:
        raise ConfigError(f"{path}: {plain[TARGET]} refuses its settings: {error}") from error


def _refusals() -> tuple[type[Exception], ...]:
    from lightning.fabric.utilities.exceptions import MisconfigurationException  # late: it takes seconds

    return TypeError, ValueError, MisconfigurationException


def _is_in(name: str, packages: Iterable[str]) -> bool:
    return name.startswith(tuple(f"{package}." for package in packages))


def _under(path: str, problem: str) -> str:
    """A constructor knows its own arguments' names, not where its node stands."""
    if not path or problem.startswith(f"{path}."):
        return problem
    return f"{path}.{problem}" if re.match(r"[A-Za-z_][\w.\[\]]*:", problem) else f"{path}: {problem}"
