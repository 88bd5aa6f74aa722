"""What is watched while the model learns."""

from recyclegpt.callbacks.checkpoints import CheckpointEverySteps
from recyclegpt.callbacks.decoding_monitor import DecodingMonitor
from recyclegpt.callbacks.rng import RngIsolation
from recyclegpt.callbacks.tensorboard import HyperParameters, TensorBoardLogger, TradeOffFigure
from recyclegpt.callbacks.throughput import EpochSummary, ProgressBar, Throughput

__all__ = [
    "CheckpointEverySteps",
    "DecodingMonitor",
    "EpochSummary",
    "HyperParameters",
    "ProgressBar",
    "RngIsolation",
    "TensorBoardLogger",
    "Throughput",
    "TradeOffFigure",
]
