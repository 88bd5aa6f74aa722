"""Agreement by confidence and by place, against counts taken one token at a time from whole logits."""

import torch

from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT
from recyclegpt.training import DualLoss, HeldOutMetrics, LossConfig
from recyclegpt.training.held_out import NUM_BINS


def test_bins_hold_every_recycled_token_once() -> None:
    torch.manual_seed(0)
    model = RecycleGPT(ModelConfig(11, 24, num_layers=1, hidden_size=16, num_heads=2), RecycleConfig(1)).double()
    for parameter in model.parameters():
        parameter.data *= 6  # so that confidences are spread and some tokens agree
    views_NBT = torch.randint(11, (3, 4, 20))
    documents_NBT = torch.zeros_like(views_NBT)
    documents_NBT[2, :, 9] = 1  # the module's row 9 spans two documents
    held_out = HeldOutMetrics(torch.ones(11), torch.device("cpu"))
    by_confidence, by_place = torch.zeros(2, NUM_BINS), torch.zeros(2, NUM_BINS)
    with torch.no_grad():
        states = model.states(views_NBT, documents_NBT)
        dual_loss = DualLoss(LossConfig(chunk_size=7))
        held_out.add(dual_loss(states, model.lm_head.weight, views_NBT, documents_NBT), views_NBT)
        backbone_BTV = model.lm_head(states.hidden_BTC)
        module_BTV = model.lm_head(states.recycled_KBTC[0]).softmax(-1)
    for row in range(4):
        for place in range(19):
            if place == 9:
                continue
            probability, token = module_BTV[row, place].max(-1)
            agreed = float(token == backbone_BTV[row, place + 1].argmax())
            for bins, where in ((by_confidence, float(probability)), (by_place, place / 18)):
                index = min(NUM_BINS - 1, int(where * NUM_BINS + 1e-9))
                bins[0, index] += 1
                bins[1, index] += agreed
    assert held_out.by_confidence.tolist() == by_confidence.tolist()
    assert held_out.by_place.tolist() == by_place.tolist()
    assert 0 < by_confidence[1].sum() < by_confidence[0].sum() == 4 * 18
    assert (by_confidence[0] > 0).sum() > 5


def test_without_a_module_its_figures_are_not_numbers() -> None:
    model = RecycleGPT(ModelConfig(11, 24, num_layers=1, hidden_size=16, num_heads=2))
    views_NBT = torch.randint(11, (3, 2, 20))
    held_out = HeldOutMetrics(torch.ones(11), torch.device("cpu"))
    with torch.no_grad():
        held_out.add(DualLoss(LossConfig())(model.states(views_NBT), model.lm_head.weight, views_NBT), views_NBT)
    numbers = {name for name, value in held_out.metrics().items() if value == value}
    assert numbers == {"val/loss_backbone", "val/ppl_backbone", "val/bits_per_byte"}
