"""The kinds of draft module, one file each, named as `recycle.kind` names them.

To add one: a file here whose `DraftModule` it calls `Module`, a file in `conf/recycle/`, and a line in
`tests/unit/decoding/test_draft_modules.py`.
"""

from __future__ import annotations

import importlib

from recyclegpt.models.config import ModelConfig, RecycleConfig
from recyclegpt.models.draft_module import DraftModule


def make_draft_module(config: ModelConfig, recycle: RecycleConfig) -> DraftModule | None:
    """A module of `recycle.kind`; None where `num_layers` is 0.

    Raises:
        ConfigError: naming what this kind cannot be.
    """
    if not recycle.num_layers:
        return None
    module: DraftModule = importlib.import_module(f"{__name__}.{recycle.kind}").Module(config, recycle)
    return module
