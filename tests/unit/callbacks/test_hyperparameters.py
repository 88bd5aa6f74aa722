"""What TensorBoard's HParams tab reads from a run's event file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, metadata
from torch import nn

from recyclegpt.callbacks.tensorboard import RESULTS, HyperParameters

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
