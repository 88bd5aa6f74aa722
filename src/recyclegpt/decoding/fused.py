"""The model made ready to decode: weights cast once, projections fused, and on a CPU the products of `kernels`.

Every module here computes what its namesake in `models/` computes; a test holds each equal. B batch, T positions,
C model width, H query heads, G key/value heads, D head width.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recyclegpt.decoding import kernels
from recyclegpt.errors import ConfigError
from recyclegpt.models import RecycleGPT, StaticCache, fastest_dtype
from recyclegpt.models.layers import Attending, TransformerLayer, attend
from recyclegpt.models.rope import Rotary, rotate

KERNEL_QUERIES = 256
"""With more queries a row than this (a long prompt), attention is left to torch, which is faster there. Up to it a row
of a batch is bit for bit what it is alone; beyond, rounding depends on the prompts beside it."""

MakeLinear = Callable[..., nn.Module]
"""One product from the weights of one or several, stacked by output."""


class PackedLinear(nn.Module):
    """A product whose weight lies packed for `kernels.linear`, in its own format or in int8."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, int8: bool) -> None:
        super().__init__()
        self.out_features = len(weight_OI)
        scale = None
        if int8:
            weight_OI, scale = kernels.quantise(weight_OI)
        self.register_buffer("packed", kernels.pack(weight_OI))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias_O)

    packed: Tensor
    scale: Tensor | None
    bias: Tensor | None

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        y = _product(self, x.reshape(-1, x.shape[-1]), None if plus is None else plus.reshape(-1, self.out_features))
        return y.view(*x.shape[:-1], self.out_features)


