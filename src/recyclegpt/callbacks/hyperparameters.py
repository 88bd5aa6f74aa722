"""A run's hyper-parameters next to its final metrics, in TensorBoard's HParams tab."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from google.protobuf.struct_pb2 import Struct
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

from recyclegpt.callbacks.tensorboard import RESULTS
from recyclegpt.reporting.plain_values import flatten

FIRST = ("val/ppl_backbone", "val/ppl_recycle", "val/ppl_alternating", "decode/speedup_alternating", "decode/agreement")
"""The tab shows the last value of every result; only the first five are ticked."""
COMPARED = ("control", "loss.num_unrolled", "loss.recycle_weight", "recycle.num_layers", "seed")
"""Hyper-parameters that the tab lists first and ticks."""


class HyperParameters(Callback):
    """Writes what the HParams tab needs, once, when training starts.

    The tab reads metrics from the ordinary scalars of the same tags; `log_hyperparams(params, metrics)` would add a
    point at step 0 to every curve. It takes its columns from the first run opened, so all runs need the same keys.

    Args:
        hyper_parameters: the resolved config as plain Python; nested keys are joined by dots.
    """

    def __init__(self, hyper_parameters: Mapping[str, Any]) -> None:
        # The tab drops null and numbers that are not finite, but shows text.
        self.hyper_parameters = {
            name: "null" if value is None else value if isinstance(value, str) or math.isfinite(value) else str(value)
            for name, value in flatten(hyper_parameters)
        }

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        types = {bool: api_pb2.DATA_TYPE_BOOL, str: api_pb2.DATA_TYPE_STRING}
        columns = [
            api_pb2.HParamInfo(
                name=name, type=types.get(type(value), api_pb2.DATA_TYPE_FLOAT64), differs=name in COMPARED
            )
            for name, value in self.hyper_parameters.items()
        ]
        tags = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in dict.fromkeys(FIRST + RESULTS)]
        values = Struct()
        values.update(self.hyper_parameters)
        _write(trainer, metadata.EXPERIMENT_TAG, experiment=api_pb2.Experiment(hparam_infos=columns, metric_infos=tags))
        start = plugin_data_pb2.SessionStartInfo(hparams=values.fields, start_time_secs=time.time())
        _write(trainer, metadata.SESSION_START_INFO_TAG, session_start_info=start)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mark the run as done.

        A failed one is left unmarked: the tab keeps a run's first mark, even if it is resumed.
        """
        if not trainer.interrupted:
            end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
            _write(trainer, metadata.SESSION_END_INFO_TAG, session_end_info=end)


def _write(trainer: Trainer, tag: str, **data: Any) -> None:
    about = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**data))
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if isinstance(logger, TensorBoardLogger):
            summary = Summary(value=[Summary.Value(tag=tag, metadata=about)])
            logger.experiment._get_file_writer().add_summary(summary, trainer.global_step)
            logger.experiment.flush()
