"""What Hydra itself would build or call from its own node: launcher, sweeper, callbacks and log handlers.

They are chosen by a config too, and a config may come from elsewhere. Hydra's block-list lets loaders of pickles pass,
and `logging.config` calls whatever stands under `()`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from omegaconf import DictConfig, OmegaConf

PLUGINS = ("hydra._internal.core_plugins", "hydra_plugins")
CALLBACKS = ("hydra.experimental",)
LOGGING = (
    "logging.FileHandler",
    "logging.Formatter",
    "logging.NullHandler",
    "logging.StreamHandler",
    "logging.handlers.RotatingFileHandler",
    "logging.handlers.TimedRotatingFileHandler",
    "colorlog.ColoredFormatter",
)
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
_RUN_FOLDER = "${hydra.runtime.output_dir}/"


def hydra_problems(cfg: DictConfig) -> list[str]:
    """Every target of Hydra's own node that is not one of its parts, and every log file outside of the run folder.

    Args:
        cfg: a composed config; without a `hydra` node there is nothing to find.
    """
    if "hydra" not in cfg:
        return []
    node: Any = OmegaConf.to_container(cfg.hydra, resolve=False)
    problems: list[str] = []
    for key, packages in (("launcher", PLUGINS), ("sweeper", PLUGINS), ("callbacks", CALLBACKS)):
        problems += [
            f"{path}: {value} is not allowed; a target here is a class of {' or '.join(packages)}"
            for path, name, value in _leaves(node.get(key), f"hydra.{key}")
            if name == "_target_" and not _is_class_of(value, packages)
        ]
    for key in ("job_logging", "hydra_logging"):
        for path, name, value in _leaves(node.get(key), f"hydra.{key}"):
            if name in ("()", "class") and value not in LOGGING:
                problems.append(f"{path}: {value} is not allowed; choose one of {', '.join(LOGGING)}")
            elif isinstance(value, str) and _imports(value):
                problems.append(f"{path}: {value} is not allowed; choose {' or '.join(STREAMS)}")
            elif path.endswith(".filename") and not _is_inside(value):
                problems.append(f"{path}: {value} lies elsewhere; let it begin with {_RUN_FOLDER}")
    return problems


def _is_class_of(target: Any, packages: tuple[str, ...]) -> bool:
    """Whether a target is a class of a module in one of the packages, and nothing that this module has imported."""
    if not isinstance(target, str) or not target.startswith(tuple(f"{package}." for package in packages)):
        return False
    module, _, name = target.rpartition(".")
    try:
        return name[:1].isupper() and importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _is_inside(filename: Any) -> bool:
    rest = str(filename).removeprefix(_RUN_FOLDER)
    return ".." not in PurePath(rest).parts and not PurePath(rest).is_absolute()


def _imports(value: str) -> bool:
    return value.startswith("ext://") and value not in STREAMS


def _leaves(node: Any, path: str) -> Iterator[tuple[str, str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            # `()` and `_target_` are told even where they hold a list or a mapping.
            if str(key) in ("()", "class", "_target_"):
                yield f"{path}.{key}", str(key), value
            else:
                yield from _leaves(value, f"{path}.{key}")
    elif isinstance(node, list):
        for index, item in enumerate(node):
            yield from _leaves(item, f"{path}[{index}]")
    else:
        yield path, "", node
