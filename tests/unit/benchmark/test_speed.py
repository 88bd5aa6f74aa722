"""Speed and ceilings with a clock that only the model moves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from recyclegpt.benchmark import PassCosts, byte_ceiling, measure_speed
from recyclegpt.benchmark.ceilings import measure_pass_costs
from recyclegpt.decoding import Alternating, Autoregressive, Decoder, Verified
from recyclegpt.evaluation import continuation_nll, unigram_loss
from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT


class TickingModel(RecycleGPT):
    """A random model whose backbone pass takes 10 ticks and 1 more a token, and whose module call takes 3."""

    now = 0.0

    def backbone_states(self, tokens_BT: Tensor, *args: object, **kwargs: object) -> Tensor:
        self.now += 10 + tokens_BT.shape[1]
        return super().backbone_states(tokens_BT, *args, **kwargs)

    def recycle(self, *args: object, **kwargs: object) -> Tensor:
        self.now += 3
        return super().recycle(*args, **kwargs)


@pytest.fixture
def model() -> TickingModel:
    torch.manual_seed(0)
    return TickingModel(ModelConfig(31, 64, num_layers=1, hidden_size=8, num_heads=2), RecycleConfig(num_layers=1))


def test_rates_count_tokens_and_seconds_after_the_prompts_pass(model: TickingModel) -> None:
    strategies = [Autoregressive(), Alternating(1), Verified(2)]
    speeds = measure_speed(Decoder(model), [[1, 2, 3], [4, 5]], strategies, 9, repetitions=3, clock=lambda: model.now)
    plain, alternating = speeds["autoregressive"], speeds["alternating"]
    assert plain.repetitions == [8 / (8 * 11)] * 3
    # the prompt's pass gives two tokens, four cycles of 12 + 3 ticks give eight, one of them beyond the end
    assert alternating.repetitions == [7 / (4 * 15)] * 3
    assert alternating.row(None, plain)["speedup"] == pytest.approx(7 / 60 * 11)
    assert [run.first_token_s for run in plain.runs] == [12.5] * 3
    assert [len(text) for text in speeds["verified"].texts] == [9, 9]
    assert speeds["verified"].counts.num_tokens == 3 * 18, "counts are of all repetitions"


def test_budget_stops_after_whole_rounds(model: TickingModel) -> None:
    def rounds(budget_s: float) -> int:
        speeds = measure_speed(
            Decoder(model), [[1]], [Autoregressive()], 9, repetitions=50, budget_s=budget_s, clock=lambda: model.now
        )
        return len(speeds["autoregressive"].repetitions)

    assert rounds(0) == 1
    assert 2 <= rounds(500) <= 5
    assert rounds(float("inf")) == 50


def test_pass_costs_and_ceilings(model: TickingModel) -> None:
    costs = measure_pass_costs(Decoder(model), 2, position=20, repetitions=2, clock=lambda: model.now)
    assert costs.backbone_pass_s == 11
    assert (costs.verify_cost, costs.draft_cost, costs.single_draft_cost) == (
        pytest.approx(13 / 11),
        pytest.approx(3 / 11),
        pytest.approx(3 / 11),
    )
    assert costs.ceiling() == pytest.approx(3 / (13 / 11 + 6 / 11))
    assert costs.ceiling(acceptance=0.5) == pytest.approx(2 / (13 / 11 + 6 / 11))
    assert PassCosts(1, 1.0, 1.0, 0.25, 0.2).ceiling() == pytest.approx(2 / 1.25)


@pytest.mark.parametrize("tied", [True, False])
def test_byte_ceiling_counts_the_head_in_both(tied: bool) -> None:
    config = ModelConfig(1000, 64, num_layers=4, hidden_size=16, num_heads=2, tie_embeddings=tied)
    model = RecycleGPT(config, RecycleConfig(num_layers=1))
    head = 1000 * 16
    layers = sum(p.numel() for p in model.backbone.layers.parameters()) + 16
    c = (model.num_parameters_recycle() + head) / (layers + head)
    assert byte_ceiling(model, 1) == pytest.approx(2 / (1 + c))
    assert byte_ceiling(model, 3, acceptance=0.5) == pytest.approx(2.5 / (1 + 3 * c))


def test_unigram_loss_by_hand() -> None:
    # counts plus one: 2/6, 3/6, 1/6
    loss = unigram_loss(torch.tensor([1, 2, 0]), torch.tensor([[0, 1], [1, 2]]))
    expected = -torch.tensor([2 / 6, 3 / 6, 3 / 6, 1 / 6]).log().mean()
    assert loss == pytest.approx(float(expected))


@torch.no_grad()
def test_continuation_nll_scores_only_the_continuation(model: TickingModel) -> None:
    prompts, texts = [[1, 2, 3], [4]], [[5, 6], [7, 8, 9]]
    total = 0.0
    for prompt, text in zip(prompts, texts, strict=True):
        for end in range(len(text)):
            logits = model.logits(model.backbone_states(torch.tensor([[*prompt, *text[:end]]])))[0, -1]
            total -= float(logits.log_softmax(-1)[text[end]])
    assert continuation_nll(model, prompts, texts) == pytest.approx(total / 5)
