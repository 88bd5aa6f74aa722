"""`_target_` nodes of a config as objects: only classes and functions of an allow-list are ever built.

A config may come out of somebody else's checkpoint, and Hydra's own block-list lets loaders of pickles pass.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any, cast

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from recyclegpt.configuration.schemas import to_dataclass
from recyclegpt.errors import ConfigError, Problems

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
