"""What is watched while the model learns."""

from recyclegpt.callbacks.checkpoints import Checkpoints
from recyclegpt.callbacks.decoding_monitor import DecodingMonitor
from recyclegpt.callbacks.epoch_summary import EpochSummary
from recyclegpt.callbacks.hyperparameters import HyperParameters
from recyclegpt.callbacks.rng import RandomState, isolated_rng
from recyclegpt.callbacks.throughput import Throughput
from recyclegpt.callbacks.trade_off import TradeOff

__all__ = [
    "Checkpoints",
    "DecodingMonitor",
    "EpochSummary",
    "HyperParameters",
    "RandomState",
    "Throughput",
    "TradeOff",
    "isolated_rng",
]
