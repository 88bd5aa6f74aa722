"""What ties a run folder to one configuration: its hash, and small JSON files that are never half written."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, flag_override

from recyclegpt.errors import ConfigError
from recyclegpt.training.whole_file import write_whole

PROVENANCE = "provenance.json"
RESULT = "result.json"

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
    canonical = json.dumps(_string_keys(plain), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def claim(folder: Path, expected_hash: str) -> bool:
    """Make sure that `folder` may hold the run with this config hash; create it where it does not exist.

    Only `provenance.json` is asked: Hydra rewrites `.hydra/` before the run can look.

    Returns:
        Whether the folder already belongs to this very config, so that the run may continue or be skipped.

    Raises:
        ConfigError: the folder belongs to another config, or its provenance cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = read_hash(folder)
    if found is None:
        return False
    if found != expected_hash:
        raise ConfigError(
            f"{folder}: holds a run of another config (config_hash {found}, this run has {expected_hash}); "
            f"choose another folder (name=..., sweep.tag=... or hydra.run.dir=...), or move this one away"
        )
    return True


def read_hash(folder: Path) -> str | None:
    """The config hash a run folder was written with; None where no run has written its `provenance.json`.

    Raises:
        ConfigError: the file is there but holds no hash.
    """
    path = folder / PROVENANCE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["config_hash"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path}: cannot read its config_hash ({error!r}); move the folder away or choose another"
        ) from error
    if not isinstance(found, str):
        raise ConfigError(f"{path}: config_hash is {found!r}, not a string; move the folder away or choose another")
    return found


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON document so that readers see the old file or the whole new one, never a part.

    NaN and infinities become null, which every JSON reader accepts. Missing parent folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(finite(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(path, text)


def remove_empty_parents(folder: Path) -> None:
    """Remove the empty folders above one that is gone, up to the working folder."""
    here = Path.cwd()
    for parent in folder.absolute().parents:
        if parent == here or here not in parent.parents:
            return
        try:
            parent.rmdir()
        except OSError:  # something is in it
            return


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


def _string_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _string_keys(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_string_keys(item) for item in value]
    return value


def finite(value: Any) -> Any:
    """The same lists and dicts, NaN and infinities as null."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
