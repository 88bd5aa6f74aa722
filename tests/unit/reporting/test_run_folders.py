"""What is read of run folders, and what happens to those that are not whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recyclegpt.errors import ConfigError
from recyclegpt.reporting import read_runs

from .conftest import MakeRun


def test_status_of_every_kind(tmp_path: Path, make_run: MakeRun) -> None:
    make_run("whole")
    make_run("failed", seed=2, status="failed", error="RuntimeError: no")
    make_run("unfinished", seed=3, status="unfinished")
    make_run("cut", seed=4).joinpath("result.json").write_text('{"format": 1, "sta')
    make_run("foreign", seed=5).joinpath("result.json").write_text('["nothing"]')
    make_run("no_config", seed=6).joinpath(".hydra/config.yaml").write_bytes(b"\xff\xfe: [")
    jobs = [{"overrides": [f"recycle.num_layers={depth}", f"seed={seed}", "loss.recycle_weight=0.3"], "control": None}
            for depth, seed in ((1, 1), (1, 7))]  # fmt: skip
    (tmp_path / "sweep/jobs.json").write_text(json.dumps({"format": 1, "jobs": jobs}))
    runs = read_runs(tmp_path)
    assert {run.name: run.status for run in runs} == {
        "whole": "completed",
        "failed": "failed",
        "unfinished": "unfinished",
        "cut": "unfinished",
        "foreign": "unfinished",
        "no_config": "completed",
    }
    assert next(run.error for run in runs if run.name == "failed") == "RuntimeError: no"
    assert runs.missing == ["recycle.num_layers=1 seed=7 loss.recycle_weight=0.3"]
    assert sorted(path.parent.name for path in runs.problems) == [".hydra", "cut", "foreign"]


def test_numbers_settings_and_bookkeeping(tmp_path: Path, make_run: MakeRun) -> None:
    folder = make_run("a", metrics={"val/agreement": None, "val/ppl_recycle": float("inf")})
    (run,) = read_runs(folder)
    assert run.settings["data.paths"] == "${paths.data}"
    assert run.metrics["val/agreement"] is None
    assert run.metrics["val/ppl_recycle"] is None
    assert "seed" not in run.settings
    assert "name" not in run.settings


def test_contended_speeds_are_left_out_and_a_bench_takes_their_place(tmp_path: Path, make_run: MakeRun) -> None:
    rows = [
        {"strategy": "autoregressive", "num_recycled": 0, "batch": 1, "tokens_per_s": 50.0, "speedup": 1.0},
        {"strategy": "alternating", "num_recycled": 2, "batch": 1, "tokens_per_s": 99.0, "speedup": 1.98},
        {
            "strategy": "alternating",
            "num_recycled": 1,
            "batch": 1,
            "tokens_per_s": 70.0,
            "speedup": 1.4,
            "verify_cost": 1.1,
        },
        {"strategy": "verified", "num_recycled": 1, "batch": 1, "speedup": 1.2, "acceptance": 0.9},
        {"strategy": "verified", "num_recycled": 1, "batch": 16, "speedup": 9.9},
    ]
    make_run("a", contended=True)
    make_run("b", seed=2, contended=True, bench={"hardware": {"contended": False}, "rows": rows})
    make_run("c", seed=3, bench={"hardware": {"contended": True}, "rows": rows})
    runs = read_runs(tmp_path)
    alone, measured, spoilt = runs
    assert alone.contended
    assert alone.metrics["decode/speedup_alternating"] is None
    assert alone.metrics["train.tokens_per_s"] is None
    assert alone.metrics["val/ppl_backbone"] == 30
    assert alone.metrics["decode/acceptance"] == 0.8, "a share, not a speed"
    assert measured.metrics["decode/speedup_alternating"] == 1.4
    assert measured.metrics["decode/speedup_verified"] == 1.2
    assert measured.metrics["decode/acceptance"] == 0.9
    assert measured.metrics["decode/verify_cost"] == 1.1
    assert measured.metrics["train.tokens_per_s"] is None
    assert spoilt.metrics["decode/speedup_alternating"] == 1.5, "its own were in order"
    assert [path.name for path in runs.problems] == ["bench.json"]


def test_a_folder_without_runs_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no runs found"):
        read_runs(tmp_path)
    with pytest.raises(ConfigError, match="there is no such folder"):
        read_runs(tmp_path / "none")


def test_one_run_and_a_run_named_twice(tmp_path: Path, make_run: MakeRun) -> None:
    folder = make_run("a")
    assert len(read_runs(folder)) == 1
    assert len(read_runs(folder, tmp_path)) == 1
