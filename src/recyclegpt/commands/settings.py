"""A composed section becomes a dataclass: OmegaConf checks the types, the dataclass itself the values."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recyclegpt.decoding import SamplingConfig, Strategy, make_strategy
from recyclegpt.errors import ConfigError, Problems

T = TypeVar("T")


def read_settings(schema: type[T], section: DictConfig, path: str = "") -> T:
    """The settings of a section.

    Args:
        schema: a dataclass; its `__post_init__` may raise a ConfigError that names every value it refuses.
        section: holds a value for every field, and may hold more.
        path: what problems begin with: `"bench."`.

    Raises:
        ConfigError: naming every value of another type, or else every value that the dataclass refuses.
    """
    typed = OmegaConf.structured(schema)
    OmegaConf.set_readonly(typed, False)  # a frozen dataclass gives a read-only config
    problems = Problems()
    for field in dataclasses.fields(cast("Any", schema)):
        try:
            typed[field.name] = section[field.name]
        except OmegaConfBaseException as error:
            problems.found.append(f"{path}{field.name}: {str(error).splitlines()[0]}")
    problems.raise_any()
    with problems.under(path):
        return cast("T", OmegaConf.to_object(typed))
    raise ConfigError(problems.found)


def not_positive(settings: Any, *names: str) -> list[str]:
    """A problem for each of these fields, or members of a field that is a list, that is below 1."""
    problems = []
    for name in names:
        given = getattr(settings, name)
        values = given if isinstance(given, list) else [given]
        problems += [f"{name}: {value} is not a positive whole number" for value in values if value < 1]
        if not values:
            problems.append(f"{name}: the list is empty; give at least one value")
    return problems


@dataclasses.dataclass
class DecodingSettings:
    """The group `decoding`; conf/decoding/greedy.yaml says what each means."""

    strategy: str
    num_recycled: int
    confidence_threshold: float
    temperature: float
    top_k: int | None
    top_p: float
    min_p: float
    repetition_penalty: float
    max_new_tokens: int
    stop: list[str]
    seed: int
    dtype: str
    compile: bool

    def __post_init__(self) -> None:
        problems = Problems()
        if not 0 <= self.seed < 2**62:
            problems.found.append(f"seed: {self.seed} is not between 0 and 2^62")
        if not all(self.stop):
            problems.found.append("stop: an empty string ends every text at once; leave it out")
        with problems.under():
            self.make_strategy()
        with problems.under():
            self.sampling()
        problems.raise_any()

    def make_strategy(self) -> Strategy:
        """The decoder's strategy."""
        return make_strategy(self.strategy, self.num_recycled, self.confidence_threshold)

    def sampling(self) -> SamplingConfig:
        """How tokens are chosen."""
        return SamplingConfig(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)
