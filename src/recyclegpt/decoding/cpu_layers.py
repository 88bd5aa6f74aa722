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

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, int8: bool, memory: kernels.HugePages) -> None:
        super().__init__()
        self.out_features = len(weight_OI)
        scale = None
        if int8:
            weight_OI, scale = kernels.quantise(weight_OI)
        self.register_buffer("packed", memory.hold(kernels.pack(weight_OI)))
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

    def add_attention(self, x_BTC: Tensor, layer: int, inputs: AttentionInputs) -> Tensor:
        cache = inputs.memory
        B, T, C = x_BTC.shape
        if not isinstance(cache, KVCache) or T > KERNEL_QUERIES or inputs.mask is not None:
            return super().add_attention(x_BTC, layer, inputs)
        x_nC = x_BTC.reshape(B * T, C)
        qkv_BTND = _product(self.qkv_proj, _normed(self.input_layernorm, x_nC)).view(B, T, -1, self.head_dim)
        if self.has_qk_norm:
            q, k, v = qkv_BTND.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=2)
            qkv_BTND = torch.cat([self.q_norm(q), self.k_norm(k), v], dim=2)
        key, value, positions_BT = cache.keys[layer], cache.values[layer], cache.positions_BT
        # The kernel looks up a position's row in the tables itself (`KernelGPT`).
        q = kernels.rotate_store(qkv_BTND, inputs.cos_BTD, inputs.sin_BTD, positions_BT, key, value)
        y_nC = kernels.attend(q, key, value, positions_BT).view(B * T, -1)
        return _product(self.o_proj, y_nC, x_nC).view(B, T, C)

    def add_mlp(self, x_BTC: Tensor) -> Tensor:
        x_nC = x_BTC.reshape(-1, x_BTC.shape[-1])
        gate_up = _product(self.gate_up_proj, _normed(self.post_attention_layernorm, x_nC))
        return _product(self.down_proj, kernels.swiglu(gate_up), x_nC).view_as(x_BTC)


class OneCall:
    """Passes through all layers as one operator (`kernels.states`) and chains of drafts as one (`kernels.draft`).

    Their slow twins run operator by operator, with equal bits.
    """

    def __init__(self, model: KernelGPT, drafts: bool) -> None:
        """Of the backbone, or of the recyclable module, which drafts."""
        config = model.config
        fold: list[Tensor | None] = [None] * 5
        body: Any = model.recyclable if drafts else model.backbone
        if drafts:
            fold = [_norm(body.embed_norm), _norm(body.hidden_norm), *_product_of(body.fc)]
        layers = [layer for layer in body.layers if isinstance(layer, KernelLayer)]
        head: Any = model.draft_lm_head if drafts and model.draft_lm_head is not None else model.lm_head
        embedding = model.backbone.embed_tokens.weight
        ends = [embedding, *fold, _norm(body.norm), *_product_of(head), model.draft_ids if drafts else None]
        self.tensors = [ends, *map(_tensors, layers)]
        """Held, so that no address outlives its tensor."""
        addresses = [torch.tensor([0 if one is None else one.data_ptr() for one in its]) for its in self.tensors]
        self.stack = kernels.Stack(
            embedding,
            addresses[0],
            torch.stack(addresses[1:]),
            model.rotary.cos_SD,
            model.rotary.sin_SD,
            (config.num_heads, config.num_kv_heads, config.head_dim, config.intermediate_size),
            head.out_features,
            config.norm_eps,
            layers[0].qkv_proj.scale is not None,
        )

    def states(self, tokens_BT: Tensor, hidden_BTC: Tensor | None, positions_BT: Tensor, cache: KVCache) -> Tensor:
        """The states after the norm, `(B, T, C)`.

        Raises:
            ValueError: the cache does not fit.
        """
        keys = cache.keys[0]
        if keys.dtype != self.stack.like.dtype or len(keys) != len(tokens_BT):
            raise ValueError("the KV cache has another dtype or batch size than the states")
        return kernels.states(self.stack, tokens_BT, hidden_BTC, positions_BT, cache.addresses, cache.slots_S.numel())

    def draft(
        self, state_BC: Tensor, tokens_BS: Tensor, newest_B: Tensor, num: int, threshold: float, cache: KVCache
    ) -> Tensor:
        """See `kernels.draft`."""
        slots = cache.addresses, cache.slots_S.numel()
        return kernels.draft(self.stack, state_BC, tokens_BS, newest_B, num, threshold, *slots)


def _product_of(linear: nn.Module) -> list[Tensor | None]:
    assert isinstance(linear, PackedLinear)
    return [linear.packed, linear.scale, linear.bias]


def _norm(module: nn.Module) -> Tensor | None:
    return module.weight if isinstance(module, KernelRMSNorm) else None


def _tensors(layer: KernelLayer) -> list[Tensor | None]:
    """A layer's, in the order of `Layer` in `pass.h`."""
    tensors = [_norm(layer.input_layernorm), *_product_of(layer.qkv_proj), _norm(layer.q_norm), _norm(layer.k_norm)]
    tensors += [*_product_of(layer.o_proj), _norm(layer.post_attention_layernorm)]
    return [*tensors, *_product_of(layer.gate_up_proj), *_product_of(layer.down_proj)]


STACKS = ("_backbone_calls", "_module_calls")


class KernelGPT(RecycleGPT):
    """A model of such layers: where they read a KV cache they need neither a mask nor looked-up rotations."""

    in_one_call = True
    """Few rows pass through all layers in one operator; False runs them operator by operator, with equal bits."""

    @functools.cached_property
    def _backbone_calls(self) -> OneCall:
        return OneCall(self, drafts=False)

    @functools.cached_property
    def _module_calls(self) -> OneCall:
        return OneCall(self, drafts=True)

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

    def _in_one_call(
        self, tokens_BT: Tensor, hidden_BTC: Tensor | None, positions_BT: Tensor | None, cache: KVCache | None
    ) -> Tensor | None:
        takes = self._takes_one_call(tokens_BT) and (hidden_BTC is None or self.recycle_config.kind == "recyclable")
        if positions_BT is None or cache is None or not takes:
            return None
        calls = self._backbone_calls if hidden_BTC is None else self._module_calls
        return calls.states(tokens_BT, hidden_BTC, positions_BT, cache)

    def draft_greedily(
        self, state_BC: Tensor, tokens_BS: Tensor, newest_B: Tensor, num: int, threshold: float, cache: KVCache
    ) -> Tensor | None:
        """All drafts of a step in one call (`kernels.draft`), or None where that cannot be."""
        if self.recycle_config.kind != "recyclable" or not self._takes_one_call(tokens_BS[:, :1]):
            return None
        return self._module_calls.draft(state_BC, tokens_BS, newest_B, num, threshold, cache)

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
