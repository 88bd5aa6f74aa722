"""TensorBoard's pages made readable: described tags, charts that compare the decoders, hyper-parameters, the trade-off.

The picture of the trade-off is drawn after every validation epoch. Its curve `recycled/agreement_by_confidence` (PR
curves tab) calls a drafted token right where it is the backbone's own choice, and offered where the module's largest
probability is above a threshold. Precision is the agreement of what is offered, recall the share of all agreeing tokens
that is offered: what `decoding.confidence_threshold` trades.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.struct_pb2 import Struct
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import tensorboard
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from torch import Tensor
from torch.utils.tensorboard.summary import compute_curve

from recyclegpt.reporting.figure import PALETTE, Figure, Panel, Series, draw_canvas
from recyclegpt.reporting.run_folders import flatten
from recyclegpt.training import LitRecycleGPT
from recyclegpt.training.held_out import NUM_BINS

DESCRIPTIONS = {
    "epoch": "Epochs done; `trainer.limit_train_batches` batches each.",
    "train/loss": "Weighted sum of both losses, nats per token.",
    "train/loss_backbone": "Backbone's cross entropy for the next token, nats.",
    "train/loss_recycle": "Module's cross entropy for the token after the next (its first step), nats.",
    "train/loss_exit": "Cross entropy for the next token after an early exit, nats.",
    "train/recycle_weight": "Weight of the recycle loss.",
    "train/grad_norm": "Norm of all gradients before clipping.",
    "train/skipped_steps": "Steps skipped because a gradient was not finite.",
    "train/tokens_per_s": "Training tokens per second over all processes, without validation.",
    "train/step_time_s": "Seconds per optimizer step.",
    "train/data_wait_fraction": "Share of the time between two batches: mostly waiting for data.",
    "train/memory_bytes": "Peak memory of this process.",
    "train/mfu": "Share of the device's dense bf16 peak; empty where the peak is unknown.",
    "val/loss_backbone": "Backbone, held-out text: nats per token.",
    "val/loss_recycle": "Module, held-out text, one token further: nats per token.",
    "val/ppl_backbone": "Held-out perplexity of the backbone: quality of autoregressive and verified text.",
    "val/ppl_recycle": "Held-out perplexity of the module, one token further.",
    "val/ppl_alternating": "Held-out perplexity of alternating decoding: half of the tokens from each.",
    "val/bits_per_byte": "Backbone's bits per byte of held-out text; comparable across tokenizers.",
    "val/agreement": "Share of held-out positions where the module's best token is the backbone's.",
    "decode/tokens_per_s_autoregressive": "Tokens per second, one backbone pass a token: the baseline.",
    "decode/tokens_per_s_alternating": "Tokens per second, drafted tokens kept without a check (not exact).",
    "decode/tokens_per_s_verified": "Tokens per second, drafted tokens verified by the backbone (lossless).",
    "decode/speedup_alternating": "Alternating over autoregressive, from the same rounds.",
    "decode/speedup_verified": "Verified over autoregressive, from the same rounds.",
    "decode/ceiling_alternating": "Largest speedup that the measured verify and draft costs allow.",
    "decode/ceiling_verified": "Largest speedup at this acceptance rate and these costs.",
    "decode/ceiling_bytes": "Ceiling of alternating decoding where memory bandwidth is the limit.",
    "decode/verify_cost": "rho: a backbone pass over all tokens of a step, in passes over one token.",
    "decode/draft_cost": "c: the module's call over all tokens of a step, in backbone passes over one token.",
    "decode/agreement": "Share of drafted tokens that equal the backbone's argmax, alternating decoding.",
    "decode/acceptance": "Acceptance rate: share of drafted tokens kept by verified decoding.",
    "decode/mean_accepted_length": "tau: tokens per backbone pass in verified decoding.",
    "decode/nll_autoregressive": "Backbone's nats per token of the text that autoregressive decoding wrote.",
    "decode/nll_alternating": "Backbone's nats per token of the text that alternating decoding wrote.",
    "decode/seconds": "Seconds that the monitor took this epoch.",
}
"""Tag: what TensorBoard shows when its chart is asked for a description."""

BY_POSITION = "decode/acceptance_by_position/"
"""Tags 1, 2, ... of verified decoding: there are as many as tokens drafted in a step."""
RESULTS = tuple(tag for tag in DESCRIPTIONS if tag.startswith(("val/", "decode/")) and tag != "decode/seconds")
"""What a run is compared by; the last values stand in `result.json`."""
DECODERS = ("autoregressive", "alternating", "verified")
LAYOUT = {
    "Decoders compared": {
        "tokens per second": ["Multiline", [f"decode/tokens_per_s_{name}$" for name in DECODERS]],
        "speedup and its ceiling": [
            "Multiline",
            [f"decode/{kind}_{name}$" for name in DECODERS[1:] for kind in ("speedup", "ceiling")],
        ],
        "held-out perplexity": ["Multiline", ["val/ppl_backbone$", "val/ppl_recycle$", "val/ppl_alternating$"]],
    }
}
"""Custom Scalars tab: category, chart, regular expressions of its tags."""


class TensorBoardLogger(tensorboard.TensorBoardLogger):
    """Lightning's logger; it also describes each tag and lays out the Custom Scalars tab."""

    _known: frozenset[str] = frozenset()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars. TensorBoard takes a tag's description from its first event, and `add_scalar` can give none."""
        if not self._known:
            self.experiment.add_custom_scalars(LAYOUT)
        rest = {}
        for tag, value in metrics.items():
            families = {"lr-": "Learning rate.", BY_POSITION: "Share of the tokens drafted here that were accepted."}
            description = next((families[name] for name in families if tag.startswith(name)), DESCRIPTIONS.get(tag))
            if tag in self._known or description is None:
                rest[tag] = value
                continue
            plugin = SummaryMetadata.PluginData(plugin_name="scalars")
            metadata = SummaryMetadata(summary_description=description, plugin_data=plugin)
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=float(value), metadata=metadata)])
            self.experiment._get_file_writer().add_summary(summary, step)
        self._known |= metrics.keys()
        super().log_metrics(rest, step)