class FusedLinear(nn.Module):
    """The same with torch's product."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight_OI)
        self.register_buffer("bias", bias_O)

    weight: Tensor
    bias: Tensor | None

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        return y if plus is None else plus + y


class KernelRMSNorm(nn.Module):
    """RMSNorm in one call."""

    def __init__(self, weight_C: Tensor, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", weight_C)

    weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return kernels.rms_norm(x.reshape(-1, x.shape[-1]), self.weight, self.eps).view_as(x)


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

    def forward(self, x_BTC: Tensor, layer: int, attending: Attending) -> Tensor:
        B, T, _ = x_BTC.shape
        qkv_BTND = self.qkv_proj(self.input_layernorm(x_BTC)).view(B, T, -1, self.head_dim)
        y_BTHD = self._attend(qkv_BTND, layer, attending)
        x_BTC = self.o_proj(y_BTHD.reshape(B, T, -1), x_BTC)
        y_BTC: Tensor = self.down_proj(self._gate(self.gate_up_proj(self.post_attention_layernorm(x_BTC))), x_BTC)
        return y_BTC

    def _attend(self, qkv_BTND: Tensor, layer: int, attending: Attending) -> Tensor:
        q, k, v = qkv_BTND.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=2)
        q = rotate(self.q_norm(q), attending.cos_BTD, attending.sin_BTD)
        k = rotate(self.k_norm(k), attending.cos_BTD, attending.sin_BTD)
        if attending.memory is not None:
            k, v = attending.memory.write(layer, k, v)
        return attend(q, k, v, attending.mask)

    def _gate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up


class KernelLayer(FusedLayer):
    """The same with the kernels: eight calls a layer, straight after one another where a cache is read."""

    qkv_proj: PackedLinear
    o_proj: PackedLinear
    gate_up_proj: PackedLinear
    down_proj: PackedLinear

    def forward(self, x_BTC: Tensor, layer: int, attending: Attending) -> Tensor:
        memory = attending.memory
        B, T, C = x_BTC.shape
        if not isinstance(memory, StaticCache) or T > KERNEL_QUERIES:
            return super().forward(x_BTC, layer, attending)
        x_nC = x_BTC.reshape(B * T, C)
        qkv_BTND = _product(self.qkv_proj, _normed(self.input_layernorm, x_nC)).view(B, T, -1, self.head_dim)
        if self.has_qk_norm:
            q, k, v = qkv_BTND.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=2)
            qkv_BTND = torch.cat([self.q_norm(q), self.k_norm(k), v], dim=2)
        key, value, positions_BT = memory.keys[layer], memory.values[layer], memory.positions_BT
        # The kernel finds a position's row in the tables by itself (`KernelGPT`).
        q = kernels.rotate_store(qkv_BTND, attending.cos_BTD, attending.sin_BTD, positions_BT, key, value)
        y_nC = kernels.attend(q, key, value, positions_BT).view(B * T, -1)
        x_nC = _product(self.o_proj, y_nC, x_nC)
        gate_up = _product(self.gate_up_proj, _normed(self.post_attention_layernorm, x_nC))
        return _product(self.down_proj, kernels.swiglu(gate_up), x_nC).view(B, T, C)

    def _gate(self, gate_up: Tensor) -> Tensor:
        return kernels.swiglu(gate_up.reshape(-1, gate_up.shape[-1])).view(*gate_up.shape[:-1], -1)


class KernelGPT(RecycleGPT):
    """A model of such layers: where they read a cache they need neither a mask nor looked-up rotations."""

    def _attending(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None,
        mask: Tensor | None,
        cache: StaticCache | None,
        num_read: int | None,
    ) -> Attending:
        if positions_BT is None or not isinstance(cache, StaticCache) or tokens_BT.shape[1] > KERNEL_QUERIES:
            return super()._attending(tokens_BT, positions_BT, mask, cache, num_read)
        cache.positions_BT = positions_BT.contiguous()
        return Attending(self.rotary.cos_SD, self.rotary.sin_SD, None, cache)


# A small model's pass is mostly Python: these two spare it the way through `Module.__call__`.
def _product(linear: PackedLinear, x_nI: Tensor, plus_nO: Tensor | None = None) -> Tensor:
    y_nO = kernels.linear(x_nI, linear.packed, linear.out_features, linear.scale, plus_nO)
    return y_nO if linear.bias is None else y_nO.add_(linear.bias)


def _normed(norm: nn.Module, x_nC: Tensor) -> Tensor:
    return kernels.rms_norm(x_nC, norm.weight, norm.eps) if isinstance(norm, KernelRMSNorm) else x_nC


@torch.no_grad()
def fuse(
    model: RecycleGPT, dtype: torch.dtype | None = None, use_kernels: bool = True, release: bool = False
) -> RecycleGPT:
    """A model for decoding alone, that computes what `model` computes; it shares no tensor that training changes.

    Args:
        model: on its device.
        dtype: of weights and states; None for the model's own; int8: weights in int8, one step per output, states in
            the device's fastest format.
        use_kernels: False decodes with torch's own operators on every device.
        release: free each weight of `model` once it is copied, so that both never lie in memory; `model` is used up.

    Raises:
        ConfigError: int8 where the kernels cannot be used.
    """
    int8 = dtype == torch.int8
    device, own = model.device, model.dtype
    dtype = own if dtype is None else fastest_dtype(device) if int8 else dtype
    odd = _odd_widths(model)
    packs = use_kernels and not odd and kernels.usable(device, dtype)
    if int8 and not packs:
        why = f", which need even widths ({odd})" if odd else ""
        raise ConfigError(f"dtype: int8 weights need the CPU kernels of this package{why}; decode in another dtype")
    if use_kernels and odd and device.type == "cpu":
        warnings.warn(
            f"decoding with torch's own kernels, slower and not exact in bf16: ours need even widths ({odd})",
            stacklevel=2,
        )

    # What weights are put into, and what those make up.
    made_of: tuple[type[FusedLinear], type[FusedLayer], type[RecycleGPT]] = (FusedLinear, FusedLayer, RecycleGPT)
    if packs:
        made_of = (FusedLinear, KernelLayer, KernelGPT)
    make_linear, make_layer, make_model = made_of

    def linear(*modules: nn.Linear) -> nn.Module:
        # `cat` copies: nothing here shares memory with a weight in training.
        weight_OI = torch.cat([module.weight.detach().to(dtype) for module in modules])
        biases = [module.bias.detach().to(dtype) for module in modules if module.bias is not None]
        bias_O = torch.cat(biases) if biases else None
        if release:
            for module in modules:
                if module is not model.lm_head:
                    module.weight = nn.Parameter(torch.empty(0, dtype=own, device=device), requires_grad=False)
        return PackedLinear(weight_OI, bias_O, int8) if packs else make_linear(weight_OI, bias_O)

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

    def layers(originals: nn.ModuleList) -> nn.ModuleList:
        return nn.ModuleList(make_layer(layer, linear, norm) for layer in originals)  # type: ignore[arg-type]

    with torch.device("meta"):
        fused = make_model(model.config, model.recycle_config)
    fused.lm_head = linear(model.lm_head)  # type: ignore[assignment]
    embedding = model.backbone.embed_tokens.weight.detach()
    fused.backbone.embed_tokens.weight = nn.Parameter(embedding.to(dtype, copy=not release), requires_grad=False)
    fused.backbone.norm = norm(model.backbone.norm)  # type: ignore[assignment]
    fused.backbone.layers = layers(model.backbone.layers)
    if model.recyclable is not None and fused.recyclable is not None:
        for name in ("embed_norm", "hidden_norm", "norm"):
            setattr(fused.recyclable, name, norm(getattr(model.recyclable, name)))
        fused.recyclable.fc = linear(model.recyclable.fc)  # type: ignore[assignment]
        fused.recyclable.layers = layers(model.recyclable.layers)
    with device:
        # Tables in fp32 whatever the weights: in bf16 an angle is off by up to a part in 256.
        config = model.config
        fused.rotary = Rotary(config.head_dim, config.rope_theta, model.rotary.num_positions, config.rope_scaling)
    if dtype == torch.float64:
        fused.rotary.double()
    return fused.eval().requires_grad_(False)


def _odd_widths(model: RecycleGPT) -> str:
    """The widths of products that the packed layout cannot hold, in words; empty where there is none."""
    config = model.config
    widths = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_heads * head_dim": config.num_heads * config.head_dim,
    }
    return ", ".join(f"{name} {width}" for name, width in widths.items() if width % 2)
