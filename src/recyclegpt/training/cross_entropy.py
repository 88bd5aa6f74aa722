"""Cross entropy straight from states, without ever holding the logits of a whole batch.

The logits are the memory peak of a language model, twice over with two losses. One chunk of rows at a time, this
computes loss *and* gradient in the forward pass, so that no logits survive it; the backward pass only scales.

M rows (positions of a batch), m rows of a chunk, C model width, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CPU_ROWS = 256
"""Rows of a chunk on a CPU, where logits should stay in its cache."""
CACHED_LOGITS = 1 << 18
"""On a CPU the arithmetic between the matrix products runs over about this many logits at a time: in fp32 they stay in
its cache, and no buffer is so large that it comes in pages made anew."""
LOGITS_BYTES = 1 << 30
"""On CUDA a chunk is large, so that its products fill the device: its logits in fp32 take about this much."""


def rows_of_chunk(vocab_size: int, on_cuda: bool, wanted: int | None = None) -> int:
    """Rows of logits held at a time: `wanted`, or else what suits device and vocabulary."""
    fitting = max(CPU_ROWS, LOGITS_BYTES // (4 * vocab_size) // 128 * 128) if on_cuda else CPU_ROWS
    return fitting if wanted is None else wanted


class TokenLosses(NamedTuple):
    """The weighted sum to minimise, and figures of each row (without gradient)."""

    total: Tensor
    """Sum over rows of `scale_M * ((1 - teacher_share) * nll + teacher_share * KL)`."""
    nll_M: Tensor
    """Negative log likelihood of the label, in nats, fp32."""
    prediction_M: Tensor
    """The most likely token; -1 under autograd, where nothing reads it."""
    confidence_M: Tensor
    """Its probability; 0 under autograd."""
    inside_M: Tensor | None = None
    """Whether the label is in the draft vocabulary; where it is not, `nll_M` means nothing. None: all are."""


def chunked_cross_entropy(
    state_MC: Tensor,
    weight_VC: Tensor,
    label_M: Tensor,
    scale_M: Tensor,
    teacher_MC: Tensor | None = None,
    teacher_share: float = 0.0,
    chunk_size: int | None = None,
    use_compile: bool = False,
    teacher_MV: Tensor | None = None,
) -> TokenLosses:
    """Cross entropy of the LM head's logits with labels, and with a teacher's distribution if there is one.

    Args:
        state_MC: states, one per prediction.
        weight_VC: weight of the LM head, which has no bias.
        label_M: the right tokens.
        scale_M: weight of each row in `total`; 0 leaves a row out.
        teacher_MC: states whose distribution under the same head is the soft target, taken as given (no gradient).
        teacher_share: weight of KL(teacher || student) against the label's cross entropy, 0 to 1.
        chunk_size: rows of logits held at a time; None: by `rows_of_chunk`.
        use_compile: run the arithmetic between the matrix products through `torch.compile`: one kernel instead of
            about ten passes over the logits.
        teacher_MV: the teacher's logits, where several losses share them, in place of `teacher_MC`.
    """
    chunk_size = rows_of_chunk(len(weight_VC), state_MC.is_cuda, chunk_size)
    share = 0.0 if teacher_MC is None and teacher_MV is None else teacher_share
    teacher = (teacher_MC, teacher_MV, share)
    return TokenLosses(
        *_ChunkedCrossEntropy.apply(
            state_MC, weight_VC, label_M, scale_M, *teacher, chunk_size, not torch.is_grad_enabled(), use_compile
        )
    )


@torch.no_grad()
def most_likely(state_MC: Tensor, weight_VC: Tensor) -> Tensor:
    """The token that each state predicts `(M,)`, int64."""
    weight_VC, rows = narrowed(weight_VC), rows_of_chunk(len(weight_VC), state_MC.is_cuda)
    return torch.cat([F.linear(state_mC, weight_VC).max(dim=-1).indices for state_mC in state_MC.split(rows)])


@torch.no_grad()
def log_normaliser(state_MC: Tensor, weight_VC: Tensor) -> Tensor:
    """Log of the sum of `exp(logit)` over all tokens for each state, `(M,)`, fp32."""
    weight_VC, rows = narrowed(weight_VC), rows_of_chunk(len(weight_VC), state_MC.is_cuda)
    chunks = (F.linear(state_mC, weight_VC) for state_mC in state_MC.split(rows))
    return torch.cat([in_pieces(_normaliser, logits_mV)[0] for logits_mV in chunks]).squeeze(1)


def _normaliser(logits_mV: Tensor) -> tuple[Tensor, ...]:
    return probabilities(logits_mV)[2:]


def in_pieces(
    compute: Callable[..., tuple[Tensor, ...]],
    logits_mV: Tensor,
    *of_rows: Tensor | None,
    others: tuple[Any, ...] = (),
) -> tuple[Tensor, ...]:
    """`compute(logits_mV, *of_rows, *others)`, each row by itself; on a CPU a few rows at a time."""
    num = max(2, CACHED_LOGITS // logits_mV.shape[1])
    if logits_mV.is_cuda or num >= len(logits_mV):
        return compute(logits_mV, *of_rows, *others)
    pieces = [
        compute(*(None if rows is None else rows[begin : begin + num] for rows in (logits_mV, *of_rows)), *others)
        for begin in range(0, len(logits_mV), num)
    ]
    return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))


def probabilities(logits_mV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities `(m, V)`, the largest of each row `(m, 1)` and the log of its normaliser `(m, 1)`; fp32 or fp64."""
    wide = torch.float64 if logits_mV.dtype == torch.float64 else torch.float32
    p_mV = logits_mV.softmax(dim=-1, dtype=wide)
    # One pass over V gives both p and the log of its normaliser: at the largest logit, log p cannot underflow.
    largest_m1 = p_mV.amax(dim=-1, keepdim=True)
    return p_mV, largest_m1, logits_mV.amax(dim=-1, keepdim=True).to(wide) - largest_m1.log()


