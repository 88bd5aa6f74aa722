"""Shape and weights of a GGUF file, by the names that a checkpoint in Hugging Face layout has for them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recyclegpt.errors import ConfigError
from recyclegpt.gguf_header import StoredTensor, read_header
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
_OTHERS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **{f"attn_{short}": f"self_attn.{short}_proj" for short in "qkv"},
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    **{f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
}
ROPE_FACTORS = "rope_freqs.weight"
"""What Llama 3.1 and later divide each pair's frequency by."""
_ROWS_AT_ONCE = 2048


class GGUFTensors:
    """Tensors of a GGUF file by their names in Hugging Face layout, dequantised to fp32 one at a time.

    Raises:
        ConfigError: the file is damaged, its architecture or a tensor's type is not supported, or the package `gguf`
            is missing.
    """

    config_file = "metadata"

    def __init__(self, path: Path) -> None:
        try:
            import gguf
        except ImportError as error:
            raise ConfigError(f"{path}: needs the package gguf; pip install 'recyclegpt[gguf]'") from error
        self._gguf, self.path = gguf, path
        self._metadata, tensors = read_header(path)
        self._architecture = self._metadata.get("general.architecture")
        self._tensors = {_name_here(name): (name, tensor) for name, tensor in tensors.items()}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        if problems := self._problems(path.stat().st_size):
            raise ConfigError([f"{path}: {problem}" for problem in problems])
        self._factors = self._tensors.pop(ROPE_FACTORS, None)
        self.shapes.pop(ROPE_FACTORS, None)

    def stored_name(self, name: str) -> str:
        """A tensor's name in the file."""
        return self._tensors[name][0]

    def fingerprint(self) -> str:
        """A hash of the file's size and 64 samples of it."""
        return sampled_hash([self.path])

    def read_config(self) -> ModelConfig:
        """The shape that the metadata name.

        Raises:
            ConfigError: the architecture is not supported, or the metadata lack something; naming every problem.
        """
        try:
            return model_config(self._config_values())
        except ConfigError as error:
            raise ConfigError([f"{self.path}: {problem}" for problem in error.problems]) from error

    def _config_values(self) -> dict[str, Any]:
        """What a `config.json` would say."""
        if self._architecture not in ARCHITECTURES:
            known = "llama (Llama, Mistral, SmolLM and relatives), qwen2 and qwen3"
            raise ConfigError(f"general.architecture: {self._architecture} is not supported; supported are {known}")
        of = self._value
        problems = [
            f"{self._architecture}.{key}: {of(key)} is not a number for all layers; take a file of another model"
            for key in _NEEDED
            if not isinstance(of(key), int | float)
        ]
        if "model.embed_tokens.weight" not in self.shapes:
            problems.append("token_embd.weight is missing; download the file again")
        if of("expert_count"):
            problems.append(f"{self._architecture}.expert_count: only dense models are supported")
        if problems:
            raise ConfigError(problems)
        head_dim = of("attention.key_length") or of("embedding_length") // of("attention.head_count")
        return {
            "architectures": [ARCHITECTURES[self._architecture]],
            **{here: of(key) for key, here in _NEEDED.items()},
            "vocab_size": self.shapes["model.embed_tokens.weight"][0],
            "num_key_value_heads": of("attention.head_count_kv", of("attention.head_count")),
            "head_dim": head_dim,
            "partial_rotary_factor": of("rope.dimension_count", head_dim) / head_dim,
            "rope_parameters": self._rope(of("rope.freq_base", 10_000.0), head_dim),
            "tie_word_embeddings": "lm_head.weight" not in self.shapes,
            "attention_bias": "model.layers.0.self_attn.o_proj.bias" in self.shapes,
            "mlp_bias": "model.layers.0.mlp.up_proj.bias" in self.shapes,
        }

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor in turn, in fp32. Rows of llama's queries and keys are put back in the order of halves."""
        heads = self._value("attention.head_count")
        kv_heads = self._value("attention.head_count_kv", heads)
        for name, (stored_name, stored) in self._tensors.items():
            weight = self._read(stored)
            part = stored_name.split(".")[-2]
            if self._architecture == "llama" and part in ("attn_q", "attn_k"):
                # llama.cpp rotates neighbours, (0, 1), (2, 3), ...; here the pairs are (i, i + D / 2).
                pairs = weight.unflatten(0, (heads if part == "attn_q" else kv_heads, -1, 2))
                weight = pairs.transpose(1, 2).reshape(weight.shape)
            yield name, weight

    def _read(self, stored: StoredTensor) -> Tensor:
        kind = self._gguf.GGMLQuantizationType(stored.kind)
        block, size = self._gguf.GGML_QUANT_SIZES[kind]
        num_rows, row_bytes = math.prod(stored.shape[:-1]), stored.shape[-1] // block * size
        # Copied where it is written to, which never happens: torch warns of memory that it may not write to.
        rows = np.memmap(self.path, np.uint8, "c", stored.offset, (num_rows, row_bytes))
        weight = torch.empty(num_rows, stored.shape[-1])
        for begin in range(0, num_rows, _ROWS_AT_ONCE):
            part = slice(begin, begin + _ROWS_AT_ONCE)
            weight[part] = torch.from_numpy(self._gguf.dequantize(rows[part], kind))
        return weight.view(stored.shape)

    def _problems(self, file_size: int) -> list[str]:
        """Note every tensor's shape and type, and what is wrong with them."""
        problems = []
        for name, (stored_name, stored) in self._tensors.items():
            kinds = {kind.value: kind for kind in self._gguf.GGMLQuantizationType}
            kind = kinds.get(stored.kind)
            if kind is None or kind.name not in TYPES:
                problems.append(
                    f"{stored_name}: its type {kind.name if kind else stored.kind} is not supported; take a file of "
                    f"the model in {', '.join(TYPES)}"
                )
                continue
            block, size = self._gguf.GGML_QUANT_SIZES[kind]
            if not stored.shape or stored.shape[-1] % block:
                problems.append(
                    f"{stored_name}: {kind.name} of shape {list(stored.shape)} cannot be; download it again"
                )
            elif stored.offset + math.prod(stored.shape) // block * size > file_size:
                problems.append(f"{stored_name}: the file ends before it does; download it again")
            self.shapes[name] = stored.shape
            self.dtypes[name] = kind.name if kind.name in FLOATS else "F32"  # dequantised
        return problems

    def _value(self, key: str, default: Any = None) -> Any:
        return self._metadata.get(f"{self._architecture}.{key}", default)

    def _rope(self, theta: float, head_dim: int) -> dict[str, Any]:
        if self._factors is not None:
            return {"rope_theta": theta, **self._llama3(theta, head_dim, self._read(self._factors[1]))}
        kind = self._value("rope.scaling.type", "none")
        found = {
            "rope_theta": theta,
            "rope_type": "default" if kind == "none" else kind,
            "factor": self._value("rope.scaling.factor"),
            "original_max_position_embeddings": self._value("rope.scaling.original_context_length"),
        }
        return {key: value for key, value in found.items() if value is not None}

    def _llama3(self, theta: float, head_dim: int, factors: Tensor) -> dict[str, Any]:
        """Llama 3.1's scaling in numbers: the file holds what they amount to."""
        scaling = RopeScaling("llama3", float(factors.max()), 8192)
        plain, scaled = frequencies(head_dim, theta, RopeScaling()), frequencies(head_dim, theta, scaling)
        if not torch.allclose(plain / scaled, factors, rtol=1e-3):
            raise ConfigError(f"{ROPE_FACTORS}: is not the scaling of Llama 3.1, which alone is supported")
        return {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }


def _name_here(name: str) -> str:
    """The name in Hugging Face layout; names that are not known stay as they are."""
    if found := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name):
        number, part, kind = found.groups()
        return f"model.layers.{number}.{_IN_LAYER[part]}.{kind}" if part in _IN_LAYER else name
    part, _, kind = name.rpartition(".")
    return f"{_OTHERS[part]}.{kind}" if part in _OTHERS else name
