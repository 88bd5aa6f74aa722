"""A pretrained backbone, from a folder, a GGUF file or the hub, read tensor by tensor into a `RecycleGPT`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from recyclegpt.errors import ConfigError
from recyclegpt.hardware.device import DTYPES
from recyclegpt.models.config import RecycleConfig
from recyclegpt.models.huggingface.families import read_config
from recyclegpt.models.huggingface.gguf import GGUFTensors
from recyclegpt.models.huggingface.llama_layout import backbone_weights
from recyclegpt.models.huggingface.location import locate
from recyclegpt.models.huggingface.module_folder import with_module
from recyclegpt.models.huggingface.shards import FLOATS, Shards
from recyclegpt.models.layers import initialise
from recyclegpt.models.recyclegpt import RecycleGPT

_UNUSED = ("rotary_emb.inv_freq", "self_attn.masked_bias", "self_attn.bias")
"""Endings of tensors in old checkpoints that are not weights."""
HEAD = "lm_head.weight"
_MOST_NAMED = 5


class PretrainedBackbone:
    """A Llama, Mistral, Qwen2 or Qwen3 checkpoint: a folder in Hugging Face layout, a GGUF file, or a name on the hub.

    Args:
        path: the folder, file or name.
        revision: branch, tag or commit of a name on the hub.
        context_length: tokens of a training row; None: all that the checkpoint allows. Texts may still be as long as
            `config.context_length`.
        dtype: of the backbone's weights in memory.

    Raises:
        ConfigError: it cannot be found, is of another architecture, or lacks a tensor; naming every problem.
    """

    def __init__(
        self, path: str, revision: str | None = None, context_length: int | None = None, dtype: str = "float32"
    ) -> None:
        if dtype not in DTYPES:
            raise ConfigError(f"dtype: {dtype!r} is unknown; choose from {', '.join(DTYPES)}")
        self.path, self.revision, self.dtype = path, revision, DTYPES[dtype]
        self.folder = locate(path, revision)
        try:
            if self.folder.is_dir():
                self.config = read_config(self.folder)
            self._tensors = open_tensors(self.folder)
            if isinstance(self._tensors, GGUFTensors):
                self.config = self._tensors.read_config()
            self._check_tensors()
        except ConfigError as error:
            raise ConfigError([f"path: {problem}" for problem in error.problems]) from error
        longest = self.config.context_length
        self.context_length = longest if context_length is None else context_length
        if not 1 <= self.context_length <= longest:
            raise ConfigError(f"context_length: {context_length} is not between 1 and the {longest} of {path}")

    def fingerprint(self) -> str:
        """See `Shards.fingerprint`."""
        return self._tensors.fingerprint()

    def reference(self) -> dict[str, Any]:
        """Plain values to find the checkpoint again, and to recognise it."""
        known = self.folder.resolve() if Path(self.path).expanduser().exists() else self.path
        return {"path": str(known), "revision": self.revision, "fingerprint": self.fingerprint()}

    def load(self, recycle: RecycleConfig | None = None, device: torch.device | str = "cpu") -> RecycleGPT:
        """The backbone with these weights, and a fresh recyclable module in fp32 on it.

        Memory peaks at about the model's size: weights are copied one by one out of mapped files.

        Raises:
            ConfigError: a weight is not finite, or a tied LM head differs from the embedding.
        """
        with torch.device("meta"):
            model = RecycleGPT(self.config, recycle)
        for part in (model.backbone, model.lm_head):
            part.to(self.dtype)
        model.materialise(device)
        wanted, problems = backbone_weights(model), []
        tied: torch.Tensor | None = None
        for name, tensor in self._tensors.tensors():
            if name in wanted:
                if not bool(tensor.sum(dtype=torch.float32).isfinite()) and not bool(tensor.isfinite().all()):
                    problems.append(f"path: {self.folder}: {name} is not finite; copy the checkpoint again")
                wanted[name].copy_(tensor)
            elif name == HEAD:
                tied = tensor
        if tied is not None and not torch.equal(tied.to(self.dtype), model.lm_head.weight.cpu()):
            problems.append(f"path: {self.folder}: {HEAD} differs from the embedding that config.json ties it to")
        if problems:
            raise ConfigError(problems)
        if model.recyclable is not None:
            initialise(model.recyclable, self.config.init_std)
            model.recyclable.balance(float(model.backbone.embed_tokens.weight.detach().float().std()))
        return model.eval()

    def _check_tensors(self) -> None:
        with torch.device("meta"):
            wanted = backbone_weights(RecycleGPT(self.config))
        unused = (*_UNUSED, HEAD) if self.config.tie_embeddings else _UNUSED
        shapes, dtypes = self._tensors.shapes, self._tensors.dtypes
        problems = [f"{name} is missing; copy the checkpoint again" for name in wanted if name not in shapes]
        problems += [
            f"{name} is not part of the architecture that its config names"
            for name in shapes
            if name not in wanted and not name.endswith(unused)
        ]
        problems += [
            f"{name} is {dtypes[name]} {list(shapes[name])}, its config says {list(weight.shape)} of floats"
            for name, weight in wanted.items()
            if name in shapes and (shapes[name] != tuple(weight.shape) or dtypes[name] not in FLOATS)
        ]
        if problems:
            more = [f"and {len(problems) - _MOST_NAMED} more"] if len(problems) > _MOST_NAMED else []
            raise ConfigError([f"{self.folder}: {problem}" for problem in problems[:_MOST_NAMED] + more])


def open_tensors(path: Path) -> Shards | GGUFTensors:
    """The tensors of a checkpoint's folder or GGUF file."""
    return Shards(path) if path.is_dir() else GGUFTensors(path)


def stored_dtype(path: Path) -> torch.dtype | None:
    """The dtype shared by all floats of a checkpoint, fp32 for quantised ones; None if there are several."""
    found = {name for name in open_tensors(path).dtypes.values() if name in FLOATS}
    return FLOATS[found.pop()] if len(found) == 1 else None


def load_backbone(
    folder_or_name: str | Path,
    dtype: torch.dtype = torch.float32,
    context_length: int | None = None,
    recycle: RecycleConfig | None = None,
    device: torch.device | str = "cpu",
    module: str | Path | None = None,
) -> RecycleGPT:
    """A pretrained backbone, whose logits `model(input_ids)` gives, with a module if one is asked for.

    That is a fresh one of shape `recycle`, or the trained one in the folder `module` (`with_module`). `context_length`
    is the longest text, None all that the checkpoint allows.

    Raises:
        ConfigError: see `PretrainedBackbone` and `with_module`.
    """
    found = PretrainedBackbone(str(folder_or_name), None, context_length)
    found.dtype, found.config = dtype, replace(found.config, context_length=found.context_length)
    model = found.load(recycle, device)
    return model if module is None else with_module(model, module)