def narrowed(weight_VC: Tensor) -> Tensor:
    """A weight as autocast would make it for each chunk anew: it keeps none that is frozen or was computed."""
    kind = weight_VC.device.type
    return weight_VC.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else weight_VC


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        state_MC: Tensor,
        weight_VC: Tensor,
        label_M: Tensor,
        scale_M: Tensor,
        teacher_MC: Tensor | None,
        teacher_MV: Tensor | None,
        teacher_share: float,
        chunk_size: int,
        predict: bool,
        use_compile: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = torch.float64 if state_MC.dtype == torch.float64 else torch.float32
        need_state, need_weight = ctx.needs_input_grad[:2]
        grad_state_MC = torch.empty_like(state_MC) if need_state else None
        grad_weight_VC = torch.zeros_like(weight_VC, dtype=wide) if need_weight else None
        nll_M = torch.empty(len(label_M), dtype=wide, device=state_MC.device)
        prediction_M = torch.full_like(label_M, -1)
        confidence_M = torch.zeros_like(nll_M)
        total = torch.zeros((), dtype=wide, device=state_MC.device)
        narrow_VC = narrowed(weight_VC)
        for begin in range(0, len(label_M), chunk_size):
            rows = slice(begin, begin + chunk_size)
            scale_m1 = scale_M[rows, None]
            logits_mV = F.linear(state_MC[rows], narrow_VC)
            if predict:
                prediction_M[rows] = logits_mV.argmax(dim=-1)
            teacher_mV = None if teacher_MV is None else teacher_MV[rows]
            if teacher_MC is not None and teacher_share:
                teacher_mV = F.linear(teacher_MC[rows], narrow_VC)
            of_rows = logits_mV, label_M[rows, None], teacher_mV
            others = teacher_share, wide, need_state or need_weight
            if use_compile:
                nll_m1, loss_m1, largest_m1, grad_mV = _compiled_row_losses()(*of_rows, *others)
            else:
                nll_m1, loss_m1, largest_m1, grad_mV = in_pieces(_row_losses, *of_rows, others=others)
            nll_M[rows] = nll_m1.squeeze(1)
            if predict:
                confidence_M[rows] = largest_m1.squeeze(1)
            # A row that is left out must not spoil the sum, even if its loss is not finite.
            total += torch.where(scale_m1 == 0, 0, scale_m1 * loss_m1).sum()
            # Scaling the narrow side of each product saves a pass over the logits.
            if grad_state_MC is not None:
                grad_state_MC[rows] = (grad_mV @ narrow_VC).to(state_MC.dtype) * scale_m1
            if grad_weight_VC is not None:
                grad_weight_VC += grad_mV.t() @ (state_MC[rows] * scale_m1).to(logits_mV.dtype)
        ctx.save_for_backward(grad_state_MC, None if grad_weight_VC is None else grad_weight_VC.to(weight_VC.dtype))
        ctx.mark_non_differentiable(nll_M, prediction_M, confidence_M)
        return total, nll_M, prediction_M, confidence_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grads = [None if saved is None else saved * grad_total.to(saved.dtype) for saved in ctx.saved_tensors]
        return (*grads, *[None] * 8)


def _row_losses(
    logits_mV: Tensor,
    label_m1: Tensor,
    teacher_mV: Tensor | None,
    teacher_share: float,
    wide: torch.dtype,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each row: nll, loss, the largest probability, and the loss's gradient in the dtype of the logits."""
    p_mV, largest_m1, normaliser_m1 = probabilities(logits_mV)
    nll_m1 = normaliser_m1 - logits_mV.gather(1, label_m1).to(wide)
    loss_m1, grad_mV = nll_m1 * (1 - teacher_share), p_mV
    if teacher_mV is not None:
        log_q_mV = teacher_mV.log_softmax(dim=-1, dtype=wide)
        q_mV = log_q_mV.exp()
        divergence_m1 = (q_mV * (log_q_mV - logits_mV + normaliser_m1)).sum(dim=-1, keepdim=True)
        loss_m1 = loss_m1 + teacher_share * divergence_m1
        grad_mV = grad_mV.sub_(q_mV, alpha=teacher_share)
    if not need_grad:
        return nll_m1, loss_m1, largest_m1, logits_mV
    share = 1 - teacher_share
    if torch.compiler.is_compiling():
        # A scatter would end the fused kernel here and store the probabilities.
        columns_V = torch.arange(logits_mV.shape[1], device=logits_mV.device)
        grad_mV = torch.where(columns_V == label_m1, grad_mV - share, grad_mV)
    else:
        grad_mV.scatter_add_(1, label_m1, torch.full_like(label_m1, -share, dtype=wide))
    return nll_m1, loss_m1, largest_m1, grad_mV.to(logits_mV.dtype)


@functools.cache
def _compiled_row_losses() -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]:
    """A graph for each shape: a full chunk and the last one, in training and in validation."""
    return torch.compile(_row_losses, dynamic=False)
