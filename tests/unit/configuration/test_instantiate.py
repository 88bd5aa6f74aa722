"""Only what is allowed is built, and all that is wrong with a node is found without building it."""

from __future__ import annotations

import functools
import os
import pickle
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from omegaconf import OmegaConf

from recyclegpt.configuration import instantiate
from recyclegpt.configuration.instantiate import build, build_all, check, locate
from recyclegpt.errors import ConfigError

HOME = "recyclegpt.parts_of_this_test"
built: list[str] = []


@dataclass(frozen=True)
class Shape:
    width: int
    heads: int = 2
    rate: float = 0.1
    tied: bool = True
    name: str = "x"
    kind: Literal["constant", "ramp"] = "constant"
    betas: tuple[float, float] = (0.9, 0.95)
    limit: int | None = None

    def __post_init__(self) -> None:
        built.append("Shape")
        if self.width % self.heads:
            raise ConfigError([f"heads: {self.heads} does not divide width={self.width}", "a sentence of its own"])


class Holder:
    def __init__(self, inner: Any = None, items: list[Any] | None = None, **rest: Any) -> None:
        self.inner, self.items, self.rest = inner, items, rest


def scale(value: float, by: float = 2.0) -> float:
    return value * by


def broken(value: int) -> None:
    raise ValueError("a bug of ours")


@pytest.fixture(autouse=True)
def parts(monkeypatch):
    """A module of the package that holds the classes above, and imports what it needs as modules do."""
    module = types.ModuleType(HOME)
    for part in (Shape, Holder, scale, broken):
        monkeypatch.setattr(part, "__module__", HOME)
        setattr(module, part.__name__, part)
    module.os, module.load, module.number = os, torch.load, 3
    module.a_lambda_of_others = os.system
    monkeypatch.setitem(sys.modules, HOME, module)
    ours, *others = instantiate.ALLOWED_PACKAGES
    ours = ours._replace(functions=(*ours.functions, f"{HOME}.scale", f"{HOME}.broken"))
    monkeypatch.setattr(instantiate, "ALLOWED_PACKAGES", (ours, *others))
    built.clear()


def node(part: str, /, **values: Any) -> Any:
    return OmegaConf.create({"_target_": f"{HOME}.{part}", **values})


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.load",
        "torch.hub.load",
        "torch.utils.cpp_extension.load",
        "datasets.load_dataset",
        "builtins.eval",
        "recyclegpt",
        "recyclegptx.models.ModelConfig",
        "recyclegpt.configuration.compose.os.system",
        "recyclegpt.files.write_json",
        f"{HOME}.os.system",
        f"{HOME}.os",
        f"{HOME}.load",
        f"{HOME}.a_lambda_of_others",
        f"{HOME}.number",
        f"{HOME}.Shape.__init__",
        f"{HOME}.Holder.mro",
        f"{HOME}.__builtins__.eval",
        f"{HOME}.scale.__globals__",
        f"{HOME}..Shape",
        "lightning.pytorch.core.saving.pl_load",
        "lightning.pytorch.cli.instantiate_class",
        "lightning.pytorch.seed_everything",
        "torch.optim.optimizer.functools.partial",
        "torch.optim.swa_utils.update_bn",
        "lightning.pytorch.trainer.call.os.system",
        3,
        None,
    ],
)
def test_what_is_not_allowed_is_refused_and_not_run(target, tmp_path):
    trace = tmp_path / "trace"
    config = OmegaConf.create({"a": {"_target_": target, "command": f"touch {trace}"}})
    (first, *_) = check(config)
    assert first.startswith("a._target_: ")
    with pytest.raises(ConfigError):
        build(config)
    assert not trace.exists()


def test_what_is_allowed_is_found():
    assert locate(f"{HOME}.Shape") is Shape
    assert locate("torch.optim.AdamW") is torch.optim.AdamW
    assert locate("lightning.pytorch.callbacks.ModelCheckpoint").__name__ == "ModelCheckpoint"
    assert build({"_target_": "datetime.timedelta", "minutes": 2}).total_seconds() == 120


