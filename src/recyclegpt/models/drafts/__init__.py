"""The kinds of draft module, one file each, named as `recycle.kind` names them.

To add one: a file here whose `DraftModule` it calls `Module`, a file in `conf/recycle/`, and a line in
`tests/unit/decoding/test_draft_modules.py`.
"""

from __future__ import annotations

import importlib

from recyclegpt.errors import ConfigError
from recyclegpt.models.config import ModelConfig, RecycleConfig
from recyclegpt.models.draft_module import DraftModule


def make_draft_module(config: ModelConfig, recycle: RecycleConfig) -> DraftModule | None:
    """A module of `recycle.kind`; None where `num_layers` is 0.

    Raises:
        ConfigError: naming what this kind cannot be.
    """
    if not recycle.num_layers:
        return None
    try:
        module: DraftModule = importlib.import_module(f"{__name__}.{recycle.kind}").Module(config, recycle)
    except ConfigError as error:
        raise ConfigError([f"recycle.{problem}" for problem in error.problems]) from error
    return module
