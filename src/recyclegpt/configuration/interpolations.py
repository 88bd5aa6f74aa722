"""Values of a composed config that no run could read: mandatory ones not given, interpolations that lead nowhere."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import Container, DictConfig, ListConfig, Node, OmegaConf, flag_override
from omegaconf.errors import InterpolationKeyError, InterpolationToMissingValueError, OmegaConfBaseException

from recyclegpt.configuration.override_errors import flat_keys


def is_multirun(cfg: DictConfig) -> bool:
    """Whether a config, `hydra` node included, asks for a multirun by itself."""
    return bool(cfg.hydra.mode == RunMode.MULTIRUN)


def value_problems(cfg: DictConfig) -> list[str]:
    """One sentence for every mandatory value not given and every interpolation that does not resolve.

    Args:
        cfg: a composed config with its `hydra` node, whose own values are not looked at, the run's folder apart.
    """
    with _hydra_config(cfg):
        return [*(f"{key}: has no value; set {key}=..." for key in _missing(cfg)), *_unresolved(cfg)]


def _missing(cfg: DictConfig) -> list[str]:
    return [key for key, node in _nodes(cfg) if node._is_missing()]


def _unresolved(cfg: DictConfig) -> list[str]:
    """One problem for every interpolation that does not resolve, in the run and in the folder it would be kept in."""
    problems: dict[str, str] = {}
    in_circles: list[str] = []
    folders = ["hydra.sweep.dir", "hydra.sweep.subdir"] if is_multirun(cfg) else ["hydra.run.dir"]
    names = [name for name in flat_keys(cfg) if not name.startswith("hydra")]
    texts = {key: str(node._value()) for key, node in _nodes(cfg) if node._is_interpolation()}
    for key in [*texts, *folders]:
        what = texts.get(key, "its value")
        try:
            OmegaConf.select(cfg, key, throw_on_missing=False)
        except InterpolationKeyError as error:
            name = re.search(r"'([^']*)' not found", str(error))
            near = difflib.get_close_matches(name[1], names, n=1) if name else []
            hint = f"did you mean ${{{near[0]}}}?" if near else f"set {key}=..."
            problems[key] = f"{key}: {what} points to a key that does not exist; {hint}"
        except InterpolationToMissingValueError:
            continue  # the value it points to is a problem of its own
        except OmegaConfBaseException as error:
            first = re.sub(r"^\w+ raised while resolving interpolation: ", "", str(error).splitlines()[0])
            if "Recursive" in first:
                first = "it leads back to itself in a circle"
                in_circles.append(key)
            problems[key] = f"{key}: {what} cannot be resolved ({first}); set {key}=..."
    # A value that points to a broken one is not broken itself.
    return [
        problem
        for key, problem in problems.items()
        if key in in_circles or not any(f"${{{other}}}" in texts.get(key, "") for other in problems if other != key)
    ]


def _nodes(container: Container, path: str = "") -> Iterator[tuple[str, Node]]:
    """Every node below a container that is not hydra's own, by its key; none is resolved."""
    is_list = isinstance(container, ListConfig)
    keys: Iterable[object] = range(len(container)) if isinstance(container, ListConfig) else list(container)
    for key in keys:
        name = f"{path}[{key}]" if is_list else f"{path}.{key}" if path else str(key)
        node = container._get_node(key)
        if name == "hydra" or not isinstance(node, Node):
            continue
        yield name, node
        if isinstance(node, Container) and not (node._is_none() or node._is_missing() or node._is_interpolation()):
            yield from _nodes(node, name)


@contextmanager
def _hydra_config(cfg: DictConfig) -> Iterator[None]:
    """Let `${hydra:...}` resolve as inside a job, whose folder and number are not known yet."""
    instance = HydraConfig.instance()
    before = instance.cfg
    shown = cfg.copy()
    with flag_override(shown, ["struct", "readonly"], [False, False]):
        shown.hydra.runtime.output_dir = "outputs"
        shown.hydra.job.id = "0"
        shown.hydra.job.num = 0
    try:
        instance.set_config(shown)
        yield
    finally:
        instance.cfg = before
