"""`result.json`, the file a run is known by, and the table that is printed from it."""

from __future__ import annotations

import math
from typing import Any

from recyclegpt.console import format_table

FORMAT = 1
METRICS = (
    "val/loss_unigram",
    "val/loss_backbone",
    "val/loss_recycle",
    "val/ppl_backbone",
    "val/ppl_recycle",
    "val/ppl_alternating",
    "val/bits_per_byte",
    "val/agreement",
    "decode/tokens_per_s_autoregressive",
    "decode/tokens_per_s_alternating",
    "decode/tokens_per_s_verified",
    "decode/speedup_alternating",
    "decode/speedup_verified",
    "decode/ceiling_alternating",
    "decode/ceiling_verified",
    "decode/ceiling_bytes",
    "decode/rho",
    "decode/c",
    "decode/agreement",
    "decode/acceptance",
    "decode/nll_autoregressive",
    "decode/nll_alternating",
)


def make_result(
    status: str, config_hash: str, seed: int, error: BaseException | None = None, **sections: dict[str, Any]
) -> dict[str, Any]:
    """The document. Sections not given are empty; a metric that was not measured is null."""
    metrics = {name: _number(sections.get("metrics", {}).get(name)) for name in METRICS}
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
    """What a run came to, for people: quality of the three ways of decoding, their speed, and the ceiling."""
    metrics = {name: math.nan if value is None else value for name, value in result["metrics"].items()}
    quality = format_table(
        [
            (
                "backbone",
                metrics["val/loss_backbone"],
                metrics["val/ppl_backbone"],
                metrics["val/bits_per_byte"],
                math.nan,
            ),
            ("module", metrics["val/loss_recycle"], metrics["val/ppl_recycle"], math.nan, metrics["val/agreement"]),
            (
                "alternating",
                (metrics["val/loss_backbone"] + metrics["val/loss_recycle"]) / 2,
                metrics["val/ppl_alternating"],
                math.nan,
                math.nan,
            ),
            ("unigram model", metrics["val/loss_unigram"], math.exp(metrics["val/loss_unigram"]), math.nan, math.nan),
        ],
        header=("held-out quality", "loss (nats)", "perplexity", "bits/byte", "agreement"),
    )
    share = {"alternating": metrics["decode/agreement"], "verified": metrics["decode/acceptance"]}
    speed = format_table(
        [
            (
                name,
                metrics[f"decode/tokens_per_s_{name}"],
                1.0 if name == "autoregressive" else metrics[f"decode/speedup_{name}"],
                math.nan if name == "autoregressive" else metrics[f"decode/ceiling_{name}"],
                share.get(name, math.nan),
                metrics.get(f"decode/nll_{name}", metrics["decode/nll_autoregressive"]),
            )
            for name in ("autoregressive", "alternating", "verified")
        ],
        header=("decoding", "tokens/s", "speedup", "ceiling", "agreed/accepted", "nats/token of its text"),
    )
    hardware, train, model = result["hardware"], result["train"], result["model"]
    notes = [
        f"{num_recycled} token{'' if num_recycled == 1 else 's'} recycled per backbone pass, batch 1, "
        f"{hardware['decode_dtype']} on {hardware['device']}, {hardware['threads']} threads",
        f"ceiling: measured cost of the passes (rho {metrics['decode/rho']:.2f}, c {metrics['decode/c']:.2f}); "
        f"by bytes read {metrics['decode/ceiling_bytes']:.2f} for alternating",
        f"{model['num_parameters']:,} parameters, {model['num_parameters_recycle']:,} of them the module; "
        f"{train['tokens']:,} tokens in {train['steps']} steps, {train['seconds']:.0f} s of training "
        f"at {train['tokens_per_s']:.0f} tokens/s",
    ]
    if hardware["contended"]:
        notes.append("contended: other programs used the processors meanwhile, so these speeds are not to be trusted")
    return f"\n{quality}\n\n{speed}\n\n" + "\n".join(notes)


def _number(value: Any) -> float | None:
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None
