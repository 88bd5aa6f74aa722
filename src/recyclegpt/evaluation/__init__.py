"""How good and how fast: held-out quality, speed of the decoders, ceilings."""

from recyclegpt.evaluation.bandwidth import CopyTimer
from recyclegpt.evaluation.ceilings import PassCosts, byte_ceiling, bytes_ratio, measure_pass_costs
from recyclegpt.evaluation.given_acceptance import VerifiedAt
from recyclegpt.evaluation.perplexity import continuation_nll, held_out_metrics, unigram_loss
from recyclegpt.evaluation.speed import Speed, interleave, measure_speed
from recyclegpt.evaluation.stages import stage_seconds

__all__ = [
    "CopyTimer",
    "PassCosts",
    "Speed",
    "VerifiedAt",
    "byte_ceiling",
    "bytes_ratio",
    "continuation_nll",
    "held_out_metrics",
    "interleave",
    "measure_pass_costs",
    "measure_speed",
    "stage_seconds",
    "unigram_loss",
]
