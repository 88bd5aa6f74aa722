"""`recyclegpt train` as a user runs it: what it prints, writes, refuses and resumes."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recyclegpt import generate
from recyclegpt.checkpoints.load import load_trained
from recyclegpt.errors import Stopped
from tests.small_run import EVERY_STEP, KEEP_ALL

Run = Callable[..., int]

METRICS = [
    "val/loss_backbone",
    "val/loss_recycle",
    "val/ppl_backbone",
    "val/ppl_recycle",
    "val/ppl_alternating",
    "val/bits_per_byte",
    "val/agreement",
    "decode/tokens_per_s_autoregressive",
    "decode/tokens_per_s_alternating",
    "decode/tokens_per_s_verified",
    "decode/speedup_alternating",
    "decode/speedup_verified",
    "decode/ceiling_alternating",
    "decode/agreement",
    "decode/acceptance",
    "decode/nll_autoregressive",
    "decode/nll_alternating",
]


def result(folder: Path | str) -> dict:
    return json.loads((Path(folder) / "result.json").read_text())


def test_a_run_leaves_the_whole_run_folder(trained: Path) -> None:
    folder = trained / "run"
    found = result(folder)
    assert found["status"] == "completed"
    assert (found["format"], found["seed"]) == (1, 1)
    for name in METRICS:
        assert isinstance(found["metrics"][name], float), name
    metrics = found["metrics"]
    assert metrics["val/ppl_alternating"] == pytest.approx(
        math.sqrt(metrics["val/ppl_backbone"] * metrics["val/ppl_recycle"])
    )
    model = found["model"]
    assert model["num_parameters"] == model["num_parameters_backbone"] + model["num_parameters_recycle"]
    assert model["recycle_overhead"] == pytest.approx(
        model["num_parameters_recycle"] / model["num_parameters_backbone"]
    )
    assert found["train"]["steps"] == 6
    assert found["train"]["tokens"] == 6 * 2 * 64
    assert found["train"]["tokens_per_s"] == pytest.approx(found["train"]["tokens"] / found["train"]["seconds"])
    assert set(found["hardware"]) >= {"device", "dtype", "threads"}
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["config_hash"] == found["config_hash"]
    assert len((folder / "decoding.jsonl").read_text().splitlines()) == 2
    for part in (".hydra/config.yaml", "checkpoints/step_0000006.ckpt", "checkpoints/tokenizer.json", "tensorboard"):
        assert (folder / part).exists(), part
    printed = (trained / "printed.txt").read_text()
    for word in ("held-out quality", "unigram model", "alternating", "verified", "ceiling", "ppl backbone"):
        assert word in printed


def test_memory_is_planned_and_found_short(
    run: Run,
    small: list[str],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("recyclegpt.runs.training_run.memory_of", lambda _: 1000)
    assert run("train", *small, "training.activation_checkpointing=2", "hydra.run.dir=one") == 0
    told = capsys.readouterr().err
    (line,) = [line for line in told.splitlines() if line.startswith("memory  ")]
    assert line.endswith("of 1e-06 GB")
    (warning,) = [line for line in Path("one/train.log").read_text().splitlines() if "may not suffice" in line]
    for word in ("lower data.batch_size", "trainer=fsdp"):
        assert word in warning
    assert "set activation_checkpointing" not in warning, "it is set already"


def test_tensorboard_has_the_tags_the_samples_and_the_hyperparameters(trained: Path) -> None:
    files = list((trained / "run/tensorboard").glob("events*"))
    assert len(files) == 1
    events = EventAccumulator(str(files[0]), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    scalars = set(events.Tags()["scalars"])
    assert scalars >= {*METRICS, "train/loss", "train/loss_backbone", "train/loss_recycle", "train/tokens_per_s"}
    assert [event.step for event in events.Scalars("val/ppl_backbone")] == [2, 5]
    text = {tag for tag in events.Tags()["tensors"] if tag.startswith("samples/")}
    assert text == {f"samples/{name}/text_summary" for name in ("autoregressive", "alternating", "verified")}
    assert b"<pre>" in events.Tensors("samples/alternating/text_summary")[0].tensor_proto.string_val[0]
    assert "hparams" in events.summary_metadata["_hparams_/session_start_info"].plugin_data.plugin_name


def test_without_a_module_what_does_not_apply_is_null(run: Run, small: list[str]) -> None:
    assert run("train", *small, "recycle=none", "recycle.num_layers=0", "hydra.run.dir=plain") == 0
    metrics = result("plain")["metrics"]
    null = {name for name in METRICS if metrics[name] is None}
    assert null == {name for name in METRICS if "recycle" in name or "alternating" in name or "verified" in name} | {
        "val/agreement",
        "decode/agreement",
        "decode/acceptance",
    }


def test_a_backbone_trained_for_early_exit_resumes_exactly_and_drafts(
    run: Run, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    layers = ["model.num_layers=3", "+loss.early_exit_weight=0.5", "+loss.layer_dropout=0.5"]
    settings = ["train", *small, EVERY_STEP, KEEP_ALL, "recycle=none", *layers, "decoding.drafter=early_exit:2"]
    assert run(*settings, "hydra.run.dir=whole") == 0
    assert run(*settings, "hydra.run.dir=parts", "resume=whole/checkpoints/step_0000004.ckpt") == 0
    whole, parts = load_trained("whole"), load_trained("parts")
    for (name, mine), other in zip(parts.model.state_dict().items(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(mine, other), name
    metrics = result("whole")["metrics"]
    assert metrics["decode/acceptance"] is not None
    assert metrics["decode/speedup_verified"] is not None
    assert run(*settings, "backbone.checkpoint=whole", "backbone.frozen=true") == 2
    assert "loss.early_exit_weight: a frozen backbone learns no early exit" in capsys.readouterr().err


def test_resumed_run_equals_the_uninterrupted_one(run: Run, small: list[str], trained: Path) -> None:
    checkpoint = trained / "run/checkpoints/step_0000004.ckpt"
    assert run("train", *small, EVERY_STEP, KEEP_ALL, "hydra.run.dir=parts", f"resume={checkpoint}") == 0
    whole, parts = load_trained(trained / "run"), load_trained("parts")
    assert whole.step == parts.step == 6
    assert result("parts")["train"]["tokens"] == result(trained / "run")["train"]["tokens"]
    for (name, mine), other in zip(parts.model.state_dict().items(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(mine, other), name


def test_a_run_ended_by_max_steps_is_saved_and_resumes_into_a_longer_one(
    run: Run, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["train", *small, "scheduler=constant", "callbacks=no_monitor"]
    assert run(*settings, "hydra.run.dir=whole") == 0
    assert run(*settings, "+trainer.max_steps=4", "hydra.run.dir=short") == 0
    shown = capsys.readouterr()
    assert "run     4 steps" in shown.err
    assert run("train", *small, "callbacks=no_monitor", "scheduler.num_warmup_steps=20", "+trainer.max_steps=1") == 0
    assert "scheduler.num_warmup_steps: 20 does not fit into max_steps=1; using 1" in capsys.readouterr().out
    assert [path.name for path in Path("short/checkpoints").glob("*.ckpt")] == ["step_0000004.ckpt"]
    assert result("short")["train"]["steps"] == 4
    assert result("short")["metrics"]["val/ppl_backbone"] != result("whole")["metrics"]["val/ppl_backbone"]
    assert run(*settings, "+trainer.max_steps=99", "resume=short", "hydra.run.dir=longer") == 0
    assert "trainer.max_steps=99 is not reached" in capsys.readouterr().out
    whole, longer = load_trained("whole"), load_trained("longer")
    assert whole.step == longer.step == 6
    for (name, mine), other in zip(longer.model.state_dict().items(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(mine, other), name


def test_a_run_without_validation_ends_with_a_result(run: Run, small: list[str]) -> None:
    settings = ["trainer.limit_val_batches=0", "+trainer.max_time={milliseconds:1}", "hydra.run.dir=bare"]
    assert run("train", *small, *settings) == 0
    assert result("bare")["metrics"]["val/ppl_backbone"] is None
    assert load_trained("bare").step == result("bare")["train"]["steps"] == 1
    assert run("train", *small, *settings[:2], "resume=bare", "hydra.run.dir=later") == 1


def test_resume_auto_continues_the_newest_unfinished_folder(
    run: Run, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*small, "name=cut", "checkpointing.every_n_steps=2", "callbacks=no_monitor"]
    assert run("train", *settings) == 0
    (folder,) = Path("outputs/train/cut").iterdir()
    (folder / "result.json").unlink()  # as if it had been killed after step 4
    (folder / "checkpoints/step_0000006.ckpt").unlink()
    assert run("train", *settings, "resume=auto") == 0
    assert "step_0000004.ckpt" in capsys.readouterr().err
    assert list(Path("outputs/train/cut").iterdir()) == [folder]
    assert result(folder)["status"] == "completed"
    assert run("train", *settings, "resume=auto") == 0, "nothing is unfinished now: a new run"
    assert len(list(Path("outputs/train/cut").iterdir())) == 2


def test_a_run_killed_after_its_last_step_is_finished(run: Run, small: list[str], trained: Path) -> None:
    shutil.copytree(trained / "run", "late")
    Path("late/result.json").unlink()
    assert run("train", *small, EVERY_STEP, KEEP_ALL, "hydra.run.dir=late", "resume=auto") == 0
    resumed, whole = result("late"), result(trained / "run")
    assert resumed["status"] == "completed"
    assert resumed["train"]["tokens"] == whole["train"]["tokens"]
    assert resumed["metrics"]["val/ppl_backbone"] == whole["metrics"]["val/ppl_backbone"]
    assert resumed["metrics"]["decode/tokens_per_s_verified"] > 0


def test_a_checkpoint_with_nothing_left_to_train_is_refused(
    run: Run, small: list[str], trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resume = f"resume={trained / 'run'}"
    assert run("train", *small, resume, "hydra.run.dir=more") == 2
    assert "trainer.max_epochs" in capsys.readouterr().err
    assert run("train", *small, resume, "trainer.max_epochs=3", "hydra.run.dir=more") == 0
    assert result("more")["train"]["steps"] == 9


def test_a_completed_run_is_not_overwritten(
    run: Run, small: list[str], trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "run", "here")
    before = Path("here/result.json").read_bytes()
    same = [*small, EVERY_STEP, KEEP_ALL, "hydra.run.dir=here"]
    assert run("train", *same) == 2
    assert "holds this run, complete" in capsys.readouterr().err
    assert run("train", *same, "seed=2") == 2
    assert "holds a run of another config" in capsys.readouterr().err
    assert Path("here/result.json").read_bytes() == before


def test_a_failed_run_says_so(run: Run, small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    settings = [*small, "optimizer=adamw", "optimizer.lr=1e30", "training.max_skipped_steps=0", "hydra.run.dir=bad"]
    assert run("train", *settings) == 1
    message = capsys.readouterr().err
    assert "not finite 1 steps in a row" in message
    assert "Traceback" not in message
    found = result("bad")
    assert found["status"] == "failed"
    assert "not finite" in found["error"]


def test_a_run_folder_that_can_no_longer_be_written_ends_in_one_message(
    run: Run, small: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: Path) -> NoReturn:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr("recyclegpt.checkpoints.file.atomic_write", read_only)
    monkeypatch.setattr("recyclegpt.commands.train.write_json", lambda path, _: read_only(path))
    assert run("train", *small, "callbacks=no_monitor", "hydra.run.dir=full") == 1
    message = capsys.readouterr().err
    assert "step_0000006.ckpt could not be written (Read-only file system)" in message
    assert "Traceback" not in message


def test_multirun_runs_every_job_in_a_folder_named_by_its_overrides(run: Run, small: list[str]) -> None:
    settings = [setting for setting in small if not setting.startswith("data")]
    data = [setting for setting in small if setting.startswith("data")]
    argv = ["-m", *settings, *data, "recycle.num_layers=0,1", "seed=1,2", "sweep.name=depth", "sweep.tag=a"]
    assert run("train", *argv, "trainer.max_epochs=1") == 0
    jobs = sorted(path.parent for path in Path("outputs/sweeps/depth/a").glob("*/result.json"))
    assert len(jobs) == 4
    assert all("=" not in job.name and "," not in job.name for job in jobs)
    assert {(result(job)["seed"], result(job)["model"]["num_parameters_recycle"] > 0) for job in jobs} == {
        (1, False),
        (1, True),
        (2, False),
        (2, True),
    }


def test_jobs_of_a_multirun_equal_single_runs(run: Run, small: list[str]) -> None:
    common = [*small, "trainer.max_epochs=1", "callbacks=no_monitor"]
    assert run("train", "-m", *common, "seed=1,2", "hydra.sweep.dir=many") == 0
    assert run("train", *common, "seed=2", "hydra.run.dir=alone") == 0
    (second,) = [path.parent for path in Path("many").glob("*/result.json") if result(path.parent)["seed"] == 2]
    for mine, other in zip(
        load_trained(second).model.parameters(), load_trained("alone").model.parameters(), strict=True
    ):
        assert torch.equal(mine, other)


def test_every_mistake_is_named_in_one_message(run: Run, small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "data=text_file", "model.num_layers=2") == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert "data=text_file: " in message
    assert "text_files" in message, "the nearest choice"

    wrong = [
        "model.num_heads=5",
        "decoding.strategy=fast",
        "loss.step_decay=2",
        "trainer.max_epochs=0",
        "data.batch_size=0",
    ]
    assert run("train", *small, *wrong, "hydra.run.dir=never") == 2
    message = capsys.readouterr().err
    for word in (
        "model.num_heads: 5",
        "decoding.strategy: 'fast'",
        "step_decay: 2",
        "trainer.max_epochs: 0",
        "data.batch_size: 0",
    ):
        assert word in message, word
    assert not Path("never").exists(), "a run that does not start leaves no folder"


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (["decoding.num_recycled=7"], ["new_tokens"]),
        (["callbacks.decoding_monitor.new_tokens=99"], ["new_tokens"]),
        (["resume=nowhere"], ["resume", "nowhere"]),
        (["training.max_skipped_steps=-1", "optimizer.lr=-1"], ["max_skipped_steps", "optimizer.lr"]),
        (["loss.backbone_weight=-1", "model.num_layers=abc"], ["backbone_weight", "model.num_layers"]),
        (["trainer.precision=int8"], ["trainer", "bf16-mixed"]),
        (["decoding.num_recycled=9"], ["decoding.num_recycled"]),
        (["scheduler.num_warmup_steps=7"], ["num_warmup_steps"]),
        (["~callbacks.checkpoint", "+trainer.fast_dev_run=true"], ["callbacks.checkpoint", "debug=smoke"]),
        (["+trainer.overfit_batches=0.5"], ["trainer.overfit_batches"]),
    ],
)
def test_impossible_settings_end_in_one_message(
    run: Run, small: list[str], capsys: pytest.CaptureFixture[str], overrides: list[str], keys: list[str]
) -> None:
    assert run("train", *small, *overrides, "hydra.run.dir=never") == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    for key in keys:
        assert key in message
    assert not Path("never/result.json").exists()


def test_overfitting_one_row_makes_decoding_agree(run: Run, tmp_path: Path) -> None:
    """One forward for training and decoding: what the module has learnt by heart it must also say while decoding."""
    text = "the quick brown fox jumps over the lazy dog, twice on a very cold day in may."
    (tmp_path / "row.txt").write_text(text[:66], encoding="utf-8")
    (tmp_path / "val.txt").write_text(f"{text}\n" * 9, encoding="utf-8")
    settings = ["debug=smoke", "data=text_files", "data.paths=[row.txt]", "data.val_paths=[val.txt]"]
    settings += [
        "data.tokenizer.kind=byte",
        "data.batch_size=1",
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=150",
    ]
    settings += ["optimizer=adamw", "optimizer.lr=1e-2", "loss.recycle_weight=1.0", "trainer.precision=32-true"]
    assert run("train", *settings, "callbacks=no_monitor", "hydra.run.dir=one") == 0
    trained = load_trained("one")
    row = trained.tokenizer.encode(text)
    alternating = generate(trained.model, [row[:8]], 50, "alternating")
    assert alternating.tokens[0] == row[8:58]
    assert alternating.counts.agreement == 1
    verified = generate(trained.model, [row[:8]], 50, "verified")
    assert verified.counts.acceptance == 1
    assert verified.counts.num_backbone_passes == 26


def test_overfit_takes_every_step_of_the_header(run: Run, small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    settings = [*small, "debug=overfit", "callbacks=no_monitor", "trainer.limit_train_batches=60"]
    assert run("train", *settings, "hydra.run.dir=one") == 0
    assert "run     60 steps" in capsys.readouterr().err
    assert result(Path("one"))["train"]["steps"] == 60


def test_early_stopping_on_a_metric_that_is_not_there_names_those_that_are(
    run: Run, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    stopping = "{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss}"
    assert run("train", *small, "callbacks=no_monitor", f"+callbacks.stop={stopping}", "hydra.run.dir=one") == 1
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert "val/loss_backbone" in message
    assert not Path("one/traceback.txt").exists()


def test_a_stopped_sweep_names_the_tag_that_finds_it_again(
    run: Run, small: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise Stopped("stopped; the same command with resume=auto continues it", 143)

    monkeypatch.setattr("recyclegpt.commands.train.fit", stop)
    assert run("train", "-m", *small, "seed=1", "sweep.name=x", "callbacks=no_monitor") == 143
    (tag,) = Path("outputs/sweeps/x").iterdir()
    assert f"with sweep.tag={tag.name} resume=auto continues" in capsys.readouterr().err
