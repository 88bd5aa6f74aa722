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
from recyclegpt.reporting.figure import PALETTE, Figure, Panel, Series, draw_canvas
from recyclegpt.training import LitRecycleGPT

PR_CURVE = "recycled/agreement_by_confidence"
FIGURE = "recycled/trade_off"


class TradeOffFigure(Callback):
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
        try:
            canvas = draw_canvas(_figure(metrics, curve, held_out.by_place.cpu()))
        except ImportError:  # no matplotlib
            canvas = None
        for writer in writers:
            # All but `offered`, in the order of the method's arguments.
            counts = list(curve.values())[:-1]
            writer.add_pr_curve_raw(PR_CURVE, *counts, trainer.global_step, num_thresholds=len(curve["recall"]))
            if canvas is not None:
                writer.add_figure(FIGURE, canvas, trainer.global_step, close=False)


def _figure(metrics: dict[str, float], curve: dict[str, Tensor], place_2P: Tensor) -> Figure:
    speed = Panel("Speed against quality", "tokens per second", "held-out perplexity")
    for name, colour in zip(DECODERS, PALETTE, strict=False):
        # Verified text is autoregressive text.
        perplexity = metrics["val/ppl_alternating" if name == "alternating" else "val/ppl_backbone"]
        x = [metrics.get(f"decode/tokens_per_s_{name}", math.nan)]
        speed.series.append(Series(name, x, [perplexity], style="points", colour=colour))
    trade = Panel("What decoding.confidence_threshold trades", "confidence threshold", "share")
    thresholds = torch.linspace(0, 1, len(curve["offered"]) + 1)[:-1].tolist()
    trade.series = [
        Series("agreement of drafted tokens", thresholds, curve["precision"].tolist()),
        Series("share of tokens drafted", thresholds, curve["offered"].tolist(), colour=PALETTE[1]),
    ]
    places = [(i + 0.5) / place_2P.shape[1] for i in range(place_2P.shape[1])]
    agreement = Series(None, places, (place_2P[1] / place_2P[0]).tolist())
    place = Panel("Agreement by place", "place in the row (share of its length)", "agreement", [agreement])
    return Figure("trade_off", "What recycling buys and what it costs", [speed, trade, place])


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
