"""The cached loop against slow twins that recompute everything, in fp64."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recyclegpt.decoding import Alternating, Autoregressive, Decoder, SamplingConfig, Verified
from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT


def random_model(
    seed: int, depth: int = 1, vocab_size: int = 23, layers: int = 2, sharpness: float = 0.4, **recycle: int | None
) -> RecycleGPT:
    """A tiny fp64 model with weights large enough that its text varies."""
    config = ModelConfig(vocab_size, 96, num_layers=layers, hidden_size=16, num_heads=4, num_kv_heads=2)
    model = RecycleGPT(config, RecycleConfig(num_layers=depth, **recycle)).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=sharpness, generator=generator)
    if model.draft_ids is not None:
        model.draft_ids.copy_(torch.randperm(vocab_size, generator=generator)[: len(model.draft_ids)].sort().values)
    return model


@torch.no_grad()
def alternate_without_cache(model: RecycleGPT, prompt: list[int], num_recycled: int, num_tokens: int) -> list[int]:
    """The paper's decoder, written from its definition: every state is recomputed from the whole text each time."""
    text = list(prompt)
    while len(text) < len(prompt) + num_tokens:
        hidden = model.backbone_states(torch.tensor([text]))
        text.append(int(model.logits(hidden[:, -1]).argmax()))
        read = len(text) - 1
        rows_hidden = hidden
        for step in range(num_recycled):
            # true rows 1..t, then the module's own outputs where no state exists yet
            tokens = torch.tensor([text[1:]])
            recycled = model.recycle(tokens, rows_hidden)
            text.append(int(model.logits(recycled[:, -1]).argmax()))
            rows_hidden = torch.cat([hidden, recycled[:, read - 1 :]], dim=1)
            assert rows_hidden.shape[1] == read + step + 1
    return text[len(prompt) : len(prompt) + num_tokens]


def test_alternating_equals_the_definition() -> None:
    varied = 0
    for seed in range(12):
        model = random_model(seed, depth=1 + seed % 2)
        prompt = torch.randint(23, (1 + seed % 5,), generator=torch.Generator().manual_seed(seed)).tolist()
        for num_recycled in (1, 2, 4):
            expected = alternate_without_cache(model, prompt, num_recycled, 17)
            result = Decoder(model).generate([prompt], Alternating(num_recycled), 17)
            assert result.tokens == [expected]
            varied += len(set(expected)) > 3
    assert varied > 12, "the texts repeat one token: the test would not see a wrong cache"


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    depth=st.integers(1, 2),
    num_recycled=st.integers(1, 5),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    num_tokens=st.integers(1, 30),
    stops=st.sets(st.integers(0, 22), max_size=2),
)
def test_verified_equals_autoregressive(
    seed: int, depth: int, num_recycled: int, lengths: list[int], num_tokens: int, stops: set[int]
) -> None:
    model = random_model(seed, depth)
    generator = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(23, (length,), generator=generator).tolist() for length in lengths]
    decoder = Decoder(model)
    exact = decoder.generate(prompts, Verified(num_recycled), num_tokens, stop_tokens=list(stops))
    plain = decoder.generate(prompts, Autoregressive(), num_tokens, stop_tokens=list(stops))
    assert exact.tokens == plain.tokens
    assert exact.finish == plain.finish


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), num_recycled=st.integers(1, 3), sampled=st.booleans())
def test_batch_equals_single(seed: int, num_recycled: int, sampled: bool) -> None:
    model = random_model(seed)
    decoder = Decoder(model)
    sampling = SamplingConfig(temperature=0.8, top_k=9, top_p=0.9) if sampled else SamplingConfig()
    prompts = [[1, 2, 3, 4, 5], [7], [8, 9, 8]]
    for strategy in (Autoregressive(), Alternating(num_recycled), Verified(num_recycled)):
        together = decoder.generate(prompts, strategy, 14, sampling, stop_tokens=[3], seed=seed)
        for row, prompt in enumerate(prompts):
            alone = decoder.generate([prompt], strategy, 14, sampling, stop_tokens=[3], seed=seed + row)
            assert together.tokens[row] == alone.tokens[0]
            assert together.drafted[row] == alone.drafted[0]


def test_unrolled_training_gives_the_logits_of_decoding() -> None:
    """Step k of row t of the training forward is what the loop computes when it recycles the k-th token after row t."""
    num_recycled = 4
    for seed in range(4):
        model = random_model(seed, depth=2, norm_inputs=bool(seed % 2))
        prompt = [3, 1, 4, 1, 5]
        seen: list[torch.Tensor] = []
        logits = model.logits

        def recording(state: torch.Tensor, logits=logits, seen=seen) -> torch.Tensor:
            logits = logits(state)
            if state.ndim == 2:
                seen.append(logits[0])
            return logits

        model.logits = recording  # type: ignore[method-assign]
        text = prompt + Decoder(model).generate([prompt], Alternating(num_recycled), 30).tokens[0]
        model.logits = logits  # type: ignore[method-assign]
        num_rows = len(text) - num_recycled
        views_NBT = torch.stack([torch.tensor([text[n : n + num_rows]]) for n in range(num_recycled + 1)])
        with torch.no_grad():
            states = model.states(views_NBT, num_unrolled=num_recycled)
            unrolled = [model.logits(state)[0] for state in states.recycled_KBTC]
        # The prompt's pass classifies its last state, then each cycle the m proposals.
        proposals = seen[1:]
        compared = 0
        for cycle in range(len(proposals) // num_recycled):
            row = len(prompt) - 1 + cycle * (num_recycled + 1)
            for step in range(num_recycled):
                if row < num_rows:
                    torch.testing.assert_close(proposals[cycle * num_recycled + step], unrolled[step][row])
                    compared += 1
        assert compared >= 4 * num_recycled


def test_sampling_is_reproducible_and_depends_on_the_seed() -> None:
    decoder = Decoder(random_model(1, sharpness=0.2))
    sampling = SamplingConfig(temperature=1.0)
    runs = [decoder.generate([[1, 2]], Verified(2), 20, sampling, seed=seed).tokens for seed in (5, 5, 6)]
    assert runs[0] == runs[1] != runs[2]
