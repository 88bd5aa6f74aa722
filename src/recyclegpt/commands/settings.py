"""The settings of a command as dataclasses."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, cast

import torch
from omegaconf import DictConfig, OmegaConf

from recyclegpt.configuration.device import device_and_dtype
from recyclegpt.configuration.schemas import to_dataclass
from recyclegpt.decoding import DecodingConfig
from recyclegpt.errors import Problems

T = TypeVar("T")


def read_settings(kind: type[T], cfg: DictConfig) -> T:
    """`to_dataclass` of a config that holds more than the fields of the dataclass."""
    names = [field.name for field in dataclasses.fields(cast("Any", kind))]
    return to_dataclass(kind, OmegaConf.masked_copy(cfg, names))


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


def not_positive(settings: Any, *names: str) -> list[str]:
    """A problem for each of these fields, or members of a field that is a list, that is below 1; null is none."""
    given = {name: getattr(settings, name) for name in names}
    return [
        f"{name}: {value} is not a positive whole number"
        for name, values in given.items()
        for value in (values if isinstance(values, list) else [values])
        if value is not None and value < 1
    ]
