"""Quality of a model on held-out rows and on whole texts of any length, and of the unigram model it has to beat.

A whole text is read in windows that overlap; each token is scored once, and there is a standard error.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from recyclegpt.data import Batch
from recyclegpt.evaluation.scoring import Pair, Scorer
from recyclegpt.models import RecycleGPT
from recyclegpt.training.dual_loss import DualLoss, LossConfig
from recyclegpt.training.held_out import HeldOutMetrics

TOKENS_AT_ONCE = 1 << 14
"""Of the windows of a batch."""
BLOCK = 64
"""Consecutive tokens whose errors may depend on each other; the standard error takes blocks as independent."""
NAMES = {"backbone": "backbone", "module": "recycle", "alternating": "alternating"}
"""Scoring: how its metrics end, as in training."""


@torch.no_grad()
def held_out_metrics(
    model: RecycleGPT, batches: Iterable[Batch], token_num_bytes_V: Tensor, autocast: torch.dtype | None = None
) -> dict[str, float]:
    """Losses, perplexities, bits per byte and agreement over all batches, under the names that training logs.

    Args:
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


def windows(text: Sequence[int], start: Sequence[int], length: int, multiple: int = 1) -> Iterator[Pair]:
    """A text in pieces to score, each behind as much of what precedes it as `length` tokens allow, at least half.

    Args:
        start: what the text begins after, at least one token.
        length: tokens that the model reads at a time; the last one of a piece is scored and never read.
        multiple: all pieces but the last have a multiple of this many tokens, where `length` allows.
    """

    def whole(size: int) -> int:
        return max(size - size % multiple, min(multiple, length), 1)

    row, begin, end = [*start, *text], len(start), len(start) + whole(length + 1 - len(start))
    while begin < len(row):
        piece = tuple(row[begin:end])
        yield Pair(tuple(row[max(0, begin + len(piece) - length - 1) : begin]), piece)
        begin, end = end, end + whole(length // 2)


def score_texts(
    scorer: Scorer, texts: Iterable[Sequence[int]], start: Sequence[int], length: int, token_num_bytes_V: Tensor
) -> tuple[dict[str, float], dict[str, float | None]]:
    """Losses (nats per token), perplexities and bits per byte of all texts together, by the names of training.

    Args:
        scorer: of the model; its scorings are all measured, alternating decoding as if it had begun with each text.
        texts: ids of each text, without tokens that begin or end it.
        start: tokens that stand before each, at least one.
        length: T, tokens that the model reads at a time.
        token_num_bytes_V: bytes of text that each token stands for.

    Returns:
        The values with the counts `tokens` and `bytes`, and the standard errors (None of less than two blocks).
    """
    blocks: dict[str, list[tuple[float, int]]] = {name: [] for name in scorer.scorings}
    sizes: list[int] = []
    num_bytes = token_num_bytes_V.tolist()
    pairs = (pair for text in texts for pair in windows(text, start, length, scorer.num_recycled + 1))
    while batch := list(itertools.islice(pairs, max(1, min(scorer.batch_size, TOKENS_AT_ONCE // length)))):
        for pair, log_p in zip(batch, scorer.token_log_p(batch), strict=True):
            ids = pair.continuation
            sizes += [sum(num_bytes[i] for i in ids[at : at + BLOCK]) for at in range(0, len(ids), BLOCK)]
            for name, log_p_N in log_p.items():
                blocks[name] += [(-float(part.sum()), len(part)) for part in log_p_N.split(BLOCK)]
    values: dict[str, float] = {}
    errors: dict[str, float | None] = {}
    for name, sums in blocks.items():
        loss, loss_error = _ratio(sums)
        bits, bits_error = _ratio([(nll / math.log(2), size) for (nll, _), size in zip(sums, sizes, strict=True)])
        suffix = NAMES[name]
        values |= {f"val/loss_{suffix}": loss, f"val/ppl_{suffix}": math.exp(min(loss, 700.0)), bits_name(name): bits}
        errors |= {f"val/loss_{suffix}": loss_error, bits_name(name): bits_error}
        # That of exp(x) is exp(x) times that of x.
        errors[f"val/ppl_{suffix}"] = None if loss_error is None else values[f"val/ppl_{suffix}"] * loss_error
    return values | {"tokens": sum(count for _, count in blocks["backbone"]), "bytes": sum(sizes)}, errors


def bits_name(scoring: str) -> str:
    """The tag of a scoring's bits per byte; training has the backbone's alone."""
    return "val/bits_per_byte" + ("" if scoring == "backbone" else f"_{NAMES[scoring]}")


def _ratio(sums_and_counts: Sequence[tuple[float, float]]) -> tuple[float, float | None]:
    count = math.fsum(n for _, n in sums_and_counts)
    if not count:
        return math.nan, None
    return math.fsum(total for total, _ in sums_and_counts) / count, ratio_stderr(sums_and_counts)


def ratio_stderr(sums_and_counts: Sequence[tuple[float, float]]) -> float | None:
    """Standard error of sum over count, both varying between texts, to first order; None for a single text."""
    num = len(sums_and_counts)
    if num < 2:
        return None
    count = math.fsum(n for _, n in sums_and_counts)
    mean = math.fsum(total for total, _ in sums_and_counts) / count
    squares = math.fsum((total - mean * n) ** 2 for total, n in sums_and_counts)
    return math.sqrt(num / (num - 1) * squares) / count
