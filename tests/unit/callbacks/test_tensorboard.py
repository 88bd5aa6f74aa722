"""TensorBoard's pages: described tags, the HParams tab, the trade-off."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalar
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.util.tensor_util import make_ndarray
from torch import nn

from recyclegpt.callbacks import TensorBoardLogger
from recyclegpt.callbacks.tensorboard import DESCRIPTIONS, FIGURE, PR_CURVE, RESULTS, HyperParameters, TradeOffFigure
from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT
from recyclegpt.training import HeldOutMetrics, LitRecycleGPT, LossConfig, adamw, constant


def test_tags_are_described_and_the_decoders_share_charts(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="", default_hp_metric=False)
    for step in (3, 6):
        logger.log_metrics({**dict.fromkeys(DESCRIPTIONS, step / 2), "lr-AdamW": 0.1, "own": 7.0}, step)
    logger.log_metrics({"decode/seconds": math.nan}, 9)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    for tag, description in {**DESCRIPTIONS, "lr-AdamW": "Learning rate."}.items():
        assert events.SummaryMetadata(tag).summary_description == description
        assert [event.step for event in events.Scalars(tag)][:2] == [3, 6]
    assert [event.value for event in events.Scalars("val/agreement")] == [1.5, 3.0]
    assert math.isnan(events.Scalars("decode/seconds")[-1].value)
    assert [event.value for event in events.Scalars("own")] == [7.0, 7.0]
    (stored,) = events.Tensors(custom_scalar.CONFIG_SUMMARY_TAG)
    layout = layout_pb2.Layout.FromString(stored.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for chart in layout.category[0].chart}
    assert list(charts) == ["tokens per second", "speedup and its ceiling", "held-out perplexity"]
    assert "decode/ceiling_verified$" in charts["speedup and its ceiling"]
    assert all(tag.removesuffix("$") in DESCRIPTIONS for tags in charts.values() for tag in tags)


CONFIG = {
    "seed": 3,
    "recycle": {"num_layers": 2, "final_norm": True},
    "optimizer": {"lr": 1e-3, "betas": [0.9, 0.95], "fused": None},
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    # Lightning 2.6 under torch 2.13.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
]


class Tiny(LightningModule):
    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.net, self.fails = nn.Linear(1, 1), fails

    def training_step(self, batch, batch_idx):
        if self.fails and self.trainer.global_step == 3:
            raise OSError("as told")
        return self.net(batch).mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", float(self.trainer.global_step))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(folder: Path, fails: bool = False) -> EventAccumulator:
    logger = TensorBoardLogger(folder, name="", version="", default_hp_metric=False)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        limit_train_batches=3,
        limit_val_batches=1,
        callbacks=[HyperParameters(CONFIG)],
        logger=logger,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    rows = torch.ones(3, 1)
    if fails:
        with pytest.raises(OSError, match="as told"):
            trainer.fit(Tiny(fails), rows, rows)
        logger.experiment.close()
    else:
        trainer.fit(Tiny(fails), rows, rows)
    assert len(list(folder.glob("events.*"))) == 1
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def content(events: EventAccumulator) -> dict[str, bytes]:
    return events.PluginTagToContent(metadata.PLUGIN_NAME)


def test_columns_values_and_metrics(tmp_path: Path) -> None:
    events = run(tmp_path)
    assert [(event.step, event.value) for event in events.Scalars("val/loss")] == [(2, 3.0), (5, 6.0)]
    experiment = metadata.parse_experiment_plugin_data(content(events)[metadata.EXPERIMENT_TAG])
    metrics = [info.name.tag for info in experiment.metric_infos]
    assert metrics[0] == "val/ppl_backbone"
    assert sorted(metrics) == sorted(RESULTS)
    assert {info.name: info.type for info in experiment.hparam_infos} == {
        "seed": api_pb2.DATA_TYPE_FLOAT64,
        "recycle.num_layers": api_pb2.DATA_TYPE_FLOAT64,
        "recycle.final_norm": api_pb2.DATA_TYPE_BOOL,
        "optimizer.lr": api_pb2.DATA_TYPE_FLOAT64,
        "optimizer.betas": api_pb2.DATA_TYPE_STRING,
        "optimizer.fused": api_pb2.DATA_TYPE_STRING,
    }
    assert [info.name for info in experiment.hparam_infos if info.differs] == ["seed", "recycle.num_layers"]

    session = metadata.parse_session_start_info_plugin_data(content(events)[metadata.SESSION_START_INFO_TAG])
    assert session.hparams["recycle.num_layers"].number_value == 2
    assert session.hparams["recycle.final_norm"].bool_value is True
    assert session.hparams["optimizer.betas"].string_value == "[0.9, 0.95]"
    assert session.hparams["optimizer.fused"].string_value == "null"
    end = metadata.parse_session_end_info_plugin_data(content(events)[metadata.SESSION_END_INFO_TAG])
    assert end.status == api_pb2.STATUS_SUCCESS


def test_a_failed_run_has_values_but_no_mark_of_success(tmp_path: Path) -> None:
    found = content(run(tmp_path, fails=True))
    assert metadata.SESSION_START_INFO_TAG in found
    assert metadata.SESSION_END_INFO_TAG not in found


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
