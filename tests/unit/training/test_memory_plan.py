"""The plan is compared with the peak of a real step, counted tensor by tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT
from recyclegpt.training import DualLoss, LossConfig, MuonAdamW
from recyclegpt.training.layers import set_up_layers
from recyclegpt.training.step_cost import memory_plan

B, T, V = 8, 64, 64


class Peak(TorchDispatchMode):
    """The most bytes of tensors that existed after any operation."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.peak, self.storages = 0, {}
        self.note(weights)

    def note(self, tensors: list[Tensor]) -> None:
        for storage in (tensor.untyped_storage() for tensor in tensors if isinstance(tensor, Tensor)):
            self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.storages = {key: held for key, held in self.storages.items() if not held[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.storages.values()))

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        self.note(tree_leaves(made))
        return made


@pytest.mark.parametrize("settings", [{}, {"masked": True}, {"num_unrolled": 3}, {"recompute_every": 1}])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_plan_is_near_the_peak_of_a_step(precision: str, settings: dict[str, Any]) -> None:
    config = ModelConfig(V, T, num_layers=4, hidden_size=64, num_heads=4, num_kv_heads=2, intermediate_size=128)
    model = RecycleGPT(config, RecycleConfig(num_layers=2))
    set_up_layers(model, False, settings.get("recompute_every", 0))
    optimizer = MuonAdamW(model.named_parameters(), lr=1e-3)
    num_unrolled = settings.get("num_unrolled", 1)
    dual_loss = DualLoss(LossConfig(num_unrolled=num_unrolled))
    with Peak(list(model.parameters())) as measured:
        for _ in range(2):
            views = torch.randint(V, (2 + num_unrolled, B, T))
            documents = (torch.arange(T) // 9).expand_as(views).contiguous() if "masked" in settings else None
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
                states = model.states(views, documents, num_unrolled)
                loss = dual_loss(states, model.lm_head.weight, views, documents).loss
            loss.backward()
            del loss, states
            optimizer.step()
            optimizer.zero_grad()
    assert memory_plan(model, optimizer, B, T, precision, **settings) == pytest.approx(measured.peak, rel=0.25)
