"""The dual loss: the backbone predicts one token ahead, the recyclable module one more.

`w_backbone * CE(x_{t+1}) + w_recycle * sum_k beta^(k-1) CE_k(x_{t+1+k}) / sum_k beta^(k-1)`, k = 1..num_unrolled.
The weights are this project's choice: those of the paper (arXiv 2308.03421) are not known to us. 0.3 then 0.1 is what
DeepSeek-V3 (arXiv 2412.19437) uses for the same kind of loss.

B batch, T positions, C model width, V vocabulary, N views, K unrolled steps, M = B * T rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from recyclegpt.errors import ConfigError
from recyclegpt.models import States
from recyclegpt.training.cross_entropy import TokenLosses, chunked_cross_entropy

RECYCLE_SCHEDULES = ("constant", "two_step", "ramp")
TEACHER_SHARES = {"corpus": 0.0, "distill": 1.0, "mixed": 0.5}
"""Targets of the module, with the weight of the backbone's distribution in each."""


@dataclass(frozen=True)
class LossConfig:
    """Weights, schedule and target of the dual loss.

    Raises:
        ConfigError: naming every value out of range.
    """

    backbone_weight: float = 1.0
    recycle_weight: float = 0.3
    recycle_schedule: str = "constant"
    """`constant`; `two_step`: `recycle_weight_late` from `schedule_switch` on; `ramp`: rises from 0 up to there."""
    recycle_weight_late: float = 0.1
    schedule_switch: float = 0.67
    """Share of the training steps at which `two_step` switches, or `ramp` has reached the full weight."""
    num_unrolled: int = 1
    """Steps K the module is unrolled in training; to decode with `num_recycled=m`, train with m."""
    step_decay: float = 0.6
    """beta: factor by which each further step counts less."""
    backbone_grad_scale: float = 1.0
    """Share of the recycle loss's gradient that reaches embedding, backbone and LM head: 1 full, 0 stopped."""
    target: str = "corpus"
    """`corpus`: the next token; `distill`: the backbone's own distribution (KL); `mixed`: half of each."""
    chunk_size: int | None = None
    """Rows of logits held at a time; None: 256 on a CPU, on CUDA enough to take 1 GiB in fp32."""

    def __post_init__(self) -> None:
        problems = [
            f"{name}: {getattr(self, name)} is negative"
            for name in ("backbone_weight", "recycle_weight", "recycle_weight_late")
            if not getattr(self, name) >= 0
        ]
        problems += [
            f"{name}: {getattr(self, name)} is not between 0 and 1"
            for name in ("schedule_switch", "backbone_grad_scale")
            if not 0 <= getattr(self, name) <= 1
        ]
        if not 0 < self.step_decay <= 1:
            problems.append(f"step_decay: {self.step_decay} is not in (0, 1]")
        if not 1 <= self.num_unrolled <= 8:
            problems.append(f"num_unrolled: {self.num_unrolled} is not between 1 and 8")
        if self.chunk_size is not None and self.chunk_size < 1:
            problems.append(f"chunk_size: {self.chunk_size} is not positive; null chooses it")
        for name, choices in (("recycle_schedule", RECYCLE_SCHEDULES), ("target", tuple(TEACHER_SHARES))):
            if getattr(self, name) not in choices:
                problems.append(f"{name}: {getattr(self, name)!r} is unknown; choose from {', '.join(choices)}")
        if problems:
            raise ConfigError(problems)

    def recycle_weight_at(self, progress: float) -> float:
        """Weight of the recycle loss once this share of the training steps is done, 0 to 1."""
        if self.recycle_schedule == "two_step":
            return self.recycle_weight if progress < self.schedule_switch else self.recycle_weight_late
        if self.recycle_schedule == "ramp" and progress < self.schedule_switch:
            return self.recycle_weight * progress / self.schedule_switch
        return self.recycle_weight

    @property
    def teacher_share(self) -> float:
        """Weight of the backbone's distribution in the module's target."""
        return TEACHER_SHARES[self.target]


class LossTerms(NamedTuple):
    """What one batch gave: sums and counts, so that ratios can be taken once over any number of batches."""

    loss: Tensor
    """Scalar to minimise."""
    backbone: TokenLosses
    recycle_K: list[TokenLosses]
    """The module's losses by unrolled step; empty without a module."""
    draft_mask_BT: Tensor
    """1 where the module's first step is trained, 0 where its tokens lie in different documents."""


class DualLoss(nn.Module):
    """Loss of a batch's states. It has no parameters.

    Each mean is over all B * T positions, masked ones counted as zero, so that two half batches accumulate exactly the
    gradient of the whole.

    Args:
        config: weights, schedule and target.
        use_compile: run the arithmetic on logits through `torch.compile`.
    """

    def __init__(self, config: LossConfig, use_compile: bool = False) -> None:
        super().__init__()
        self.config = config
        self.use_compile = use_compile

    def forward(
        self,
        states: States,
        head_VC: Tensor,
        views_NBT: Tensor,
        documents_NBT: Tensor | None = None,
        progress: float = 0.0,
    ) -> LossTerms:
        """Compare each state with the token it should predict.

        Args:
            states: `RecycleGPT.states(...)` of the same views, with the config's `num_unrolled` and
                `backbone_grad_scale`.
            head_VC: weight of the LM head.
            views_NBT: at least `num_unrolled + 2` views of the rows.
            documents_NBT: document numbers of the same tokens, where attention is kept within documents.
            progress: share of the training steps done, for the schedule of the recycle weight.
        """
        config = self.config
        num_rows = views_NBT[0].numel()
        ones_BT = torch.ones(views_NBT.shape[1:], dtype=torch.float32, device=views_NBT.device)
        backbone = chunked_cross_entropy(
            states.hidden_BTC.flatten(0, 1),
            head_VC,
            views_NBT[1].flatten(),
            ones_BT.flatten() / num_rows,
            chunk_size=config.chunk_size,
            use_compile=self.use_compile,
        )
        loss = config.backbone_weight * backbone.total
        draft_mask_BT = ones_BT if documents_NBT is None else (documents_NBT[0] == documents_NBT[2]).float()
        steps: list[TokenLosses] = []
        weight = config.recycle_weight_at(progress)
        shares = [config.step_decay ** (step - 1) for step in range(1, config.num_unrolled + 1)]
        grad_scale = config.backbone_grad_scale
        module_head_VC = head_VC if grad_scale == 1 else head_VC.detach() + grad_scale * (head_VC - head_VC.detach())
        for step, recycled_BTC in enumerate(states.recycled_KBTC, start=1):
            scale_BT = ones_BT if documents_NBT is None else (documents_NBT[0] == documents_NBT[1 + step]).float()
            teacher_MC = None
            if config.teacher_share:
                # The backbone's own prediction of the same token is `step` rows later; the last rows have none.
                later_BTC = states.hidden_BTC.detach()[:, step:]
                teacher_MC = torch.cat([later_BTC, torch.zeros_like(later_BTC[:, :step])], dim=1).flatten(0, 1)
                scale_BT = scale_BT.clone()
                scale_BT[:, -step:] = 0
            rows = chunked_cross_entropy(
                recycled_BTC.flatten(0, 1),
                module_head_VC,
                views_NBT[1 + step].flatten(),
                scale_BT.flatten() / num_rows,
                teacher_MC,
                config.teacher_share,
                config.chunk_size,
                self.use_compile,
            )
            loss = loss + weight * shares[step - 1] / sum(shares) * rows.total
            steps.append(rows)
        return LossTerms(loss, backbone, steps, draft_mask_BT)
