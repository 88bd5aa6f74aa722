"""Sections and nodes are held against the dataclasses they become."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from omegaconf import OmegaConf

from recyclegpt.configuration.build import section_problems, to_dataclass
from recyclegpt.configuration.compose import compose_or_explain
from recyclegpt.errors import ConfigError


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
