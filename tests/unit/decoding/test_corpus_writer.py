"""Documents in bulk against documents continued one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recyclegpt.decoding import Alternating, Autoregressive, Decoder, SamplingConfig, Strategy, Verified, corpus_writer
from recyclegpt.decoding.corpus_writer import BulkWriter, Document, pieces
from recyclegpt.errors import ConfigError

from .test_exactness import random_model
from .toy import CountingModel

END = 22
SAMPLED = SamplingConfig(temperature=1.5)
PROMPTS = [[seed, (7 * seed) % 22, 3] for seed in range(10)]


def writer(
    strategy: Strategy,
    seed: int = 0,
    sampling: SamplingConfig = SAMPLED,
    share: float = 1.0,
    suffix: tuple[int, ...] = (),
) -> BulkWriter:
    """Three rows: each takes several prompts, one after the other."""
    return BulkWriter(Decoder(random_model(3)), strategy, sampling, seed, 20, [END], 23, 3, share, suffix)


@pytest.mark.parametrize(
    "strategy", [Autoregressive(), Verified(), Verified(2, 0.2), Verified(2, drafter="ngram+module")]
)
@pytest.mark.parametrize("sampling", [SAMPLED, SamplingConfig(), SamplingConfig(1.5, coupled=False)])
def test_every_document_is_what_its_prompt_gives_alone(strategy: Strategy, sampling: SamplingConfig) -> None:
    expected = []
    for number, prompt in enumerate(PROMPTS):
        mixed = int(np.random.SeedSequence([5, 1, number]).generate_state(1, np.uint64)[0]) >> 1
        generator = torch.Generator().manual_seed(mixed)
        alone = Decoder(random_model(3)).generate([prompt], strategy, 20, sampling, [END], generators=[generator])
        text = alone.tokens[0]
        expected.append([*prompt, *text, *([] if text[-1] == END else [END])])
    found = writer(strategy, seed=5, sampling=sampling).write(PROMPTS, 1, 0)
    assert [document.tokens for document in found] == expected
    if not sampling.greedy:
        assert {document.end for document in found} == {"stop", "length"}, "the texts all end alike"
    assert all(document.num_new == len(document.tokens) - 4 + (document.end == "stop") for document in found)


def test_what_was_written_before_does_not_matter() -> None:
    whole = writer(Verified()).write(PROMPTS, 0, 0)
    late = writer(Verified())
    assert late.write(PROMPTS[8:10], 0, 8) == whole[8:10]
    assert late.write(PROMPTS[4:8], 0, 4) == whole[4:8]


def test_seed_split_and_number_each_give_other_text() -> None:
    prompts = [PROMPTS[1]] * 2
    first, second = writer(Autoregressive()).write(prompts, 0, 0)
    assert first.tokens != second.tokens
    assert writer(Autoregressive()).write(prompts, 1, 0)[0].tokens != first.tokens
    assert writer(Autoregressive(), seed=1).write(prompts, 0, 0)[0].tokens != first.tokens
    # Neighbouring seeds do not give the same numbers to neighbouring documents.
    assert writer(Autoregressive(), seed=1).write(prompts, 0, 0)[0].tokens != second.tokens


@pytest.mark.parametrize("strategy", [Autoregressive(), Verified(3)])
@pytest.mark.parametrize(
    ("eos_id", "vocab_size", "new_tokens", "expected"),
    [
        (49, 50, 5, Document([10, 11, 12, 13, 14, 15, 49], "length", 5)),
        (13, 50, 5, Document([10, 11, 12, 13], "stop", 3)),
        (15, 50, 5, Document([10, 11, 12, 13, 14, 15], "stop", 5)),
        (9, 14, 5, Document([10, 11, 12, 13, 9], "unknown", 3)),
        (9, 11, 5, Document([10, 9], "unknown", 0)),
    ],
)
def test_one_end_token_and_no_unknown_id(
    strategy: Strategy, eos_id: int, vocab_size: int, new_tokens: int, expected: Document
) -> None:
    model = CountingModel(lambda position: position % 2 == 0)
    counting = BulkWriter(Decoder(model), strategy, SamplingConfig(), 0, new_tokens, [eos_id], vocab_size)
    assert counting.write([[10]], 0, 0) == [expected]


def test_text_that_is_not_the_backbones_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"alternating keeps tokens .* use autoregressive or verified"):
        writer(Alternating())


def test_a_share_is_sampled_and_the_template_s_end_follows() -> None:
    sampled, mixed = writer(Verified()).write(PROMPTS, 0, 0), writer(Verified(), share=0.5).write(PROMPTS, 0, 0)
    greedy = writer(Verified(), sampling=SamplingConfig()).write(PROMPTS, 0, 0)
    chosen = [document == sampled[place] for place, document in enumerate(mixed)]
    assert 0 < sum(chosen) < len(PROMPTS)
    assert mixed == [(sampled if chosen[place] else greedy)[place] for place in range(len(PROMPTS))]
    ended = writer(Verified(), suffix=(END, 5)).write(PROMPTS, 0, 0)
    assert [document.tokens for document in ended] == [[*document.tokens, 5, END] for document in sampled]


def test_pieces_cover_every_document_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_writer, "ROUNDS", 2)
    assert pieces(10, 2) == [(0, 4), (4, 8), (8, 10)]
    assert pieces(4, 2) == [(0, 4)]
