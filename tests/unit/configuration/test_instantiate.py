"""Only what is allowed is built; what a constructor refuses carries the path of its node."""

from __future__ import annotations

import functools
import pickle
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from recyclegpt.configuration.build import build, locate
from recyclegpt.errors import ConfigError
from recyclegpt.models import ModelConfig, RecycleConfig

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
