"""A model prepared for decoding: weights cast once, projections fused, and on a CPU the products of `kernels`.

Every module here computes what its namesake in `models/` computes; a test holds each equal. B batch, T positions,
C model width, H query heads, G key/value heads, D head width.
"""

from __future__ import annotations

import functools

import torch
from torch import nn

from recyclegpt import kernels
from recyclegpt.decoding.cpu_layers import KernelGPT, KernelLayer, KernelRMSNorm, PackedLinear
from recyclegpt.decoding.fused_layers import FusedLayer, FusedLinear, MakeLinear
from recyclegpt.errors import ConfigError
from recyclegpt.models import RecycleGPT, fastest_dtype
from recyclegpt.models.layers import TransformerLayer
from recyclegpt.models.rope import Rotary


@torch.no_grad()
def fuse(
    model: RecycleGPT,
    dtype: torch.dtype | None = None,
    use_kernels: bool = True,
    release: bool = False,
    draft_dtype: torch.dtype | None = None,
) -> RecycleGPT:
    """A model for decoding only, which computes what `model` computes and shares no tensor that training changes.

    Args:
        model: on its device.
        dtype: of weights and states; None for the model's own; int8: weights in int8, one step per output, states in
            the device's fastest format.
        use_kernels: False decodes with torch's own operators on every device.
        release: free each weight of `model` once it is copied, so that memory never holds both; `model` is used up.
        draft_dtype: int8 for int8 weights in the recyclable module and its LM head alone; None: as `dtype`.

    Raises:
        ConfigError: int8 where the kernels cannot be used.
    """
    int8 = dtype == torch.int8
    drafts_int8 = int8 or draft_dtype == torch.int8
    device, own = model.device, model.dtype
    dtype = own if dtype is None else fastest_dtype(device) if int8 else dtype
    packs = use_kernels and kernels.usable(device, dtype)
    if drafts_int8 and not packs:
        key = "dtype" if int8 else "draft_dtype"
        raise ConfigError(f"{key}: int8 weights need the CPU kernels of this package; decode in another dtype")
    make_layer, make_model = (KernelLayer, KernelGPT) if packs else (FusedLayer, RecycleGPT)

    memory = kernels.HugePages()

    def linear(*modules: nn.Linear, int8: bool = int8) -> nn.Module:
        # `cat` copies: nothing here shares memory with a weight in training.
        weight_OI = torch.cat([module.weight.detach().to(dtype) for module in modules])
        biases = [module.bias.detach().to(dtype) for module in modules if module.bias is not None]
        bias_O = torch.cat(biases) if biases else None
        if release:
            for module in modules:
                if module is not model.lm_head:
                    module.weight = nn.Parameter(torch.empty(0, dtype=own, device=device), requires_grad=False)
        return PackedLinear(weight_OI, bias_O, int8, memory) if packs else FusedLinear(weight_OI, bias_O)

    def norm(module: nn.Module) -> nn.Module:
        if not isinstance(module, nn.RMSNorm):  # of a layer without one
            return nn.Identity()
        weight_C = module.weight.detach().to(dtype, copy=True)
        if packs:
            assert module.eps is not None
            return KernelRMSNorm(weight_C, module.eps)
        copied = type(module)(module.normalized_shape, eps=module.eps, device=device, dtype=dtype)
        copied.weight = nn.Parameter(weight_C, requires_grad=False)
        return copied

    def fill(empty: nn.Module, original: nn.Module, linear: MakeLinear = linear) -> None:
        """Give a part of the fused model its layers, products and norms, and a copy of all other weights."""
        for name, child in original.named_children():
            if isinstance(child, TransformerLayer):
                setattr(empty, name, make_layer(child, linear, norm))
            elif isinstance(child, nn.Linear):
                setattr(empty, name, linear(child))
            elif isinstance(child, nn.RMSNorm):
                setattr(empty, name, norm(child))
            else:
                fill(getattr(empty, name), child, linear)
        for name, weight in original.named_parameters(recurse=False):
            copied = weight.detach().to(dtype, copy=not release)
            setattr(empty, name, nn.Parameter(copied, requires_grad=False))
        for name, buffer in original.named_buffers(recurse=False):
            setattr(empty, name, buffer.clone())

    with torch.device("meta"):
        fused = make_model(model.config, model.recycle_config)
    fused.lm_head = linear(model.lm_head)  # type: ignore[assignment]
    fill(fused.backbone, model.backbone)
    if model.recyclable is not None and fused.recyclable is not None:
        draft_linear = functools.partial(linear, int8=drafts_int8)
        fill(fused.recyclable, model.recyclable, draft_linear)
        if model.draft_ids is not None or drafts_int8 != int8:
            head = nn.Linear(1, 1, bias=False, device="meta")
            head.weight = nn.Parameter(model.draft_head, requires_grad=False)
            fused.draft_lm_head = draft_linear(head)
    with device:
        # Tables in fp32 whatever the weights: in bf16 an angle is off by up to a part in 256.
        config = model.config
        fused.rotary = Rotary(config.head_dim, config.rope_theta, model.rotary.num_positions, config.rope_scaling)
    if dtype == torch.float64:
        fused.rotary.double()
    return fused.eval().requires_grad_(False)
