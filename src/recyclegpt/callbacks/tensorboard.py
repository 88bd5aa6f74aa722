"""TensorBoard's pages made readable: a description for every tag, and charts that compare the decoders."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch.loggers import tensorboard
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata

DESCRIPTIONS = {
    "epoch": "Epochs done; `trainer.limit_train_batches` batches each.",
    "train/loss": "Weighted sum of both losses, nats per token.",
    "train/loss_backbone": "Backbone's cross entropy for the next token, nats.",
    "train/loss_recycle": "Module's cross entropy for the token after the next (its first step), nats.",
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
