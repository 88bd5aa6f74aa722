"""Texts written in batches equal texts written alone."""

from __future__ import annotations

import logging

import pytest
import torch

from recyclegpt.data.tokenizer import TextTokenizer
from recyclegpt.decoding import Alternating, Autoregressive, Decoder, SamplingConfig, Strategy, Verified
from recyclegpt.evaluation.scoring import Asked, BatchGenerator
from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT

TOKENIZER = TextTokenizer.bytes()
GREEDY = SamplingConfig()
PROMPTS = ["a", "Some words", "", "b" * 30, "more of them"]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.manual_seed(0)
    config = ModelConfig(257, 64, num_layers=1, hidden_size=16, num_heads=2)
    model = RecycleGPT(config, RecycleConfig(1)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.4)
    return Decoder(model)


@pytest.mark.parametrize("strategy", [Autoregressive(), Alternating(2), Verified()], ids=lambda it: it.name)
@pytest.mark.parametrize("sampling", [GREEDY, SamplingConfig(temperature=1.0)], ids=["greedy", "sampled"])
def test_a_batch_writes_what_each_would_alone(decoder: Decoder, strategy: Strategy, sampling: SamplingConfig) -> None:
    asked = [(prompt, Asked(10 + 5 * (len(prompt) % 2), (), sampling)) for prompt in PROMPTS]
    together = BatchGenerator(decoder, strategy, TOKENIZER, batch_size=3, seed=7).write(asked)
    one_by_one = BatchGenerator(decoder, strategy, TOKENIZER, batch_size=1, seed=7).write(asked)
    assert together == one_by_one
    for number, (prompt, settings) in enumerate(asked):
        tokens = TOKENIZER.encode(prompt) or [TOKENIZER.eos_id]
        (written,) = decoder.generate(
            [tokens], strategy, settings.max_new_tokens, sampling, [TOKENIZER.eos_id], seed=7 + number
        ).tokens
        assert together[number] == TOKENIZER.decode(written, skip_special_tokens=True)


def test_a_text_ends_before_its_stop(decoder: Decoder) -> None:
    continuer = BatchGenerator(decoder, Verified(), TOKENIZER)
    (whole,) = continuer.write([("Some words", Asked(20, (), GREEDY))])
    stop = whole[5:7]
    (cut,) = continuer.write([("Some words", Asked(20, ("never", stop), GREEDY))])
    assert cut == whole[: whole.index(stop)]


def test_a_long_prompt_keeps_its_end_and_is_counted(decoder: Decoder, caplog: pytest.LogCaptureFixture) -> None:
    continuer = BatchGenerator(decoder, Autoregressive(), TOKENIZER)
    long = "".join(chr(97 + n % 26) for n in range(90))
    with caplog.at_level(logging.WARNING):
        a, b = continuer.write([(long, Asked(10, (), GREEDY)), (long[-54:], Asked(10, (), GREEDY))])
    assert a == b
    assert continuer.num_cut == 1
    assert "1 of 2 prompts did not fit" in caplog.text
