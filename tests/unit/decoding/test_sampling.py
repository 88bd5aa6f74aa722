"""Filters against their definitions, and the distribution of verified sampling against the backbone's."""

from __future__ import annotations

import itertools

import pytest
import torch

from recyclegpt import kernels
from recyclegpt.decoding import (
    Alternating,
    Autoregressive,
    Decoder,
    Sampler,
    SamplingConfig,
    Verified,
    processed_probabilities,
    sampling,
)
from recyclegpt.decoding.sampling import _kept_weights, exponential_noise
from recyclegpt.errors import ConfigError
from recyclegpt.models import RecycleGPT

from .test_exactness import random_model

VOCABULARY, PROMPT, NUM_TOKENS, NUM_ROWS = 4, [1, 2], 4, 6000


def exact_distribution(model: RecycleGPT, sampling: SamplingConfig) -> torch.Tensor:
    """Probability of each text of NUM_TOKENS tokens under the backbone."""
    texts = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=NUM_TOKENS)))
    rows = torch.cat([torch.tensor(PROMPT).expand(len(texts), -1), texts], dim=1)
    with torch.no_grad():
        probabilities = processed_probabilities(model.logits(model.backbone_states(rows)), sampling)
    return probabilities[:, len(PROMPT) - 1 : -1].gather(2, texts[..., None]).squeeze(2).prod(dim=1)


def p_value(model: RecycleGPT, strategy: object, sampling: SamplingConfig) -> float:
    """Chi-square test of the texts a strategy samples against the backbone's distribution."""
    generation = Decoder(model).generate([PROMPT] * NUM_ROWS, strategy, NUM_TOKENS, sampling, seed=11)
    places = VOCABULARY ** torch.arange(NUM_TOKENS - 1, -1, -1)
    observed = torch.bincount((torch.tensor(generation.tokens) * places).sum(dim=1), minlength=VOCABULARY**NUM_TOKENS)
    expected = exact_distribution(model, sampling) * NUM_ROWS
    assert observed[expected == 0].sum() == 0
    common = expected >= 5
    # cells too rare for the test are pooled into one
    observed = torch.cat([observed[common], observed[~common].sum()[None]])
    expected = torch.cat([expected[common], expected[~common].sum()[None]])
    observed, expected = observed[expected > 0], expected[expected > 0]
    statistic = ((observed - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(expected) - 1) / 2).double(), statistic.double() / 2))


@pytest.mark.parametrize(
    ("num_recycled", "sampling"),
    [
        (1, SamplingConfig(temperature=1.0)),
        (3, SamplingConfig(temperature=0.7)),
        (2, SamplingConfig(temperature=1.3, top_k=3)),
        (2, SamplingConfig(temperature=1.0, top_p=0.8)),
        (1, SamplingConfig(temperature=1.0, coupled=False)),
        (3, SamplingConfig(temperature=0.7, coupled=False)),
        (2, SamplingConfig(temperature=1.3, top_k=3, coupled=False)),
    ],
)
def test_verified_sampling_has_the_backbones_distribution(num_recycled: int, sampling: SamplingConfig) -> None:
    model = random_model(3, vocab_size=VOCABULARY, sharpness=0.5)
    assert p_value(model, Verified(num_recycled), sampling) > 1e-3


@pytest.mark.parametrize(
    ("drafter", "draft_vocab"), [("ngram", None), ("ngram+module", None), ("token_recycling", None), ("module", 2)]
)
def test_whoever_drafts_sampled_text_has_the_backbones_distribution(drafter: str, draft_vocab: int | None) -> None:
    model = random_model(3, vocab_size=VOCABULARY, sharpness=0.5, draft_vocab=draft_vocab)
    assert p_value(model, Verified(2, drafter=drafter), SamplingConfig(temperature=1.0, coupled=False)) > 1e-3


def test_noise_is_exponential_and_differs_by_seed_position_and_token() -> None:
    sampler = Sampler.seeded(SamplingConfig(temperature=1.0), 50, 0, torch.device("cpu"))
    sampler.allocate(0, 400, torch.device("cpu"))
    noise = exponential_noise(sampler.keys_at(torch.arange(20).expand(50, 20)), torch.arange(400))
    flat = noise.double().flatten().sort().values
    places = torch.arange(1, len(flat) + 1).double() / len(flat)
    assert float((1 - (-flat).exp() - places).abs().max()) < 1.95 / len(flat) ** 0.5  # Kolmogorov-Smirnov, p = 0.001
    assert flat[0] > 0
    assert float(flat[100]) == pytest.approx(100 / len(flat), rel=0.5), "the smallest decide who is drawn"
    for dim in range(3):
        moved = noise.roll(1, dim)
        assert float(torch.corrcoef(torch.stack([noise.flatten(), moved.flatten()]))[0, 1].abs()) < 0.008


