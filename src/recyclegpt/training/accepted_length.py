"""The loss target `accepted_length`: how many drafted tokens verification is expected to accept, in closed form.

`L = - sum_j prod_{i<=j} a_i` with `a_i = sum_v min(p_i(v), q_i(v))` over the K unrolled steps: a_i is the chance that
rejection sampling at temperature 1 accepts a token drawn from the module's q_i where the backbone has p_i (Leviathan et
al., arXiv 2211.17192), so that -L is the accepted length's expectation after each position of the corpus.

It stands for CMAL (Guo et al., arXiv 2005.04690), which rewards all positions of a sentence together, and is not its
policy gradient: nothing is sampled and no baseline needed, since this reward's expectation can be written down.

M rows (positions of a batch), m rows of a chunk, C model width, V columns of the head: vocabulary or draft vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from recyclegpt.training.cross_entropy import narrowed, probabilities, rows_of_chunk


class Acceptance(NamedTuple):
    """How likely a drafted token is to be accepted, and figures of each row as in `TokenLosses`."""

    chance_M: Tensor
    """`sum_v min(p, q)`; its gradient is the loss's."""
    nll_M: Tensor
    prediction_M: Tensor
    confidence_M: Tensor


def chunked_acceptance(
    state_MC: Tensor,
    weight_VC: Tensor,
    label_M: Tensor,
    chunk_size: int | None = None,
    use_compile: bool = False,
    teacher_MC: Tensor | None = None,
    teacher_MV: Tensor | None = None,
    normaliser_M: Tensor | None = None,
) -> Acceptance:
    """The chance that each row's draft is accepted, a chunk of logits at a time, as `chunked_cross_entropy`.

    Args:
        state_MC: states, one per prediction.
        weight_VC: weight of the LM head, or its rows of the draft vocabulary.
        label_M: columns of the right tokens, for `nll_M`.
        chunk_size: rows of logits held at a time; None: by `rows_of_chunk`.
        use_compile: run the arithmetic between the matrix products through `torch.compile`.
        teacher_MC: states whose distribution under the same head is the backbone's, taken as given.
        teacher_MV: in its place, the backbone's logits within a draft vocabulary.
        normaliser_M: with these, log of the sum of `exp(logit)` over *all* tokens, so that p is what it is within the
            whole vocabulary: what lies outside a draft vocabulary cannot be accepted.
    """
    chunk_size = rows_of_chunk(len(weight_VC), state_MC.is_cuda, chunk_size)
    return Acceptance(
        *_ChunkedAcceptance.apply(
            *(state_MC, weight_VC, label_M, teacher_MC if teacher_MV is None else teacher_MV, normaliser_M),
            *(chunk_size, not torch.is_grad_enabled(), use_compile),
        )
    )


