"""LLaMA layers: RMSNorm, rotary position embedding, grouped-query attention, SwiGLU.

Biases and query/key norms are there where a pretrained backbone's family has them. Given the same weights, the layers
compute what `transformers` computes for that family; tests hold the two equal.

B batch, T positions, C model width, H query heads, G key/value heads, D head width, S keys attended to, F SwiGLU width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recyclegpt.models.config import ModelConfig
from recyclegpt.models.rope import rotate
from recyclegpt.models.unrolled import causal_and_own, in_blocks, prefers_blocks


class KVStore(Protocol):
    """Keys and values that attention sees in addition to those just computed."""

    def write(self, layer: int, key_BTGD: Tensor, value_BTGD: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the new rows and return all keys and values `(B, S, G, D)` this pass may attend to."""
        ...


@dataclass
class AttentionInputs:
    """What every attention layer of one pass needs to know about positions.

    `mask` is True where a query may look, shape `(T, S)` or `(B, 1, T, S)`. None means causal over the T rows given,
    and, if the memory returns further blocks of T rows (unrolled training), each row's own row of every block.
    """

    cos_BTD: Tensor
    sin_BTD: Tensor
    mask: Tensor | None = None
    memory: KVStore | None = None


class RMSNorm(nn.RMSNorm):
    """RMSNorm whose weight follows the input's dtype, without which mixed precision leaves the fused kernel."""

    def forward(self, x: Tensor) -> Tensor:
        if x.is_meta or not torch.is_autocast_enabled(x.device.type):
            return self._norm(x)
        # On CUDA, torch 2.13's autocast would widen the input to fp32, keep that for the backward pass and return fp32.
        with torch.autocast(x.device.type, enabled=False):
            return self._norm(x)

    def _norm(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; `qk_norm` puts an RMSNorm over each head's query and key."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.num_heads * config.head_dim, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.num_kv_heads * config.head_dim, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.num_kv_heads * config.head_dim, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.num_heads * config.head_dim, config.hidden_size, bias=config.o_bias)
        self.q_norm: nn.Module = RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm: nn.Module = RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x_BTC: Tensor, layer: int, attending: AttentionInputs) -> Tensor:
        B, T, _ = x_BTC.shape
        q = self.q_proj(x_BTC).view(B, T, self.num_heads, self.head_dim)
        k = self.k_proj(x_BTC).view(B, T, self.num_kv_heads, self.head_dim)
        v = self.v_proj(x_BTC).view(B, T, self.num_kv_heads, self.head_dim)
        q = rotate(self.q_norm(q), attending.cos_BTD, attending.sin_BTD)
        k = rotate(self.k_norm(k), attending.cos_BTD, attending.sin_BTD)
        if attending.memory is not None:
            k, v = attending.memory.write(layer, k, v)
        y_BTHD = attend(q, k, v, attending.mask)
        return self.o_proj(y_BTHD.reshape(B, T, self.num_heads * self.head_dim))


def attend(q_BTHD: Tensor, k_BSGD: Tensor, v_BSGD: Tensor, mask: Tensor | None) -> Tensor:
    """Attention `(B, T, H, D)` of queries to the keys and values of G heads; for `mask` see `AttentionInputs`."""
    q_BHTD, k_BGSD, v_BGSD = q_BTHD.transpose(1, 2), k_BSGD.transpose(1, 2), v_BSGD.transpose(1, 2)
    if mask is None and k_BSGD.shape[1] > q_BTHD.shape[1]:
        return causal_and_own(q_BHTD, k_BGSD, v_BGSD).transpose(1, 2)
    if mask is None and prefers_blocks(q_BHTD):
        return in_blocks(q_BHTD, k_BGSD, v_BGSD).transpose(1, 2)
    grouped = k_BSGD.shape[2] != q_BTHD.shape[2]
    y_BHTD = F.scaled_dot_product_attention(
        q_BHTD, k_BGSD, v_BGSD, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped
    )
    return y_BHTD.transpose(1, 2)


class SwiGLU(nn.Module):
    """Gated feed-forward layer (Shazeer, arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BTC)) * self.up_proj(x_BTC))


class TransformerLayer(nn.Module):
    """Pre-norm residual layer; `input_norm=False` leaves out the first norm, as EAGLE-1's first layer does."""

    def __init__(self, config: ModelConfig, input_norm: bool = True) -> None:
        super().__init__()
        norm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.input_layernorm: nn.Module = norm if input_norm else nn.Identity()
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x_BTC: Tensor, layer: int, attending: AttentionInputs) -> Tensor:
        return self.add_mlp(self.add_attention(x_BTC, layer, attending))

    def add_attention(self, x_BTC: Tensor, layer: int, attending: AttentionInputs) -> Tensor:
        """The first half of the layer."""
        return x_BTC + self.self_attn(self.input_layernorm(x_BTC), layer, attending)

    def add_mlp(self, x_BTC: Tensor) -> Tensor:
        """The second half."""
        return x_BTC + self.mlp(self.post_attention_layernorm(x_BTC))


def run_layers(
    layers: Iterable[nn.Module], x_BTC: Tensor, attending: AttentionInputs, recompute_every: int = 0, first: int = 0
) -> Tensor:
    """Run the layers one after another; `first` is the number of the first.

    With `recompute_every=n`, every n-th layer keeps only its input and is recomputed in the backward pass (activation
    checkpointing, Chen et al., arXiv 1604.06174). Results are the same to the last bit.
    """
    for number, layer in enumerate(layers, start=first):
        if recompute_every and number % recompute_every == 0 and torch.is_grad_enabled():
            # Layers draw no random numbers, so there is no generator to restore.
            x_BTC = checkpoint(layer, x_BTC, number, attending, use_reentrant=False, preserve_rng_state=False)
        else:
            x_BTC = layer(x_BTC, number, attending)
    return x_BTC


def initialise(module: nn.Module, std: float) -> None:
    """Normal weights, but zero where a layer writes to the residual stream, so that it starts as the identity."""
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear):
            if name.endswith(("o_proj", "down_proj")):
                nn.init.zeros_(child.weight)
            else:
                nn.init.normal_(child.weight, std=std)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, nn.Embedding):
            nn.init.normal_(child.weight, std=std)
        elif isinstance(child, nn.RMSNorm):
            nn.init.ones_(child.weight)


def scale_gradient(x: Tensor, share: float) -> Tensor:
    """`x` itself, letting only `share` of the gradient flow back."""
    if share == 1.0:
        return x
    return x.detach() if share == 0.0 else x.detach() + share * (x - x.detach())
