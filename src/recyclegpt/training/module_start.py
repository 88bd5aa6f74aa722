"""A recyclable module that begins where a pretrained backbone ends: with its last layers and its final norm.

A random fold in front of copied layers feeds them what they never saw, and such a module learns more slowly than a
fresh one. Here the fold is fitted by least squares to what those layers read in the backbone one position later, so
that the first step already predicts tokens.

R rows, T positions, C model width, d recycle depth.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recyclegpt.models import RecycleGPT
from recyclegpt.models.drafts.recyclable import RecyclableModule
from recyclegpt.models.layers import AttentionInputs

SAMPLE_TOKENS = 32_768
"""Tokens that the fold is fitted on: some dozens for each of its 2C inputs."""
RIDGE = 1e-4
"""Of the square of each input; keeps directions that the sample hardly holds from growing."""


def can_begin_with_last_layers(model: RecycleGPT) -> bool:
    """Whether the module is a recyclable one, with all norms, and no deeper than the backbone."""
    shape = model.recycle_config
    plain = shape.kind == "recyclable" and shape.first_input_norm and shape.final_norm
    return plain and shape.num_layers <= model.config.num_layers


@torch.no_grad()
def begin_with_last_layers(model: RecycleGPT, tokens_RT: Tensor) -> float:
    """Copy the backbone's last d layers and final norm into the module, and fit the fold.

    Args:
        model: with a plain recyclable module, all norms of its layers included.
        tokens_RT: rows of training text.

    Returns:
        Share of the variance of those layers' inputs that the fold explains, R squared.
    """
    module, backbone = model.recyclable, model.backbone
    assert isinstance(module, RecyclableModule)
    first, width = len(backbone.layers) - len(module.layers), model.config.hidden_size
    for mine, its in zip(module.layers, backbone.layers[first:], strict=True):
        mine.load_state_dict(its.state_dict(), strict=False)  # biases and query norms are the backbone's alone
    module.norm.load_state_dict(backbone.norm.state_dict())
    cos, sin = model.rotary(torch.arange(tokens_RT.shape[1], device=tokens_RT.device))
    attending = AttentionInputs(cos, sin, None, None)
    gram = torch.zeros(2 * width, 2 * width, dtype=torch.float64)
    moment, squares, total = torch.zeros(2 * width, width, dtype=torch.float64), 0.0, torch.zeros(width).double()
    for row_T in tokens_RT:
        hidden_1TC, read_1TC = backbone.tapped(row_T[None], attending, first)
        embedded_1TC = backbone.embed_tokens(row_T[None, 2:])
        inputs_TC = module.fold_inputs(embedded_1TC, hidden_1TC[:, 1:-1])[0].double().cpu()
        wanted_TC = read_1TC[0, 2:].double().cpu()  # the first token's is an attention sink of outlying size
        gram += inputs_TC.T @ inputs_TC
        moment += inputs_TC.T @ wanted_TC
        squares += float(wanted_TC.square().sum())
        total += wanted_TC.sum(dim=0)
    ridge = torch.diag(RIDGE * gram.diagonal())
    weight = torch.linalg.solve(gram + ridge, moment)
    module.fc.weight.copy_(weight.T)
    num = tokens_RT.shape[0] * (tokens_RT.shape[1] - 2)
    unexplained = squares - 2 * float((weight * moment).sum()) + float((weight * (gram @ weight)).sum())
    return 1 - unexplained / (squares - float(total.square().sum()) / num)
