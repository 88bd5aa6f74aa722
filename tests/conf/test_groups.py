"""Every option of every group composes and can be built; every experiment runs, and every sweep is fair."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf

from recyclegpt.commands.main import main
from recyclegpt.configuration.build import build
from recyclegpt.configuration.compose import compose_or_explain, config_hash, find_conf
from recyclegpt.configuration.hydra_app import hydra_run
from recyclegpt.configuration.train_checks import build_parts
from recyclegpt.data import TextFiles, TokenizerConfig, tokenize_corpus
from recyclegpt.errors import ConfigError
from recyclegpt.models import RecycleGPT
from tests.small_run import ONE_JOB_STEP

CONF = find_conf()
WITHIN_OTHERS = ("default", "base", "run_of_seconds")
"""Files that options of their group share."""
GROUPS = ("hydra", "paths", "experiment", "sweep", "bench")
OPTIONS = sorted(
    f"{path.parent.name}={path.stem}"
    for path in CONF.glob("*/*.yaml")
    if path.parent.name not in GROUPS and (path.stem not in WITHIN_OTHERS or path.parent.name == "callbacks")
)
NEEDED = {
    "data=text_files": ["data.paths=[a.txt]"],
    "data=hf_stream": ["data.name=a/b"],
    "data=tokenized": ["data.path=shards"],
    "debug=smoke_pretrained": ["model=hf", "model.path=pretrained"],
    "model=hf": ["model.path=pretrained", "model.context_length=128"],
}
PACKAGES = {"logger=wandb": "wandb", "logger=mlflow": "mlflow"}
NEEDS_GPU = ("trainer=gpu", "trainer=ddp", "trainer=fsdp")


def composed(*overrides: str, folder: Path | str = "outputs/test") -> DictConfig:
    return compose_or_explain("train", [f"paths.output_dir={folder}", *overrides], check_values=False)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_can_be_built(
    option: str, tiny_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    needed = NEEDED.get(option, [])
    if "model=hf" in [option, *needed]:
        tiny_checkpoint()
    (tmp_path / "a.txt").write_text("text\n" * 50)
    if option == "data=tokenized":
        tokenize_corpus(TextFiles(["a.txt"]), TokenizerConfig("byte"), "shards")
    cfg = composed(option, *needed, folder=tmp_path)
    if option in NEEDS_GPU and not torch.cuda.is_available():
        with pytest.raises(ConfigError) as caught:
            build_parts(cfg)
        assert all("torch sees no CUDA device" in problem for problem in caught.value.problems)
        return
    assert build_parts(cfg).keys() == {"model", "recycle", "draft_ids", "loss", "data", "optimizer", "scheduler"}
    build(cfg.callbacks, "callbacks")
    if (package := PACKAGES.get(option)) is not None:
        with pytest.raises(ConfigError, match=package):
            build(cfg.logger, "logger")
    else:
        build(cfg.logger, "logger")
    build(cfg.trainer, "trainer", precision="32-true", logger=False)


@pytest.mark.parametrize("option", sorted(key for key in NEEDED if key.startswith(("data=", "model="))))
def test_what_the_user_has_to_give_is_asked_for(option: str) -> None:
    key = NEEDED[option][0].partition("=")[0]
    with pytest.raises(ConfigError) as caught:
        compose_or_explain("train", ["paths.output_dir=x", option])
    assert caught.value.problems == [f"{key}: has no value; set {key}=..."]


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_every_command_has_a_config_that_composes(name: str) -> None:
    needed = ["data=python_stdlib"] if name == "adapt" else []
    assert compose_or_explain(name, needed, check_values=False)


def test_all_that_is_wrong_comes_at_once() -> None:
    overrides = ["loss.recycle_weight=-1", "model.num_layers=0", "optimizer.lr=-1", "decoding.top_p=7"]
    overrides += ["checkpointing.keep=0", "resume=nowhere"]
    with pytest.raises(ConfigError) as caught:
        build_parts(composed(*overrides))
    found = {problem.split(":")[0] for problem in caught.value.problems}
    assert found == {override.split("=")[0] for override in overrides}


def test_the_same_run_elsewhere_has_the_same_hash() -> None:
    here = config_hash(composed())
    assert config_hash(composed("paths.cache_dir=/cache", "name=other", "resume=auto", folder="/elsewhere")) == here
    assert config_hash(compose_or_explain("train", [], check_values=False)) == here
    assert config_hash(composed("seed=2")) != here


@pytest.mark.parametrize("path", sorted((CONF / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_runs(
    path: Path, stdlib: Path, packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    on_gpu = "/trainer: gpu" in path.read_text()
    corpus = [f"data.paths=[{packages}]", "data.num_workers=0", "trainer=cpu"] if on_gpu else [f"data.root={stdlib}"]
    argv = ["debug=smoke", *corpus, "data.tokenizer.vocab_size=300", *ONE_JOB_STEP]
    if path.stem == "frozen_backbone":
        assert main(["train", "experiment=tiny_cpu", *argv]) == 0
    assert main(["train", f"experiment={path.stem}", *argv]) == 0
    assert len(list((tmp_path / "outputs/train" / path.stem).glob("*/result.json"))) == 1


SWEEPS = sorted(path.stem for path in (CONF / "sweep").glob("*.yaml") if path.stem != "base")


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_has_seeds_and_fair_controls(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    jobs: list[list[str]] = []

    def record(listed: list[list[str]], initial_job_idx: int) -> list[object]:
        jobs.extend(listed)
        return []

    monkeypatch.setattr(Plugins, "instantiate_launcher", lambda *_, **__: SimpleNamespace(launch=record))
    monkeypatch.setattr(Sweeper, "validate_batch_is_legal", lambda *_: None)
    # A part of the jobs says as much.
    fixed = {"depth_by_weight": ["loss.recycle_weight=0.3"], "gpu_num_recycled": ["loss.num_unrolled=2"]}
    hydra_run(lambda _: None, "train", [f"sweep={name}", "experiment=tiny_cpu", *fixed.get(name, [])])
    first, second = ([job for job in jobs if f"seed={seed}" in job] for seed in (1, 2))
    assert [["seed=2" if line == "seed=1" else line for line in job] for job in first] == second
    assert len({frozenset(job) for job in jobs}) == len(jobs) == 2 * len(first)
    configs = [composed(f"sweep={name}", "experiment=tiny_cpu", *job) for job in first]
    assert {cfg.resume for cfg in configs} == {"auto"}
    assert len({config_hash(cfg) for cfg in configs}) == len(configs)

    def size(cfg: DictConfig) -> int:
        model, recycle = build(cfg.model, "model", vocab_size=4096), build(cfg.recycle, "recycle")
        with torch.device("meta"):
            return RecycleGPT(model, recycle).num_parameters()

    if name == "adapted_depth":  # its backbone is what it was, with or without a module
        assert not any(cfg.sweep.control for cfg in configs)
        return
    controls = {cfg.sweep.control: cfg for cfg in configs if cfg.sweep.control}
    modules = {cfg.recycle.num_layers: size(cfg) for cfg in configs if not cfg.sweep.control}
    depths = {cfg.model.num_layers for cfg in configs if not cfg.sweep.control}
    assert controls["no_module"].recycle.num_layers == 0
    assert {controls["no_module"].model.num_layers} == depths
    deeper = [cfg for control, cfg in controls.items() if control.startswith("deeper")]
    assert deeper
    for cfg in deeper:
        assert cfg.recycle.num_layers == 0
        added = cfg.model.num_layers - controls["no_module"].model.num_layers
        # The module has a fold besides its layers: two widths squared of it, against twelve or so of a layer.
        assert 0.97 < size(cfg) / modules[added] <= 1


def test_files_are_yaml_that_hydra_reads() -> None:
    files = [path for path in CONF.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".yaml"}
    assert all(OmegaConf.load(path) is not None for path in files)
