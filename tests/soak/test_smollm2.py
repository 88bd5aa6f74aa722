"""A model that people use, with its trained module: verified text is the backbone's, token for token."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch

from recyclegpt.checkpoints.load import LoadedModel, load_trained
from recyclegpt.data.chat import render_chat
from recyclegpt.decoding import Decoder, SamplingConfig, make_strategy

from .conftest import SMOLLM2, SMOLLM2_EXPERIMENT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
NEW_TOKENS = 64


@cache
def model() -> LoadedModel:
    return load_trained(SMOLLM2, module=SMOLLM2_EXPERIMENT / "module")


@pytest.mark.parametrize("sampling", [SamplingConfig(), SamplingConfig(temperature=0.7)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_verified_text_equals_autoregressive_text(dtype: torch.dtype, sampling: SamplingConfig) -> None:
    trained = model()
    asked = (SMOLLM2_EXPERIMENT / "demo_prompts.jsonl").read_text(encoding="utf-8").splitlines()[::3]
    rows = [render_chat(trained.tokenizer, [{"role": "user", "content": json.loads(line)["prompt"]}]) for line in asked]
    decoder = Decoder.optimised(trained.model, dtype, draft_dtype=torch.int8)
    expected = decoder.generate(rows, make_strategy("autoregressive"), NEW_TOKENS, sampling).tokens
    for drafter in ("module", "ngram", "ngram+module"):
        for num_recycled in (1, 4):
            strategy = make_strategy("verified", num_recycled, drafter=drafter)
            together = decoder.generate(rows, strategy, NEW_TOKENS, sampling)
            assert together.tokens == expected
            assert together.counts.num_accepted > 0
        alone = decoder.generate(rows[:1], strategy, NEW_TOKENS, sampling)
        assert alone.tokens == expected[:1]
