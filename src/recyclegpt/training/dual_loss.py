"""The dual loss: the backbone predicts one token ahead, the recyclable module one more.

`w_backbone * CE(x_{t+1}) + w_recycle * sum_k beta^(k-1) CE_k(x_{t+1+k}) / sum_k beta^(k-1)`, k = 1..num_unrolled.
The weights are this project's choice: those of the paper (arXiv 2308.03421) are not known to us. 0.3 then 0.1 is what
DeepSeek-V3 (arXiv 2412.19437) uses for the same kind of loss.

With a draft vocabulary the module's losses are over its D ids: a row whose label is none of them is left out, and so is
one whose teacher prefers a token that is none; the teacher's distribution is restricted to them (EAGLE,
github.com/SafeAILab/EAGLE, `traineagle3/cnets.py`).

B batch, T positions, C model width, V vocabulary, D draft vocabulary, N views, K unrolled steps, M = B * T rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recyclegpt.errors import ConfigError
from recyclegpt.models import MAX_RECYCLED, States
from recyclegpt.models.layers import scale_gradient
from recyclegpt.training.accepted_length import chunked_acceptance
from recyclegpt.training.cross_entropy import TokenLosses, chunked_cross_entropy, log_normaliser, most_likely

RECYCLE_SCHEDULES = ("constant", "two_step", "ramp")
ACCEPTED_LENGTH = "accepted_length"
TEACHER_SHARES = {"corpus": 0.0, "distill": 1.0, "mixed": 0.5, ACCEPTED_LENGTH: 1.0}
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
    """`corpus`: the next token; `distill`: the backbone's own distribution (KL); `mixed`: half of each;
    `accepted_length`: minus the expected number of accepted tokens, without `step_decay` (`accepted_length.py`)."""
    early_exit_weight: float = 0.0
    """Of the cross entropy of the states after one of the layers, another in each step (`early_exit.py`)."""
    layer_dropout: float = 0.0
    """How often the last layer is left out of a row's training pass; earlier ones less often (`early_exit.py`)."""
    chunk_size: int | None = None
    """Rows of logits held at a time; None: 256 on a CPU, on CUDA enough to take 1 GiB in fp32."""

    def __post_init__(self) -> None:
        chunk_size = 1 if self.chunk_size is None else self.chunk_size
        problems = [
            f"{name}: {value} is not between {low} and {high}"
            for name, value, low, high in (
                ("backbone_weight", self.backbone_weight, 0, math.inf),
                ("recycle_weight", self.recycle_weight, 0, math.inf),
                ("recycle_weight_late", self.recycle_weight_late, 0, math.inf),
                ("schedule_switch", self.schedule_switch, 0, 1),
                ("num_unrolled", self.num_unrolled, 1, MAX_RECYCLED),
                ("step_decay", self.step_decay, 0, 1),
                ("backbone_grad_scale", self.backbone_grad_scale, 0, 1),
                ("early_exit_weight", self.early_exit_weight, 0, math.inf),
                ("layer_dropout", self.layer_dropout, 0, 1),
                ("chunk_size", chunk_size, 1, math.inf),
            )
            if not low <= value <= high
        ]
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


