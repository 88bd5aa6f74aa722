"""Sweeps: what is complete is not run again, a failure is listed and the rest run, jobs do not disturb one another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recyclegpt.checkpoints.load import load_trained
from recyclegpt.data import Batch
from recyclegpt.runs.trainer import reset_globals
from recyclegpt.training import LitRecycleGPT

Run = Callable[..., int]
SWEEP = ["sweep=smoke", "sweep.tag=s", "callbacks=no_monitor"]
SMOKE = Path("outputs/sweeps/smoke/s")


def results(folder: Path) -> dict[str, Any]:
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/result.json")}


def test_an_interrupted_sweep_runs_what_is_missing(
    run: Run, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["train", *SWEEP, *small, "trainer.max_epochs=1", "trainer.limit_train_batches=6"]
    process = subprocess.Popen(
        [sys.executable, "-m", "recyclegpt", *argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while len(results(SMOKE)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    while len(list(SMOKE.glob("*/provenance.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait(60)
    complete = {name for name, result in results(SMOKE).items() if result["status"] == "completed"}
    assert 2 <= len(complete) < 8
    before = {name: (SMOKE / name / "result.json").stat().st_mtime_ns for name in complete}

    assert run(*argv) == 0
    told = capsys.readouterr().err
    assert "job 8 of 8" in told
    assert f"; {len(complete)} complete, about" in told
    found = results(SMOKE)
    assert len(found) == 8
    assert not any(set("=,") & set(name) for name in found)
    assert {result["status"] for result in found.values()} == {"completed"}
    assert before == {name: (SMOKE / name / "result.json").stat().st_mtime_ns for name in complete}
    jobs = json.loads((SMOKE / "jobs.json").read_text())["jobs"]
    assert [job["control"] for job in jobs] == [None] * 4 + ["no_module"] * 2 + ["deeper_backbone"] * 2


def test_sigterm_ends_the_sweep_and_not_only_its_job(
    run: Run, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = LitRecycleGPT.training_step

    def told_to_end(self: LitRecycleGPT, batch: Batch, batch_idx: int) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(LitRecycleGPT, "training_step", told_to_end)
    assert run("train", "-m", *small, "callbacks=no_monitor", "seed=1,2", "hydra.sweep.dir=many") == 143
    (only,) = results(Path("many")).values()
    assert only["status"] == "failed"
    assert "stopped by SIGTERM" in only["error"]


def test_a_failed_job_is_listed_and_the_rest_run(
    run: Run, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [
        "train",
        "-m",
        *small,
        "callbacks=no_monitor",
        "optimizer=adamw",
        "training.max_skipped_steps=0",
        "sweep.tag=f",
    ]
    assert run(*argv, "optimizer.lr=1e30,1e-3", "trainer.max_epochs=1") == 1
    told = capsys.readouterr().err
    assert "1 of 2 jobs failed" in told
    assert "optimizer.lr=1e+30 " in told
    assert "NonFiniteError: loss or gradient was not finite" in told
    assert "Traceback" not in told
    found = results(Path("outputs/sweeps/adhoc/f"))
    assert sorted(result["status"] for result in found.values()) == ["completed", "failed"]
    (failed,) = [name for name, result in found.items() if result["status"] == "failed"]
    assert failed == "optimizer.lr-1e+30"
    error = found[failed]["error"]
    assert error.startswith("NonFiniteError")


def test_a_job_leaves_nothing_behind_for_the_next(run: Run, small: list[str]) -> None:
    common = [*small, "trainer.max_epochs=1", "callbacks=no_monitor", "seed=5"]
    assert run("train", "-m", *common, "trainer.deterministic=true,false", "hydra.sweep.dir=many") == 0
    assert run("train", *common, "trainer.deterministic=false", "hydra.run.dir=alone") == 0
    mine, other = (
        load_trained("many/trainer.deterministic-False").model.state_dict(),
        load_trained("alone").model.state_dict(),
    )
    assert all(torch.equal(mine[name], other[name]) for name in other)


def test_a_job_begins_with_the_global_settings_of_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    monkeypatch.setenv("PL_SEED_WORKERS", "1")
    torch.use_deterministic_algorithms(True)
    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("medium")
    reset_globals()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_default_dtype() == torch.float32
    assert not {"PL_GLOBAL_SEED", "PL_SEED_WORKERS"} & os.environ.keys()


@pytest.mark.slow
def test_jobs_side_by_side_build_the_cache_once_and_are_marked_contended(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["train", "-m", *small, "callbacks=no_monitor", "seed=1,2", "trainer.max_epochs=1", "sweep.tag=j"]
    argv += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    # A process of its own, since joblib leaves its workers behind.
    done = subprocess.run(
        [sys.executable, "-m", "recyclegpt", *argv],
        env={**os.environ, "RECYCLEGPT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = results(Path("outputs/sweeps/adhoc/j"))
    assert [result["hardware"]["contended"] for result in found.values()] == [True, True]
    assert len(list((tmp_path / "cache").rglob("*.tmp*"))) == 0


def test_another_config_is_refused_before_any_job_runs(
    run: Run, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["train", "-m", *small, "callbacks=no_monitor", "trainer.max_epochs=1", "sweep.tag=m", "optimizer=adamw"]
    assert run(*argv, "seed=1,2") == 0
    capsys.readouterr()
    assert run(*argv, "seed=1,2,3", "optimizer.lr=0.4") == 2
    told = capsys.readouterr().err
    assert "holds a sweep with other settings" in told
    assert "optimizer.lr=0.4" in told
    assert len(results(Path("outputs/sweeps/adhoc/m"))) == 2, "nothing was run"
    assert run(*argv, "seed=1,2,3", "logger=csv") == 0, "how runs are watched may change"
    assert len(results(Path("outputs/sweeps/adhoc/m"))) == 3


def test_one_bench_pass_over_a_sweep(
    run: Run, small: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["train", "-m", *small, "callbacks=no_monitor", "trainer.max_epochs=1", "recycle.num_layers=0,1"]
    assert run(*argv, "hydra.sweep.dir=many") == 0
    capsys.readouterr()
    monkeypatch.setattr("recyclegpt.hardware.device.is_contended", lambda _: False)
    argv = ["bench-runs", "runs=many", "bench.prompt_tokens=[8]", "bench.new_tokens=[8]", "bench.repetitions=1"]
    argv += ["bench.breakdown=false", "bench.num_recycled=[1,2]"]
    assert run(*argv) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(document["runs"]) == 2
    files = sorted(Path("many").glob("*/bench.json"))
    assert [len(json.loads(file.read_text())["rows"]) for file in files] == [1, 5], (
        "without a module there is nothing to recycle"
    )
    before = [file.stat().st_mtime_ns for file in files]
    assert run(*argv) == 0, "what has been measured is kept"
    assert before == [file.stat().st_mtime_ns for file in files]
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == document
    (checkpoint,) = Path("many/recycle.num_layers-0/checkpoints").glob("*.ckpt")
    checkpoint.write_bytes(b"x")
    assert run(*argv[:-1], "bench.num_recycled=[1]") == 1, "a run that cannot be read is reported"
    printed = capsys.readouterr()
    assert "recycle.num_layers-0 was not measured" in printed.err
    assert list(json.loads(printed.out.splitlines()[-1])["runs"]) == ["recycle.num_layers-1"], "the other is measured"
    assert before != [file.stat().st_mtime_ns for file in files]
    Path("p.jsonl").write_text('{"prompt": "def a"}\n', encoding="utf-8")
    assert run(*argv[:2], "prompts=p.jsonl", *argv[3:5]) == 1
    (measured,) = json.loads(capsys.readouterr().out.splitlines()[-1])["runs"].values()
    assert [(row["category"], row["strategy"]) for row in measured["rows"]] == [
        ("overall", name) for name in ("autoregressive", "alternating", "verified")
    ]
    assert run("bench-runs", "runs=nowhere") == 2
    assert "runs: nowhere" in capsys.readouterr().err


def test_modules_on_a_frozen_backbone(run: Run, small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    plain = [*small, "callbacks=no_monitor", "trainer.max_epochs=1"]
    assert run("train", *plain, "recycle=none", "recycle.num_layers=0", "hydra.run.dir=base") == 0
    frozen = [*plain, "backbone.checkpoint=base", "backbone.frozen=true", "seed=2"]
    assert run("train", "-m", *frozen, "recycle.num_layers=1,2", "hydra.sweep.dir=many") == 0
    base = load_trained("base").model
    for folder in Path("many").glob("*/checkpoints"):
        model = load_trained(folder.parent).model
        for part in ("backbone", "lm_head"):
            mine, other = getattr(model, part).state_dict(), getattr(base, part).state_dict()
            assert all(torch.equal(mine[name], other[name]) for name in other)
        assert model.recyclable is not None
    losses = {result["metrics"]["val/loss_backbone"] for result in results(Path("many")).values()}
    assert losses == {json.loads(Path("base/result.json").read_text())["metrics"]["val/loss_backbone"]}
    capsys.readouterr()
    for wrong, key in (
        (["backbone.checkpoint=base", "model.hidden_size=48"], "model.hidden_size"),
        (["backbone.checkpoint=base", "data.tokenizer.kind=byte"], "tokenizer"),
        (["backbone.frozen=true"], "backbone.frozen"),
        (["backbone.checkpoint=nowhere"], "backbone.checkpoint"),
    ):
        assert run("train", *plain, *wrong) == 2
        assert key in capsys.readouterr().err
