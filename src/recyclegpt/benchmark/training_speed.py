"""How fast training steps are, with the recyclable module and without it.

A step is what training does: dual loss, backward pass, norm and clipping of the gradients, optimizer; on random tokens,
since speed does not depend on them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from recyclegpt.hardware.device import device_name, peak_flops
from recyclegpt.hardware.measure import PeakMemory, Stopwatch, keep_freed_memory
from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT
from recyclegpt.training import DualLoss, LossConfig
from recyclegpt.training.layers import set_up_layers
from recyclegpt.training.step_cost import flops_per_token

PHASES = ("forward", "backward", "optimizer")
MAX_NORM = 1.0
_NUM_BATCHES = 4
_WARM_UP = 3


@dataclass(frozen=True)
class StepConfig:
    batch: int
    """Rows of a forward pass."""
    row_length: int
    optimizer: Callable[[Iterable[tuple[str, Parameter]]], Optimizer]
    loss: LossConfig = field(default_factory=LossConfig)
    dtype: torch.dtype = torch.bfloat16
    """Of the products, by autocast; weights are fp32."""
    compile: bool = False
    activation_checkpointing: int = 0
    accumulate: int = 1
    """Forward and backward passes of a step."""
    repetitions: int = 10
    seed: int = 1


def measure_steps(
    shape: ModelConfig, recycle: RecycleConfig, config: StepConfig, device: torch.device
) -> dict[str, Any]:
    """Time the steps of a model with random weights, made here and dropped afterwards.

    Returns:
        Medians over the steps, with the spread of the rate; unknown values are NaN.
    """
    keep_freed_memory()
    with PeakMemory(device) as peak:
        steps = _Steps(shape, recycle, config, device)
        times = [steps.run() for _ in range(_WARM_UP + config.repetitions)][_WARM_UP:]
    tokens = config.batch * config.row_length * config.accumulate
    rates = [tokens / sum(time.values()) for time in times]
    flops = flops_per_token(shape, recycle, config.row_length, config.loss.num_unrolled)
    return {
        "recycle_num_layers": recycle.num_layers,
        "num_unrolled": config.loss.num_unrolled if recycle.num_layers else 0,
        "batch": config.batch,
        "row_length": config.row_length,
        "accumulate": config.accumulate,
        "dtype": str(config.dtype).removeprefix("torch."),
        "compile": config.compile,
        "activation_checkpointing": int(config.activation_checkpointing),
        "tokens_per_s": statistics.median(rates),
        "spread": [min(rates), max(rates)],
        "step_s": tokens / statistics.median(rates),
        **{f"{name}_s": statistics.median(time[name] for time in times) for name in PHASES},
        "flops_per_token": flops,
        "mfu": flops * statistics.median(rates) / peak_flops(device_name(device)),
        "peak_memory_bytes": peak.bytes,
    }


def module_shares(module: dict[str, Any], none: dict[str, Any]) -> dict[str, float]:
    """What the module adds to a step, by the rows of both models: share of operations and share of time."""
    flops, seconds = (module[key] / none[key] - 1 for key in ("flops_per_token", "step_s"))
    return {"flops_share": flops, "time_share": seconds, "time_beyond_flops": seconds - flops}


class _Steps:
    """A model trained on random tokens, step by step."""

    def __init__(self, shape: ModelConfig, recycle: RecycleConfig, config: StepConfig, device: torch.device) -> None:
        torch.manual_seed(config.seed)
        with device:
            self.model = RecycleGPT(shape, recycle).train()
        set_up_layers(self.model, config.compile, config.activation_checkpointing, config.loss.num_unrolled)
        self.loss = DualLoss(config.loss, config.compile)
        self.optimizer = config.optimizer(self.model.named_parameters())
        self.config, self.device = config, device
        num_views = 2 + config.loss.num_unrolled
        size = (_NUM_BATCHES, num_views, config.batch, config.row_length)
        self.batches = torch.randint(shape.vocab_size, size, device=device)
        self.taken, self.stopwatch = 0, Stopwatch(device)

    def run(self) -> dict[str, float]:
        passes = [self._forward, self._backward] * self.config.accumulate
        *pass_s, optimizer_s = self.stopwatch.seconds(*passes, self._update)
        return {"forward": sum(pass_s[::2]), "backward": sum(pass_s[1::2]), "optimizer": optimizer_s}

    def _backward(self) -> None:
        (self.last_loss / self.config.accumulate).backward()

    def _update(self) -> None:
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        # Training checks the norm, and so waits here for the device.
        assert torch.isfinite(norm), "the gradients of random tokens are finite"
        torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), MAX_NORM, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _forward(self) -> None:
        views_NBT = self.batches[self.taken % _NUM_BATCHES]
        self.taken += 1
        loss, dtype = self.config.loss, self.config.dtype
        with torch.autocast(self.device.type, torch.bfloat16, enabled=dtype != torch.float32):
            states = self.model.states(views_NBT, None, loss.num_unrolled, loss.backbone_grad_scale)
            self.last_loss: Tensor = self.loss(
                states, self.model.lm_head.weight, views_NBT, draft_ids_D=self.model.draft_ids
            ).loss
