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
from recyclegpt.hardware.memory import PeakMemory, keep_freed_memory
from recyclegpt.hardware.stopwatch import Stopwatch
from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT
from recyclegpt.training import DualLoss, LossConfig
from recyclegpt.training.compile import set_up_layers
from recyclegpt.training.flops import flops_per_token

PHASES = ("forward", "backward", "optimizer")
MAX_NORM = 1.0
_NUM_BATCHES = 4
_WARM_UP = 3


@dataclass(frozen=True)
class StepConfig:
    """What is timed."""

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


@dataclass
class StepSpeed:
    """Times of one model's steps, and what follows from them."""

    config: StepConfig
    recycle: RecycleConfig
    flops_per_token: float
    seconds: dict[str, list[float]]
    """Of every timed step, by phase."""
    peak_memory_bytes: float
    peak_flops: float
    """Dense bf16 peak of the device, operations a second; NaN where unknown."""

    @property
    def steps_s(self) -> list[float]:
        """Seconds of each step."""
        return [sum(phases) for phases in zip(*self.seconds.values(), strict=True)]

    @property
    def tokens(self) -> int:
        """Positions of a step."""
        return self.config.batch * self.config.row_length * self.config.accumulate

    def row(self) -> dict[str, Any]:
        """Medians over the steps, with the spread of the rate; unknown values are NaN."""
        step_s = statistics.median(self.steps_s)
        rates = [self.tokens / seconds for seconds in self.steps_s]
        return {
            "recycle_num_layers": self.recycle.num_layers,
            "num_unrolled": self.config.loss.num_unrolled if self.recycle.num_layers else 0,
            "batch": self.config.batch,
            "row_length": self.config.row_length,
            "accumulate": self.config.accumulate,
            "dtype": str(self.config.dtype).removeprefix("torch."),
            "compile": self.config.compile,
            "activation_checkpointing": int(self.config.activation_checkpointing),
            "tokens_per_s": self.tokens / step_s,
            "spread": [min(rates), max(rates)],
            "step_s": step_s,
            **{f"{name}_s": statistics.median(self.seconds[name]) for name in PHASES},
            "flops_per_token": self.flops_per_token,
            "mfu": self.flops_per_token * self.tokens / step_s / self.peak_flops,
            "peak_memory_bytes": self.peak_memory_bytes,
        }


def measure_steps(shape: ModelConfig, recycle: RecycleConfig, config: StepConfig, device: torch.device) -> StepSpeed:
    """Time the steps of a model with random weights, made here and dropped afterwards."""
    keep_freed_memory()
    with PeakMemory(device) as peak:
        steps = _Steps(shape, recycle, config, device)
        for _ in range(_WARM_UP):
            steps.run()
        times = [steps.run() for _ in range(config.repetitions)]
    seconds = {name: [time[name] for time in times] for name in PHASES}
    flops = flops_per_token(shape, recycle, config.row_length, config.loss.num_unrolled)
    return StepSpeed(config, recycle, flops, seconds, peak.bytes, peak_flops(device_name(device)))


def module_shares(with_module: StepSpeed, without: StepSpeed) -> dict[str, float]:
    """What the module adds to a step: share of operations and share of time."""
    flops = with_module.flops_per_token / without.flops_per_token - 1
    seconds = statistics.median(with_module.steps_s) / statistics.median(without.steps_s) - 1
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
        """Seconds of one step, by phase."""
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
