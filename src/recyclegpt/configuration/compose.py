"""Composing a config: where the groups are, our resolvers, and one message for whatever Hydra refuses."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from recyclegpt.configuration.composition_errors import explain_composition, value_problems
from recyclegpt.errors import ConfigError

VERSION_BASE = "1.3"
PACKAGE = Path(__file__).resolve().parents[1]


def find_conf(package: Path = PACKAGE) -> Path:
    """The folder of the config groups: `recyclegpt/conf` of an installed package, else `conf` of the repository."""
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"


def register() -> None:
    """Tell OmegaConf our resolvers and Hydra our schemas.

    `${folder_name:TEXT}`: TEXT as the name of one folder: without `=`, `,`, `/` and the like, at most 120 characters.
    """
    from recyclegpt.configuration.schemas import register_schemas  # late: it imports torch

    OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
    register_schemas()


def folder_name(text: str) -> str:
    """`text` as the name of one folder: letters, digits, `.`, `_`, `+`, `-`; `default` when empty."""
    name = re.sub(r"[^\w.+\-]+", "-", str(text)).strip("-.") or "default"
    if len(name) <= 120:
        return name
    # File systems end at 255 bytes; a digest keeps two long names that begin alike apart.
    return f"{name[:107]}-{hashlib.sha256(str(text).encode()).hexdigest()[:12]}"


def compose_or_explain(
    config_name: str, overrides: Sequence[str], *, conf_dir: Path | None = None, check_values: bool = True
) -> DictConfig:
    """Compose a primary config from Hydra overrides, without its `hydra` node.

    `check_values`: refuse a mandatory value that is not given and an interpolation that leads nowhere.

    Raises:
        ConfigError: the first thing that Hydra refuses; or every mandatory value that is missing.
    """
    register()
    folder = (conf_dir or find_conf()).resolve()
    try:
        with initialize_config_dir(str(folder), job_name="recyclegpt", version_base=VERSION_BASE):
            cfg = compose(config_name, list(overrides))
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(explain_composition(error)) from error
    if check_values and (problems := value_problems(cfg)):
        raise ConfigError(problems)
    return cfg


def expand_home(overrides: Sequence[str]) -> list[str]:
    """The same overrides, `~` of a run's or a sweep's folder expanded, which Hydra would make a folder of that name."""
    expanded = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key in ("hydra.run.dir", "hydra.sweep.dir") and (path := value.strip("\"'")).startswith("~"):
            override = f'{key}="{Path(path).expanduser()}"'
        expanded.append(override)
    return expanded
