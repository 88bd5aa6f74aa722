"""Where the time of a decoding step goes, and what each lever could gain on this machine and on these texts.

B batch 1, T positions, D draft vocabulary, m drafted tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from recyclegpt.benchmark.ceilings import Passes, as_graph, backbone_bytes
from recyclegpt.benchmark.speed import decode
from recyclegpt.decoding import Decoder, DraftTokens, Sampler, SamplingConfig, Strategy, VerifyLogits
from recyclegpt.decoding.drafters import BackbonePass, ModuleDrafter
from recyclegpt.decoding.sampling import most_likely
from recyclegpt.decoding.session import Session
from recyclegpt.hardware.measure import CopyTimer, Stopwatch
from recyclegpt.models import RecycleConfig, RecycleGPT

ROWS = (2, 4, 8, 16, 32, 64)
VOCABULARIES = (4096, 8192, 16384)
RANKS = 8
"""Choices of the drafter that are counted one by one."""
PARTS = ("backbone", "head", "module", "sampling", "state", "host")
"""`head` is the LM head, `state` what else the device does in a step: gathering and writing tokens, records. `host` is
the loop around it."""
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
    # A call of a module that does not tap the backbone does not depend on what that is.
    taps = model.recyclable is not None and model.recyclable.tap is not None
    shape = model.config if taps else dataclasses.replace(model.config, num_layers=1)
    for size in sizes if model.recyclable is not None else ():
        recycle: RecycleConfig = dataclasses.replace(model.recycle_config, draft_vocab=size)
        with device:
            small = RecycleGPT(shape, recycle).eval().to(model.dtype)
        drafting = Passes(Decoder.optimised(small, **optimised), position, 1)
        calls["draft_cost", size] = drafting.drafts(1, 1)
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
        reach = 1 + (model.recycle_config.num_drafted or num_recycled)  # tokens that a kind may read ahead
        T = len(row) - reach
        if model.recyclable is None or len(prompt) > T:
            continue
        views_NBT = torch.stack([row[None, step : step + T] for step in range(reach + 1)])
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


@torch.no_grad()
def step_breakdown(
    decoder: Decoder, prompts: Sequence[Sequence[int]], strategy: Strategy, max_new_tokens: int
) -> dict[str, float]:
    """Seconds of a greedy step's `PARTS`, with these prompts as one batch.

    The parts of a step in the middle of the text are timed on their own, in turn, and their medians taken; `state` and
    `host` are what is left of a whole step and of a whole generation, so all of them add up to the latter.
    """
    model, device, m = decoder.model, decoder.model.device, strategy.num_recycled
    sampler = Sampler.seeded(SamplingConfig(), len(prompts), 0, device)
    middle = max(len(prompt) for prompt in prompts) + max_new_tokens // 2
    num_slots = middle + 2 * m + 2
    session = Session(model, strategy, sampler, len(prompts), num_slots, decoder.backbone_states, decoder.recycle)
    session.prefill([[0] * middle for _ in prompts], [middle + m + 1] * len(prompts), num_slots)
    block_BT = session.text.tokens_BS[:, middle : middle + m + 1].contiguous()
    positions_BT = session.text.position_B[:, None] + session.block_T
    hidden_BTC = session.backbone_states(block_BT, positions_BT, cache=session.cache, num_slots_read=num_slots)
    logits_BTV, draft_logits_BD = model.logits(hidden_BTC), model.draft_logits(hidden_BTC[:, 0])
    newest_B = torch.full_like(session.text.position_B, m)
    drafts = DraftTokens(block_BT[:, 1:], newest_B, None)

    def backbone() -> None:
        session.backbone_states(block_BT, positions_BT, cache=session.cache, num_slots_read=num_slots)

    def head() -> None:
        model.logits(hidden_BTC)
        for _ in range(m):
            model.draft_logits(hidden_BTC[:, 0])

    def module() -> None:
        if isinstance(session.drafter, ModuleDrafter):
            state_BC = session.drafter.read(BackbonePass(hidden_BTC, positions_BT, newest_B, num_slots))
            for number in range(1, m):
                state_BC = session.drafter.following(state_BC, block_BT[:, 0], number, num_slots)

    def choose() -> None:
        best_BT = most_likely(logits_BTV)
        strategy.verify(VerifyLogits(logits_BTV, best_BT, best_BT, None), drafts, sampler)
        for number in range(1, m + 1):
            sampler.choose(draft_logits_BD, number, session.text.position_B, draft_ids=model.draft_ids)

    def step() -> None:
        session.text.position_B.fill_(middle)
        session.step(num_slots)

    timed: list[Callable[[], object]] = [as_graph(run, device) for run in (backbone, head, module, choose, step)]
    stopwatch = Stopwatch(device)
    rounds = [stopwatch.seconds(*timed) for _ in range(ROUNDS + 2)][2:]
    *parts, whole = map(statistics.median, zip(*rounds, strict=True))
    run = [decode(decoder, prompts, strategy, max_new_tokens, batch=len(prompts)) for _ in range(3)][-1]
    host = run.seconds / max(1, run.num_passes) - whole
    return dict(zip(PARTS, [*parts, whole - sum(parts), host], strict=True))
