"""How the model learns: dual loss, optimizer, schedule, and the LightningModule that joins them."""

from recyclegpt.training.dual_loss import DualLoss, LossConfig
from recyclegpt.training.held_out import HeldOutMetrics
from recyclegpt.training.lightning_module import LitRecycleGPT, NonFiniteError
from recyclegpt.training.optimizer import MuonAdamW, adamw, constant, cosine, wsd

__all__ = [
    "DualLoss",
    "HeldOutMetrics",
    "LitRecycleGPT",
    "LossConfig",
    "MuonAdamW",
    "NonFiniteError",
    "adamw",
    "constant",
    "cosine",
    "wsd",
]
