"""LLaMA layers: RMSNorm, rotary position embedding, grouped-query attention, SwiGLU, no biases.

Given the same weights they compute what `transformers`' `LlamaForCausalLM` computes; a test holds the two equal.

B batch, T positions, C model width, H query heads, G key/value heads, D head width, S keys attended to, F SwiGLU width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recyclegpt.models.config import ModelConfig


class Memory(Protocol):
    """Keys and values that one attention layer sees besides those it has just computed."""

    def write(self, layer: int, key_BTGD: Tensor, value_BTGD: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the new rows and return all keys and values `(B, S, G, D)` this pass may attend to."""
        ...


@dataclass
class Attending:
    """What every attention layer of one pass needs to know about positions.

    `mask` is True where a query may look, shape `(T, S)` or `(B, 1, T, S)`; None means causal over the T rows given.
    """

    cos_BTD: Tensor
    sin_BTD: Tensor
    mask: Tensor | None = None
    memory: Memory | None = None


class Rotary(nn.Module):
    """Cosines and sines of the rotary embedding (Su et al., arXiv 2104.09864), halves rotated as in LLaMA."""

    def __init__(self, head_dim: int, theta: float, num_positions: int) -> None:
        super().__init__()
        self.head_dim, self.theta, self.num_positions = head_dim, theta, num_positions
        self.register_buffer("cos_SD", torch.empty(num_positions, head_dim), persistent=False)
        self.register_buffer("sin_SD", torch.empty(num_positions, head_dim), persistent=False)
        self.fill()

    cos_SD: Tensor
    sin_SD: Tensor

    def fill(self) -> None:
        """Compute the tables in fp32 on their device; also called after a model was made on the meta device."""
        device = self.cos_SD.device
        frequency = self.theta ** (-torch.arange(0, self.head_dim, 2, device=device).float() / self.head_dim)
        angle = torch.outer(torch.arange(self.num_positions, device=device).float(), frequency)
        angle = torch.cat([angle, angle], dim=-1)
        self.cos_SD.copy_(angle.cos())
        self.sin_SD.copy_(angle.sin())

    def forward(self, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the tables for these positions, `(..., T, 1, D)`: they broadcast over heads."""
        return self.cos_SD[positions_BT].unsqueeze(-2), self.sin_SD[positions_BT].unsqueeze(-2)


def rotate(x_BTHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + D/2) of a head by its position's angle."""
    low, high = x_BTHD.chunk(2, dim=-1)
    turned = x_BTHD * cos + torch.cat([-high, low], dim=-1) * sin
    return turned.to(x_BTHD.dtype)


class RMSNorm(nn.RMSNorm):
    """RMSNorm whose weight follows the input's dtype, without which mixed precision leaves the fused kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.num_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.num_kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.num_kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_heads * config.head_dim, config.hidden_size, bias=False)

    def forward(self, x_BTC: Tensor, layer: int, attending: Attending) -> Tensor:
        B, T, _ = x_BTC.shape
        q = self.q_proj(x_BTC).view(B, T, self.num_heads, self.head_dim)
        k = self.k_proj(x_BTC).view(B, T, self.num_kv_heads, self.head_dim)
        v = self.v_proj(x_BTC).view(B, T, self.num_kv_heads, self.head_dim)
        q = rotate(q, attending.cos_BTD, attending.sin_BTD)
        k = rotate(k, attending.cos_BTD, attending.sin_BTD)
        if attending.memory is not None:
            k, v = attending.memory.write(layer, k, v)
        y_BHTD = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=attending.mask,
            is_causal=attending.mask is None,
            enable_gqa=self.num_kv_heads != self.num_heads,
        )
        return self.o_proj(y_BHTD.transpose(1, 2).reshape(B, T, self.num_heads * self.head_dim))


class SwiGLU(nn.Module):
    """Gated feed-forward layer (Shazeer, arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BTC)) * self.up_proj(x_BTC))


class TransformerLayer(nn.Module):
    """Pre-norm residual layer. `input_norm=False` leaves the first norm out, as EAGLE-1's first layer does."""

    def __init__(self, config: ModelConfig, input_norm: bool = True) -> None:
        super().__init__()
        norm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.input_layernorm: nn.Module = norm if input_norm else nn.Identity()
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x_BTC: Tensor, layer: int, attending: Attending) -> Tensor:
        x_BTC = x_BTC + self.self_attn(self.input_layernorm(x_BTC), layer, attending)
        return x_BTC + self.mlp(self.post_attention_layernorm(x_BTC))


def initialise(module: nn.Module, std: float) -> None:
    """Normal weights, but zero where a layer writes into the residual stream: each layer starts as the identity."""
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear):
            if name.endswith(("o_proj", "down_proj")):
                nn.init.zeros_(child.weight)
            else:
                nn.init.normal_(child.weight, std=std)
        elif isinstance(child, nn.Embedding):
            nn.init.normal_(child.weight, std=std)
        elif isinstance(child, nn.RMSNorm):
            nn.init.ones_(child.weight)
