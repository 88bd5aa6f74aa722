"""Every option of every group composes, is sound, and can be built; every experiment and sweep runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from recyclegpt.commands.main import main
from recyclegpt.configuration.compose import compose_or_explain, find_conf
from recyclegpt.configuration.hash import config_hash
from recyclegpt.configuration.hydra_app import hydra_run
from recyclegpt.configuration.instantiate import build
from recyclegpt.configuration.train_checks import find_problems
from recyclegpt.data import TextFiles, TokenizerConfig, tokenize_corpus
from recyclegpt.models import RecycleGPT

CONF = find_conf()
OPTIONS = sorted(
    f"{path.parent.name}={path.stem}"
    for path in CONF.glob("*/*.yaml")
    if path.parent.name not in ("hydra", "paths", "experiment", "sweep", "debug")
    and (path.parent.name, path.stem) != ("data", "default")  # what the others share
)
NEEDED = {
    "data=text_files": ["data.paths=[a.txt]"],
    "data=hf_stream": ["data.name=a/b"],
    "data=tokenized": ["data.path=shards"],
    "model=hf": ["model.path=pretrained", "model.context_length=128"],
}
NEEDS_GPU = ("trainer=gpu", "trainer=ddp", "trainer=fsdp")


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_is_sound_and_can_be_built(
    option: str, tiny_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if option == "model=hf":
        tiny_checkpoint()
    (tmp_path / "a.txt").write_text("text\n" * 50)
    if option == "data=tokenized":
        tokenize_corpus(TextFiles(["a.txt"]), TokenizerConfig("byte"), "shards", progress=False)
    cfg = compose_or_explain("train", [option, *NEEDED.get(option, [])], check_values=False)
    problems = find_problems(cfg)
    if option in NEEDS_GPU:
        assert all("torch sees no CUDA device" in problem for problem in problems)
        return
    assert problems == []
    with open_dict(cfg):
        cfg.paths.output_dir = str(tmp_path)
    for key in ("optimizer", "scheduler", "callbacks", "logger", "decoding"):
        build(cfg[key], key)
    build(cfg.trainer, "trainer", precision="32-true", logger=False)


@pytest.mark.parametrize("path", sorted((CONF / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_runs(
    path: Path, stdlib: Path, packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    on_gpu = "/trainer: gpu" in path.read_text()
    corpus = [f"data.paths=[{packages}]", "data.num_workers=0", "trainer=cpu"] if on_gpu else [f"data.root={stdlib}"]
    argv = ["debug=smoke", *corpus, "data.tokenizer.vocab_size=300", "callbacks=no_monitor"]
    if path.stem == "frozen_backbone":
        assert main(["train", "experiment=tiny_cpu", *argv]) == 0
    assert main(["train", f"experiment={path.stem}", *argv]) == 0
    assert len(list((tmp_path / "outputs/train" / path.stem).glob("*/result.json"))) == 1


def test_the_smoke_sweep_runs(stdlib: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["sweep=smoke", "debug=smoke", f"data.root={stdlib}", "data.tokenizer.vocab_size=300", "name=t"]
    argv += ["callbacks=no_monitor", "trainer.limit_train_batches=1", "trainer.max_epochs=1"]
    assert main(["train", *argv]) == 0
    results = [json.loads(file.read_text()) for file in Path("outputs/sweeps/smoke/t").glob("*/result.json")]
    assert [result["status"] for result in results] == ["completed"] * (2 * 2 + 2 * 2)
    # A second start finds every job done.
    before = {file: file.stat().st_mtime_ns for file in Path("outputs/sweeps").rglob("result.json")}
    assert main(["train", *argv]) == 0
    assert {file: file.stat().st_mtime_ns for file in Path("outputs/sweeps").rglob("result.json")} == before


@pytest.mark.parametrize("path", sorted((CONF / "sweep").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_has_seeds_and_fair_controls(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    jobs: list[tuple[DictConfig, Path]] = []

    def record(cfg: DictConfig) -> None:
        folder = Path(cfg.paths.output_dir)
        with open_dict(cfg):
            cfg.paths.output_dir = "outputs"
        jobs.append((cfg, folder))

    # A part of the jobs says as much.
    fixed = {"depth_by_weight": ["loss.recycle_weight=0.3"], "gpu_num_recycled": ["loss.num_unrolled=2"]}
    hydra_run(record, "train", [f"sweep={path.stem}", "experiment=tiny_cpu", *fixed.get(path.stem, [])])
    assert {cfg.seed for cfg, _ in jobs} >= {1, 2}
    assert {cfg.resume for cfg, _ in jobs} == {"auto"}
    assert len({config_hash(cfg) for cfg, _ in jobs}) == len(jobs) == len({folder for _, folder in jobs})
    assert {folder.parent for _, folder in jobs} == {Path.cwd() / "outputs/sweeps" / path.stem / "tiny_cpu"}
    assert all("=" not in folder.name and "," not in folder.name for _, folder in jobs)

    def size(cfg: DictConfig) -> int:
        with torch.device("meta"):
            return RecycleGPT(
                build(cfg.model, "model", vocab_size=4096), build(cfg.recycle, "recycle")
            ).num_parameters()

    controls = {cfg.sweep.control: cfg for cfg, _ in jobs if cfg.sweep.control}
    modules = {cfg.recycle.num_layers: size(cfg) for cfg, _ in jobs if not cfg.sweep.control}
    depths = {cfg.model.num_layers for cfg, _ in jobs if not cfg.sweep.control}
    assert controls["no_module"].recycle.num_layers == 0
    assert {controls["no_module"].model.num_layers} == depths
    deeper = [cfg for name, cfg in controls.items() if name.startswith("deeper")]
    assert deeper
    for cfg in deeper:
        assert cfg.recycle.num_layers == 0
        added = cfg.model.num_layers - controls["no_module"].model.num_layers
        # The module has a fold besides its layers: two widths squared of it, against twelve or so of a layer.
        assert 0.97 < size(cfg) / modules[added] <= 1


@pytest.fixture(autouse=True)
def _no_hydra_left() -> Callable[[], None] | None:
    yield
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
