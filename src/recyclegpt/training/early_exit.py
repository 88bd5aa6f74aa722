"""Training a backbone to be left early, so that its first layers can draft (`decoding.drafter=early_exit`).

As LayerSkip does (Elhoushi et al., arXiv 2404.16710, section 4): in each row of a batch layer l of L is left out with
probability `layer_dropout * (2^(l / (L - 1)) - 1)`, and the shared norm and LM head learn to read the states after one
of the layers too, the next one in each step. Not theirs: no curriculum over time, one exit a step of the weight
`early_exit_weight` where they weigh all that are trained by depth, and layers that are left out save no time.

L layers, B batch.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import torch
from torch import Tensor


class ExitPlan(NamedTuple):
    """How a batch passes through the layers."""

    num_layers: int
    """Those before the exit that is trained in this step."""
    dropped_LB: Tensor
    """Which layers each row leaves out."""


def plan_exit(num_layers: int, layer_dropout: float, tokens_BT: Tensor, step: int) -> ExitPlan:
    """The plan of a batch in an optimizer step. It follows from both alone, so that a resumed run draws the same."""
    seed = zlib.crc32(tokens_BT.cpu().numpy().tobytes(), step)  # of a seed torch uses the lower 32 bits
    last = max(1, num_layers - 1)
    rates_L1 = layer_dropout * (2 ** (torch.arange(num_layers)[:, None] / last) - 1)
    uniform_LB = torch.rand(num_layers, len(tokens_BT), generator=torch.Generator().manual_seed(seed))
    return ExitPlan(1 + step % last, (uniform_LB < rates_L1).to(tokens_BT.device))
