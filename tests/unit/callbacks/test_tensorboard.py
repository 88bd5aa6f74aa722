"""What TensorBoard finds in the event file: descriptions, charts, and every point."""

from __future__ import annotations

import math
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2, metadata

from recyclegpt.callbacks import TensorBoardLogger
from recyclegpt.callbacks.tensorboard import DESCRIPTIONS


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
    (stored,) = events.Tensors(metadata.CONFIG_SUMMARY_TAG)
    layout = layout_pb2.Layout.FromString(stored.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for chart in layout.category[0].chart}
    assert list(charts) == ["tokens per second", "speedup and its ceiling", "held-out perplexity"]
    assert "decode/ceiling_verified$" in charts["speedup and its ceiling"]
    assert all(tag.removesuffix("$") in DESCRIPTIONS for tags in charts.values() for tag in tags)