def test_a_misspelt_target_gets_a_suggestion():
    assert check(node("Shap", width=2)) == [f"_target_: {HOME} has no Shap; did you mean {HOME}.Shape?"]
    (problem,) = check({"_target_": "recyclegpt.nowhere.Shape"})
    assert "cannot be imported (No module named 'recyclegpt.nowhere')" in problem


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("width", "abc", "model.width: 'abc' is not an integer"),
        ("width", 3.5, "model.width: 3.5 is not an integer"),
        ("width", True, "model.width: True is not an integer"),
        ("width", None, "model.width: None is not an integer"),
        ("width", [4], "model.width: [4] is not an integer"),
        ("rate", "fast", "model.rate: 'fast' is not a number"),
        ("tied", 1, "model.tied: 1 is not true or false"),
        ("name", 3, "model.name: 3 is not a string"),
        ("kind", "rmap", "model.kind: 'rmap' is not one of 'constant', 'ramp'"),
        ("betas", [0.9], "model.betas: [0.9] is not a list of 2 (a number, a number)"),
        ("betas", [0.9, "b"], "model.betas: [0.9, 'b'] is not a list of 2 (a number, a number)"),
        ("limit", "many", "model.limit: 'many' is not an integer or null"),
        ("haeds", 2, "model.haeds: unknown key; did you mean model.heads?"),
        ("zzz", 2, "model.zzz: unknown key; choose from: width, heads, rate, tied, name, kind, betas, limit"),
        ("heads", "???", "model.heads: has no value; set model.heads=..."),
        ("_partial_", "yes", "model._partial_: 'yes' is not true or false"),
        ("_convert_", "some", "model._convert_: 'some' is not one of none, partial, object, all"),
        ("name", "${nowhere}", "model: Interpolation key 'nowhere' not found"),
    ],
)
def test_one_wrong_value_is_one_problem(key, value, expected):
    assert check(node("Shape", **{"width": 4, key: value}), "model") == [expected]
    assert built == []


@pytest.mark.parametrize(
    "values",
    [{"rate": 1}, {"betas": [0, 1]}, {"limit": None}, {"limit": 3}, {"kind": "ramp"}, {"_partial_": True}],
    ids=str,
)
def test_right_values_are_no_problem(values):
    assert check(node("Shape", width=4, **values)) == []


def test_what_is_missing_is_asked_for_unless_it_comes_later():
    assert check(node("Shape"), "model") == [
        f"model.width: has no value, but {HOME}.Shape needs one; set model.width=..."
    ]
    assert check(node("Shape"), extra=("width",)) == []
    assert check({"a": node("Shape")}, extra=("a.width",)) == []
    assert check(node("Shape", width="abc"), extra=("width",)) == []
    assert check(node("Shape", _partial_=True)) == []
    assert check(node("Shape", _partial_=True, width="???")) == []
    assert check(node("Shape", _args_=[4, 2])) == []
    assert check(node("Shape", _args_=["abc"]), "m") == ["m.width: 'abc' is not an integer"]
    assert "9 values" in check(node("Shape", _args_=[4, 2, 0.1, True, "x", "ramp", [0, 1], 1, 1]))[0]


def test_all_problems_of_all_nodes_come_at_once():
    config = OmegaConf.create(
        {
            "model": node("Shape", width="abc", haeds=1, rate=[]),
            "holder": node("Holder", inner=node("Shape", width=1.5), items=[node("Shape"), {"_target_": "os.system"}]),
            "nothing": None,
            "plain": {"a": [1, 2]},
        }
    )
    problems = check(config)
    starts = ["model.width", "model.haeds", "model.rate", "holder.inner.width", "holder.items[0].width"]
    assert [problem.split(":")[0] for problem in problems] == [*starts, "holder.items[1]._target_"]
    with pytest.raises(ConfigError) as caught:
        build(config)
    assert caught.value.problems == problems
    assert built == []


def test_targets_below_an_unrecursive_node_are_checked_but_not_built():
    config = node("Holder", _recursive_=False, inner=node("Shape", width=4))
    assert build(config).inner == {"_target_": f"{HOME}.Shape", "width": 4}
    assert check(node("Holder", _recursive_=False, inner={"_target_": "os.system"}))


