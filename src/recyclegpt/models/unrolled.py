"""What a later step of unrolled training attends to: the step-1 rows causally, and each row's own earlier steps.

That is exactly what decoding's cache holds when the k-th token is recycled: true rows for everything the backbone has
read, provisional rows only for the tokens recycled since.

As one attention with a mask it would cost `k` times the keys and keep PyTorch off its flash kernel, although of the
`(k - 1) T` further keys a query sees only `k - 1`. Here the flash kernel does the causal part, and the few others are
merged through the log-sum-exp that it returns, as ring attention merges its blocks (Liu et al., arXiv 2310.01889).

B batch, T positions, J = k - 1 further keys of a row, H heads, G key/value heads, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_ops = torch.ops.aten
BLOCK = 128
MOST_ROWS = 1024
"""Positions of a row up to which the probabilities that `in_blocks` keeps for the backward pass are small."""


class UnrolledKVStore:
    """Keys and values of one step, by layer, and the stores of the steps before it.

    It may be given a layer's rows twice: activation checkpointing runs a layer again, long after the later steps have
    read the first.
    """

    def __init__(self, earlier: Sequence[UnrolledKVStore] = ()) -> None:
        self.earlier = tuple(earlier)
        self.rows: dict[int, tuple[Tensor, Tensor]] = {}

    def write(self, layer: int, key_BTGD: Tensor, value_BTGD: Tensor) -> tuple[Tensor, Tensor]:
        """Keep this step's rows; return those of all steps up to it, `(B, k T, G, D)`."""
        self.rows.setdefault(layer, (key_BTGD, value_BTGD))
        keys, values = zip(*[store.rows[layer] for store in self.earlier], (key_BTGD, value_BTGD), strict=True)
        return torch.cat(keys, dim=1), torch.cat(values, dim=1)


def document_mask(documents_BT: Tensor) -> Tensor:
    """Causal attention inside each document, `(B, 1, T, T)`."""
    same_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    return same_BTT.tril().unsqueeze(1)


def unrolled_mask(step: int, first_mask: Tensor) -> Tensor:
    """Mask `(..., T, step * T)` of step `step`, from the mask `(..., T, T)` of the first."""
    own = torch.eye(first_mask.shape[-1], dtype=torch.bool, device=first_mask.device).expand_as(first_mask)
    return torch.cat([first_mask, *[own] * (step - 1)], dim=-1)


