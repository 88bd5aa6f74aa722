"""`_target_` nodes of a config as objects: only classes and functions of an allow-list are ever built.

A config may come out of somebody else's checkpoint, and Hydra's own block-list lets loaders of pickles pass.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from recyclegpt.configuration.schemas import to_dataclass
from recyclegpt.errors import ConfigError, Problems

PACKAGES = (
    "recyclegpt.models",
    "recyclegpt.data",
    "recyclegpt.training",
    "recyclegpt.callbacks",
    "lightning.pytorch",
    "torch.optim",
)
"""Packages whose classes may be built."""
FUNCTIONS = (
    "recyclegpt.training.adamw",
    "recyclegpt.training.constant",
    "recyclegpt.training.cosine",
    "recyclegpt.training.wsd",
)
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
        node: a config with `_target_`, or a mapping of such; None gives None.
        path: of the node in its config, which problems begin with.
        **extra: arguments the config does not hold; they win over the node's.

    Returns:
        The object; of `_partial_: true` a `functools.partial`; of a mapping without `_target_` a dict of objects.

    Raises:
        ConfigError: a target is not allowed; or what a constructor refused, prefixed with the path of its node.
    """
    plain = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    if not isinstance(plain, dict):
        return plain
    problems = Problems()
    for where, target in _targets(plain, path):
        with problems.under(f"{where}." if where else ""):
            locate(target)
    problems.raise_any()
    return _build(plain, path, extra)


def build_all(cfg: DictConfig, keys: Iterable[str], extra: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Build several nodes of a config, some with extra arguments, and report the problems of all of them at once.

    Raises:
        ConfigError: the problems of all nodes.
    """
    built: dict[str, Any] = {}
    problems = Problems()
    for key in keys:
        with problems.under():
            built[key] = build(cfg[key], key, **extra.get(key, {}))
    problems.raise_any()
    return built


def _build(plain: dict[Any, Any], path: str, extra: Mapping[str, Any]) -> Any:
    if "_target_" not in plain:
        return {
            key: _build(value, _join(path, key), {}) if isinstance(value, dict) else value
            for key, value in plain.items()
        }
    target, is_partial = locate(plain["_target_"]), plain.get("_partial_", False)
    if dataclasses.is_dataclass(target) and isinstance(target, type) and not is_partial:
        settings = {key: value for key, value in plain.items() if key != "_target_"}
        return to_dataclass(target, settings | dict(extra), path)
    try:
        # Hydra would turn dataclasses and tuples among the extra arguments into configs: it builds what is below.
        made = instantiate(plain, _partial_=True, _convert_="all")
        return functools.partial(made, **extra) if is_partial else made(**extra)
    except ConfigError as error:
        raise ConfigError([_under(path, problem) for problem in error.problems]) from error
    except InstantiationException as error:
        if isinstance(error.__cause__, ConfigError):
            key = re.search(r"full_key: (\S+)", str(error))
            where = _join(path, key[1]) if key else path
            raise ConfigError([_under(where, problem) for problem in error.__cause__.problems]) from error
        raise ConfigError(f"{path}: {str(error.__cause__ or error).splitlines()[0]}") from error
    except ModuleNotFoundError as error:  # a logger whose package is optional
        raise ConfigError(f"{path}: {plain['_target_']} needs a package that is not installed ({error})") from error
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise ConfigError(f"{path}: {plain['_target_']} refuses its settings: {error}") from error


def _targets(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every `_target_` at or below a node, with the path of its node."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node["_target_"]
        for key, value in node.items():
            yield from _targets(value, _join(path, key))
    elif isinstance(node, list):
        for index, item in enumerate(node):
            yield from _targets(item, f"{path}[{index}]")


def _is_in(name: str, packages: Iterable[str]) -> bool:
    return name.startswith(tuple(f"{package}." for package in packages))


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _under(path: str, problem: str) -> str:
    """A constructor knows its own arguments' names, not where its node stands."""
    if not path or problem.startswith(f"{path}."):
        return problem
    return f"{path}.{problem}" if re.match(r"[A-Za-z_][\w.\[\]]*:", problem) else f"{path}: {problem}"
