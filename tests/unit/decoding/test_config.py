"""Decoding settings check themselves, all at once."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from recyclegpt.decoding import Alternating, DecodingConfig, SamplingConfig
from recyclegpt.errors import ConfigError


def test_settings_make_strategy_and_sampling() -> None:
    config = DecodingConfig("alternating", 3, 0.4, temperature=0.8, top_k=5, stop=["END"])
    assert config.make_strategy() == Alternating(3, 0.4)
    assert config.sampling() == SamplingConfig(0.8, 5)
    assert OmegaConf.to_object(OmegaConf.structured(config)) == config, "it can be a Hydra schema"


def test_every_bad_setting_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        DecodingConfig("verified", 9, 1.5, temperature=-1, top_p=0, max_new_tokens=-1, stop=[""], seed=-1, dtype="int3")
    names = [problem.split(":")[0] for problem in error.value.problems]
    assert names == [
        "num_recycled", "confidence_threshold", "temperature", "top_p", "max_new_tokens", "stop", "seed", "dtype",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="strategy: 'magic' is unknown"):
        DecodingConfig("magic")
