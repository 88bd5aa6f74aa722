"""How good and how fast: held-out quality, speed of the decoders, ceilings."""

from recyclegpt.evaluation.ceilings import PassCosts, byte_ceiling, measure_pass_costs
from recyclegpt.evaluation.perplexity import continuation_nll, held_out_metrics, unigram_loss
from recyclegpt.evaluation.speed import Speed, measure_speed

__all__ = [
    "PassCosts",
    "Speed",
    "byte_ceiling",
    "continuation_nll",
    "held_out_metrics",
    "measure_pass_costs",
    "measure_speed",
    "unigram_loss",
]
