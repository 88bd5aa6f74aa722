"""The model made ready to decode: weights cast once, projections fused, and on a CPU the products of `kernels`.

Every module here computes what its namesake in `models/` computes; a test holds each equal. B batch, T positions,
C model width, H query heads, G key/value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recyclegpt.decoding import kernels
from recyclegpt.errors import ConfigError
from recyclegpt.models import RecycleGPT, StaticCache, fastest_dtype
from recyclegpt.models.layers import Attending, Attention, Rotary, SwiGLU, TransformerLayer, rotate

KERNEL_QUERIES = 16
"""With more queries a row than this (a prompt), attention is a product of matrices and torch's kernel is faster."""

MakeLinear = Callable[..., nn.Module]
"""One product from the weights of one or several, stacked by output."""


class PackedLinear(nn.Module):
    """A product without bias whose weight lies packed for `kernels.linear`, in its own format or in int8."""

    def __init__(self, weight_OI: Tensor, int8: bool) -> None:
        super().__init__()
        self.out_features = len(weight_OI)
        scale = None
        if int8:
            weight_OI, scale = kernels.quantise(weight_OI)
        self.register_buffer("packed", kernels.pack(weight_OI))
        self.register_buffer("scale", scale)

    packed: Tensor
    scale: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        return kernels.linear(x, self.packed, self.out_features, self.scale)


class FusedLinear(nn.Module):
    """The same with torch's product."""

    def __init__(self, weight_OI: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight_OI)

    weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class KernelRMSNorm(nn.Module):
    """RMSNorm in one call."""

    def __init__(self, weight_C: Tensor, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", weight_C)

    weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return kernels.rms_norm(x, self.weight, self.eps)


class FusedAttention(nn.Module):
    """One product for queries, keys and values; with kernels also one call each for rotation and attention."""

    def __init__(self, attention: Attention, linear: MakeLinear, use_kernels: bool) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = attention.num_heads, attention.num_kv_heads
        self.head_dim, self.use_kernels = attention.head_dim, use_kernels
        self.qkv_proj = linear(attention.q_proj, attention.k_proj, attention.v_proj)
        self.o_proj = linear(attention.o_proj)

    def forward(self, x_BTC: Tensor, layer: int, attending: Attending) -> Tensor:
        B, T, _ = x_BTC.shape
        qkv_BTND = self.qkv_proj(x_BTC).view(B, T, -1, self.head_dim)
        memory = attending.memory
        if self.use_kernels and isinstance(memory, StaticCache) and T <= KERNEL_QUERIES:
            key, value, positions_BT = memory.keys[layer], memory.values[layer], memory.positions_BT
            q = kernels.rotate_store(qkv_BTND, attending.cos_BTD, attending.sin_BTD, positions_BT, key, value)
            y_BTHD = kernels.attend(q, key, value, positions_BT)
        else:
            q, k, v = qkv_BTND.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=2)
            q = rotate(q, attending.cos_BTD, attending.sin_BTD)
            k = rotate(k, attending.cos_BTD, attending.sin_BTD)
            if memory is not None:
                k, v = memory.write(layer, k, v)
            y_BTHD = F.scaled_dot_product_attention(
                q.transpose(1, 2),
                k.transpose(1, 2),
                v.transpose(1, 2),
                attn_mask=attending.mask,
                is_causal=attending.mask is None,
                enable_gqa=self.num_kv_heads != self.num_heads,
            ).transpose(1, 2)
        y_BTC: Tensor = self.o_proj(y_BTHD.reshape(B, T, self.num_heads * self.head_dim))
        return y_BTC


class FusedSwiGLU(nn.Module):
    """One product for gate and up."""

    def __init__(self, mlp: SwiGLU, linear: MakeLinear, use_kernels: bool) -> None:
        super().__init__()
        self.use_kernels = use_kernels
        self.gate_up_proj = linear(mlp.gate_proj, mlp.up_proj)
        self.down_proj = linear(mlp.down_proj)

    def forward(self, x_BTC: Tensor) -> Tensor:
        gate_up = self.gate_up_proj(x_BTC)
        if self.use_kernels:
            gated = kernels.swiglu(gate_up)
        else:
            gate, up = gate_up.chunk(2, dim=-1)
            gated = F.silu(gate) * up
        y_BTC: Tensor = self.down_proj(gated)
        return y_BTC