class _ChunkedAcceptance(torch.autograd.Function):
    """Keeps each row's gradient for its state, to be scaled; that for the head needs the logits a second time."""

    @staticmethod
    def forward(
        ctx: Any,
        state_MC: Tensor,
        weight_VC: Tensor,
        label_M: Tensor,
        teacher_MX: Tensor,
        normaliser_M: Tensor | None,
        chunk_size: int,
        predict: bool,
        use_compile: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        need_state, need_weight = ctx.needs_input_grad[:2]
        narrow_VC = narrowed(weight_VC)
        ctx.arguments = label_M, normaliser_M, use_compile
        ctx.chunk_size, ctx.dtype = chunk_size, weight_VC.dtype
        grad_state_MC = torch.empty_like(state_MC) if need_state else None
        results: list[tuple[Tensor, ...]] = []
        for rows, state_mC in _chunks(state_MC, chunk_size):
            logits_mV = F.linear(state_mC, narrow_VC)
            chance_m1, nll_m1, largest_m1, grad_mV = _row(rows, logits_mV, narrow_VC, teacher_MX, *ctx.arguments)
            if grad_state_MC is not None:
                grad_state_MC[rows] = (grad_mV @ narrow_VC).to(state_MC.dtype)
            best_m1 = logits_mV.argmax(dim=-1, keepdim=True) if predict else torch.full_like(label_M[rows, None], -1)
            results.append((chance_m1, nll_m1, best_m1, largest_m1 if predict else torch.zeros_like(largest_m1)))
        chance_M, *figures = (torch.cat(chunks).squeeze(1) for chunks in zip(*results, strict=True))
        of_weight = (state_MC, narrow_VC, teacher_MX) if need_weight else (None, None, None)
        ctx.save_for_backward(grad_state_MC, *of_weight)
        ctx.mark_non_differentiable(*figures)
        return chance_M, *figures  # type: ignore[return-value]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_M: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad_state_MC, state_MC, narrow_VC, teacher_MX = ctx.saved_tensors
        if grad_state_MC is not None:
            grad_state_MC = grad_state_MC * grad_M[:, None].to(grad_state_MC.dtype)
        grad_weight_VC: Tensor | None = None
        if state_MC is not None:
            grad_weight_VC = torch.zeros_like(narrow_VC, dtype=grad_M.dtype)
            for rows, state_mC in _chunks(state_MC.to(narrow_VC.dtype), ctx.chunk_size):
                logits_mV = F.linear(state_mC, narrow_VC)
                grad_mV = _row(rows, logits_mV, narrow_VC, teacher_MX, *ctx.arguments)[3]
                grad_weight_VC += grad_mV.t() @ (state_mC * grad_M[rows, None]).to(logits_mV.dtype)
            grad_weight_VC = grad_weight_VC.to(ctx.dtype)
        return grad_state_MC, grad_weight_VC, *[None] * 6


def _chunks(state_MC: Tensor, chunk_size: int) -> list[tuple[slice, Tensor]]:
    """Each chunk of rows, and which rows they are."""
    begins = range(0, len(state_MC), chunk_size)
    return [(slice(begin, begin + chunk_size), state_MC[begin : begin + chunk_size]) for begin in begins]


def _row(
    rows: slice,
    logits_mV: Tensor,
    narrow_VC: Tensor,
    teacher_MX: Tensor,
    label_M: Tensor,
    normaliser_M: Tensor | None,
    use_compile: bool,
) -> tuple[Tensor, ...]:
    teacher_mV = teacher_MX[rows]
    if normaliser_M is None:
        teacher_mV = F.linear(teacher_mV.to(narrow_VC.dtype), narrow_VC)
    compute = _compiled_row_acceptance() if use_compile else _row_acceptance
    return compute(logits_mV, label_M[rows, None], teacher_mV, None if normaliser_M is None else normaliser_M[rows])


def _row_acceptance(
    logits_mV: Tensor, label_m1: Tensor, teacher_mV: Tensor, normaliser_m: Tensor | None
) -> tuple[Tensor, ...]:
    """For each row: chance, nll, the largest probability, and the chance's gradient in the dtype of the logits."""
    q_mV, largest_m1, log_sum_m1 = probabilities(logits_mV)
    if normaliser_m is None:
        p_mV = teacher_mV.softmax(dim=-1, dtype=q_mV.dtype)
    else:
        p_mV = teacher_mV.to(q_mV.dtype).sub(normaliser_m[:, None]).exp()
    nll_m1 = log_sum_m1 - logits_mV.gather(1, label_m1).to(q_mV.dtype)
    # A token that is drafted too rarely counts with all of q: d chance / d logit_v = q_v (1[q_v < p_v] - sum of those).
    below_mV = torch.where(q_mV < p_mV, q_mV, 0)
    chance_m1 = torch.minimum(p_mV, q_mV).sum(dim=-1, keepdim=True)
    grad_mV = torch.addcmul(below_mV, q_mV, below_mV.sum(dim=-1, keepdim=True), value=-1)
    return chance_m1, nll_m1, largest_m1, grad_mV.to(logits_mV.dtype)


@functools.cache
def _compiled_row_acceptance() -> Callable[..., tuple[Tensor, ...]]:
    return torch.compile(_row_acceptance, dynamic=False)
