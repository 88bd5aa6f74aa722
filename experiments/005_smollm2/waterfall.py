"""What each lever of lossless decoding gains, by the cost model and measured: a part of `measure.py`.

With rho(n) the cost of a backbone pass over n tokens and c_n that of a module call over n rows, both over a pass of one
token, a step that drafts d tokens and keeps tau - 1 of them is `tau / (rho(1 + d) + c_{m+1} + calls * c_1)` times as
fast as autoregressive decoding. Costs are timed by themselves; tau and d are what the texts gave.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recyclegpt.benchmark.ceilings import Passes
from recyclegpt.benchmark.prompt_set import Contender
from recyclegpt.decoding import Autoregressive, Decoder, make_strategy
from recyclegpt.hardware.measure import Stopwatch
from recyclegpt.models import RecycleGPT

Row = dict[str, Any]
POSITION, ROUNDS = 256, 15


def with_full_head(model: RecycleGPT) -> RecycleGPT:
    """The same weights; the module may propose every token."""
    full = RecycleGPT(model.config, dataclasses.replace(model.recycle_config, draft_vocab=None)).eval()
    weights = {name: weight for name, weight in model.state_dict().items() if not name.endswith("draft_ids")}
    full.load_state_dict(weights)
    return full


def levers(model: RecycleGPT, m: int, m_with_lookup: int) -> list[Contender]:
    """One lever more each, in bf16."""
    full, cut = (Decoder.optimised(one, torch.bfloat16) for one in (with_full_head(model), model))
    light = Decoder.optimised(model, torch.bfloat16, draft_dtype=torch.int8)
    lookup = {"drafter": "ngram+module"}
    steps = [
        ("autoregressive", light, Autoregressive()),
        ("module", full, make_strategy("verified", m)),
        ("draft vocabulary", cut, make_strategy("verified", m)),
        ("int8 module", light, make_strategy("verified", m)),
        ("n-gram lookup first", light, make_strategy("verified", m_with_lookup, **lookup)),
        ("adaptive length", light, make_strategy("verified", 7, adaptive=True, **lookup)),
    ]
    return [Contender(decoder, strategy, {"dtype": "bfloat16", "lever": name}) for name, decoder, strategy in steps]


def looked_up(prompts: Sequence[list[int]], texts: Sequence[list[int]]) -> float:
    """Share of the places in these texts whose last token stood before: there lookup drafts, not the module."""
    found = [
        token in {*row[:place]}
        for prompt, text in zip(prompts, texts, strict=True)
        for row in [prompt + text]
        for place, token in enumerate(row[:-1])
        if place >= len(prompt)
    ]
    return statistics.fmean(found) if found else 0.0


@torch.no_grad()
def predicted(contender: Contender, row: Row, share_looked_up: float) -> Row:
    """The cost model's speedup for what a table's row says was drafted and accepted, and the costs that it uses."""
    strategy, m = contender.strategy, contender.strategy.num_recycled
    if not m:
        return {"predicted": 1.0, "verify_cost": None, "draft_cost": None}
    by_module = 1 - share_looked_up if strategy.drafter.startswith("ngram") else 1.0
    position = min(POSITION, contender.decoder.model.config.context_length // 2)
    passes = Passes(contender.decoder, position, m + 1)
    widths = sorted({1, 2, 4, m + 1} & {*range(m + 2)})
    calls = [*map(passes.backbone, widths), passes.drafts(m + 1, 1), passes.drafts(1, 1)]
    stopwatch = Stopwatch(contender.decoder.model.device)
    rounds = [stopwatch.seconds(*calls) for _ in range(ROUNDS + 2)][2:]
    *rho, read, draft = (statistics.median(times[n] / times[0] for times in rounds) for n in range(len(calls)))
    tau, acceptance = row["mean_accepted_length"], row["acceptance"]
    drafted = (tau - 1) / acceptance if acceptance else float(m)
    singles = by_module * (min(m - 1, drafted) if strategy.adaptive else m - 1)
    cost = float(np.interp(1 + drafted, widths, rho)) + read + singles * draft
    return {"predicted": tau / cost, "verify_cost": rho[-1], "draft_cost": draft}


def draw(rows: Sequence[Row], file: Path) -> None:
    """Bars from lever to lever, the cost model's beside the measured ones."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(8.5, 4.2), layout="constrained")
    axis = canvas.add_subplot()
    places = np.arange(len(rows))
    for shift, key, colour in ((-0.2, "predicted", "#999999"), (0.2, "speedup", "#0072B2")):
        tops = [row[key] for row in rows]
        begins = [0.0, *(min(pair) for pair in itertools.pairwise(tops))]
        heights = [top if not place else abs(top - tops[place - 1]) for place, top in enumerate(tops)]
        errors = None
        if key == "speedup":
            ends = zip(*(row["speedup_interval"] for row in rows), strict=True)
            errors = [[abs(top - end) for top, end in zip(tops, of, strict=True)] for of in ends]
        axis.bar(places + shift, heights, 0.38, begins, color=colour, label="cost model" if shift < 0 else "measured")
        axis.errorbar(places + shift, tops, yerr=errors, fmt="_", color="black", capsize=3)
        for place, top in zip(places + shift, tops, strict=True):
            axis.annotate(
                f"{top:.2f}", (place, top), xytext=(0, 5), textcoords="offset points", ha="center", fontsize=8
            )
    axis.set_xticks(places, [row["lever"].replace(" ", "\n", 1) for row in rows])
    axis.set_ylabel("speedup over autoregressive decoding")
    axis.set_title("Each lever added to those on its left, bf16, same texts", fontsize=10)
    axis.legend(frameon=False)
    canvas.savefig(file, dpi=130)
