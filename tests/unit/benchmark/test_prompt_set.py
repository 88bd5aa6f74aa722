"""What is counted of the texts that decoders write after a set of prompts."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from recyclegpt.benchmark.prompt_set import OVERALL, bench_prompts, fit_prompts
from recyclegpt.decoding import Alternating, Autoregressive, Decoder, Verified
from recyclegpt.errors import ConfigError
from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT


def test_long_prompts_keep_their_end(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert fit_prompts([[*range(9)], [1], []], context=10, new_tokens=5, start=7) == [[4, 5, 6, 7, 8], [1], [7]]
    assert "1 of 3 prompts are longer than 5 tokens" in caplog.text
    with pytest.raises(ConfigError, match=r"bench\.new_tokens: 10 leave no room"):
        fit_prompts([[1]], context=10, new_tokens=10, start=7)


def test_rows_count_what_the_decoders_wrote() -> None:
    torch.manual_seed(1)
    config = ModelConfig(19, 64, num_layers=1, hidden_size=16, num_heads=2)
    model = RecycleGPT(config, RecycleConfig(1)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.4)
    decoder, num = Decoder(model), 16
    prompts = {"a": [[1, 2, 3], [4]], "b": [[5, 6, 7, 8, 9]]}
    strategies = [Alternating(1), Verified(1), Alternating(2)]
    kept: list[list[dict[str, Any]]] = []
    rows = bench_prompts(decoder, prompts, strategies, num, repetitions=2, after_prompt=kept.append)
    assert len(kept) == 3 * 2
    assert [row["num_prompts"] for row in kept[0]] == [1] * 8, "after the first prompt: its category, and overall"
    assert kept[-1] == rows
    assert [(row["category"], row["strategy"], row["num_recycled"]) for row in rows] == [
        (category, name, m)
        for category in ("a", "b", OVERALL)
        for name, m in (("autoregressive", 0), ("alternating", 1), ("verified", 1), ("alternating", 2))
    ]
    by_key = {(row["category"], row["strategy"], row["num_recycled"]): row for row in rows}
    for row in rows:
        assert row["num_prompts"] == {"a": 2, "b": 1, OVERALL: 3}[row["category"]]
        assert row["spread"][0] <= row["tokens_per_s"] <= row["spread"][1]
        if row["strategy"] != "alternating":
            assert row["equal"] == 1
        if row["strategy"] == "autoregressive":
            assert row["speedup"] == row["mean_accepted_length"] == 1
            assert row["acceptance"] is None
    for m in (1, 2):
        same = []
        for prompt in [*prompts["a"], *prompts["b"]]:
            (mine,) = decoder.generate([prompt], Alternating(m), num).tokens
            (theirs,) = decoder.generate([prompt], Autoregressive(), num).tokens
            same.append(mine == theirs)
        row = by_key[OVERALL, "alternating", m]
        assert row["equal"] == sum(same) / 3
        assert row["mean_accepted_length"] == m + 1
    verified = by_key[OVERALL, "verified", 1]
    assert verified["mean_accepted_length"] == pytest.approx(1 + verified["acceptance"])
