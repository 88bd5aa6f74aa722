"""Layers and model of `cuda_kernels`: what `FusedLayer` computes, six kernels a layer.

Imported only where Triton can be. With more rows than the kernels take, without a cache, and inside `torch.compile`,
they are torch's own operators, on the same weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from recyclegpt.decoding import cuda_kernels
from recyclegpt.decoding.cuda_kernels import operators
from recyclegpt.decoding.fused import FusedLayer, FusedLinear, MakeLinear
from recyclegpt.models import RecycleGPT, StaticCache
from recyclegpt.models.layers import Attending, TransformerLayer
from recyclegpt.models.rope import rotate


def fits(rows: int) -> bool:
    """Whether the kernels compute so many rows here; inside `torch.compile` the compiler's own are used."""
    return rows <= cuda_kernels.MAX_ROWS and not torch.compiler.is_compiling()


class TritonLinear(FusedLinear):
    """A product, with the kernels where they fit."""

    then: Tensor | None = None
    """The weight that a pass reads after this one."""

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        out_features, in_features = self.weight.shape
        x_nI = x.reshape(-1, in_features)
        if not fits(len(x_nI)):
            return super().forward(x, plus)
        plus_nO = None if plus is None else plus.reshape(-1, out_features)
        return operators.linear(x_nI, self.weight, self.bias, plus_nO, then=self.then).view(*x.shape[:-1], out_features)


class TritonLayer(FusedLayer):
    """A transformer layer in six kernels.

    The weights of its two norms are multiplied into those of the products behind them: what a norm still does to a row
    is one factor, which the product applies at its end, having seen the row by then.
    """

    qkv_proj: TritonLinear
    o_proj: TritonLinear
    gate_up_proj: TritonLinear
    down_proj: TritonLinear

    def __init__(self, layer: TransformerLayer, linear: MakeLinear, norm: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__(layer, linear, norm)
        self.input_layernorm = _folded(self.input_layernorm, self.qkv_proj)
        self.post_attention_layernorm = _folded(self.post_attention_layernorm, self.gate_up_proj)

    def forward(self, x_BTC: Tensor, layer: int, attending: Attending) -> Tensor:
        memory = attending.memory
        B, T, C = x_BTC.shape
        if not isinstance(memory, StaticCache) or not fits(B * T):
            return super().forward(x_BTC, layer, attending)
        x_nC = x_BTC.reshape(B * T, C)
        q_BTHD = self._queries(x_nC, layer, attending, memory)
        key, value = memory.keys[layer], memory.values[layer]
        o, gate_up, down = self.o_proj, self.gate_up_proj, self.down_proj
        gate, up = gate_up.weight.chunk(2)
        y_BTHD = operators.attend(q_BTHD, key, value, memory.positions_BT, memory.num_read, then=(o.weight, gate))
        x_nC = operators.linear(y_BTHD.view(B * T, -1), o.weight, o.bias, x_nC, then=up)
        eps = _eps(self.post_attention_layernorm)
        gated = operators.gated(x_nC, gate_up.weight, gate_up.bias, eps, then=down.weight)
        return operators.linear(gated, down.weight, down.bias, x_nC, then=down.then).view(B, T, C)

    def _queries(self, x_nC: Tensor, layer: int, attending: Attending, memory: StaticCache) -> Tensor:
        """Rotated queries; keys and values are stored. The tables of all positions stand in for looked-up rows."""
        positions_BT, eps = memory.positions_BT, _eps(self.input_layernorm)
        weight, bias = self.qkv_proj.weight, self.qkv_proj.bias
        cos_SD, sin_SD = attending.cos_BTD, attending.sin_BTD
        if not self.has_qk_norm:
            return operators.rotate_store(
                x_nC, weight, bias, eps, cos_SD, sin_SD, positions_BT, memory.keys[layer], memory.values[layer]
            )
        # A norm needs a whole head, of which a program of the kernel has a part.
        qkv = operators.linear(x_nC, weight, bias, eps=eps).view(*positions_BT.shape, -1, self.head_dim)
        q, k, v = qkv.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=2)
        cos, sin = cos_SD[positions_BT].unsqueeze(-2), sin_SD[positions_BT].unsqueeze(-2)
        memory.write(layer, rotate(self.k_norm(k), cos, sin), v)
        return rotate(self.q_norm(q), cos, sin)


class TritonGPT(RecycleGPT):
    """A model of such layers: where they read a cache they need neither a mask nor looked-up rotations."""

    max_kernel_rows = cuda_kernels.MAX_ROWS

    def _attending(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None,
        mask: Tensor | None,
        cache: StaticCache | None,
        num_read: int | None,
    ) -> Attending:
        if positions_BT is None or cache is None or not fits(tokens_BT.numel()):
            return super()._attending(tokens_BT, positions_BT, mask, cache, num_read)
        cache.positions_BT = positions_BT.contiguous()
        cache.num_read = cache.num_slots if num_read is None else num_read
        return Attending(self.rotary.cos_SD, self.rotary.sin_SD, None, cache)


def link(model: RecycleGPT) -> None:
    """Tell each product which weight a pass reads next, so that it can be fetched early."""
    for stack in (model.backbone, model.recyclable):
        if stack is None:
            continue
        layers: list[Any] = list(stack.layers)
        for layer, following in itertools.pairwise(layers):
            layer.down_proj.then = following.qkv_proj.weight
        layers[-1].down_proj.then = model.lm_head.weight
        if stack is model.recyclable:
            stack.fc.then = layers[0].qkv_proj.weight


def _folded(norm: nn.Module, product: TritonLinear) -> nn.Module:
    """The norm without its weight, which `product` takes over."""
    if not isinstance(norm, nn.RMSNorm):
        return norm
    product.weight = (product.weight.float() * norm.weight.float()).to(product.weight.dtype)
    return nn.RMSNorm(norm.normalized_shape, norm.eps, elementwise_affine=False)


def _eps(norm: nn.Module) -> float | None:
    """What a product's kernel needs to know of the norm before it; None where there is none."""
    return norm.eps if isinstance(norm, nn.RMSNorm) else None
