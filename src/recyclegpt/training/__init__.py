"""How the model learns: dual loss, optimizer, schedule, and the LightningModule that joins them."""

from recyclegpt.training.cross_entropy import RowLosses, chunked_cross_entropy
from recyclegpt.training.dual_loss import DualLoss, LossConfig, LossParts
from recyclegpt.training.held_out import HeldOut
from recyclegpt.training.lightning_module import LitRecycleGPT, NonFiniteError
from recyclegpt.training.optimizer import MuonAdamW, adamw
from recyclegpt.training.schedule import constant, cosine, wsd

__all__ = [
    "DualLoss",
    "HeldOut",
    "LitRecycleGPT",
    "LossConfig",
    "LossParts",
    "MuonAdamW",
    "NonFiniteError",
    "RowLosses",
    "adamw",
    "chunked_cross_entropy",
    "constant",
    "cosine",
    "wsd",
]
