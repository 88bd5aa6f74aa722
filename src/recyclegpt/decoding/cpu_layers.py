"""The fused layers on the C++ operators of `kernels`. B batch, T positions, C width, H query heads, D head width."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from recyclegpt import kernels
from recyclegpt.decoding.fused_layers import FusedLayer
from recyclegpt.models import KVCache, RecycleGPT
from recyclegpt.models.layers import AttentionInputs

KERNEL_QUERIES = 256
"""With more queries per row than this (a long prompt), attention is left to torch, which is faster there. Up to it, a
row of a batch is bit for bit what it is alone; beyond, rounding depends on the other prompts."""


class PackedLinear(nn.Module):
    """A product whose weight is packed for `kernels.linear`, in its own format or in int8."""

    def __init__(
        self, weight_OI: Tensor, bias_O: Tensor | None, int8: bool, memory: kernels.HugePages | None = None
    ) -> None:
        super().__init__()
        self.out_features = len(weight_OI)
        scale = None
        if int8:
            weight_OI, scale = kernels.quantise(weight_OI)
        self.register_buffer("packed", (memory or kernels.HugePages()).hold(kernels.pack(weight_OI)))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias_O)

    packed: Tensor
    scale: Tensor | None
    bias: Tensor | None

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        y = _product(self, x.reshape(-1, x.shape[-1]), None if plus is None else plus.reshape(-1, self.out_features))
        return y.view(*x.shape[:-1], self.out_features)


class KernelRMSNorm(nn.Module):
    """RMSNorm in one call."""

    def __init__(self, weight_C: Tensor, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", weight_C)

    weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return kernels.rms_norm(x.reshape(-1, x.shape[-1]), self.weight, self.eps).view_as(x)


class KernelLayer(FusedLayer):
    """The same on the kernels: eight calls per layer where a cache is read."""

    qkv_proj: PackedLinear
    o_proj: PackedLinear
    gate_up_proj: PackedLinear
    down_proj: PackedLinear

    def forward(self, x_BTC: Tensor, layer: int, inputs: AttentionInputs) -> Tensor:
        cache = inputs.memory
        B, T, C = x_BTC.shape
        if not isinstance(cache, KVCache) or T > KERNEL_QUERIES:
            return super().forward(x_BTC, layer, inputs)
        x_nC = x_BTC.reshape(B * T, C)
        qkv_BTND = _product(self.qkv_proj, _normed(self.input_layernorm, x_nC)).view(B, T, -1, self.head_dim)
        if self.has_qk_norm:
            q, k, v = qkv_BTND.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=2)
            qkv_BTND = torch.cat([self.q_norm(q), self.k_norm(k), v], dim=2)
        key, value, positions_BT = cache.keys[layer], cache.values[layer], cache.positions_BT
        # The kernel looks up a position's row in the tables itself (`KernelGPT`).
        q = kernels.rotate_store(qkv_BTND, inputs.cos_BTD, inputs.sin_BTD, positions_BT, key, value)
        y_nC = kernels.attend(q, key, value, positions_BT).view(B * T, -1)
        x_nC = _product(self.o_proj, y_nC, x_nC)
        gate_up = _product(self.gate_up_proj, _normed(self.post_attention_layernorm, x_nC))
        return _product(self.down_proj, kernels.swiglu(gate_up), x_nC).view(B, T, C)

    def _gate(self, gate_up: Tensor) -> Tensor:
        return kernels.swiglu(gate_up.reshape(-1, gate_up.shape[-1])).view(*gate_up.shape[:-1], -1)


class LayerStack:
    """All layers and the norm after them as one operator, `kernels.layers`; its slow twin is layer by layer."""

    def __init__(self, model: KernelGPT, modules: nn.ModuleList, norm: nn.Module) -> None:
        self.config, self.rotary = model.config, model.rotary
        self.norm_C = norm.weight if isinstance(norm, KernelRMSNorm) else None
        layers = [layer for layer in modules if isinstance(layer, KernelLayer)]
        self.has_bytes = layers[0].qkv_proj.scale is not None
        tensors = [_tensors(layer) for layer in layers]
        self.tensors = tensors
        """Held, so that no address outlives its tensor."""
        self.addresses = torch.tensor([[0 if one is None else one.data_ptr() for one in its] for its in tensors])

    def __call__(self, x_BTC: Tensor, positions_BT: Tensor, cache: KVCache) -> Tensor:
        """The states after the norm, written over `x_BTC`.

        Raises:
            ValueError: the cache does not fit.
        """
        config, slots, keys = self.config, cache.slots_S.numel(), cache.keys[0]
        if keys.dtype != x_BTC.dtype or len(keys) != len(x_BTC) or len(cache.keys) != len(self.addresses):
            raise ValueError("the KV cache has another dtype, batch size or number of layers than the states")
        kernels.layers(
            x_BTC.view(-1, x_BTC.shape[-1]),
            self.addresses,
            cache.addresses,
            self.rotary.cos_SD,
            self.rotary.sin_SD,
            positions_BT,
            self.norm_C,
            (config.num_heads, config.num_kv_heads, config.head_dim, config.intermediate_size, slots),
            config.norm_eps,
            self.has_bytes,
        )
        return x_BTC


def _tensors(layer: KernelLayer) -> list[Tensor | None]:
    """A layer's, in the order of `Layer` in `layers.cpp`."""

    def product(linear: PackedLinear) -> list[Tensor | None]:
        return [linear.packed, linear.scale, linear.bias]

    def norm(module: nn.Module) -> Tensor | None:
        return module.weight if isinstance(module, KernelRMSNorm) else None

    tensors = [norm(layer.input_layernorm), *product(layer.qkv_proj), norm(layer.q_norm), norm(layer.k_norm)]
    tensors += [*product(layer.o_proj), norm(layer.post_attention_layernorm)]
    return [*tensors, *product(layer.gate_up_proj), *product(layer.down_proj)]


