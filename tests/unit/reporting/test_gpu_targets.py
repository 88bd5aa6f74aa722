"""Every target is found in the row it is about, and says so; what is missing is neither met nor missed."""

from __future__ import annotations

from typing import Any

import pytest

from recyclegpt.reporting.gpu_targets import Target, gpu_targets

from .gpu_documents import decode_row, gpu_document, training_rows

VALUES = {
    "paper_1b3: autoregressive decoding, share of copy bandwidth": (0.72, "met"),
    "paper_1b3: alternating over autoregressive": (1.6, "met"),
    "paper_1b3: alternating, share of its byte ceiling": (1.6 / 1.68, "met"),
    "paper_1b3: over transformers' eager generate": (1000 / 200, "met"),
    "paper_1b3: over transformers' compiled generate": (1000 / 800, "met"),
    "trained model: lossless, one recycled token": (1 + 0.9 * 0.85 - 0.1, "met"),
    "trained model: lossless, best number of recycled tokens": (1 + 0.9 * 4 * 0.55 - 0.4, "met"),
    "gpt_350m: training MFU with dual loss": (0.47, "met"),
    "the module's time beyond its share of FLOPs": (0.04, "met"),
    "the monitor's share of an epoch": (0.02, "met"),
}


def found(parts: dict[str, Any]) -> dict[str, Target]:
    return {target.name: target for target in gpu_targets(parts)}


def test_every_target_has_its_value() -> None:
    targets = found(gpu_document()["parts"])
    assert {name: (target.value, target.verdict) for name, target in targets.items()} == {
        name: (pytest.approx(value), verdict) for name, (value, verdict) in VALUES.items()
    }
    assert "gpt_350m, of gpt_125m, gpt_350m, paper_1b3" in targets["the module's time beyond its share of FLOPs"].source
    assert "num_recycled=4, 55.0%" in targets["trained model: lossless, best number of recycled tokens"].source
    assert "theirs 200 (dynamic cache)" in targets["paper_1b3: over transformers' eager generate"].source


@pytest.mark.parametrize(
    ("part", "change", "name"),
    [
        ("decode", {"bandwidth_utilisation": 0.69}, "paper_1b3: autoregressive decoding, share of copy bandwidth"),
        ("decode", {"speedup": 1.49}, "paper_1b3: alternating over autoregressive"),
        ("decode", {"ceiling_bytes": 1.8}, "paper_1b3: alternating, share of its byte ceiling"),
        ("decode", {"tokens_per_s": 799.0}, "paper_1b3: over transformers' eager generate"),
        ("decode", {"tokens_per_s": 799.0}, "paper_1b3: over transformers' compiled generate"),
        ("trained", {"speedup": 1.4}, "trained model: lossless, one recycled token"),
        ("trained", {"speedup": 1.9}, "trained model: lossless, best number of recycled tokens"),
        ("training", {"mfu": 0.44}, "gpt_350m: training MFU with dual loss"),
        ("training", {"time_share": 0.26}, "the module's time beyond its share of FLOPs"),
    ],
)
def test_what_falls_short_is_missed(part: str, change: dict[str, float], name: str) -> None:
    parts = gpu_document()["parts"]
    parts[part]["rows"] = [row | {k: v for k, v in change.items() if k in row} for row in parts[part]["rows"]]
    assert found(parts)[name].verdict == "missed"


def test_the_monitor_may_take_too_long() -> None:
    parts = gpu_document()["parts"]
    parts["train"]["monitor_share"] = 0.031
    assert found(parts)["the monitor's share of an epoch"].verdict == "missed"


def test_nothing_measured_is_nothing_met() -> None:
    targets = gpu_targets({})
    assert {target.verdict for target in targets} == {"not measured"}
    assert {target.source for target in targets} == {
        f"{part} was not run" for part in ("decode", "trained", "training", "train")
    }
    assert [target.shown(target.value) for target in targets] == ["-"] * len(targets)


def test_what_failed_says_why() -> None:
    failed = {"name": "baseline", "status": "failed", "error": "out of memory"}
    targets = gpu_targets({"decode": {"status": "partial", "calls": [failed, failed | {"name": "other"}], "rows": []}})
    assert targets[0].source == "decode: out of memory"


def test_other_shapes_batches_and_depths_do_not_count() -> None:
    rows = [
        decode_row("gpt_125m", "autoregressive"),
        decode_row("paper_1b3", "autoregressive", batch=4),
        decode_row("paper_1b3", "alternating", recycle_num_layers=1),
        decode_row("paper_1b3", "alternating", num_recycled=2),
    ]
    trained = [decode_row("trained", "verified", acceptance_given=True), decode_row("trained", "alternating")]
    training = [row for row in training_rows("gpt_350m", 0.5, 0.2) if row["variant"] == "none"]
    parts = {"decode": {"rows": rows}, "trained": {"rows": trained}, "training": {"rows": training}}
    assert {target.verdict for target in gpu_targets(parts)} == {"not measured"}


def test_the_run_with_the_baseline_comes_first() -> None:
    rows = [
        decode_row("paper_1b3", "autoregressive", bandwidth_utilisation=0.9),
        decode_row("paper_1b3", "autoregressive", bandwidth_utilisation=0.6, call="baseline"),
    ]
    assert gpu_targets({"decode": {"rows": rows}})[0].value == 0.6


def test_the_baseline_is_compared_in_its_own_run() -> None:
    """Tokens a second of another process are another machine's, as far as anyone knows."""
    rates = {"dynamic": 200.0, "static": None, "static compiled": 900.0}
    rows = [
        decode_row("paper_1b3", "autoregressive", tokens_per_s=1e6),
        decode_row("paper_1b3", "transformers", call="baseline", tokens_per_s_by_cache=rates),
    ]
    assert gpu_targets({"decode": {"rows": rows}})[3].value is None
