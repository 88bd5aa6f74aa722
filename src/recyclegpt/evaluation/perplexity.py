"""Quality of a model on held-out text, and of the unigram model it has to beat."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from recyclegpt.data import Batch
from recyclegpt.models import RecycleGPT
from recyclegpt.training.dual_loss import DualLoss, LossConfig
from recyclegpt.training.held_out import HeldOutMetrics


@torch.no_grad()
def held_out_metrics(
    model: RecycleGPT, batches: Iterable[Batch], token_num_bytes_V: Tensor, autocast: torch.dtype | None = None
) -> dict[str, float]:
    """Losses, perplexities, bits per byte and agreement over all batches, under the names that training logs.

    Args:
        model: evaluated in its present dtype and on its device.
        batches: held-out rows.
        token_num_bytes_V: bytes of text each token stands for.
        autocast: dtype to compute in, as training's mixed precision does; None for the model's own.
    """
    device = model.lm_head.weight.device
    held_out = HeldOutMetrics(token_num_bytes_V, device)
    dual_loss = DualLoss(LossConfig())
    for batch in batches:
        views = batch.views_NBT.to(device)
        documents = None if batch.documents_NBT is None else batch.documents_NBT.to(device)
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            states = model.states(views, documents)
            terms = dual_loss(states, model.lm_head.weight, views, documents, draft_ids_D=model.draft_ids)
            held_out.add(terms, views)
    return held_out.metrics()


def unigram_loss(train_counts_V: Tensor, tokens: Tensor) -> float:
    """Nats a token of held-out `tokens` under the training split's token frequencies, each count plus one."""
    log_p_V = (train_counts_V.double() + 1).log() - math.log(float(train_counts_V.sum()) + len(train_counts_V))
    return float(-log_p_V[tokens.flatten().long()].mean())


@torch.no_grad()
def continuation_nll(model: RecycleGPT, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> float:
    """The backbone's nats per token of what a decoder wrote after each prompt; NaN if nothing was written."""
    total, count = 0.0, 0
    for prompt, text in zip(prompts, texts, strict=True):
        if not len(text):
            continue
        tokens = torch.tensor([[*prompt, *text]], device=model.lm_head.weight.device)
        states = model.backbone_states(tokens[:, :-1])[:, len(prompt) - 1 :]
        log_p = model.logits(states).float().log_softmax(-1)
        total -= float(log_p.gather(2, tokens[:, len(prompt) :, None]).sum())
        count += len(text)
    return total / count if count else math.nan
