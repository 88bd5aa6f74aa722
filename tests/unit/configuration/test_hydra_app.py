"""Runs, sweeps and shown configs through Hydra, with a task that only notes what it saw."""

import logging
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from recyclegpt.configuration.hydra_app import hydra_run, write_hydra_folder
from recyclegpt.errors import ConfigError, Stopped


@pytest.fixture
def program(monkeypatch):
    """What the user typed, as the console script would see it."""

    def typed(*argv: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["/venv/bin/recyclegpt", "train", *argv])
        return list(argv)

    return typed


@pytest.fixture(autouse=True)
def nothing_left_behind():
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    yield
    assert not GlobalHydra.instance().is_initialized()
    assert not HydraConfig.initialized()
    assert (list(root.handlers), root.level) == before


def test_a_single_run_returns_the_tasks_value(conf_dir, program, tmp_path):
    argv = program("depth=5", "name=first")
    seen = {}

    def task(cfg):
        seen.update(argv=list(sys.argv), folder=cfg.paths.output_dir, depth=cfg.depth)
        assert "hydra" not in cfg
        return 0.25

    assert hydra_run(task, "train", argv, conf_dir=conf_dir) == 0.25
    assert seen == {
        "argv": ["/venv/bin/recyclegpt", "train", "depth=5", "name=first"],
        "folder": str(tmp_path / "runs" / "first"),
        "depth": 5,
    }
    assert (tmp_path / "runs" / "first" / ".hydra" / "overrides.yaml").is_file()
    assert sys.argv == seen["argv"]


@pytest.mark.parametrize("argv", [("-m", "depth=1,2", "seed=3"), ("depth=1,2", "--multirun", "seed=3")])
def test_a_multirun_runs_each_job_in_its_folder(conf_dir, program, tmp_path, argv):
    seen = []
    whole = ["/venv/bin/recyclegpt", "train", *argv]

    def task(cfg):
        assert sys.argv == whole
        seen.append((cfg.depth, cfg.seed, Path(cfg.paths.output_dir).name))

    assert hydra_run(task, "train", program(*argv), conf_dir=conf_dir) is None
    assert seen == [(1, 3, "depth-1_seed-3"), (2, 3, "depth-2_seed-3")]
    assert {path.name for path in (tmp_path / "runs" / "sweep").iterdir()} == {
        "depth-1_seed-3",
        "depth-2_seed-3",
        "multirun.yaml",
    }


def test_a_sweep_file_needs_no_flag(conf_dir, program):
    seen = []
    hydra_run(
        lambda cfg: seen.append((cfg.depth, cfg.loss.recycle_weight, cfg.seed, cfg.data.rows)),
        "train",
        program("sweep=depths", "depth=1"),
        conf_dir=conf_dir,
    )
    grid = [(1, weight, seed, 1) for weight in (0.1, 0.3) for seed in (1, 2)]
    controls = [(1, 0.3, seed, 3) for seed in (1, 2)] + [(7, 9, seed, 1) for seed in (1, 2)]
    assert seen == grid + controls


def test_a_mistake_is_explained_before_anything_starts(conf_dir, program, tmp_path, capfd):
    for argv in (("dpeth=1",), ("-m", "data=foo,tiny", "hydra/sweeper=controlled"), ("depth=1,2",)):
        with pytest.raises(ConfigError) as caught:
            hydra_run(pytest.fail, "train", program(*argv), conf_dir=conf_dir)
        assert len(caught.value.problems) == 1
    assert not (tmp_path / "runs").exists()


def test_a_mistake_in_the_last_job_is_found_before_the_first_runs(conf_dir, program):
    argv = program("sweep=depths", "hydra.sweeper.controls.heavy=['data=nowhere']")
    with pytest.raises(ConfigError, match="nowhere"):
        hydra_run(pytest.fail, "train", argv, conf_dir=conf_dir)


def test_a_config_error_of_a_single_run_comes_out_whole_and_quiet(conf_dir, program, capfd):
    def task(cfg):
        raise ConfigError(["one", "two"])

    with pytest.raises(ConfigError) as caught:
        hydra_run(task, "train", program(), conf_dir=conf_dir)
    assert caught.value.problems == ["one", "two"]
    assert capfd.readouterr().err == ""


def test_another_error_of_a_single_run_comes_out_as_it_is(conf_dir, program):
    def task(cfg):
        raise KeyError("inner")

    with pytest.raises(KeyError, match="inner"):
        hydra_run(task, "train", program(), conf_dir=conf_dir)


@pytest.mark.parametrize("error", [ConfigError("no"), RuntimeError("no")], ids=lambda e: type(e).__name__)
def test_a_failing_job_does_not_end_a_sweep(conf_dir, program, error):
    seen = []

    def task(cfg):
        seen.append(cfg.depth)
        if cfg.depth == 1:
            raise error

    with pytest.raises(type(error)):
        hydra_run(task, "train", program("-m", "depth=1,2,3"), conf_dir=conf_dir)
    assert seen == [1, 2, 3]


def test_a_run_that_was_asked_to_stop_ends_its_sweep(conf_dir, program):
    seen = []

    def task(cfg):
        seen.append(cfg.depth)
        raise Stopped("stopped by SIGTERM after step 3, saved", 143)

    for argv in (("-m", "depth=1,2"), ("depth=1",)):
        with pytest.raises(Stopped, match="after step 3") as stopped:
            hydra_run(task, "train", program(*argv), conf_dir=conf_dir)
        assert stopped.value.code == 143
    assert seen == [1, 1]


def test_cfg_job_prints_and_runs_nothing(conf_dir, program, tmp_path, capsys):
    argv = program("depth=8", "data=text_files", "--cfg", "job")
    assert hydra_run(pytest.fail, "train", argv, conf_dir=conf_dir) is None
    out = capsys.readouterr().out
    assert "depth: 8" in out
    assert "paths: ???" in out  # a missing value can be looked at
    assert not (tmp_path / "runs").exists()
    hydra_run(pytest.fail, "train", program("--cfg=job", "--package", "loss"), conf_dir=conf_dir)
    assert "recycle_weight: 0.3" in capsys.readouterr().out


def test_hydras_own_complaints_are_problems_too(conf_dir, program):
    with pytest.raises(ConfigError, match="Only one of"):
        hydra_run(pytest.fail, "train", program("--cfg", "job", "-m"), conf_dir=conf_dir)


def test_a_distributed_child_finds_its_parents_run(conf_dir, program, tmp_path):
    """Lightning starts a child with the same arguments and, appended, these three."""
    folder = tmp_path / "runs" / "of the parent"
    child = [f'hydra.run.dir="{folder}"', "hydra.job.name=train_ddp_process_1", "hydra.output_subdir=null"]
    argv = program("depth=4", *child)
    assert hydra_run(lambda cfg: cfg.paths.output_dir, "train", argv, conf_dir=conf_dir) == str(folder)
    assert not (folder / ".hydra").exists()


def test_the_task_writes_what_hydra_would(conf_dir, program, tmp_path):
    folder = tmp_path / "runs" / "x"

    def task(cfg):
        assert not list(folder.iterdir())
        write_hydra_folder(cfg, folder)

    hydra_run(
        task,
        "train",
        program("name=x", "depth=3", "hydra.output_subdir=null", "hydra/job_logging=stdout"),
        conf_dir=conf_dir,
    )
    assert "depth: 3" in (folder / ".hydra" / "config.yaml").read_text()
    assert "depth=3" in (folder / ".hydra" / "overrides.yaml").read_text()
    assert (folder / ".hydra" / "hydra.yaml").is_file()
