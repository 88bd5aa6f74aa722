"""A run's hyper-parameters next to its final metrics, in TensorBoard's HParams tab."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

METRICS = (
    "val/ppl_backbone",
    "val/ppl_recycle",
    "val/ppl_alternating",
    "decode/speedup_alternating",
    "decode/agreement",
    "val/loss_backbone",
    "val/loss_recycle",
    "val/bits_per_byte",
    "val/agreement",
    "decode/tokens_per_s_autoregressive",
    "decode/tokens_per_s_alternating",
    "decode/tokens_per_s_verified",
    "decode/speedup_verified",
    "decode/ceiling_alternating",
    "decode/acceptance",
    "decode/nll_autoregressive",
    "decode/nll_alternating",
)
"""Tags whose last value the tab shows; the first five are ticked."""

COMPARED = ("control", "loss.num_unrolled", "loss.recycle_weight", "recycle.num_layers", "seed")
"""Hyper-parameters that the tab lists first; the first five are ticked."""


class HyperParameters(Callback):
    """Writes what the HParams tab needs, once, when training starts.

    The tab reads a run's metrics from the ordinary scalars of the same tags, so no scalar is written here:
    `log_hyperparams(params, metrics)` would add a point at step 0 to every curve. When several runs are opened together
    the tab takes its columns from the first, so all runs need the same keys.

    Args:
        hyper_parameters: the resolved config as plain Python; nested keys are joined by dots.
        metrics: tags of scalars that are logged in the course of training.
        compared: keys listed first.
    """

    def __init__(
        self,
        hyper_parameters: Mapping[str, Any],
        metrics: Sequence[str] = METRICS,
        compared: Sequence[str] = COMPARED,
    ) -> None:
        self.hyper_parameters = flatten(hyper_parameters)
        self.metrics = list(metrics)
        self.compared = list(compared)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write columns and values, before the first scalar."""
        self._write(trainer, experiment_summary(self.hyper_parameters, self.metrics, self.compared))
        self._write(trainer, session_start_summary(self.hyper_parameters, time.time()))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mark the run as done.

        A failed one is left unmarked: the tab keeps a run's first mark, even if it is resumed.
        """
        if not trainer.interrupted:
            self._write(trainer, session_end_summary(time.time()))

    def _write(self, trainer: Trainer, summary: Summary) -> None:
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment._get_file_writer().add_summary(summary, trainer.global_step)
                logger.experiment.flush()


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, bool | float | str]:
    """One level of numbers, bools and strings, keys joined by dots, all else as text.

    Null and non-finite numbers become strings, since the tab drops them.
    """
    flat: dict[str, bool | float | str] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        elif isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
            flat[f"{prefix}{key}"] = value
        else:
            flat[f"{prefix}{key}"] = "null" if value is None else str(value)
    return flat


def experiment_summary(
    hyper_parameters: Mapping[str, bool | float | str], metrics: Iterable[str], compared: Iterable[str]
) -> Summary:
    """The tab's columns."""
    first = set(compared)
    infos = [
        api_pb2.HParamInfo(name=name, type=_type(value), differs=name in first)
        for name, value in hyper_parameters.items()
    ]
    tags = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in metrics]
    experiment = api_pb2.Experiment(hparam_infos=infos, metric_infos=tags)
    return _summary(metadata.EXPERIMENT_TAG, plugin_data_pb2.HParamsPluginData(experiment=experiment))


def session_start_summary(hyper_parameters: Mapping[str, bool | float | str], start_s: float) -> Summary:
    """The run's row of values; `start_s`: seconds since 1970."""
    session = plugin_data_pb2.SessionStartInfo(start_time_secs=start_s)
    for name, value in hyper_parameters.items():
        # bool is a subclass of int.
        if isinstance(value, bool):
            session.hparams[name].bool_value = value
        elif isinstance(value, str):
            session.hparams[name].string_value = value
        else:
            session.hparams[name].number_value = value
    return _summary(metadata.SESSION_START_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_start_info=session))


def session_end_summary(end_s: float) -> Summary:
    """The run's success; `end_s`: seconds since 1970."""
    session = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=end_s)
    return _summary(metadata.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=session))


def _type(value: bool | float | str) -> int:
    if isinstance(value, bool):
        return int(api_pb2.DATA_TYPE_BOOL)
    return int(api_pb2.DATA_TYPE_STRING if isinstance(value, str) else api_pb2.DATA_TYPE_FLOAT64)


def _summary(tag: str, data: plugin_data_pb2.HParamsPluginData) -> Summary:
    return Summary(value=[Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data))])
