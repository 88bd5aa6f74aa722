"""Drafters without a module: what n-gram lookup finds, and that verified text does not depend on who drafts."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recyclegpt.decoding import Alternating, Autoregressive, Decoder, Sampler, SamplingConfig, Verified
from recyclegpt.decoding.draft_length import DraftLength
from recyclegpt.decoding.drafters.ngram import look_up
from recyclegpt.decoding.strategies import DRAFTERS
from recyclegpt.decoding.text_buffer import TextBuffer
from recyclegpt.errors import ConfigError
from recyclegpt.models import ModelConfig, RecycleGPT

from .test_exactness import random_model


def look_up_slowly(text: list[int], num: int) -> list[int]:
    """The longest match first, then the newest."""
    for length in (3, 2, 1):
        for end in range(len(text) - 2, length - 2, -1):
            if len(text) > length and text[end - length + 1 : end + 1] == text[-length:]:
                found = text[end + 1 :]
                return [found[place % len(found)] for place in range(num)]
    return []


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=14), min_size=1, max_size=3), st.integers(1, 8))
def test_lookup_equals_a_search_by_hand(texts: list[list[int]], num: int) -> None:
    buffer = TextBuffer(len(texts), 24, 3, torch.device("cpu"))
    buffer.tokens_BS.fill_(1)  # what stands behind the text was rejected, and is no match
    for row, text in enumerate(texts):
        buffer.tokens_BS[row, : len(text)] = torch.tensor(text)
        buffer.position_B[row] = len(text) - 1
    tokens, found = look_up(buffer, num, 22)
    for row, text in enumerate(texts):
        expected = look_up_slowly(text, num)
        assert bool(found[row]) == bool(expected)
        assert not expected or tokens[row].tolist() == expected


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    num_recycled=st.integers(1, 5),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    drafter=st.sampled_from(DRAFTERS),
    sampling=st.sampled_from(
        [SamplingConfig(), SamplingConfig(0.7), SamplingConfig(1.0, top_p=0.9, repetition_penalty=1.3)]
    ),
    confidence=st.sampled_from([0.0, 0.3, None]),
    draft_vocab=st.sampled_from([None, 3]),
)
def test_every_drafter_writes_the_autoregressive_text(
    seed: int,
    num_recycled: int,
    lengths: list[int],
    drafter: str,
    sampling: SamplingConfig,
    confidence: float | None,
    draft_vocab: int | None,
) -> None:
    """Greedy text and, with coupled sampling, sampled text too."""
    decoder = Decoder(random_model(seed, vocab_size=7, draft_vocab=draft_vocab))
    generator = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(7, (length,), generator=generator).tolist() for length in lengths]
    strategy = Verified(num_recycled, confidence or 0.0, drafter, adaptive=confidence is None)
    exact = decoder.generate(prompts, strategy, 40, sampling, [3], seed)
    plain = decoder.generate(prompts, Autoregressive(), 40, sampling, [3], seed)
    assert exact.tokens == plain.tokens
    assert exact.finish == plain.finish


@pytest.mark.parametrize("drafter", ["ngram", "token_recycling"])
def test_without_a_module_passes_are_saved_where_text_repeats(drafter: str) -> None:
    model = RecycleGPT(ModelConfig(7, 96, num_layers=1, hidden_size=16, num_heads=2)).eval()
    decoder = Decoder.optimised(model)
    plain = decoder.generate([[1, 2]], Autoregressive(), 60)
    exact = decoder.generate([[1, 2]], Verified(4, drafter=drafter), 60)
    assert exact.tokens == plain.tokens
    assert exact.counts.num_backbone_passes < plain.counts.num_backbone_passes / 2
    with pytest.raises(ConfigError, match=r"decoding\.drafter=ngram"):
        decoder.generate([[1, 2]], Verified(4), 60)
    with pytest.raises(ConfigError, match="drafter: 'bigram' is unknown; choose from module, ngram"):
        Verified(1, drafter="bigram")
    with pytest.raises(ConfigError, match="alternating decoding checks nothing"):
        Alternating(1, drafter="ngram")


def test_a_recycled_chain_follows_the_newest_choice_of_the_backbone() -> None:
    """Rows of a batch keep tables of their own, and draft the same as alone."""
    decoder, strategy = Decoder(random_model(1, depth=0, vocab_size=7)), Verified(4, drafter="token_recycling")
    session = decoder.take_session(strategy, Sampler.seeded(SamplingConfig(), 2, 0, torch.device("cpu")), 2, 64)[1]
    session.prefill([[1, 2, 3, 2, 1], [4, 5]], [40, 40], 64)
    for row, prompt in enumerate(([1, 2, 3, 2, 1], [4, 5])):
        best = decoder.model(torch.tensor([prompt]))[0].argmax(-1).tolist()
        choice = dict(zip(prompt, best, strict=True))
        text = [best[-1]]
        while text[-1] in choice and len(text) < 5:
            text.append(choice[text[-1]])
        assert session.text.tokens_BS[row, len(prompt) :][: len(text)].tolist() == text
        assert session.record.num_drafted[row] == len(text) - 1
    together = decoder.generate([[1, 2, 3, 2, 1], [4, 5]], strategy, 40)
    for row, prompt in enumerate(([1, 2, 3, 2, 1], [4, 5])):
        assert decoder.generate([prompt], strategy, 40).drafted == [together.drafted[row]]


@pytest.mark.parametrize("drafter", ["self_speculative:a0", "self_speculative:m0.a1", "early_exit:1"])
@pytest.mark.parametrize("optimised", [False, True])
def test_what_a_partial_backbone_wrote_into_the_cache_is_overwritten(drafter: str, optimised: bool) -> None:
    model = random_model(2, depth=0, layers=3)
    decoder = Decoder.optimised(model, torch.float32) if optimised else Decoder(model)
    caches, texts = [], []
    for strategy in (Verified(3, drafter=drafter), Autoregressive()):
        sampler = Sampler.seeded(SamplingConfig(), 1, 0, torch.device("cpu"))
        session = decoder.take_session(strategy, sampler, 1, 64)[1]
        session.prefill([[1, 2, 3]], [60], 64)
        while session.text.position_B < 40:
            session.step(64)
        caches.append([kept[0, :, :40] for kept in (*session.cache.keys, *session.cache.values)])
        texts.append(session.text.tokens_BS[0, :40].tolist())
    assert texts[0] == texts[1]
    for mine, autoregressive in zip(*caches, strict=True):
        torch.testing.assert_close(mine, autoregressive, rtol=0, atol=0 if optimised else 1e-12)


def test_skipping_what_does_nothing_is_always_accepted() -> None:
    model = random_model(2, depth=0, layers=3)
    torch.nn.init.zeros_(model.backbone.layers[1].self_attn.o_proj.weight)
    for part in ("self_attn.o_proj", "mlp.down_proj"):
        torch.nn.init.zeros_(model.backbone.layers[2].get_submodule(part).weight)
    for drafter, all_right in (("self_speculative:a1", True), ("self_speculative:a0", False), ("early_exit:2", True)):
        counts = Decoder(model).generate([[1, 2], [3]], Verified(3, drafter=drafter), 40).counts
        assert (counts.acceptance == 1) == all_right, drafter
    for drafter, words in (
        ("self_speculative:a3", "layers of the backbone are 0 to 2"),
        ("early_exit:3", "layers of the backbone are 0 to 2"),
        ("early_exit:0", "'early_exit:0' should say the number of layers"),
        ("ngram:2", "ngram takes nothing after its name"),
    ):
        with pytest.raises(ConfigError, match=words):
            Decoder(model).generate([[1]], Verified(1, drafter=drafter), 4)


def test_adaptive_length_beats_every_fixed_one_where_text_is_of_two_kinds() -> None:
    """A simulation: half of the steps are easy (each draft is right with 0.95), half hard (0.45)."""
    cost, most = 0.12, 8

    def speed(length: DraftLength | None, fixed: int) -> float:
        random, tokens, passes = Random(0), 0.0, 0.0
        for _ in range(20_000):
            right = random.choice([0.95, 0.45])
            num = fixed
            if length is not None:
                num = sum(right ** (place + 1) > length.cutoff for place in range(most))
            accepted = next((place for place in range(num) if random.random() >= right), num)
            tokens, passes = tokens + 1 + accepted, passes + 1 + cost * num
            if length is not None:
                length.update(accepted, num, 1)
        return tokens / passes

    assert speed(DraftLength(cost), 0) > 1.05 * max(speed(None, fixed) for fixed in range(most + 1))
