"""Layers with fused projections, on torch's operators. B batch, T positions, C width, H query heads, D head width."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from recyclegpt.models.layers import AttentionInputs, TransformerLayer, attend
from recyclegpt.models.rope import rotate

MakeLinear = Callable[..., nn.Module]
"""Makes one product of one or several linear layers, their weights stacked by output."""


class FusedLinear(nn.Module):
    """A product on torch's operators, which may add a residual."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight_OI)
        self.register_buffer("bias", bias_O)

    weight: Tensor
    bias: Tensor | None

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        return y if plus is None else plus + y


class FusedLayer(nn.Module):
    """A transformer layer with one product for queries, keys and values, and one for gate and up."""

    def __init__(self, layer: TransformerLayer, linear: MakeLinear, norm: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.num_heads, self.num_kv_heads = attention.num_heads, attention.num_kv_heads
        self.head_dim = attention.head_dim
        self.input_layernorm = norm(layer.input_layernorm)
        self.qkv_proj = linear(attention.q_proj, attention.k_proj, attention.v_proj)
        self.q_norm, self.k_norm = norm(attention.q_norm), norm(attention.k_norm)
        self.has_qk_norm = not isinstance(self.q_norm, nn.Identity)
        self.o_proj = linear(attention.o_proj)
        self.post_attention_layernorm = norm(layer.post_attention_layernorm)
        self.gate_up_proj = linear(mlp.gate_proj, mlp.up_proj)
        self.down_proj = linear(mlp.down_proj)

    def forward(self, x_BTC: Tensor, layer: int, inputs: AttentionInputs) -> Tensor:
        return self.add_mlp(self.add_attention(x_BTC, layer, inputs))

    def add_attention(self, x_BTC: Tensor, layer: int, inputs: AttentionInputs) -> Tensor:
        B, T, _ = x_BTC.shape
        qkv_BTND = self.qkv_proj(self.input_layernorm(x_BTC)).view(B, T, -1, self.head_dim)
        y_BTHD = self._attend(qkv_BTND, layer, inputs)
        y_BTC: Tensor = self.o_proj(y_BTHD.reshape(B, T, -1), x_BTC)
        return y_BTC

    def add_mlp(self, x_BTC: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(self.post_attention_layernorm(x_BTC)).chunk(2, dim=-1)
        y_BTC: Tensor = self.down_proj(F.silu(gate) * up, x_BTC)
        return y_BTC

    def _attend(self, qkv_BTND: Tensor, layer: int, inputs: AttentionInputs) -> Tensor:
        q, k, v = qkv_BTND.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=2)
        q = rotate(self.q_norm(q), inputs.cos_BTD, inputs.sin_BTD)
        k = rotate(self.k_norm(k), inputs.cos_BTD, inputs.sin_BTD)
        if inputs.memory is not None:
            k, v = inputs.memory.write(layer, k, v)
        return attend(q, k, v, inputs.mask)
