"""Shape and weights of a GGUF file, by the names that a checkpoint in Hugging Face layout has for them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recyclegpt.errors import ConfigError
from recyclegpt.gguf_header import dequantised, read_header
from recyclegpt.models.config import ModelConfig
from recyclegpt.models.huggingface.families import model_config
from recyclegpt.models.huggingface.shards import FLOATS, sampled_hash
from recyclegpt.models.rope import RopeScaling, frequencies

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""By `general.architecture`. Mistral's files say llama, whose layers compute the same."""
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
_NEEDED = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "context_length": "max_position_embeddings",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_PARTS = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_output": "self_attn.o_proj",
    **{f"attn_{one}": f"self_attn.{one}_proj" for one in "qkv"},
    **{f"attn_{one}_norm": f"self_attn.{one}_norm" for one in "qk"},
    **{f"ffn_{one}": f"mlp.{one}_proj" for one in ("gate", "up", "down")},
}
ROPE_FACTORS = "rope_freqs.weight"
"""What Llama 3.1 and later divide each pair's frequency by."""
_ROWS_AT_ONCE = 2048


class GGUFTensors:
    """Tensors of a GGUF file by their names in Hugging Face layout, dequantised to fp32 one at a time.

    Raises:
        ConfigError: the file is damaged, a tensor's type is not supported, or the package `gguf` is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._metadata, tensors = read_header(path)
        self._architecture = self._metadata.get("general.architecture")
        self._tensors = {_name_here(name): tensor for name, tensor in tensors.items()}
        if odd := [tensor for tensor in tensors.values() if tensor.tensor_type.name not in TYPES]:
            problem = f"{path}: {odd[0].name}: its type {odd[0].tensor_type.name} is not supported"
            more = f" ({len(odd)} tensors are of such types)" if odd[1:] else ""
            raise ConfigError(f"{problem}; take a file of the model in {', '.join(TYPES)}{more}")
        self._factors = self._tensors.pop(ROPE_FACTORS, None)
        self.shapes = {name: _shape(tensor) for name, tensor in self._tensors.items()}
        kinds = {name: tensor.tensor_type.name for name, tensor in self._tensors.items()}
        self.dtypes = {name: kind if kind in FLOATS else "F32" for name, kind in kinds.items()}  # dequantised

    def fingerprint(self) -> str:
        """A hash of the file's name, size and 64 samples of it."""
        return sampled_hash([self.path])

    def read_config(self) -> ModelConfig:
        """The shape that the metadata name.

        Raises:
            ConfigError: the architecture is not supported, or the metadata lack something; naming every problem.
        """
        try:
            config = model_config(self._config_values())
            return config if self._factors is None else replace(config, rope_scaling=self._llama3(config))
        except ConfigError as error:
            raise ConfigError([f"{self.path}: {problem}" for problem in error.problems]) from error

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor in turn, in fp32. Rows of llama's queries and keys are put back in the order of halves."""
        heads = self._value("attention.head_count")
        for name, stored in self._tensors.items():
            weight = _read(stored)
            if self._architecture == "llama" and (found := re.search(r"\.(q|k)_proj\.", name)):
                # llama.cpp rotates neighbours, (0, 1), (2, 3), ...; here the pairs are (i, i + D / 2).
                num = heads if found[1] == "q" else self._value("attention.head_count_kv", heads)
                weight = weight.unflatten(0, (num, -1, 2)).transpose(1, 2).reshape(weight.shape)
            yield name, weight

    def _value(self, key: str, default: Any = None) -> Any:
        return self._metadata.get(f"{self._architecture}.{key}", default)

    def _config_values(self) -> dict[str, Any]:
        """What a `config.json` would say."""
        of, name = self._value, self._architecture
        if name not in ARCHITECTURES:
            known = "llama (Llama, Mistral, SmolLM and relatives), qwen2 and qwen3"
            raise ConfigError(f"general.architecture: {name} is not supported; supported are {known}")
        problems = [
            f"{name}.{key}: {of(key)} is not a number for all layers; take a file of another model"
            for key in _NEEDED
            if not isinstance(of(key), int | float)
        ]
        if self._metadata.get("split.count", 1) > 1:
            problems.append("split.count: this is a part of a model; join the parts with llama-gguf-split --merge")
        if of("expert_count"):
            problems.append(f"{name}.expert_count: only dense models are supported")
        if "model.embed_tokens.weight" not in self.shapes:
            problems.append("token_embd.weight is missing; download the file again")
        if problems:
            raise ConfigError(problems)
        head_dim = of("attention.key_length") or of("embedding_length") // of("attention.head_count")
        kind = of("rope.scaling.type", "none")
        scaling = {
            "rope_theta": of("rope.freq_base", 10_000.0),
            "rope_type": "default" if kind == "none" else kind,
            "factor": of("rope.scaling.factor", 1.0),
            "original_max_position_embeddings": of("rope.scaling.original_context_length"),
        }
        return {
            "architectures": [ARCHITECTURES[name]],
            **{here: of(key) for key, here in _NEEDED.items()},
            "vocab_size": self.shapes["model.embed_tokens.weight"][0],
            "num_key_value_heads": of("attention.head_count_kv", of("attention.head_count")),
            "head_dim": head_dim,
            "partial_rotary_factor": of("rope.dimension_count", head_dim) / head_dim,
            "rope_parameters": scaling,
            "tie_word_embeddings": "lm_head.weight" not in self.shapes,
            "attention_bias": "model.layers.0.self_attn.o_proj.bias" in self.shapes,
            "mlp_bias": "model.layers.0.mlp.up_proj.bias" in self.shapes,
        }

    def _llama3(self, config: ModelConfig) -> RopeScaling:
        """Llama 3.1's scaling in numbers: the file holds what they amount to."""
        assert self._factors is not None
        factors = _read(self._factors)
        scaling = RopeScaling("llama3", float(factors.max()), 8192)
        plain, scaled = (frequencies(config.head_dim, config.rope_theta, one) for one in (RopeScaling(), scaling))
        if not torch.allclose(plain / scaled, factors, rtol=1e-3):
            raise ConfigError(f"{ROPE_FACTORS}: is not the scaling of Llama 3.1, which alone is supported")
        return scaling


def _shape(tensor: Any) -> tuple[int, ...]:
    """Rows first, as in torch."""
    return tuple(tensor.shape.tolist()[::-1])


def _read(tensor: Any) -> Tensor:
    shape = _shape(tensor)
    weight = torch.empty(shape)
    rows = weight.view(-1, shape[-1])
    for begin in range(0, len(rows), _ROWS_AT_ONCE):
        end = begin + _ROWS_AT_ONCE
        rows[begin:end] = torch.from_numpy(dequantised(tensor, begin, end))
    return weight


def _name_here(name: str) -> str:
    """The name in Hugging Face layout; names that are not known stay as they are."""
    layer, part, kind = re.fullmatch(r"(?:blk\.(\d+)\.)?(.*?)\.?(\w*)", name).groups()  # type: ignore[union-attr]
    if part == "output":
        return f"lm_head.{kind}"
    if part not in _PARTS:
        return name
    return f"model.{_PARTS[part]}.{kind}" if layer is None else f"model.layers.{layer}.{_PARTS[part]}.{kind}"