@torch.no_grad()
def fuse(
    model: RecycleGPT, dtype: torch.dtype | None = None, use_kernels: bool = True, release: bool = False
) -> RecycleGPT:
    """A model for decoding alone, that computes what `model` computes; it shares no tensor that training changes.

    Args:
        model: on its device.
        dtype: of weights and states; None for the model's own; int8: weights in int8, one step per output, states in
            the device's fastest format.
        use_kernels: False decodes with torch's own operators on a CPU too.
        release: free each weight of `model` once it is copied, so that both never lie in memory; `model` is used up.

    Raises:
        ConfigError: int8 where the kernels cannot be used.
    """
    int8 = dtype == torch.int8
    device, own = model.device, model.dtype
    dtype = own if dtype is None else fastest_dtype(device) if int8 else dtype
    packs = use_kernels and kernels.usable(device, dtype) and _fits(model)
    if int8 and not packs:
        raise ConfigError("dtype: int8 weights need the CPU kernels of this package; decode in another dtype")

    def linear(*modules: nn.Linear) -> nn.Module:
        # `cat` copies: nothing here shares memory with a weight in training.
        weight_OI = torch.cat([module.weight.detach().to(dtype) for module in modules])
        if release:
            for module in modules:
                if module is not model.lm_head:
                    module.weight = nn.Parameter(torch.empty(0, dtype=own, device=device), requires_grad=False)
        return PackedLinear(weight_OI, int8) if packs else FusedLinear(weight_OI)

    def norm(module: nn.Module) -> nn.Module:
        if not isinstance(module, nn.RMSNorm):
            return nn.Identity()
        weight_C = module.weight.detach().to(dtype, copy=True)
        if packs:
            assert module.eps is not None
            return KernelRMSNorm(weight_C, module.eps)
        copied = type(module)(module.normalized_shape, eps=module.eps, device=device, dtype=dtype)
        copied.weight = nn.Parameter(weight_C, requires_grad=False)
        return copied

    def put(to: TransformerLayer, layer: TransformerLayer) -> None:
        to.input_layernorm = norm(layer.input_layernorm)
        to.post_attention_layernorm = norm(layer.post_attention_layernorm)  # type: ignore[assignment]
        to.self_attn = FusedAttention(layer.self_attn, linear, packs)  # type: ignore[assignment]
        to.mlp = FusedSwiGLU(layer.mlp, linear, packs)  # type: ignore[assignment]

    with torch.device("meta"):
        fused = RecycleGPT(model.config, model.recycle_config)
    fused.lm_head = linear(model.lm_head)  # type: ignore[assignment]
    embedding = model.backbone.embed_tokens.weight.detach()
    fused.backbone.embed_tokens.weight = nn.Parameter(embedding.to(dtype, copy=not release), requires_grad=False)
    fused.backbone.norm = norm(model.backbone.norm)  # type: ignore[assignment]
    for to, layer in zip(fused.backbone.layers, model.backbone.layers, strict=True):
        put(to, layer)  # type: ignore[arg-type]
    if model.recyclable is not None and fused.recyclable is not None:
        for name in ("embed_norm", "hidden_norm", "norm"):
            setattr(fused.recyclable, name, norm(getattr(model.recyclable, name)))
        fused.recyclable.fc = linear(model.recyclable.fc)  # type: ignore[assignment]
        for to, layer in zip(fused.recyclable.layers, model.recyclable.layers, strict=True):
            put(to, layer)  # type: ignore[arg-type]
    with device:
        # Tables in fp32 whatever the weights: in bf16 an angle is off by up to a part in 256.
        fused.rotary = Rotary(model.config.head_dim, model.config.rope_theta, model.rotary.num_positions)
    if dtype == torch.float64:
        fused.rotary.double()
    return fused.eval().requires_grad_(False)


def _fits(model: RecycleGPT) -> bool:
    """Whether every product's input width is even, as the packed layout needs."""
    config = model.config
    return not any(
        width % 2 for width in (config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim)
    )