class LossTerms(NamedTuple):
    """What one batch gave: sums and counts, so that ratios can be taken once over any number of batches."""

    loss: Tensor
    """Scalar to minimise."""
    backbone: TokenLosses | None
    """None in a training step that cannot change it: backbone and LM head are frozen."""
    recycle_K: list[TokenLosses]
    """The module's losses by unrolled step; empty without a module."""
    draft_mask_BT: Tensor
    """1 where the module's first step is trained, 0 where its tokens lie in different documents."""
    exit: TokenLosses | None = None
    """Of the states after an early exit, where they are trained."""


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
        draft_ids_D: Tensor | None = None,
        best_BT: Tensor | None = None,
        normaliser_BT: Tensor | None = None,
        exit_BTC: Tensor | None = None,
    ) -> LossTerms:
        """Compare each state with the token it should predict.

        Args:
            states: `RecycleGPT.states(...)` of the same views, with the config's `num_unrolled` and
                `backbone_grad_scale`.
            head_VC: weight of the LM head.
            views_NBT: at least `num_unrolled + 2` views of the rows.
            documents_NBT: document numbers of the same tokens, where attention is kept within documents.
            progress: share of the training steps done, for the schedule of the recycle weight.
            draft_ids_D: the module's draft vocabulary; None: all tokens.
            best_BT: the tokens that the backbone predicts, where they are known; read with a draft vocabulary only.
            normaliser_BT: `log_normaliser` of the backbone's states, likewise.
            exit_BTC: states after an early exit, trained with `early_exit_weight`.
        """
        config, num_rows, hidden_BTC = self.config, views_NBT[0].numel(), states.hidden_BTC
        share = TEACHER_SHARES[config.target]
        ones_BT = torch.ones(views_NBT.shape[1:], dtype=torch.float32, device=views_NBT.device)

        def counted(step: int) -> Tensor:
            return ones_BT if documents_NBT is None else (documents_NBT[0] == documents_NBT[1 + step]).float()

        def losses(
            state_BTC: Tensor, weight_VC: Tensor, label_BT: Tensor, scale_BT: Tensor, **teacher: Tensor | None
        ) -> TokenLosses:
            return chunked_cross_entropy(
                state_BTC.flatten(0, 1), weight_VC, label_BT.flatten(), scale_BT.flatten() / num_rows,
                teacher_share=share, chunk_size=config.chunk_size, use_compile=self.use_compile, **teacher,
            )  # fmt: skip

        backbone, loss = None, torch.zeros((), device=views_NBT.device)
        if hidden_BTC.requires_grad or head_VC.requires_grad or not torch.is_grad_enabled():
            backbone = losses(hidden_BTC, head_VC, views_NBT[1], ones_BT)
            loss = config.backbone_weight * backbone.total
        exits = None
        if exit_BTC is not None:
            exits = losses(exit_BTC, head_VC, views_NBT[1], ones_BT)
            loss = loss + config.early_exit_weight * exits.total
        weight, steps = config.recycle_weight_at(progress), []
        shares = [config.step_decay ** (step - 1) for step in range(1, config.num_unrolled + 1)]
        module_head_VC = scale_gradient(head_VC, config.backbone_grad_scale)
        draft, length_M = None, ones_BT.flatten()
        if draft_ids_D is not None and states.recycled_KBTC:
            module_head_VC = module_head_VC.index_select(0, draft_ids_D)  # its backward pass is the faster
            known_BT = normaliser_BT if config.target == ACCEPTED_LENGTH else best_BT
            draft = _DraftTargets(draft_ids_D, head_VC, hidden_BTC.detach(), config, known_BT)
        weight_of_steps = weight * (1 - states.own_share)
        for step, recycled_BTC in enumerate(states.recycled_KBTC, start=1):
            if states.own_share == 1:
                recycled_BTC, module_head_VC = recycled_BTC.detach(), module_head_VC.detach()  # only its figures
            scale_BT, label_BT = counted(step), views_NBT[1 + step]
            teacher: dict[str, Tensor | None] = {}
            if share:
                # The backbone's own prediction of the same token is `step` rows later; the last rows have none.
                scale_BT = scale_BT.clone()
                scale_BT[:, -step:] = 0
            if draft is not None:
                label_BT = draft.column_V[label_BT]
                inside_BT = label_BT >= 0
                scale_BT = scale_BT * draft.trained(step, inside_BT)
                teacher = draft.teacher(step)
            elif share:
                later_BTC = hidden_BTC.detach()[:, step:]
                teacher_BTC = torch.cat([later_BTC, torch.zeros_like(later_BTC[:, :step])], dim=1)
                teacher = {"teacher_MC": teacher_BTC.flatten(0, 1)}
            if config.target == ACCEPTED_LENGTH:
                chance_M, *figures = chunked_acceptance(
                    recycled_BTC.flatten(0, 1), module_head_VC, label_BT.clamp(min=0).flatten(),
                    config.chunk_size, self.use_compile, **teacher,
                )  # fmt: skip
                # The chance that this token is accepted, and all before it; a row left out must not spoil the sum.
                length_M = length_M * torch.where(scale_BT.flatten() == 0, 0, chance_M)
                rows, share_of_step = TokenLosses(-length_M.sum() / num_rows, *figures), 1.0
            else:
                rows = losses(recycled_BTC, module_head_VC, label_BT.clamp(min=0), scale_BT, **teacher)
                share_of_step = shares[step - 1] / sum(shares)
            if draft is not None:
                rows = rows._replace(prediction_M=draft.ids_D[rows.prediction_M], inside_M=inside_BT.flatten())
            loss = loss + weight_of_steps * share_of_step * rows.total
            steps.append(rows)
        if states.own_loss is not None:
            loss = loss + weight * states.own_share * states.own_loss()
        return LossTerms(loss, backbone, steps, counted(1), exits)


class _DraftTargets:
    """What the module's rows are trained towards within a draft vocabulary, computed once for all unrolled steps.

    `known_BT` is what would be computed from the backbone's full logits: the most likely tokens, or the normalisers.
    """

    def __init__(
        self, ids_D: Tensor, head_VC: Tensor, hidden_BTC: Tensor, config: LossConfig, known_BT: Tensor | None
    ) -> None:
        self.ids_D, self.share = ids_D, TEACHER_SHARES[config.target]
        self.column_V = torch.full((len(head_VC),), -1, device=ids_D.device)
        """The column of each token; -1 of those outside."""
        self.column_V[ids_D] = torch.arange(len(ids_D), device=ids_D.device)
        self.num_rows = hidden_BTC[..., 0].numel()
        self.prefers_BT: Tensor | None = None
        self.teacher_M: dict[str, Tensor] = {}
        if not self.share:
            return
        # Row t + k of the backbone is the teacher of row t at step k: one tensor, read at an offset. The rows where
        # that would be of another sequence, or of none, are left out.
        accepts, num_unrolled = config.target == ACCEPTED_LENGTH, config.num_unrolled
        if known_BT is None:
            full = log_normaliser if accepts else most_likely
            known_BT = full(hidden_BTC.flatten(0, 1), head_VC).view(hidden_BTC.shape[:2])
        if accepts:  # which counts what lies outside by itself
            self.teacher_M["normaliser_M"] = F.pad(known_BT.flatten(), (0, num_unrolled))
        else:
            self.prefers_BT = F.pad((self.column_V[known_BT] >= 0).float(), (0, num_unrolled))
        with torch.no_grad():
            padded_MC = F.pad(hidden_BTC.flatten(0, 1), (0, 0, 0, num_unrolled))
            self.teacher_M["teacher_MV"] = F.linear(padded_MC, head_VC[ids_D])

    def trained(self, step: int, inside_BT: Tensor) -> Tensor:
        """1 for the rows `(B, T)` that step `step` is trained at, else 0."""
        rows_BT = inside_BT.float() if self.share < 1 else torch.ones_like(inside_BT, dtype=torch.float32)
        if self.prefers_BT is not None:
            rows_BT = rows_BT * self.prefers_BT[:, step : step + rows_BT.shape[1]]
        return rows_BT

    def teacher(self, step: int) -> dict[str, Tensor | None]:
        """The backbone's logits for the rows of a step, and their normalisers; nothing where it is no target."""
        rows = slice(step, step + self.num_rows)
        return {name: values[rows] for name, values in self.teacher_M.items()}
