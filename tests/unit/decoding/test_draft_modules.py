"""Every kind of draft module: its training is its decoding, its verified text is exact, and it can learn."""

from __future__ import annotations

import pytest
import torch

from recyclegpt.decoding import Alternating, Autoregressive, Decoder, SamplingConfig, Verified
from recyclegpt.errors import ConfigError
from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT
from recyclegpt.models.config import KINDS
from recyclegpt.training import DualLoss, LossConfig

from .test_exactness import random_model

M = 4
EXAMPLES = {
    "query_ctc": {"num_drafted": M},
    "recyclable": {},
    "segments": {"num_drafted": M},
    "semi_autoregressive": {"num_drafted": M},
    "vocabulary_attention": {},
    "coral": {"num_drafted": M},
    "hidden_transfer": {"num_drafted": M},
    "loop": {},
    "mask_rows": {"num_drafted": M, "markov_rank": 4},
    "medusa": {"num_drafted": M},
}
"""What each kind needs."""


def test_every_kind_has_an_example() -> None:
    assert sorted(EXAMPLES) == KINDS


@pytest.mark.parametrize("kind", EXAMPLES)
def test_verified_text_is_the_autoregressive_one(kind: str) -> None:
    prompts = [[1, 2, 3, 4, 5], [6], [2, 1] * 45]  # the last one ends with the context
    for seed, sampling in enumerate([SamplingConfig(), SamplingConfig(0.7), SamplingConfig(1.0, coupled=False)]):
        model = random_model(seed, vocab_size=7, kind=kind, draft_vocab=[None, 3][seed % 2], **EXAMPLES[kind])
        decoder = Decoder(model) if seed else Decoder.optimised(model.float())
        plain = decoder.generate(prompts, Autoregressive(), 16, sampling)
        for drafter, adaptive in (("module", False), ("ngram+module", sampling.coupled)):
            exact = decoder.generate(prompts, Verified(M, 0.0, drafter, adaptive), 16, sampling)
            assert exact.tokens == plain.tokens or not sampling.coupled
            assert adaptive or exact.counts.num_verified


@pytest.mark.parametrize("kind", EXAMPLES)
def test_training_gives_the_logits_of_decoding(kind: str) -> None:
    """Step k of row t in training is what the loop computes when it drafts the k-th token after row t."""
    model, prompt, seen = random_model(3, depth=2, kind=kind, **EXAMPLES[kind]), [3, 1, 4, 1, 5], []
    draft_logits = model.draft_logits

    def recording(state: torch.Tensor) -> torch.Tensor:
        logits = draft_logits(state)
        seen.extend(logits.flatten(0, -2))
        return logits

    model.draft_logits = recording  # type: ignore[method-assign]
    written = Decoder(model).generate([prompt], Alternating(M), 24)
    text = prompt + written.tokens[0]
    num_rows = len(text) - M - 1
    views_NBT = torch.stack([torch.tensor([text[n : n + num_rows]]) for n in range(M + 2)])
    states = model.states(views_NBT, num_unrolled=M).recycled_KBTC
    trained = [draft_logits(state)[0] for state in states]
    plan = getattr(model.recyclable, "plan", [])
    order = [row.place - 1 for rows in plan for row in rows] or range(M)
    per_call = 2 * M if kind == "query_ctc" else M
    rows = [len(prompt) - 1 + place for place, drafted in enumerate(written.drafted[0]) if not drafted]
    rows = [row for row in rows if row < num_rows]
    for number, row in enumerate(rows):
        for place, step in enumerate(order):
            torch.testing.assert_close(seen[number * per_call + place], trained[step][row])
    assert len(rows) > 3
    assert len(set(text)) > 4


@pytest.mark.parametrize("kind", EXAMPLES)
def test_overfits_a_row_until_its_drafts_are_accepted(kind: str) -> None:
    torch.manual_seed(0)
    few = {key: 2 if key == "num_drafted" else value for key, value in EXAMPLES[kind].items()}
    model = RecycleGPT(ModelConfig(29, 48, 2, 32, 2), RecycleConfig(1, kind=kind, **few))
    loss = DualLoss(LossConfig(recycle_weight=1.0, num_unrolled=2))
    text = torch.randint(29, (1, 23))
    views_NBT = torch.stack([text[:, n : n + 20] for n in range(4)])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0)
    for _ in range(45):
        optimizer.zero_grad()
        states = model.states(views_NBT, num_unrolled=2)
        loss(states, model.lm_head.weight, views_NBT).loss.backward()
        optimizer.step()
    prompt, expected = text[0, :3].tolist(), text[0, 3:19].tolist()
    written = Decoder.optimised(model).generate([prompt], Verified(2), 16)
    assert written.tokens == [expected]
    assert written.counts.num_backbone_passes <= 7, "six would do"


def test_what_a_kind_cannot_do_is_refused() -> None:
    shape = ModelConfig(7, 48, 1, 16, 2)
    with pytest.raises(ConfigError, match=r"kind: 'medusae' is unknown; choose from .*medusa"):
        RecycleConfig(kind="medusae")
    with pytest.raises(ConfigError, match="num_drafted: None; kind=medusa needs the tokens that one call drafts"):
        RecycleGPT(shape, RecycleConfig(kind="medusa"))
    with pytest.raises(ConfigError, match="num_drafted: 2; kind=recyclable needs null"):
        RecycleGPT(shape, RecycleConfig(num_drafted=2))
    model = RecycleGPT(shape, RecycleConfig(kind="medusa", num_drafted=2))
    with pytest.raises(ConfigError, match=r"decoding\.num_recycled: 3, but this module drafts at most 2"):
        Decoder(model).generate([[1]], Verified(3), 4)
    views_NBT = torch.zeros(3, 1, 4, dtype=torch.long)
    with pytest.raises(ConfigError, match="drafts 2 tokens"):
        model.states(views_NBT, num_unrolled=3)
    model = RecycleGPT(shape, RecycleConfig(kind="hidden_transfer", num_drafted=2))
    with pytest.raises(ConfigError, match=r"training\.cache_states"):
        model.states(views_NBT, hidden_BTC=torch.zeros(1, 4, 16))
