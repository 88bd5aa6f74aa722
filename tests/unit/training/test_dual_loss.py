"""The dual loss against its formula, written out in plain torch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from recyclegpt.errors import ConfigError
from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT
from recyclegpt.training.dual_loss import DualLoss, LossConfig, LossTerms
from recyclegpt.training.held_out import HeldOutMetrics

DEFAULT = LossConfig()


def build(depth: int = 1, draft_vocab: int | None = None) -> RecycleGPT:
    config = ModelConfig(19, context_length=16, num_layers=1, hidden_size=12, num_heads=2)
    model = RecycleGPT(config, RecycleConfig(num_layers=depth, draft_vocab=draft_vocab)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.4, generator=torch.Generator().manual_seed(parameter.numel()))
    return model


def rows(num_views: int, batch: int = 4, positions: int = 9, seed: int = 0) -> torch.Tensor:
    text = torch.randint(19, (batch, positions + num_views - 1), generator=torch.Generator().manual_seed(seed))
    return torch.stack([text[:, n : n + positions] for n in range(num_views)])


def loss_terms(
    model: RecycleGPT, views: torch.Tensor, documents: torch.Tensor | None = None, config: LossConfig = DEFAULT
) -> LossTerms:
    states = model.states(views, documents, config.num_unrolled, config.backbone_grad_scale)
    return DualLoss(config)(states, model.lm_head.weight, views, documents, draft_ids_D=model.draft_ids)


def formula(model: RecycleGPT, views: torch.Tensor, config: LossConfig, weight: float) -> torch.Tensor:
    def ce(state: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model.logits(state).flatten(0, 1), label.flatten())

    states = model.states(views, num_unrolled=config.num_unrolled)
    shares = [config.step_decay**k for k in range(config.num_unrolled)]
    recycle = sum(s * ce(r, views[k + 2]) for k, (s, r) in enumerate(zip(shares, states.recycled_KBTC, strict=True)))
    return config.backbone_weight * ce(states.hidden_BTC, views[1]) + weight * recycle / sum(shares)


@pytest.mark.parametrize("num_unrolled", [1, 3])
@pytest.mark.parametrize("weights", [(1.0, 0.3), (1.0, 0.0), (0.0, 1.0)])
def test_formula_and_gradients(num_unrolled: int, weights: tuple[float, float]) -> None:
    config = LossConfig(backbone_weight=weights[0], recycle_weight=weights[1], num_unrolled=num_unrolled, chunk_size=7)
    views = rows(num_unrolled + 2)
    model, twin = build(), build()
    loss = loss_terms(model, views, config=config).loss
    expected = formula(twin, views, config, weights[1])
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for (name, mine), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, msg=name)


def test_two_half_batches_accumulate_to_the_whole() -> None:
    views = rows(3)
    documents = torch.zeros_like(views)
    documents[:, 0, 5:] = 1  # unequal numbers of trained rows in the two halves
    documents = torch.stack([documents[0]] * 3)
    whole, halves = build(), build()
    loss_terms(whole, views, documents).loss.backward()
    for part in (slice(0, 2), slice(2, 4)):
        (loss_terms(halves, views[:, part], documents[:, part]).loss / 2).backward()
    for mine, other in zip(halves.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_module_is_not_trained_across_documents() -> None:
    """A row whose tokens t and t+2 lie in different documents adds nothing to the recycle loss."""
    text = torch.randint(19, (1, 11), generator=torch.Generator().manual_seed(2))
    owner = torch.tensor([[0] * 4 + [1] * 7])
    views = torch.stack([text[:, n : n + 9] for n in range(3)])
    documents = torch.stack([owner[:, n : n + 9] for n in range(3)])
    terms = loss_terms(build(), views, documents, LossConfig(backbone_weight=0.0, recycle_weight=1.0))
    assert terms.draft_mask_BT.tolist() == [[1, 1, 0, 0, 1, 1, 1, 1, 1]]
    kept = terms.recycle_K[0].nll_M[terms.draft_mask_BT.flatten() == 1]
    torch.testing.assert_close(terms.loss, kept.sum() / 9)


def test_each_unrolled_step_has_its_own_document_mask() -> None:
    text = torch.randint(19, (1, 12), generator=torch.Generator().manual_seed(2))
    owner = torch.tensor([[0] * 5 + [1] * 7])
    views = torch.stack([text[:, n : n + 9] for n in range(4)])
    documents = torch.stack([owner[:, n : n + 9] for n in range(4)])
    config = LossConfig(backbone_weight=0.0, recycle_weight=1.0, num_unrolled=2, step_decay=0.5)
    terms = loss_terms(build(), views, documents, config)
    first = torch.tensor([True] * 3 + [False] * 2 + [True] * 4)
    second = torch.tensor([True] * 2 + [False] * 3 + [True] * 4)
    sums = [rows.nll_M[mask].sum() for rows, mask in zip(terms.recycle_K, (first, second), strict=True)]
    torch.testing.assert_close(terms.loss, (sums[0] + 0.5 * sums[1]) / 1.5 / 9)


@pytest.mark.parametrize("target", ["distill", "mixed"])
def test_target_from_the_backbone(target: str) -> None:
    views = rows(4)
    config = LossConfig(backbone_weight=0.0, recycle_weight=1.0, target=target, num_unrolled=2, backbone_grad_scale=0.0)
    model = build()
    terms = loss_terms(model, views, config=config)
    states = model.states(views, num_unrolled=2)
    teacher = model.logits(states.hidden_BTC).log_softmax(-1)
    expected = 0.0
    for step, (share, recycled) in enumerate(zip([1, 0.6], states.recycled_KBTC, strict=True), start=1):
        student = model.logits(recycled)[:, :-step].log_softmax(-1)
        kl = F.kl_div(student, teacher[:, step:], reduction="none", log_target=True).sum(-1)
        nll = F.nll_loss(student.transpose(1, 2), views[step + 1][:, :-step], reduction="none")
        rows_loss = kl if target == "distill" else (kl + nll) / 2
        expected = expected + share / 1.6 * rows_loss.sum() / views[0].numel()
    torch.testing.assert_close(terms.loss, expected)
    terms.loss.backward()
    assert model.lm_head.weight.grad is None or not model.lm_head.weight.grad.any()


@pytest.mark.parametrize("target", ["corpus", "distill", "mixed"])
def test_draft_vocabulary(target: str) -> None:
    """Losses and gradients are those of full logits, restricted to the ids and renormalised."""
    views, ids = rows(4), torch.tensor([1, 2, 3, 5, 8, 9, 11, 13, 15, 17, 18])
    config = LossConfig(backbone_weight=0.5, recycle_weight=1.0, target=target, num_unrolled=2, chunk_size=7)
    model, twin = build(draft_vocab=11), build(draft_vocab=11)
    for one in (model, twin):
        one.recyclable.draft_ids.copy_(ids)
    terms = loss_terms(model, views, config=config)
    states = twin.states(views, num_unrolled=2)
    logits = twin.logits(states.hidden_BTC)
    expected = 0.5 * F.cross_entropy(logits.flatten(0, 1), views[1].flatten())
    for step, (share, recycled) in enumerate(zip([1, 0.6], states.recycled_KBTC, strict=True), start=1):
        student = twin.logits(recycled)[..., ids].log_softmax(-1)
        teacher = logits.detach()[:, step:]
        likes = torch.isin(teacher.argmax(-1), ids).double()
        kl = (teacher[..., ids].softmax(-1) * (teacher[..., ids].log_softmax(-1) - student[:, :-step])).sum(-1)
        label = views[step + 1]
        found = (label[..., None] == ids).double()
        inside, nll = found.sum(-1), -(student * found).sum(-1)
        assert (terms.recycle_K[step - 1].inside_M == inside.flatten().bool()).all()
        if target == "corpus":
            total = (nll * inside).sum()
        elif target == "distill":
            total = (kl * likes).sum()
        else:
            total = ((kl + nll[:, :-step]) / 2 * likes * inside[:, :-step]).sum()
        expected = expected + share / 1.6 * total / label.numel()
    torch.testing.assert_close(terms.loss, expected)
    terms.loss.backward()
    expected.backward()
    for (name, mine), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, msg=name)


@pytest.mark.parametrize("draft_vocab", [None, 11])
def test_accepted_length(draft_vocab: int | None) -> None:
    """Loss and gradients are those of the formula in plain torch; its value is what rejection sampling accepts."""
    views, ids = rows(5), torch.tensor([1, 2, 3, 5, 8, 9, 11, 13, 15, 17, 18] if draft_vocab else range(19))
    documents = torch.stack([(torch.arange(13) > 6).long().expand(4, 13)[:, n : n + 9] for n in range(5)])
    config = LossConfig(0.0, recycle_weight=0.7, target="accepted_length", num_unrolled=3, chunk_size=7)
    model, twin = build(draft_vocab=draft_vocab), build(draft_vocab=draft_vocab)
    for one in (model, twin):
        if one.draft_ids is not None:
            one.draft_ids.copy_(ids)
    terms = loss_terms(model, views, documents, config)
    states = twin.states(views, documents, num_unrolled=3)
    p_all = twin.logits(states.hidden_BTC).detach().softmax(-1)[..., ids]
    expected, sampled = 0.0, 0.0
    chance, accepted = torch.ones(4, 9), torch.ones(20_000, 4, 9)
    generator = torch.Generator().manual_seed(0)
    for step, recycled in enumerate(states.recycled_KBTC, start=1):
        q, p = twin.logits(recycled)[..., ids].softmax(-1), torch.zeros(4, 9, len(ids)).double()
        p[:, :-step] = p_all[:, step:] * (documents[0] == documents[1 + step])[:, :-step, None]
        chance = chance * torch.minimum(p, q).sum(-1)
        expected = expected - 0.7 * chance.sum() / 36
        drafted = torch.multinomial(q.detach().flatten(0, 1), 20_000, True, generator=generator).T.view(-1, 4, 9, 1)
        ratio = (p / q.detach()).expand(20_000, -1, -1, -1).gather(3, drafted)[..., 0]
        accepted = accepted * (torch.rand(ratio.shape, generator=generator) < ratio)
        sampled = sampled + accepted.mean(0).sum() / 36
    torch.testing.assert_close(terms.loss, expected)
    assert -expected.item() / 0.7 == pytest.approx(sampled.item(), rel=0.01)
    terms.loss.backward()
    expected.backward()
    for (name, mine), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, msg=name)
    with torch.no_grad():
        watched = loss_terms(model, views, documents, config)
    torch.testing.assert_close(watched.loss, terms.loss)
    assert (watched.recycle_K[0].prediction_M >= 0).all()


def test_a_frozen_backbones_loss_is_not_computed() -> None:
    model, views = build(), rows(3)
    model.backbone.requires_grad_(False)
    model.lm_head.requires_grad_(False)
    terms = loss_terms(model, views)
    assert terms.backbone is None
    torch.testing.assert_close(terms.loss, 0.3 * terms.recycle_K[0].nll_M.mean())
    with torch.no_grad():
        assert loss_terms(model, views).backbone is not None


def test_no_module_leaves_the_backbones_loss() -> None:
    model = build(depth=0)
    views = rows(3)
    terms = loss_terms(model, views, config=LossConfig(recycle_weight=5.0))
    expected = F.cross_entropy(model.logits(model.backbone_states(views[0])).flatten(0, 1), views[1].flatten())
    torch.testing.assert_close(terms.loss, expected)
    assert terms.recycle_K == []


def test_weight_schedules() -> None:
    two = LossConfig(recycle_weight=0.3, recycle_schedule="two_step", recycle_weight_late=0.1, schedule_switch=0.5)
    assert [two.recycle_weight_at(p) for p in (0, 0.49, 0.5, 1)] == [0.3, 0.3, 0.1, 0.1]
    ramp = LossConfig(recycle_weight=0.4, recycle_schedule="ramp", schedule_switch=0.5)
    assert [ramp.recycle_weight_at(p) for p in (0, 0.25, 0.5, 1)] == [0, 0.2, 0.4, 0.4]
    assert LossConfig(recycle_schedule="ramp", schedule_switch=0.0).recycle_weight_at(0) == 0.3


def test_every_bad_value_is_named() -> None:
    with pytest.raises(ConfigError) as error:
        LossConfig(recycle_weight=-1, step_decay=2, num_unrolled=9, target="label", backbone_grad_scale=math.nan)
    names = [problem.split(":")[0] for problem in error.value.problems]
    assert names == ["recycle_weight", "num_unrolled", "step_decay", "backbone_grad_scale", "target"]


@pytest.mark.parametrize("draft_vocab", [None, 12])
def test_held_out_metrics_are_those_of_the_same_tokens(draft_vocab: int | None) -> None:
    """With a draft vocabulary the module's loss is over the tokens inside, its agreement over all."""
    model, config = build(draft_vocab=draft_vocab), LossConfig()
    ids = torch.arange(19 if draft_vocab is None else draft_vocab)
    num_bytes = torch.arange(19)
    held_out = HeldOutMetrics(num_bytes, torch.device("cpu"))
    nll_backbone, nll_recycle, agreed, total_bytes = [], [], [], 0
    for seed in range(3):
        views = rows(3, batch=1 + seed, seed=seed)
        with torch.no_grad():
            held_out.add(loss_terms(model, views, config=config), views)
            states = model.states(views)
            logits, module_logits = model.logits(states.hidden_BTC), model.draft_logits(states.recycled_KBTC[0])
        for b in range(views.shape[1]):
            for t in range(8):
                label = views[2][b, t]
                assert label == views[1][b, t + 1]
                nll_backbone.append(F.cross_entropy(logits[b, t + 1], label))
                if label in ids:
                    nll_recycle.append(F.cross_entropy(module_logits[b, t], label))
                agreed.append(logits[b, t + 1].argmax() == module_logits[b, t].argmax())
                total_bytes += int(num_bytes[label])
    metrics = held_out.metrics()
    mean_backbone, mean_recycle = torch.stack(nll_backbone).mean(), torch.stack(nll_recycle).mean()
    assert metrics["val/ppl_backbone"] == pytest.approx(mean_backbone.exp())
    assert metrics["val/ppl_recycle"] == pytest.approx(mean_recycle.exp())
    both = math.nan if draft_vocab else ((mean_backbone + mean_recycle) / 2).exp()
    assert metrics["val/ppl_alternating"] == pytest.approx(both, nan_ok=True)
    assert metrics["val/agreement"] == pytest.approx(torch.stack(agreed).double().mean())
    assert metrics["val/bits_per_byte"] == pytest.approx(sum(nll_backbone) / math.log(2) / total_bytes)
