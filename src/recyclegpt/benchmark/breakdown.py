"""Where the time of a decoding step goes: backbone, LM head, module, choice of tokens, and what surrounds them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

from recyclegpt.benchmark.ceilings import as_graph
from recyclegpt.benchmark.speed import decode
from recyclegpt.decoding import Decoder, DraftTokens, Sampler, SamplingConfig, Strategy, VerifyLogits
from recyclegpt.decoding.drafters import ModuleDrafter
from recyclegpt.decoding.sampling import most_likely
from recyclegpt.decoding.session import Session
from recyclegpt.hardware.stopwatch import Stopwatch

PARTS = ("backbone", "head", "module", "sampling", "state", "host")
"""`head` is the LM head, `state` what else the device does in a step: gathering and writing tokens, records. `host` is
the loop around it."""
ROUNDS = 9


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
    one = block_BT[:, :1], hidden_BTC[:, :1].contiguous(), positions_BT[:, :1]
    drafts = DraftTokens(block_BT[:, 1:], torch.full_like(session.text.position_B, m), None)

    def backbone() -> None:
        session.backbone_states(block_BT, positions_BT, cache=session.cache, num_slots_read=num_slots)

    def head() -> None:
        model.logits(hidden_BTC)
        for _ in range(m):
            model.draft_logits(one[1][:, 0])

    def module() -> None:
        if isinstance(session.drafter, ModuleDrafter):
            for given in [(block_BT, hidden_BTC, positions_BT), *[one] * (m - 1)]:
                session.drafter.recycle(*given, cache=session.drafter.cache, num_slots_read=num_slots)

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
