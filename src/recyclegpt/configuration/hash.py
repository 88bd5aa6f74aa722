"""A resolved config as plain values, and its hash, by which a run is known."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

from omegaconf import DictConfig, OmegaConf, flag_override

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
