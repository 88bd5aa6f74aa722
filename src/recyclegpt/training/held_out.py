"""Quality on held-out text: sums over batches, ratios at the end.

Backbone, module and alternating decoding are compared on the same tokens: the module's row t and the backbone's row
t + 1 both predict x_{t+2}. B batch, T positions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recyclegpt.training.dual_loss import LossTerms

SUMS = ("tokens", "bytes", "nll_backbone", "nll_recycle", "inside")
NUM_BINS = 20
"""Equal parts of the module's confidence (its largest probability, 0 to 1), and of the place in the row."""


class HeldOutMetrics:
    """Sums over the validation batches of one epoch, kept on the device in fp64."""

    def __init__(self, token_num_bytes_V: Tensor, device: torch.device) -> None:
        """`token_num_bytes_V[i]` is the number of bytes of text that token i stands for."""
        self.token_num_bytes_V = token_num_bytes_V.to(device)
        self.sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
        self.by_confidence = torch.zeros(2, NUM_BINS, dtype=torch.float64, device=device)
        """Recycled tokens, and those of them that agreed with the backbone, by the module's confidence."""
        self.by_place = torch.zeros_like(self.by_confidence)
        """The same by place in the row."""
        self.is_partial = False
        """Whether the module proposes only some of the tokens."""

    def add(self, terms: LossTerms, views_NBT: Tensor) -> None:
        """Add a batch: the tokens that both the backbone and the module predict."""
        assert terms.backbone is not None, "it is computed wherever no gradients are"
        shape = views_NBT.shape[1:]
        counted_BT = terms.draft_mask_BT[:, :-1]
        label_BT = views_NBT[1][:, 1:]
        nll_backbone_BT = terms.backbone.nll_M.view(shape)[:, 1:]
        values = {
            "tokens": counted_BT,
            "nll_backbone": nll_backbone_BT * counted_BT,
            "bytes": self.token_num_bytes_V[label_BT] * counted_BT,
        }
        if terms.recycle_K:
            module = terms.recycle_K[0]
            agreed_BT = terms.backbone.prediction_M.view(shape)[:, 1:] == module.prediction_M.view(shape)[:, :-1]
            self.is_partial = module.inside_M is not None
            inside_M = torch.ones_like(module.nll_M) if module.inside_M is None else module.inside_M
            values["inside"] = inside_M.view(shape)[:, :-1] * counted_BT
            values["nll_recycle"] = module.nll_M.view(shape)[:, :-1] * values["inside"]
            confidence_BT = module.confidence_M.view(shape)[:, :-1]
            place_T = torch.linspace(0, 1, counted_BT.shape[1], device=counted_BT.device)
            for bins, where in ((self.by_confidence, confidence_BT), (self.by_place, place_T.expand(counted_BT.shape))):
                index_M = (where * NUM_BINS).long().clamp(max=NUM_BINS - 1).flatten()
                bins[0].index_add_(0, index_M, counted_BT.double().flatten())
                bins[1].index_add_(0, index_M, (agreed_BT * counted_BT).double().flatten())
        for name, value in values.items():
            self.sums[SUMS.index(name)] += value.double().sum()

    def metrics(self) -> dict[str, float]:
        """Losses in nats a token, perplexities, bits per byte, agreement; NaN where the model has no module.

        With a draft vocabulary the module's loss is over the tokens inside, so that of alternating decoding is NaN; a
        token outside counts as disagreement.
        """
        tokens, num_bytes, nll_backbone, nll_recycle, inside = self.sums.tolist()
        recycled, agreed = self.by_place.sum(1).tolist()
        loss_backbone = nll_backbone / tokens if tokens else math.nan
        loss_recycle = nll_recycle / inside if inside else math.nan
        loss_alternating = math.nan if self.is_partial else (loss_backbone + loss_recycle) / 2
        return {
            "val/loss_backbone": loss_backbone,
            "val/loss_recycle": loss_recycle,
            "val/ppl_backbone": _exp(loss_backbone),
            "val/ppl_recycle": _exp(loss_recycle),
            # Half of the tokens come from each; averaging over both parities gives every token to both.
            "val/ppl_alternating": _exp(loss_alternating),
            "val/bits_per_byte": nll_backbone / math.log(2) / num_bytes if num_bytes else math.nan,
            "val/agreement": agreed / recycled if recycled else math.nan,
        }


def _exp(loss: float) -> float:
    return math.inf if loss >= 700 else math.exp(loss)  # NaN stays NaN
