"""What each lever of lossless decoding could gain on this machine and on these texts, measured before it is pulled.

B batch 1, T positions, D draft vocabulary, m drafted tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recyclegpt.benchmark.ceilings import Passes, backbone_bytes
from recyclegpt.decoding import Decoder
from recyclegpt.hardware.stopwatch import CopyTimer, Stopwatch
from recyclegpt.models import RecycleConfig, RecycleGPT

ROWS = (2, 4, 8, 16, 32, 64)
VOCABULARIES = (4096, 8192, 16384)
RANKS = 8
"""Choices of the drafter that are counted one by one."""
ROUNDS = 9


@torch.no_grad()
def cost_tables(decoder: Decoder, position: int, **optimised: Any) -> dict[str, Any]:
    """Costs of passes at a position in the context, over a one-token backbone pass in the same round.

    `optimised` are the arguments of `Decoder.optimised` that made the decoder.

    Returns:
        `verify_cost` by rows; `draft_cost` of a one-row module call by draft vocabulary; `bandwidth_share` of the
        one-token pass: its bytes per second over those of a copy.
    """
    model = decoder.model
    passes, device = Passes(decoder, position, max(ROWS)), model.device
    one = passes.backbone(1)
    calls = {("verify_cost", rows): passes.backbone(rows) for rows in ROWS}
    sizes = [*(size for size in VOCABULARIES if size < model.config.vocab_size), model.config.vocab_size]
    # A call of the module does not depend on what the backbone is.
    shape = dataclasses.replace(model.config, num_layers=1)
    for size in sizes if model.recyclable is not None else ():
        recycle: RecycleConfig = dataclasses.replace(model.recycle_config, draft_vocab=size)
        with device:
            small = RecycleGPT(shape, recycle).eval().to(model.dtype)
        drafting = Passes(Decoder.optimised(small, **optimised), position, 1)
        calls["draft_cost", size] = drafting.module(1)
    stopwatch, copies = Stopwatch(device), CopyTimer(device)
    rounds = []
    for _ in range(ROUNDS + 1):
        copies.measure(1)
        # Each after a backbone pass, as in a step: repeated alone, a module would find its weights in the cache.
        rounds.append(stopwatch.seconds(*(call for each in calls.values() for call in (one, each))))
    tables: dict[str, Any] = {"verify_cost": {"1": 1.0}, "draft_cost": {}}
    for number, (name, size) in enumerate(calls):
        ratios = [seconds[2 * number + 1] / seconds[2 * number] for seconds in rounds[1:]]
        tables[name][str(size)] = statistics.median(ratios)
    one_s = statistics.median(time for seconds in rounds[1:] for time in seconds[::2])
    return tables | {"bandwidth_share": backbone_bytes(model) / one_s / copies.bytes_per_s}


@torch.no_grad()
def text_tables(
    model: RecycleGPT,
    prompts: Sequence[list[int]],
    texts: Sequence[list[int]],
    num_recycled: int,
    counts_V: Tensor,
) -> dict[str, Any]:
    """How well the drafter knows the greedy text that a backbone wrote after each prompt, every token before it right.

    `counts_V` says how often each id occurs in a corpus; empty if unknown.

    Returns:
        `ranks`: for each position in a step, the share of the backbone's tokens that are the drafter's first, second,
        ... choice; the last number is the share of all others. `coverage`: share of the text's tokens among a corpus'
        most frequent ids.
    """
    ranks_mR = torch.zeros(num_recycled, RANKS + 1, dtype=torch.long)
    for prompt, text in zip(prompts, texts, strict=True):
        row = torch.tensor([*prompt, *text], device=model.device)
        T = len(row) - 1 - num_recycled
        if model.recyclable is None or len(prompt) > T:
            continue
        views_NBT = torch.stack([row[None, step : step + T] for step in range(num_recycled + 1)])
        for step, state_BTC in enumerate(model.states(views_NBT, num_unrolled=num_recycled)[1], start=1):
            # Row t of step k proposes token t + 1 + k; the first token of the text is the prefill's.
            begin = len(prompt) - 1
            logits_TD, target_T = model.draft_logits(state_BTC[0, begin:]), row[begin + 1 + step : 1 + step + T]
            offered_T = torch.ones_like(target_T, dtype=torch.bool)
            if model.draft_ids is not None:
                offered_T = torch.isin(target_T, model.draft_ids)
                target_T = torch.searchsorted(model.draft_ids, target_T).clamp(max=len(model.draft_ids) - 1)
            rank_T = (logits_TD > logits_TD.gather(1, target_T[:, None])).sum(dim=1).clamp(max=RANKS)
            ranks_mR[step - 1] += rank_T.where(offered_T, RANKS).bincount(minlength=RANKS + 1).cpu()
    shares_mR = ranks_mR / ranks_mR.sum(dim=1, keepdim=True).clamp(min=1)
    written = torch.tensor([token for text in texts for token in text])
    frequent_V = counts_V.cpu().argsort(descending=True, stable=True)
    coverage = {
        str(size): float(torch.isin(written, frequent_V[:size]).float().mean())
        for size in VOCABULARIES
        if size < len(frequent_V)
    }
    return {"ranks": shares_mR.tolist() if model.recyclable is not None else [], "coverage": coverage}
