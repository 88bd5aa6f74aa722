"""How fast: the decoders side by side, their ceilings, prompt sets, baselines."""

from recyclegpt.benchmark.ceilings import PassCosts, byte_ceiling, bytes_ratio, measure_pass_costs
from recyclegpt.benchmark.simulated_acceptance import SimulatedAcceptance
from recyclegpt.benchmark.speed import Speed, measure_speed
from recyclegpt.benchmark.tables import step_breakdown

__all__ = [
    "PassCosts",
    "SimulatedAcceptance",
    "Speed",
    "byte_ceiling",
    "bytes_ratio",
    "measure_pass_costs",
    "measure_speed",
    "step_breakdown",
]
