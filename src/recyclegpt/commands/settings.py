"""The decoding settings that several commands share."""

from __future__ import annotations

import torch
from omegaconf import DictConfig

from recyclegpt.configuration.device import device_and_dtype
from recyclegpt.configuration.schemas import to_dataclass
from recyclegpt.decoding import DecodingConfig
from recyclegpt.errors import Problems


def read_decoding(cfg: DictConfig) -> tuple[DecodingConfig, torch.device, torch.dtype]:
    """How, where and in which number format a command decodes.

    Raises:
        ConfigError: naming all that cannot be.
    """
    problems = Problems()
    with problems.under():
        decoding = to_dataclass(DecodingConfig, cfg.decoding, "decoding")
    with problems.under():
        device, dtype = device_and_dtype(cfg.device, str(cfg.decoding.dtype), "decoding.", decoding=True)
    problems.raise_any()
    return decoding, device, dtype
