"""Composing a config: where the groups are, our resolvers, what Hydra refuses in one line, and the hash of a config."""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

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
    from recyclegpt.configuration.build import register_schemas  # late: it imports torch

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


_NEEDED = re.compile(r"You must specify '(\w+)'.*Available options:(.*)", re.DOTALL)


def explain_composition(error: BaseException) -> str:
    """One line for an exception of Hydra or OmegaConf, without their advice on search paths and links."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        near = difflib.get_close_matches(choice, error.options, n=1)
        hint = f"did you mean {group}={near[0]}? " if near else ""
        return f"{group}={choice}: no such choice; {hint}choose from: {', '.join(sorted(error.options))}"
    if isinstance(error, OverrideParseException):
        override = str(error.override)
        if "=" not in override:
            return f"{override}: is not KEY=VALUE"
        hint = """put each text in it in double quotes, and all of it in single ones: 'KEY=["~/a (1)"]'"""
        return f"{override}: cannot be read, since text with characters like ~ ( ) # = needs quotes; {hint}"
    if several := re.match(r"Ambiguous value for argument '(.*?)'", str(error)):
        return f"{several[1]}: several values are a sweep, which -m starts; a list has brackets, KEY=[A,B]"
    if needed := _NEEDED.match(str(error)):
        names = sorted({*needed[2].split()} - {"default"})
        return f"{needed[1]}: has to be chosen: {needed[1]}=NAME, one of {', '.join(names)}"
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__ or error.__context__
    if isinstance(cause, (ConfigAttributeError, ConfigKeyError)) and isinstance(cause.parent_node, DictConfig):
        return _unknown_key(str(cause.full_key), cause.parent_node)
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        return f"{cause.full_key}: {_first_line(cause)}"
    text = re.split(r"\n?Config search path:|\nSee https?:", str(error))[0]
    return " ".join(part.strip() for part in text.splitlines() if part.strip())


def value_problems(cfg: DictConfig) -> list[str]:
    """One line for every mandatory value that is not given; or the first interpolation that does not resolve."""
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
        if not missing:
            OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        hint = "; a dollar sign of the text itself is written \\${" if "Interpolation" in str(error) else ""
        return [f"{error.full_key}: {_first_line(error)}{hint}"]
    return [f"{key}: has no value; set {key}=..." for key in missing]


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0].rstrip(".")


def _unknown_key(key: str, section: DictConfig) -> str:
    """The nearest key of the section or below it: `lr` may mean `optimizer.lr`."""
    parent = key.rpartition(".")[0]
    below = {name.rpartition(".")[2]: name for name in reversed(list(_dotted_keys(OmegaConf.to_container(section))))}
    if near := difflib.get_close_matches(key.rpartition(".")[2], below, n=1, cutoff=0.7):
        return f"unknown key {key}: did you mean {f'{parent}.' if parent else ''}{below[near[0]]}?"
    return f"unknown key {key}: {f'keys of {parent}' if parent else 'keys'} are {', '.join(map(str, section))}"


def _dotted_keys(section: Any, path: str = "") -> Iterator[str]:
    for key, value in section.items():
        yield f"{path}{key}"
        if isinstance(value, dict) and key != "hydra":
            yield from _dotted_keys(value, f"{path}{key}.")


UNHASHED = ("hydra", "paths", "logger", "name", "sweep", "resume")
"""Root keys that say where a run is kept and how it is watched, not what it computes."""


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain dicts, lists, strings and numbers, every interpolation resolved, without `hydra`."""
    plain = OmegaConf.to_container(_without_hydra(cfg), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def config_hash(cfg: DictConfig) -> str:
    """First 16 hexadecimal digits of the sha256 of the resolved config, less the keys in `UNHASHED`.

    A value elsewhere that points into one of those keys (a callback's folder, say) counts as that reference, not as
    the path it resolves to: the same run in another place has the same hash.
    """
    cfg = _without_hydra(cfg)
    with flag_override(cfg, ["struct", "readonly"], [False, False]):
        for key in UNHASHED:
            if key in cfg:
                _blank(cfg, key, key)
    plain = {key: value for key, value in to_plain(cfg).items() if key not in UNHASHED}
    canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _without_hydra(cfg: DictConfig) -> DictConfig:
    cfg = copy.deepcopy(cfg)
    with flag_override(cfg, ["struct", "readonly"], [False, False]):
        cfg.pop("hydra", None)
    return cfg


def _blank(parent: DictConfig, key: str, path: str) -> None:
    """Replace every value at or below `parent[key]` by its own dotted path."""
    if OmegaConf.is_missing(parent, key) or OmegaConf.is_interpolation(parent, key):
        parent[key] = f"<{path}>"
        return
    node = parent[key]
    if isinstance(node, DictConfig):
        for child in map(str, list(node)):
            _blank(node, child, f"{path}.{child}")
    else:
        parent[key] = f"<{path}>"
