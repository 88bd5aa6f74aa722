"""The recyclable module alone as a folder, for whoever has the pretrained backbone that it was trained on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recyclegpt.errors import ConfigError
from recyclegpt.models.config import RecycleConfig
from recyclegpt.models.huggingface.llama_layout import backbone_weights
from recyclegpt.models.huggingface.shards import Shards
from recyclegpt.models.recyclegpt import RecycleGPT

_PREFIX = "recyclable."
_SAMPLES = 64


def fingerprint(model: RecycleGPT) -> str:
    """A hash of 64 numbers of each of the backbone's weights in bf16, whatever file or dtype they were read from."""
    digest = hashlib.sha256()
    for name, weight in sorted(backbone_weights(model).items()):
        sampled = weight.detach().flatten()[:: -(-weight.numel() // _SAMPLES)]
        digest.update(f"{name} {list(weight.shape)}".encode())
        digest.update(sampled.bfloat16().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def module_config(model: RecycleGPT, dtype: torch.dtype) -> dict[str, Any]:
    """`config.json` of a module: its shape, and the backbone that it belongs to."""
    return {
        "model_type": "recyclegpt_module",
        "recycle": asdict(model.recycle_config),
        "backbone": {
            "fingerprint": fingerprint(model),
            "num_parameters": model.num_parameters() - model.num_parameters_recycle(),
        },
        "dtype": str(dtype).removeprefix("torch."),
    }


def module_weights(model: RecycleGPT) -> dict[str, Tensor]:
    """The module's weights and draft vocabulary by their own names.

    Raises:
        ConfigError: the model has no module.
    """
    if model.recyclable is None:
        raise ConfigError("format: module exports the recyclable module and this model has none (recycle.num_layers=0)")
    return {f"{_PREFIX}{name}": weight for name, weight in model.recyclable.state_dict().items()}


def with_module(backbone: RecycleGPT, folder: str | Path) -> RecycleGPT:
    """A model of this backbone, whose weights it shares, and the module in a folder, in the backbone's dtype.

    Raises:
        ConfigError: the folder holds no module, or one of another backbone.
    """
    path = Path(str(folder)).expanduser()
    try:
        values = json.loads((path / "config.json").read_text(encoding="utf-8"))
        recycle, wanted = RecycleConfig(**values["recycle"]), values["backbone"]["fingerprint"]
        weights = {name.removeprefix(_PREFIX): weight for name, weight in Shards(path).tensors()}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"module: {path} holds no module that can be read ({error}); give a folder that "
            "`recyclegpt export format=module` wrote"
        ) from error
    if fingerprint(backbone) != wanted:
        raise ConfigError(f"module: {path} was trained on another backbone; its README.md names the right one")
    with torch.device("meta"):
        model = RecycleGPT(backbone.config, recycle)
    model.backbone, model.lm_head, model.rotary = backbone.backbone, backbone.lm_head, backbone.rotary
    assert model.recyclable is not None
    model.recyclable.attach(model.backbone)
    model.recyclable.load_state_dict(weights, assign=True)
    model.recyclable.to(backbone.device, backbone.dtype)
    return model.train(backbone.training)
