"""Types of settings, and which targets may be built."""

from __future__ import annotations

import functools
import pickle
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from recyclegpt.configuration.build import build, locate, section_problems, to_dataclass
from recyclegpt.configuration.compose import compose_or_explain
from recyclegpt.errors import ConfigError
from recyclegpt.models import ModelConfig, RecycleConfig


@dataclass(frozen=True)
class Shape:
    width: int
    heads: int = 2
    rate: float = 0.1
    tied: bool = True
    kind: bool | str = "constant"
    limit: int | None = None
    grid: list[int] | None = None
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(f"heads: {self.heads} does not divide width={self.width}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("width", "abc"),
        ("width", 3.5),
        ("rate", "fast"),
        ("tied", "perhaps"),
        ("limit", "x"),
        ("names", "a"),
        ("zzz", 1),
    ],
)
def test_a_wrong_value_is_named(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        to_dataclass(Shape, OmegaConf.create({"width": 4} | {key: value}), "model")
    assert [problem.split(":")[0] for problem in caught.value.problems] == [f"model.{key}"]


def test_all_problems_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        to_dataclass(Shape, {"heads": "x", "zzz": 1, "rate": []}, "model")
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "model.heads",
        "model.zzz",
        "model.rate",
        "model.width",
    ]


def test_the_dataclass_has_the_last_word() -> None:
    with pytest.raises(ConfigError, match=r"^model\.heads: 2 does not divide width=3"):
        to_dataclass(Shape, {"width": 3}, "model")
    shape = to_dataclass(Shape, {"width": 4, "rate": 1, "grid": [1, 2], "kind": "ramp"}, "model")
    assert shape == Shape(4, rate=1.0, grid=[1, 2], kind="ramp")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("seed=abc", "seed"),
        ("backbone.frozen=perhaps", "backbone.frozen"),
        ("checkpointing.every_n_steps=often", "checkpointing.every_n_steps"),
        ("training.compil=true", "training.compil"),
        ("training.compile=perhaps", "training.compile"),
        ("decoding.top_k=many", "decoding.top_k"),
    ],
)
def test_sections_are_typed_while_they_are_composed(override: str, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        compose_or_explain("train", [override, "paths.output_dir=x"])


def test_values_of_sections_are_checked_together() -> None:
    overrides = [
        "seed=-1",
        "checkpointing.keep=0",
        "training.max_skipped_steps=-1",
        "decoding.num_recycled=9",
    ]
    cfg = compose_or_explain("train", [*overrides, "paths.output_dir=x"])
    keys = [problem.split(":")[0] for problem in section_problems(cfg)]
    assert sorted(keys) == sorted(override.split("=")[0] for override in overrides)


SHAPE = {"_target_": "recyclegpt.models.ModelConfig", "hidden_size": 32, "num_heads": 2}


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.load",
        "torch.hub.load",
        "builtins.eval",
        "recyclegpt",
        "recyclegptx.models.ModelConfig",
        "recyclegpt.configuration.compose.os.system",
        "recyclegpt.files.write_json",
        "recyclegpt.models.config.math.log",
        "recyclegpt.models.ModelConfig.__init__",
        "recyclegpt.models.nowhere",
        "recyclegpt.checkpoints.load.load_trained",
        "lightning.pytorch.core.saving.pl_load",
        "lightning.pytorch.cli.instantiate_class",
        "lightning.pytorch.seed_everything",
        "lightning.pytorch.trainer.call.os.system",
        "torch.optim.optimizer.functools.partial",
        "torch.optim.swa_utils.update_bn",
        3,
        None,
    ],
)
def test_what_is_not_allowed_is_refused_and_not_run(target: Any, tmp_path) -> None:
    trace = tmp_path / "trace"
    bad = {"_target_": target, "command": f"touch {trace}"}
    for node in ({"a": bad}, {"a": {"_target_": "recyclegpt.callbacks.Throughput", "part": [bad]}}):
        with pytest.raises(ConfigError, match=r"^a.*_target_: "):
            build(OmegaConf.create(node))
    assert not trace.exists()


def test_what_is_allowed_is_found() -> None:
    assert locate("recyclegpt.models.ModelConfig") is ModelConfig
    assert locate("torch.optim.AdamW") is torch.optim.AdamW
    assert locate("lightning.pytorch.callbacks.ModelCheckpoint").__name__ == "ModelCheckpoint"
    assert build({"_target_": "datetime.timedelta", "minutes": 2}).total_seconds() == 120


def test_mappings_of_nodes_become_those_of_objects() -> None:
    objects = build(
        OmegaConf.create({"a": {"_target_": "recyclegpt.models.RecycleConfig", "num_layers": 1}, "b": None})
    )
    assert objects == {"a": RecycleConfig(num_layers=1), "b": None}
    assert build(None) is None


def test_extra_arguments_win_and_arrive_as_they_are() -> None:
    assert build(SHAPE | {"vocab_size": "abc"}, "model", vocab_size=8).vocab_size == 8
    weights = [torch.nn.Parameter(torch.zeros(1))]
    optimizer = build({"_target_": "torch.optim.SGD", "lr": 0.5}, "optimizer", params=weights)
    assert optimizer.param_groups[0]["params"][0] is weights[0]


def test_a_partial_waits_for_the_rest_and_pickles() -> None:
    maker = build(OmegaConf.create({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5}))
    assert type(maker) is functools.partial
    optimizer = pickle.loads(pickle.dumps(maker))([torch.nn.Parameter(torch.zeros(1))])
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_what_a_constructor_refuses_carries_the_path_of_its_node() -> None:
    with pytest.raises(ConfigError, match=r"^model\.num_layers: 0 is not positive"):
        build({"model": SHAPE | {"num_layers": 0, "vocab_size": 8}})
    with pytest.raises(ConfigError, match=r"^model\.num_layers: .*Integer"):
        build(SHAPE | {"num_layers": "abc", "vocab_size": 8}, "model")
    with pytest.raises(ConfigError, match=r"^optimizer: torch\.optim\.SGD refuses its settings: Invalid learning rate"):
        build({"_target_": "torch.optim.SGD", "lr": -1.0}, "optimizer", params=[torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(ConfigError, match=r"^trainer: .*acelerator"):
        build({"_target_": "lightning.pytorch.Trainer", "acelerator": "cpu"}, "trainer")


def test_several_nodes_report_together() -> None:
    config = {"a": SHAPE | {"num_heads": 0, "vocab_size": 8}, "b": SHAPE, "c": None}
    with pytest.raises(ConfigError) as caught:
        build(config)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["a.num_heads", "b.vocab_size"]