def causal_and_own(query_BHTD: Tensor, key_BHSD: Tensor, value_BHSD: Tensor) -> Tensor:
    """Attention `(B, H, T, D)` of row t to keys 1..t of the first T, and to key t of each further T.

    Args:
        query_BHTD: queries of this step.
        key_BHSD: keys of all steps so far, T of each; G heads, of which H is a multiple.
        value_BHSD: their values.
    """
    T, S = query_BHTD.shape[2], key_BHSD.shape[2]
    if not has_flash(query_BHTD):
        mask_TS = unrolled_mask(S // T, torch.ones(T, T, dtype=torch.bool, device=query_BHTD.device).tril())
        grouped = query_BHTD.shape[1] != key_BHSD.shape[1]
        return F.scaled_dot_product_attention(query_BHTD, key_BHSD, value_BHSD, attn_mask=mask_TS, enable_gqa=grouped)
    key_BHSD, value_BHSD = (_of_all_heads(x, query_BHTD) for x in (key_BHSD, value_BHSD))
    if prefers_blocks(query_BHTD):
        return in_blocks(query_BHTD, key_BHSD, value_BHSD)
    joined: Tensor = _forward_op(query_BHTD, key_BHSD, value_BHSD)[0]
    return joined


def _of_all_heads(x_BGSD: Tensor, query_BHTD: Tensor) -> Tensor:
    share = query_BHTD.shape[1] // x_BGSD.shape[1]
    return x_BGSD if share == 1 else x_BGSD.repeat_interleave(share, dim=1)


def prefers_blocks(query_BHTD: Tensor) -> bool:
    """Whether training is faster with `in_blocks`: in bf16 on a CPU, for rows of a few hundred tokens.

    There the flash kernel, forward and backward, takes twice as long (torch 2.13, AVX512-BF16); in fp32 it does not.
    """
    narrow = query_BHTD.device.type == "cpu" and query_BHTD.dtype == torch.bfloat16
    return narrow and torch.is_grad_enabled() and query_BHTD.shape[2] <= MOST_ROWS


def in_blocks(query_BHTD: Tensor, key_BGSD: Tensor, value_BGSD: Tensor) -> Tensor:
    """As `causal_and_own`, by plain products over blocks of queries and the keys up to their last; causal for S = T."""
    B, H, T, D = query_BHTD.shape
    key_BHSD, value_BHSD = (_of_all_heads(x, query_BHTD) for x in (key_BGSD, value_BGSD))
    query_BHTD = query_BHTD / math.sqrt(D)
    own_scores = [(query_BHTD * k_BHTD).sum(-1, keepdim=True) for k_BHTD in _own(key_BHSD, T)]
    q_NTD, k_NTD, v_NTD = (x[:, :, :T].reshape(B * H, T, D) for x in (query_BHTD, key_BHSD, value_BHSD))
    own_NTJ = torch.cat(own_scores, dim=-1).view(B * H, T, -1) if own_scores else None
    parts, shares = [], []
    for begin in range(0, T, BLOCK):
        end = min(begin + BLOCK, T)
        masked = torch.full((end - begin, end), -math.inf, dtype=q_NTD.dtype).triu_(begin + 1)
        scores = torch.bmm(q_NTD[:, begin:end], k_NTD[:, :end].transpose(1, 2)).add_(masked)
        if own_NTJ is not None:
            scores = torch.cat([scores, own_NTJ[:, begin:end]], dim=-1)
        p = scores.softmax(dim=-1)
        parts.append(torch.bmm(p[..., :end], v_NTD[:, :end]))
        shares.append(p[..., end:])
    out_BHTD, share_BHTJ = (torch.cat(x, dim=1).view(B, H, T, -1) for x in (parts, shares))
    for step, v_BHTD in enumerate(_own(value_BHSD, T)):
        out_BHTD = out_BHTD + share_BHTJ[..., step : step + 1] * v_BHTD
    return out_BHTD


def has_flash(query_BHTD: Tensor) -> bool:
    """Whether the flash kernel takes these queries: any on a CPU; on CUDA bf16 from Ampere on, in supported widths."""
    if not query_BHTD.is_cuda:
        return query_BHTD.device.type == "cpu"
    width = query_BHTD.shape[-1]
    known = query_BHTD.dtype == torch.bfloat16 and width % 8 == 0 and width <= 256
    return known and torch.version.hip is None and torch.cuda.get_device_properties(query_BHTD.device).major >= 8


def _forward(q_BHTD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, log-sum-exp over all keys (fp32 or wider), and the dropout seeds that the CUDA kernel asks for.

    The softmax over all keys is the softmax over the causal ones and over the others, weighted by their shares.
    """
    T = q_BHTD.shape[2]
    first_BHTD, lse_BHT, seed, offset = _flash(q_BHTD, k_BHSD[:, :, :T], v_BHSD[:, :, :T])
    scores = [_dot(q_BHTD, k_BHTD) / math.sqrt(q_BHTD.shape[-1]) for k_BHTD in _own(k_BHSD, T)]
    joint_BHT = torch.stack([lse_BHT, *scores]).logsumexp(dim=0)
    out_BHTD = first_BHTD * (lse_BHT - joint_BHT).exp()[..., None]
    for score_BHT, v_BHTD in zip(scores, _own(v_BHSD, T), strict=True):
        out_BHTD = out_BHTD + v_BHTD * (score_BHT - joint_BHT).exp()[..., None]
    return out_BHTD.to(q_BHTD.dtype), joint_BHT, seed, offset


def _backward(
    grad_BHTD: Tensor,
    q_BHTD: Tensor,
    k_BHSD: Tensor,
    v_BHSD: Tensor,
    out_BHTD: Tensor,
    joint_BHT: Tensor,
    seed: Tensor,
    offset: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the three inputs.

    No gradient of the log-sum-exp is needed: given the joint output and the joint log-sum-exp, the flash kernel's own
    backward pass computes the causal part of the joint gradient, since both enter it only as `P = exp(s - lse)` and
    `delta = sum(dO * O)`. PyTorch's context parallelism does the same (torch.distributed.tensor.experimental).
    """
    T, scale = q_BHTD.shape[2], 1 / math.sqrt(q_BHTD.shape[-1])
    first = (grad_BHTD, q_BHTD, k_BHSD[:, :, :T], v_BHSD[:, :, :T], out_BHTD, joint_BHT)
    grad_q, grad_k, grad_v = _flash_backward(*first, seed, offset)
    delta_BHT = _dot(grad_BHTD, out_BHTD)
    grad_q, keys, values = grad_q.to(joint_BHT.dtype), [grad_k], [grad_v]
    for k_BHTD, v_BHTD in zip(_own(k_BHSD, T), _own(v_BHSD, T), strict=True):
        p_BHT = (_dot(q_BHTD, k_BHTD) * scale - joint_BHT).exp()
        grad_score_BHT1 = (p_BHT * (_dot(grad_BHTD, v_BHTD) - delta_BHT) * scale)[..., None]
        grad_q = grad_q + grad_score_BHT1 * k_BHTD
        keys.append((grad_score_BHT1 * q_BHTD).to(k_BHTD.dtype))
        values.append((p_BHT[..., None] * grad_BHTD).to(v_BHTD.dtype))
    return grad_q.to(q_BHTD.dtype), torch.cat(keys, dim=2), torch.cat(values, dim=2)


def _own(x_BHSD: Tensor, num_rows: int) -> list[Tensor]:
    return list(x_BHSD.split(num_rows, dim=2)[1:])


def _dot(a_BHTD: Tensor, b_BHTD: Tensor) -> Tensor:
    """Row by row, summed in fp32 or wider."""
    wide = torch.promote_types(a_BHTD.dtype, torch.float32)
    return (a_BHTD.to(wide) * b_BHTD.to(wide)).sum(dim=-1)


def _flash(q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if q_BHTD.is_cuda:
        out, lse, _, _, _, _, seed, offset, _ = _ops._scaled_dot_product_flash_attention(
            q_BHTD, k_BHTD, v_BHTD, 0.0, True
        )
        return out, lse, seed, offset
    out, lse = _ops._scaled_dot_product_flash_attention_for_cpu(q_BHTD, k_BHTD, v_BHTD, 0.0, True)
    return out, lse, lse.new_empty(0), lse.new_empty(0)


def _flash_backward(*given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    *tensors, seed, offset = given
    if tensors[0].is_cuda:
        T = tensors[0].shape[2]
        grads = _ops._scaled_dot_product_flash_attention_backward(*tensors, None, None, T, T, 0.0, True, seed, offset)
    else:
        grads = _ops._scaled_dot_product_flash_attention_for_cpu_backward(*tensors, 0.0, True)
    return grads[0], grads[1], grads[2]


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _gradients(ctx: Any, grad_BHTD: Tensor, *_: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    grads: tuple[Tensor, Tensor, Tensor] = _backward_op(grad_BHTD, *ctx.saved_tensors)
    return grads


# Custom operators, which torch.compile calls as they are: with their arithmetic compiled, gradients were silently wrong
# where two layers followed each other (torch 2.13 on a CPU).
_forward_op = torch.library.custom_op("recyclegpt::causal_and_own", _forward, mutates_args=())
_backward_op = torch.library.custom_op("recyclegpt::causal_and_own_backward", _backward, mutates_args=())
# On tensors without values, the same calls give the shapes.
_forward_op.register_fake(_forward)
_backward_op.register_fake(_backward)
_forward_op.register_autograd(_gradients, setup_context=_save)
