"""Every option of every group composes, is sound, and can be built; every experiment and sweep runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from recyclegpt.cli.combinations import find_problems
from recyclegpt.cli.compose import compose_or_explain, find_conf
from recyclegpt.cli.instantiate import build
from recyclegpt.cli.main import main
from recyclegpt.data import TextFiles, TokenizerConfig, tokenize_corpus

CONF = find_conf()
OPTIONS = sorted(
    f"{path.parent.name}={path.stem}"
    for path in CONF.glob("*/*.yaml")
    if path.parent.name not in ("hydra", "paths", "experiment", "sweep", "debug")
)
NEEDED = {
    "data=text_files": ["data.paths=[a.txt]"],
    "data=hf_stream": ["data.name=a/b"],
    "data=tokenized": ["data.path=shards"],
}
NEEDS_GPU = ("trainer=gpu", "trainer=ddp")


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_is_sound_and_can_be_built(option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
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
def test_every_experiment_runs(path: Path, stdlib: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    argv = [f"experiment={path.stem}", "debug=smoke", f"data.root={stdlib}", "data.tokenizer.vocab_size=300"]
    assert main(["train", *argv]) == 0
    assert len(list((tmp_path / "outputs/train" / path.stem).glob("*/result.json"))) == 1


@pytest.mark.parametrize("path", sorted((CONF / "sweep").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_runs_one_step_a_job(
    path: Path, stdlib: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = [f"sweep={path.stem}", "debug=smoke", f"data.root={stdlib}", "data.tokenizer.vocab_size=300", "name=t"]
    argv += ["callbacks=no_monitor", "trainer.limit_train_batches=1", "trainer.max_epochs=1"]
    assert main(["train", *argv]) == 0
    results = [json.loads(file.read_text()) for file in Path(f"outputs/sweeps/{path.stem}/t").glob("*/result.json")]
    assert all(result["status"] == "completed" for result in results)
    assert {result["seed"] for result in results} >= {1, 2}
    assert len({result["config_hash"] for result in results}) == len(results)
    if path.stem == "smoke":
        assert len(results) == 2 * 2 + 2 * 2
    # A second start finds every job done.
    before = {file: file.stat().st_mtime_ns for file in Path("outputs/sweeps").rglob("result.json")}
    assert main(["train", *argv]) == 0
    assert {file: file.stat().st_mtime_ns for file in Path("outputs/sweeps").rglob("result.json")} == before


@pytest.fixture(autouse=True)
def _no_hydra_left() -> Callable[[], None] | None:
    yield
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


@pytest.fixture(scope="session")
def stdlib(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in for the interpreter's standard library."""
    folder = tmp_path_factory.mktemp("stdlib")
    for number in range(60):
        lines = [f"def function_{number}_{line}(value):\n    return value + {line * number}\n" for line in range(40)]
        (folder / f"module{number}.py").write_text("\n".join(lines), encoding="utf-8")
    return folder
