"""What recycling buys and what it costs, as pictures in TensorBoard after every validation epoch.

`recycled/agreement_by_confidence` (PR curves tab): a drafted token is right where it is the backbone's own choice, and
is offered where the module's largest probability is above a threshold. Precision is the agreement of what is offered,
recall the share of all agreeing tokens that is offered: what `decoding.confidence_threshold` trades.
"""

from __future__ import annotations

import math

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from recyclegpt.callbacks.tensorboard import DECODERS
from recyclegpt.reporting.run_figure import draw_run
from recyclegpt.training import LitRecycleGPT

PR_CURVE = "recycled/agreement_by_confidence"
FIGURE = "recycled/trade_off"


class TradeOffFigure(Callback):
    """Draws speed against quality, and agreement by confidence and by place. The figure needs matplotlib."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All metrics of the epoch have been logged by now."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        writers = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        held_out = pl_module.held_out if isinstance(pl_module, LitRecycleGPT) else None
        if not writers or held_out is None or not held_out.by_confidence[0].sum():
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        curve = threshold_curve(held_out.by_confidence)
        place_2P = held_out.by_place.cpu()
        # Verified text is autoregressive text.
        quality = dict.fromkeys(DECODERS, metrics["val/ppl_backbone"]) | {"alternating": metrics["val/ppl_alternating"]}
        figure = draw_run(
            {name: metrics.get(f"decode/tokens_per_s_{name}", math.nan) for name in DECODERS},
            quality,
            curve["offered"].tolist(),
            curve["precision"].tolist(),
            (place_2P[1] / place_2P[0]).tolist(),
        )
        for writer in writers:
            # All but `offered`, in the order of the method's arguments.
            counts = list(curve.values())[:-1]
            writer.add_pr_curve_raw(PR_CURVE, *counts, trainer.global_step, num_thresholds=len(curve["recall"]))
            if figure is not None:
                writer.add_figure(FIGURE, figure, trainer.global_step, close=False)


def threshold_curve(by_confidence: Tensor) -> dict[str, Tensor]:
    """Counts and ratios at the lower edge of every bin of confidence.

    Args:
        by_confidence: `(2, bins)` drafted tokens, and those that agreed, by the module's confidence.

    Returns:
        For each threshold, lowest first: `true_positive` (offered and agreed) and the other three counts, `precision`
        (1 where nothing is offered), `recall`, and `offered`, the share of all tokens.
    """
    counted_2T = by_confidence.cpu().flip(1).cumsum(1).flip(1)
    offered_T, agreed_T = counted_2T
    total, agreeing = offered_T[0], agreed_T[0]
    return {
        "true_positive": agreed_T,
        "false_positive": offered_T - agreed_T,
        "true_negative": (total - agreeing) - (offered_T - agreed_T),
        "false_negative": agreeing - agreed_T,
        "precision": torch.where(offered_T > 0, agreed_T / offered_T.clamp(min=1), 1.0),
        "recall": agreed_T / agreeing.clamp(min=1),
        "offered": offered_T / total.clamp(min=1),
    }
