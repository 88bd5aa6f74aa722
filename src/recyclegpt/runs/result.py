"""`result.json`, which says what came out of a run, and the table that is printed from it."""

from __future__ import annotations

import math
from typing import Any

from recyclegpt.callbacks.tensorboard import BY_POSITION, RESULTS
from recyclegpt.console import format_table

FORMAT = 1
METRICS = ("val/loss_unigram", *RESULTS)


def make_result(
    status: str, config_hash: str, seed: int, error: BaseException | None = None, **sections: dict[str, Any]
) -> dict[str, Any]:
    """The document. Sections not given are empty; a metric that was not measured is None."""
    given = sections.get("metrics", {})
    metrics = {name: given.get(name) for name in (*METRICS, *(tag for tag in given if tag.startswith(BY_POSITION)))}
    document: dict[str, Any] = {"format": FORMAT, "status": status, "config_hash": config_hash, "seed": seed}
    if error is not None:
        lines = [line for line in str(error).splitlines() if line.strip()]
        document["error"] = f"{type(error).__name__}: {lines[-1] if lines else ''}"
    return document | {
        "model": sections.get("model", {}),
        "metrics": metrics,
        "train": sections.get("train", {}),
        "hardware": sections.get("hardware", {}),
    }


def result_table(result: dict[str, Any], num_recycled: int) -> str:
    """The result for people: quality of the backbone and the module, speed of the decoders next to their ceilings."""
    nan = math.nan
    metrics = {name: nan if value is None else value for name, value in result["metrics"].items()}
    unigram, backbone, module = (metrics[f"val/loss_{name}"] for name in ("unigram", "backbone", "recycle"))
    alternating = metrics["val/ppl_alternating"]
    quality = [
        ("backbone", backbone, metrics["val/ppl_backbone"], metrics["val/bits_per_byte"], nan),
        ("module", module, metrics["val/ppl_recycle"], nan, metrics["val/agreement"]),
        ("alternating", math.log(alternating), alternating, nan, nan),
        ("unigram model", unigram, math.exp(unigram), nan, nan),
    ]
    header = ("held-out quality", "loss (nats)", "perplexity", "bits/byte", "agreement")
    tables = [format_table(quality, header)] if math.isfinite(backbone) else []  # else without validation
    hardware, train, model = result["hardware"], result["train"], result["model"]
    notes = []
    if math.isfinite(metrics["decode/tokens_per_s_autoregressive"]):  # else without the monitor
        tables.append(_speed_table(metrics))
        notes.append(
            f"{num_recycled} token{'' if num_recycled == 1 else 's'} recycled per backbone pass, batch 1, "
            f"{hardware['decode_dtype']} on {hardware['device']}, {hardware['threads']} threads"
        )
    if math.isfinite(metrics["decode/verify_cost"]):
        notes.append(
            f"ceilings: from the measured costs of the passes (verify cost {metrics['decode/verify_cost']:.2f}, "
            f"draft cost {metrics['decode/draft_cost']:.2f}); by bytes read "
            f"{metrics['decode/ceiling_bytes']:.2f} for alternating"
        )
    notes.append(
        f"{model['num_parameters']:,} parameters, {model['num_parameters_recycle']:,} of them in the module; "
        f"{train['tokens']:,} tokens in {train['steps']} steps, {train['seconds']:.0f} s of training "
        f"at {train['tokens_per_s']:.0f} tokens/s"
    )
    if hardware["contended"]:
        notes.append("contended: other processes were using the CPU; speeds are unreliable")
    return "\n" + "\n\n".join([*tables, "\n".join(notes)])


def _speed_table(metrics: dict[str, float]) -> str:
    share = {"alternating": metrics["decode/agreement"], "verified": metrics["decode/acceptance"]}
    return format_table(
        [
            (
                name,
                metrics[f"decode/tokens_per_s_{name}"],
                metrics.get(f"decode/speedup_{name}", 1.0),
                metrics.get(f"decode/ceiling_{name}", math.nan),
                share.get(name, math.nan),
                metrics.get(f"decode/nll_{name}", metrics["decode/nll_autoregressive"]),
            )
            for name in ("autoregressive", "alternating", "verified")
        ],
        header=("decoding", "tokens/s", "speedup", "ceiling", "agreement/acceptance", "nats/token of its text"),
    )
