"""Where the time of a decoding cycle goes: backbone, classifier, module, choice of tokens, and what surrounds them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

from recyclegpt.benchmark.ceilings import as_graph
from recyclegpt.benchmark.speed import decode
from recyclegpt.decoding import Decoder, DraftTokens, Sampler, SamplingConfig, Strategy, VerifyLogits
from recyclegpt.decoding.sampling import most_likely
from recyclegpt.decoding.session import Session
from recyclegpt.hardware.stopwatch import Stopwatch

STAGES = ("backbone", "head", "module", "sampling", "state", "host")
"""`state` is what else the device does in a cycle: gathering and writing tokens, records. `host` is the loop around."""


@torch.no_grad()
def stage_seconds(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    strategy: Strategy,
    max_new_tokens: int,
    sampling: SamplingConfig | None = None,
    repetitions: int = 9,
) -> dict[str, float]:
    """Seconds of a cycle's stages, in `STAGES`, of these prompts as one batch.

    The stages of a cycle in the middle of the text are timed by themselves, in turn, and their medians taken; `state`
    and `host` are what is left of a whole cycle and of a whole generation, so all of them add up to the latter.
    """
    model, device, m = decoder.model, decoder.model.device, strategy.num_recycled
    sampler = Sampler.seeded(sampling or SamplingConfig(), len(prompts), 0, device)
    middle = max(len(prompt) for prompt in prompts) + max_new_tokens // 2
    session = Session(
        model, strategy, sampler, len(prompts), middle + 2 * m + 2, decoder.backbone_states, decoder.recycle
    )
    session.begin([[0] * middle for _ in prompts], [middle + m + 1] * len(prompts), middle + 2 * m + 2)
    positions_BT = session.position_B[:, None] + session.block_T
    block_BT, num_slots_read = session.tokens_BS.gather(1, positions_BT), middle + 2 * m + 2
    hidden_BTC = session.backbone_states(block_BT, positions_BT, cache=session.cache, num_slots_read=num_slots_read)
    logits_BTV, state_BTC = model.logits(hidden_BTC), hidden_BTC[:, :1].contiguous()
    proposals = DraftTokens(block_BT[:, 1:], session.num_drafted_B, session.proposed_BmV)

    def module() -> None:
        if m:
            session.recycle(
                block_BT, hidden_BTC, positions_BT, cache=session.draft_cache, num_slots_read=num_slots_read
            )
        for _ in range(m - 1):
            session.recycle(
                block_BT[:, :1],
                state_BTC,
                positions_BT[:, :1],
                cache=session.draft_cache,
                num_slots_read=num_slots_read,
            )

    def head() -> None:
        model.logits(hidden_BTC)
        for _ in range(m):
            model.logits(state_BTC[:, 0])

    def choose() -> None:
        strategy.verify(VerifyLogits(logits_BTV, most_likely(logits_BTV), None), proposals, sampler)
        for step in range(1, m + 1):
            sampler.choose(logits_BTV[:, 0], step)

    def whole() -> None:
        session.position_B.fill_(middle)
        session.cycle(num_slots_read)

    timed: dict[str, Callable[[], object]] = {
        "backbone": lambda: session.backbone_states(
            block_BT, positions_BT, cache=session.cache, num_slots_read=num_slots_read
        ),
        "head": head,
        "module": module,
        "sampling": choose,
        "cycle": whole,
    }
    timed = {name: as_graph(run, device) for name, run in timed.items()}
    samples: dict[str, list[float]] = {name: [] for name in [*timed, "generation"]}
    stopwatch = Stopwatch(device)
    for _ in range(repetitions + 2):
        for name, seconds_once in zip(timed, stopwatch.seconds(*timed.values()), strict=True):
            samples[name].append(seconds_once)
    for _ in range(3):
        run_all = decode(decoder, prompts, strategy, max_new_tokens, sampling, batch=len(prompts))
        samples["generation"].append(run_all.seconds / max(1, run_all.num_passes))
    median = {name: statistics.median(values[2:]) for name, values in samples.items()}
    seconds = {name: median[name] for name in STAGES[:4]}
    seconds["state"] = median["cycle"] - sum(seconds.values())
    seconds["host"] = median["generation"] - median["cycle"]
    return seconds