FIRST = ("val/ppl_backbone", "val/ppl_recycle", "val/ppl_alternating", "decode/speedup_alternating", "decode/agreement")
"""The tab shows the last value of every result; only the first five are ticked."""
COMPARED = ("control", "loss.num_unrolled", "loss.recycle_weight", "recycle.num_layers", "seed")
"""Hyper-parameters that the tab lists first and ticks."""


class HyperParameters(Callback):
    """Writes what the HParams tab needs, once, when training starts.

    The tab reads metrics from the ordinary scalars of the same tags; `log_hyperparams(params, metrics)` would add a
    point at step 0 to every curve. It takes its columns from the first run opened, so all runs need the same keys.

    Args:
        hyper_parameters: the resolved config as plain Python; nested keys are joined by dots.
    """

    def __init__(self, hyper_parameters: Mapping[str, Any]) -> None:
        # The tab drops null and numbers that are not finite, but shows text.
        self.hyper_parameters = {
            name: "null" if value is None else value if isinstance(value, str) or math.isfinite(value) else str(value)
            for name, value in flatten(hyper_parameters)
        }

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        types = {bool: api_pb2.DATA_TYPE_BOOL, str: api_pb2.DATA_TYPE_STRING}
        columns = [
            api_pb2.HParamInfo(
                name=name, type=types.get(type(value), api_pb2.DATA_TYPE_FLOAT64), differs=name in COMPARED
            )
            for name, value in self.hyper_parameters.items()
        ]
        tags = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in dict.fromkeys(FIRST + RESULTS)]
        values = Struct()
        values.update(self.hyper_parameters)
        _write(trainer, metadata.EXPERIMENT_TAG, experiment=api_pb2.Experiment(hparam_infos=columns, metric_infos=tags))
        start = plugin_data_pb2.SessionStartInfo(hparams=values.fields, start_time_secs=time.time())
        _write(trainer, metadata.SESSION_START_INFO_TAG, session_start_info=start)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mark the run as done.

        A failed one is left unmarked: the tab keeps a run's first mark, even if it is resumed.
        """
        if not trainer.interrupted:
            end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
            _write(trainer, metadata.SESSION_END_INFO_TAG, session_end_info=end)


def _write(trainer: Trainer, tag: str, **data: Any) -> None:
    about = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**data))
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if isinstance(logger, tensorboard.TensorBoardLogger):
            summary = Summary(value=[Summary.Value(tag=tag, metadata=about)])
            logger.experiment._get_file_writer().add_summary(summary, trainer.global_step)
            logger.experiment.flush()


PR_CURVE = "recycled/agreement_by_confidence"
FIGURE = "recycled/trade_off"


class TradeOffFigure(Callback):
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All metrics of the epoch have been logged by now."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        writers = [logger.experiment for logger in trainer.loggers if isinstance(logger, tensorboard.TensorBoardLogger)]
        held_out = pl_module.held_out if isinstance(pl_module, LitRecycleGPT) else None
        if not writers or held_out is None or not held_out.by_confidence[0].sum():
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        counted, agreed = held_out.by_confidence.cpu().double().numpy()
        # Each bin as its agreeing and its other tokens, weighted by their numbers.
        bins = np.tile((np.arange(NUM_BINS) + 0.5) / (NUM_BINS - 1), 2)
        labels, weights = np.repeat([1, 0], NUM_BINS), np.concatenate([agreed, counted - agreed])
        true, false, *_, precision, _ = compute_curve(labels, bins, NUM_BINS, weights)
        try:
            shares = {
                "agreement of drafted tokens": precision,
                "share of tokens drafted": (true + false) / counted.sum(),
            }
            canvas = draw_canvas(_figure(metrics, shares, held_out.by_place.cpu()))
        except ImportError:  # no matplotlib
            canvas = None
        for writer in writers:
            writer.add_pr_curve(PR_CURVE, labels, bins, trainer.global_step, NUM_BINS, weights)
            if canvas is not None:
                writer.add_figure(FIGURE, canvas, trainer.global_step, close=False)


def _figure(metrics: dict[str, float], shares: dict[str, NDArray[np.float64]], place_2P: Tensor) -> Figure:
    speed = Panel("Speed against quality", "tokens per second", "held-out perplexity")
    for name, colour in zip(DECODERS, PALETTE, strict=False):
        # Verified text is autoregressive text.
        perplexity = metrics["val/ppl_alternating" if name == "alternating" else "val/ppl_backbone"]
        x = [metrics.get(f"decode/tokens_per_s_{name}", math.nan)]
        speed.series.append(Series(name, x, [perplexity], style="points", colour=colour))
    trade = Panel("What decoding.confidence_threshold trades", "confidence threshold", "share")
    thresholds = [i / NUM_BINS for i in range(NUM_BINS)]
    for (name, share), colour in zip(shares.items(), PALETTE, strict=False):
        trade.series.append(Series(name, thresholds, share.tolist(), colour=colour))
    places = [(i + 0.5) / place_2P.shape[1] for i in range(place_2P.shape[1])]
    agreement = Series(None, places, (place_2P[1] / place_2P[0]).tolist())
    place = Panel("Agreement by place", "place in the row (share of its length)", "agreement", [agreement])
    return Figure("trade_off", "What recycling buys and what it costs", [speed, trade, place])