def test_what_is_built_holds_plain_python():
    config = OmegaConf.create(
        {"width": 6, "part": node("Holder", inner={"a": [1, {"b": "${width}"}]}, items=[1, 2], z=1)}
    )
    holder = build(config.part)
    assert (holder.inner, holder.items, holder.rest) == ({"a": [1, {"b": 6}]}, [1, 2], {"z": 1})
    assert type(holder.inner) is dict
    assert type(holder.inner["a"]) is list
    assert build(None) is None
    assert build(node("scale", value=3)) == 6.0


def test_mappings_and_lists_of_nodes_become_those_of_objects():
    objects = build(OmegaConf.create({"a": node("Shape", width=2), "b": None, "c": [node("Shape", width=4)]}))
    assert objects == {"a": Shape(2), "b": None, "c": [Shape(4)]}


def test_extra_arguments_arrive_as_they_are_and_win():
    shape, values, tensor = Shape(4), (1, (2,)), torch.zeros(2)
    holder = build(node("Holder", inner="from the config"), inner=shape, items=values, tensor=tensor)
    assert holder.inner is shape
    assert holder.items is values
    assert holder.rest["tensor"] is tensor
    assert build(node("Shape", width="abc"), width=8).width == 8


def test_a_partial_waits_for_the_rest_and_pickles():
    maker = build(OmegaConf.create({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5, "params": "???"}))
    assert type(maker) is functools.partial
    optimizer = pickle.loads(pickle.dumps(maker))([torch.nn.Parameter(torch.zeros(1))])
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert build(node("scale", _partial_=True, value=3), by=5)() == 15


def test_what_a_constructor_refuses_carries_the_path_of_its_node():
    config = OmegaConf.create({"model": {"inner": node("Shape", width=3)}})
    with pytest.raises(ConfigError) as caught:
        build(config.model)
    assert caught.value.problems == [
        "model.inner.heads: 2 does not divide width=3",
        "model.inner: a sentence of its own",
    ]
    with pytest.raises(ConfigError, match=r"^heads: 2"):
        build(node("Shape", width=3))
    with pytest.raises(ConfigError, match=r"^elsewhere\.heads: 2"):
        build(node("Shape", width=3), "elsewhere")


def test_a_prefix_is_not_put_twice(monkeypatch):
    def refuse(self):
        raise ConfigError("model.heads: no")

    monkeypatch.setattr(Shape, "__post_init__", refuse)
    with pytest.raises(ConfigError) as caught:
        build(node("Shape", width=3), "model")
    assert caught.value.problems == ["model.heads: no"]


def test_values_that_another_library_refuses_are_problems_and_bugs_of_ours_are_not():
    with pytest.raises(ConfigError, match=r"^optimizer: torch\.optim\.SGD refuses its settings: Invalid learning rate"):
        build({"_target_": "torch.optim.SGD", "lr": -1.0}, "optimizer", params=[torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(ValueError, match="a bug of ours") as caught:
        build(node("broken", value=1))
    assert not isinstance(caught.value, ConfigError)


def test_several_nodes_report_together():
    config = OmegaConf.create(
        {"a": node("Shape", width=3), "b": node("Shape", width="abc"), "c": {"d": node("Shape")}, "e": None}
    )
    with pytest.raises(ConfigError) as caught:
        build_all(config, ["a", "b", "c.d"])
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["a.heads", "a", "b.width", "c.d.width"]
    objects = build_all(config, ["c.d", "e"], {"c.d": {"width": 4}})
    assert objects == {"c.d": Shape(4), "e": None}


def test_a_config_of_lightning_is_checked_against_its_signature():
    trainer = {"_target_": "lightning.pytorch.Trainer", "max_epochs": 1.5, "acelerator": "cpu", "precision": "bf17"}
    problems = check(trainer, "trainer")
    assert problems[0] == "trainer.max_epochs: 1.5 is not an integer or null"
    assert problems[1] == "trainer.acelerator: unknown key; did you mean trainer.accelerator?"
    assert problems[2].startswith("trainer.precision: 'bf17' is not one of ")
    checkpoint = {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "dirpath": str(Path("x")), "save_top_k": 2}
    assert check(checkpoint) == []