STACKS = ("_backbone_stack", "_module_stack")


class KernelGPT(RecycleGPT):
    """A model of such layers: where they read a KV cache they need neither a mask nor looked-up rotations."""

    in_one_call = True
    """Few rows pass through all layers in one operator; False runs them operator by operator, with equal bits."""

    @functools.cached_property
    def _backbone_stack(self) -> LayerStack:
        return LayerStack(self, self.backbone.layers, self.backbone.norm)

    @functools.cached_property
    def _module_stack(self) -> LayerStack:
        assert self.recyclable is not None
        return LayerStack(self, self.recyclable.layers, self.recyclable.norm)

    # The two stacks hold addresses, so they stay behind when the model is copied, saved or moved.
    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in STACKS}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        dtype = self.dtype
        for name in STACKS:
            vars(self).pop(name, None)
        applied: Self = super()._apply(fn, recurse)
        if self.dtype != dtype:  # the order of packed weights is that of their format
            raise TypeError(f"weights packed in {dtype} cannot be cast to {self.dtype}; fuse the model in that dtype")
        return applied

    def backbone_states(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        num_slots_read: int | None = None,
    ) -> Tensor:
        if positions_BT is None or cache is None or not self._takes_one_call(tokens_BT):
            return super().backbone_states(tokens_BT, positions_BT, mask, cache, num_slots_read)
        return self._backbone_stack(self.backbone.embed_tokens(tokens_BT), positions_BT, cache)

    def recycle(
        self,
        tokens_BT: Tensor,
        hidden_BTC: Tensor,
        positions_BT: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        num_slots_read: int | None = None,
    ) -> Tensor:
        if positions_BT is None or cache is None or self.recyclable is None or not self._takes_one_call(tokens_BT):
            return super().recycle(tokens_BT, hidden_BTC, positions_BT, mask, cache, num_slots_read)
        folded_BTC = self.recyclable.fold(self.backbone.embed_tokens(tokens_BT), hidden_BTC)
        return self._module_stack(folded_BTC, positions_BT, cache)

    def _takes_one_call(self, tokens_BT: Tensor) -> bool:
        fits = tokens_BT.shape[1] <= KERNEL_QUERIES and self.config.intermediate_size % kernels.LANES == 0
        return self.in_one_call and fits and not torch.compiler.is_compiling()

    def _attention_inputs(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None,
        mask: Tensor | None,
        cache: KVCache | None,
        num_slots_read: int | None,
    ) -> AttentionInputs:
        if positions_BT is None or cache is None or tokens_BT.shape[1] > KERNEL_QUERIES:
            return super()._attention_inputs(tokens_BT, positions_BT, mask, cache, num_slots_read)
        cache.positions_BT = positions_BT.contiguous()
        return AttentionInputs(self.rotary.cos_SD, self.rotary.sin_SD, None, cache)


# A small model's pass is mostly Python: these two skip `Module.__call__`.
def _product(linear: PackedLinear, x_nI: Tensor, plus_nO: Tensor | None = None) -> Tensor:
    y_nO = kernels.linear(x_nI, linear.packed, linear.out_features, linear.scale, plus_nO)
    return y_nO if linear.bias is None else y_nO.add_(linear.bias)


def _normed(norm: nn.Module, x_nC: Tensor) -> Tensor:
    return kernels.rms_norm(x_nC, norm.weight, norm.eps) if isinstance(norm, KernelRMSNorm) else x_nC
