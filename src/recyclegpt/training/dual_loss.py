"""The dual loss: the backbone predicts one token ahead, the recyclable module one more.

`w_backbone * CE(x_{t+1}) + w_recycle * sum_k beta^(k-1) CE_k(x_{t+1+k}) / sum_k beta^(k-1)`, k = 1..num_unrolled.
The weights are this project's choice: those of the paper (arXiv 2308.03421) are not known to us. 0.3 then 0.1 is what
DeepSeek-V3 (arXiv 2412.19437) uses for the same kind of loss.

B batch, T positions, C model width, V vocabulary, N views, K unrolled steps, M = B * T rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from recyclegpt.errors import ConfigError
from recyclegpt.models import RecycleGPT
from recyclegpt.training.cross_entropy import TokenLosses, chunked_cross_entropy

WeightSchedule = Literal["constant", "two_step", "ramp"]
Target = Literal["label", "backbone", "mixed"]


@dataclass(frozen=True)
class LossConfig:
    """Weights, schedule and target of the dual loss.

    Raises:
        ConfigError: naming every value out of range.
    """

    backbone_weight: float = 1.0
    recycle_weight: float = 0.3
    recycle_schedule: Literal["constant", "two_step", "ramp"] = "constant"
    """`constant`; `two_step`: `recycle_weight_late` from `recycle_switch` on; `ramp`: rises from 0 up to there."""
    recycle_weight_late: float = 0.1
    recycle_switch: float = 0.67
    """Share of the training steps at which the schedule switches, or has risen to the full weight."""
    num_unrolled: int = 1
    """Steps K the module is unrolled in training; decoding with `num_recycled=m` wants m."""
    beta: float = 0.6
    """Each further step counts this much less."""
    backbone_gradient: float = 1.0
    """Share of the recycle loss's gradient that reaches embedding, backbone and classifier: 1 full, 0 stopped."""
    target: Literal["label", "backbone", "mixed"] = "label"
    """`label`: the corpus; `backbone`: the backbone's own distribution (KL); `mixed`: half of each."""
    chunk_size: int | None = None
    """Rows of logits held at a time; None: 256 on a CPU, on CUDA as many as take 1 GiB in fp32."""

    def __post_init__(self) -> None:
        problems = [
            f"{name}: {getattr(self, name)} is negative"
            for name in ("backbone_weight", "recycle_weight", "recycle_weight_late")
            if not getattr(self, name) >= 0
        ]
        problems += [
            f"{name}: {getattr(self, name)} is not between 0 and 1"
            for name in ("recycle_switch", "backbone_gradient")
            if not 0 <= getattr(self, name) <= 1
        ]
        if not 0 < self.beta <= 1:
            problems.append(f"beta: {self.beta} is not in (0, 1]")
        if not 1 <= self.num_unrolled <= 8:
            problems.append(f"num_unrolled: {self.num_unrolled} is not between 1 and 8")
        if self.chunk_size is not None and self.chunk_size < 1:
            problems.append(f"chunk_size: {self.chunk_size} is not positive; null chooses it")
        for name, choices in (("recycle_schedule", get_args(WeightSchedule)), ("target", get_args(Target))):
            if getattr(self, name) not in choices:
                problems.append(f"{name}: {getattr(self, name)!r} is unknown; choose from {', '.join(choices)}")
        if problems:
            raise ConfigError(problems)

    def recycle_weight_at(self, progress: float) -> float:
        """Weight of the recycle loss when this share of the training steps is done."""
        if self.recycle_schedule == "two_step":
            return self.recycle_weight if progress < self.recycle_switch else self.recycle_weight_late
        if self.recycle_schedule == "ramp" and progress < self.recycle_switch:
            return self.recycle_weight * progress / self.recycle_switch
        return self.recycle_weight

    @property
    def teacher_share(self) -> float:
        """Weight of the backbone's distribution in the module's target."""
        return {"label": 0.0, "backbone": 1.0, "mixed": 0.5}[self.target]


class LossTerms(NamedTuple):
    """What one batch gave. Sums and counts, so that ratios can be taken once, over as many batches as wanted."""

    loss: Tensor
    """Scalar to minimise."""
    backbone: TokenLosses
    recycle_K: list[TokenLosses]
    draft_mask_BT: Tensor
    """Where step 1 of the module is trained: False where its row spans two documents."""


class DualLoss(nn.Module):
    """Loss of a model on a batch's views. Each mean is over all B * T positions, masked ones included as zero, so
    that two half batches accumulate to exactly the gradient of the whole.

    `compile` runs what is done to logits through `torch.compile`.
    """

    def __init__(self, config: LossConfig, compile: bool = False) -> None:  # noqa: A002 - the word users know
        super().__init__()
        self.config = config
        self.compiled = compile

    def forward(
        self, model: RecycleGPT, views_NBT: Tensor, documents_NBT: Tensor | None = None, progress: float = 0.0
    ) -> LossTerms:
        """Run the model and compare each state with the token it should predict.

        Args:
            model: backbone, module (or none) and classifier.
            views_NBT: at least `num_unrolled + 2` views of the rows.
            documents_NBT: document numbers of the same tokens, where attention is kept inside documents.
            progress: share of the training steps done, for the weight's schedule.
        """
        config = self.config
        states = model(views_NBT, documents_NBT, config.num_unrolled, config.backbone_gradient)
        hidden_MC = states.hidden_BTC.flatten(0, 1)
        head = model.lm_head.weight
        num_rows = views_NBT[0].numel()
        ones_BT = torch.ones(views_NBT.shape[1:], dtype=torch.float32, device=views_NBT.device)

        backbone = chunked_cross_entropy(
            hidden_MC,
            head,
            views_NBT[1].flatten(),
            ones_BT.flatten() / num_rows,
            chunk_size=config.chunk_size,
            compile=self.compiled,
        )
        loss = config.backbone_weight * backbone.total
        draft_mask_BT = ones_BT if documents_NBT is None else (documents_NBT[0] == documents_NBT[2]).float()
        steps: list[TokenLosses] = []
        weight = config.recycle_weight_at(progress)
        shares = [config.beta ** (step - 1) for step in range(1, config.num_unrolled + 1)]
        module_head = (
            head if config.backbone_gradient == 1 else head.detach() + config.backbone_gradient * (head - head.detach())
        )
        for step, recycled_BTC in enumerate(states.recycled_KBTC, start=1):
            scale_BT = ones_BT if documents_NBT is None else (documents_NBT[0] == documents_NBT[1 + step]).float()
            teacher_MC = None
            if config.teacher_share:
                # The backbone's own guess at the same token stands `step` rows later; the last rows have none.
                later_BTC = states.hidden_BTC.detach()[:, step:]
                teacher_MC = torch.cat([later_BTC, torch.zeros_like(later_BTC[:, :step])], dim=1).flatten(0, 1)
                scale_BT = scale_BT.clone()
                scale_BT[:, -step:] = 0
            rows = chunked_cross_entropy(
                recycled_BTC.flatten(0, 1),
                module_head,
                views_NBT[1 + step].flatten(),
                scale_BT.flatten() / num_rows,
                teacher_MC,
                config.teacher_share,
                config.chunk_size,
                self.compiled,
            )
            loss = loss + weight * shares[step - 1] / sum(shares) * rows.total
            steps.append(rows)
        return LossTerms(loss, backbone, steps, draft_mask_BT)
