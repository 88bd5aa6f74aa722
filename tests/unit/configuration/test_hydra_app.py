"""Runs, sweeps and shown configs through Hydra, with a task that only notes what it saw."""

import json
import logging
import os
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from recyclegpt.configuration.hydra_app import hydra_run, parse_flags
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
    before = (list(root.handlers), root.level, os.environ.get("HYDRA_FULL_ERROR"))
    yield
    assert not GlobalHydra.instance().is_initialized()
    assert not HydraConfig.initialized()
    assert (list(root.handlers), root.level, os.environ.get("HYDRA_FULL_ERROR")) == before


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
    with pytest.raises(ConfigError) as caught:
        hydra_run(pytest.fail, "train", program("dpeth=1", "data=foo"), conf_dir=conf_dir)
    assert len(caught.value.problems) == 2
    assert not (tmp_path / "runs").exists()
    assert capfd.readouterr() == ("", "")


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


@pytest.mark.parametrize(
    "error", [ConfigError("no"), RuntimeError("no"), SystemExit(1)], ids=lambda e: type(e).__name__
)
def test_a_failing_job_does_not_end_a_sweep(conf_dir, program, error):
    seen = []

    def task(cfg):
        seen.append(cfg.depth)
        if cfg.depth == 1:
            raise error

    expected = RuntimeError if isinstance(error, SystemExit) else type(error)
    with pytest.raises(expected):
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
    argv = program("depth=8", "--cfg", "job", "data=text_files")
    assert hydra_run(pytest.fail, "train", argv, conf_dir=conf_dir) is None
    out = capsys.readouterr().out
    assert "depth: 8" in out
    assert "paths: ???" in out  # a missing value can be looked at
    assert not (tmp_path / "runs").exists()
    hydra_run(pytest.fail, "train", program("--cfg=job", "--package", "loss"), conf_dir=conf_dir)
    assert "recycle_weight: 0.3" in capsys.readouterr().out


def test_help_and_info_run_nothing(conf_dir, program, capsys):
    with pytest.raises(SystemExit) as leaving:
        hydra_run(pytest.fail, "train", program("--help"), conf_dir=conf_dir)
    assert leaving.value.code == 0
    assert "data: stdlib, text_files, tiny" in capsys.readouterr().out


def test_folders_and_names_can_be_given_by_flags(conf_dir, program, tmp_path):
    (conf_dir / "train.yaml").rename(conf_dir / "other.yaml")
    extra = tmp_path / "extra" / "data"
    extra.mkdir(parents=True)
    (extra / "mine.yaml").write_text("rows: 42\n")
    argv = program("-cp", str(conf_dir), "data=mine", "-cn", "other", "-cd", str(extra.parent))
    assert hydra_run(lambda cfg: cfg.data.rows, "train", argv, conf_dir=tmp_path / "wrong") == 42


def test_hydras_own_complaints_are_problems_too(conf_dir, program):
    with pytest.raises(ConfigError, match="Only one of"):
        hydra_run(pytest.fail, "train", program("--cfg", "job", "-m"), conf_dir=conf_dir)


def test_flags_are_told_from_overrides():
    flags = parse_flags(["a=1", "-m", "~b", "--cfg", "job", "-p=x", "+c=2", "-i", "--info", "config", "-cn", "other"])
    assert flags.overrides == ["a=1", "~b", "+c=2"]
    assert flags.multirun
    assert not flags.runs
    assert flags.values == {"--cfg": "job", "--package": "x", "--info": "config", "--config-name": "other"}
    assert flags.to_argv() == ["a=1", "~b", "+c=2", "--multirun", "--cfg=job", "--package=x", "--info=config"]
    assert parse_flags(["-m", "a=1,2"]).runs


def test_all_wrong_flags_come_at_once():
    with pytest.raises(ConfigError) as caught:
        parse_flags(["--multrun", "-x", "--cfg", "jobs", "-cd", "--experimental-rerun=job.pickle"])
    unknown, strange, choice, lacking, refused = caught.value.problems
    assert unknown == "--multrun: unknown flag; did you mean --multirun?"
    assert strange == "-x: unknown flag; overrides are KEY=VALUE"
    assert choice == "--cfg jobs: choose from: job, hydra, all"
    assert lacking == "-cd: needs a value"
    assert refused.startswith("--experimental-rerun: would unpickle")


def test_a_distributed_child_finds_its_parents_run(conf_dir, program, tmp_path):
    """Lightning starts a child with the same arguments and, appended, these three."""
    folder = tmp_path / "runs" / "of the parent"
    child = [f'hydra.run.dir="{folder}"', "hydra.job.name=train_ddp_process_1", "hydra.output_subdir=null"]
    argv = program("depth=4", *child)
    assert hydra_run(lambda cfg: cfg.paths.output_dir, "train", argv, conf_dir=conf_dir) == str(folder)
    assert not (folder / ".hydra").exists()


def test_the_task_may_write_json_beside_hydras_files(conf_dir, program, tmp_path):
    def task(cfg):
        Path(cfg.paths.output_dir, "seen.json").write_text(json.dumps({"depth": cfg.depth}))

    hydra_run(task, "train", program("name=x"), conf_dir=conf_dir)
    assert json.loads((tmp_path / "runs" / "x" / "seen.json").read_text()) == {"depth": 2}
