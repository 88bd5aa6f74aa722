"""Pictures of a run: what the PR curve counts, and that TensorBoard gets it."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from recyclegpt.callbacks.tensorboard import FIGURE, PR_CURVE, TradeOffFigure
from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT
from recyclegpt.training import HeldOutMetrics, LitRecycleGPT, LossConfig, adamw, constant


def module(depth: int) -> LitRecycleGPT:
    model = RecycleGPT(ModelConfig(29, 24, num_layers=1, hidden_size=16, num_heads=2), RecycleConfig(depth))
    return LitRecycleGPT(model, LossConfig(), adamw, constant, 8, torch.ones(29))


@pytest.mark.parametrize("depth", [0, 1])
def test_tensorboard_gets_curve_and_figure_where_there_is_a_module(tmp_path: Path, depth: int) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="")
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=logger, enable_checkpointing=False, enable_progress_bar=False
    )
    lit = module(depth)
    views_NBT = torch.randint(29, (3, 2, 20))
    lit.held_out = HeldOutMetrics(lit.token_num_bytes_V, torch.device("cpu"))
    with torch.no_grad():
        lit.held_out.add(lit.dual_loss(lit.model.states(views_NBT), lit.model.lm_head.weight, views_NBT), views_NBT)
    for name in ("val/ppl_backbone", "val/ppl_alternating", "decode/tokens_per_s_alternating"):
        trainer.callback_metrics[name] = torch.tensor(20.0)
    TradeOffFigure().on_validation_end(trainer, lit)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["tensors"] == ([PR_CURVE] if depth else [])
    assert events.Tags()["images"] == ([FIGURE] if depth else [])
    if depth:
        true_T, false_T, *_, precision_T, recall_T = make_ndarray(events.Tensors(PR_CURVE)[0].tensor_proto)
        counted, agreed = lit.held_out.by_confidence.tolist()
        above = [(sum(counted[at:]), sum(agreed[at:])) for at in range(len(counted))]
        assert list(zip(true_T + false_T, true_T, strict=True)) == above
        assert recall_T.tolist() == pytest.approx([right / (above[0][1] or 1) for _, right in above])
        assert precision_T.tolist() == pytest.approx([right / (drafted or 1) for drafted, right in above])


def test_another_module_is_left_alone(tmp_path: Path) -> None:
    trainer = Trainer(logger=TensorBoardLogger(tmp_path), enable_checkpointing=False, enable_progress_bar=False)
    TradeOffFigure().on_validation_end(trainer, LightningModule())