def test_the_chi_square_test_can_fail() -> None:
    model = random_model(3, vocab_size=VOCABULARY, sharpness=0.5)
    sampling = SamplingConfig(temperature=1.0)
    assert p_value(model, Autoregressive(), sampling) > 1e-3
    assert p_value(model, Alternating(1), sampling) < 1e-6, "unverified text should differ from the backbone's"
    assert p_value(model, Verified(1), SamplingConfig(temperature=0.8)) > 1e-3


def test_filters_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = processed_probabilities(logits, SamplingConfig(temperature=1.0, top_k=2))
    torch.testing.assert_close(kept, torch.tensor([[0.625, 0.375, 0, 0]]))
    kept = processed_probabilities(logits, SamplingConfig(temperature=1.0, top_p=0.7))
    torch.testing.assert_close(kept, torch.tensor([[0.625, 0.375, 0, 0]]))
    kept = processed_probabilities(logits, SamplingConfig(temperature=1.0, top_p=0.01, top_k=99))
    torch.testing.assert_close(kept, torch.tensor([[1.0, 0, 0, 0]]))
    cold = processed_probabilities(logits, SamplingConfig(temperature=0.5))
    torch.testing.assert_close(cold, torch.tensor([[0.25, 0.09, 0.0225, 0.0025]]) / 0.365)


def test_draw_follows_the_weights() -> None:
    weights = torch.tensor([0.1, 0.0, 0.6, 0.3])
    config = SamplingConfig(temperature=1.0, coupled=False)
    sampler = Sampler.seeded(config, 4000, seed=0, device=torch.device("cpu"))
    sampler.allocate(0, 4, torch.device("cpu"))
    sampler.refill()
    share = torch.bincount(sampler.pick(weights.expand(4000, 4), 0), minlength=4) / 4000
    torch.testing.assert_close(share, weights, atol=0.03, rtol=0)
    assert share[1] == 0


def test_every_bad_setting_is_named() -> None:
    with pytest.raises(ConfigError) as error:
        SamplingConfig(temperature=-1, top_k=0, top_p=1.5)
    assert [problem.split(":")[0] for problem in error.value.problems] == ["temperature", "top_k", "top_p"]


def test_a_coupled_draw_does_not_depend_on_the_rows_beside_it() -> None:
    """With two threads torch sums a long row in two parts where it stands alone."""
    config = SamplingConfig(1.0, top_p=0.9)
    logits = torch.randn(1, 3, 50257) * 3
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for _ in range(10):
            together = _kept_weights(logits, config, None)
            assert torch.equal(_kept_weights(logits[:, :1], config, None), together[:, :1])
            logits = logits.roll(1, 2) * 1.01
    finally:
        torch.set_num_threads(threads)


def test_noise_of_neighbouring_seeds_and_positions_is_independent() -> None:
    seeds = [5, 6, 5 + 2**32, 5 + 2**33, 2**62 - 1]
    sampler = Sampler(SamplingConfig(1.0), [torch.Generator().manual_seed(seed) for seed in seeds])
    sampler.allocate(1, 4096, torch.device("cpu"))
    noise = exponential_noise(sampler.keys_at(torch.tensor([0, 1, 2, 1000])), torch.arange(4096)).flatten(0, 1)
    uniform = 1 - (-noise.double()).exp()
    assert float((uniform.mean(dim=1) - 0.5).abs().max()) < 5 * (1 / 12 / 4096) ** 0.5
    between = torch.corrcoef(torch.cat([uniform, uniform.roll(1, 1)])).fill_diagonal_(0)
    assert float(between.abs().max()) < 5 / 4096**0.5


def test_certain_tokens_are_drawn_whatever_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "are_loaded", lambda: False)
    monkeypatch.setattr(sampling, "_mix", lambda words: torch.full_like(words, 2**32 - 1))
    assert sampling.exponential_noise(torch.zeros(1, 2, dtype=torch.long), torch.arange(8)).isfinite().all()


def test_one_generator_does_not_serve_two_rows() -> None:
    with pytest.raises(ConfigError, match="generators: 1 for 2 prompts"):
        Decoder(random_model(0)).generate([[1], [2]], Autoregressive(), 3, generators=[torch.Generator()])
