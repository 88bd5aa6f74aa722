"""A GPU report made by hand: numbers invented for the tests, in the form that the measurements leave."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def decode_row(shape: str, strategy: str, **changes: Any) -> Row:
    """A row of the decoding benchmark."""
    return {
        "shape": shape,
        "call": "depths",
        "strategy": strategy,
        "recycle_num_layers": 6,
        "num_recycled": 0 if strategy == "autoregressive" else 1,
        "batch": 1,
        "tokens_per_s": 1000.0,
        "speedup": 1.0 if strategy == "autoregressive" else 1.6,
        "ceiling_measured": 1.7,
        "ceiling_bytes": 1.68,
        "acceptance": None,
        "acceptance_given": strategy == "verified",
        "rho": 1.0,
        "c": 0.2,
        "bandwidth_utilisation": 0.72,
        **changes,
    }


def training_rows(shape: str, mfu: float, time_share: float) -> list[Row]:
    """With and without module."""
    rate = {"tokens_per_s": 1e5, "step_s": 0.3, "peak_memory_bytes": 3e10}
    with_module = {"recycle_num_layers": 2, "mfu": mfu, "flops_share": 0.2, "time_share": time_share}
    return [
        {"shape": shape, "variant": "module", **rate, **with_module},
        {"shape": shape, "variant": "none", **rate, "recycle_num_layers": 0, "mfu": mfu + 0.02},
    ]


KERNEL = {
    "kernel": "lm_head", "outputs": 32000, "inputs": 1664, "rows": 1, "sizes": "null", "fetch": False, "overlap": True,
    "seconds": 28e-6, "bytes": 106_496_000, "bytes_per_s": 3.8e12, "of_copy": 0.884,
}  # fmt: skip


def calls(*names: str) -> list[Row]:
    """Complete ones."""
    return [{"name": name, "status": "complete", "seconds": 9.0, "command": "", "error": None} for name in names]


def gpu_document(**changes: Any) -> dict[str, Any]:
    """`report.json` of a start in which everything was measured."""
    decode = [
        decode_row("paper_1b3", "autoregressive", call="baseline"),
        decode_row("paper_1b3", "alternating", call="baseline"),
        decode_row(
            "paper_1b3", "transformers", call="baseline", speedup=0.8,
            tokens_per_s_by_cache={"dynamic": 200.0, "static": 180.0, "static compiled": 800.0},
        ),
    ]  # fmt: skip
    for shape, gain in (("gpt_125m", 0.1), ("gpt_350m", 0.2), ("paper_1b3", 0.3)):
        for depth in (1, 2, 6):
            known = {"recycle_num_layers": depth}
            decode.append(decode_row(shape, "autoregressive", bandwidth_utilisation=0.5 + gain, **known))
            for m in (1, 2, 4):
                ceiling = (1 + m) / (1 + m * (0.1 + depth / 20)) + gain
                for name, kept in (("alternating", 1.0), ("verified", 0.8 + m / 500)):
                    speedup = (ceiling - 0.1) * (1 + m * kept) / (1 + m)
                    many = {"num_recycled": m, "ceiling_measured": ceiling, "acceptance": kept}
                    decode.append(decode_row(shape, name, speedup=speedup, **many, **known))
        for batch in (1, 4, 16, 64):
            slower = 1 - batch / 200
            rate = 900.0 * batch * slower
            decode.append(decode_row(shape, "autoregressive", call="batches", batch=batch, tokens_per_s=rate))
            alternating = {"tokens_per_s": rate * 1.5 * slower, "speedup": 1.5 * slower}
            decode.append(decode_row(shape, "alternating", call="batches", batch=batch, **alternating))
    trained = [decode_row("trained", "autoregressive")]
    for m, kept in ((1, 0.85), (2, 0.75), (4, 0.55)):
        own = {"num_recycled": m, "recycle_num_layers": 1, "acceptance_given": False}
        trained.append(decode_row("trained", "alternating", speedup=1.7 + m / 3, agreement=kept, acceptance=1.0, **own))
        trained.append(decode_row("trained", "verified", speedup=1 + 0.9 * m * kept - 0.1 * m, acceptance=kept, **own))
    curve = [[step * 1e5, 9 - step / 10] for step in range(1, 60)]
    stages = {"backbone": 1e-3, "head": 1e-4, "module": 3e-4, "sampling": 1e-5, "state": 1e-5, "host": 1e-5}
    return {
        "format": 1,
        "kind": "gpu-report",
        "smoke": False,
        "command": "recyclegpt gpu-report",
        "budget_s": 600.0,
        "git": {"commit": "a" * 40, "dirty": False, "diff_sha256": None},
        "environment": {
            "device": "NVIDIA H200", "driver": "580.1", "cuda": "13.0", "torch": "2.13.0", "python": "3.12.1",
            "copy_bytes_per_s": 4.3e12, "matmul_flops_per_s": 7.5e14,
        },
        "parts": {
            "environment": {"status": "complete", "seconds": 20.0, "calls": calls("doctor", "machine")},
            "kernels": {"status": "complete", "seconds": 9.0, "calls": calls("kernels"), "rows": [KERNEL]},
            "decode": {
                "status": "complete", "seconds": 100.0, "calls": calls("baseline", "depths-gpt_125m"), "rows": decode,
                "stages": [{"shape": "paper_1b3", "call": "baseline", "decoder": "autoregressive", **stages}],
            },
            "training": {
                "status": "complete", "seconds": 60.0, "calls": calls("gpt_125m", "gpt_350m", "paper_1b3"),
                "rows": [
                    *training_rows("gpt_125m", 0.41, 0.22),
                    *training_rows("gpt_350m", 0.47, 0.24),
                    *training_rows("paper_1b3", 0.52, 0.21),
                ],
                "profiles": {
                    "gpt_350m, module": [["operation", "CUDA time", "share", "calls"], ["mm", "9ms", "9%", "8"]]
                },
            },
            "train": {
                "status": "complete", "seconds": 240.0, "calls": calls("corpus", "run"), "monitor_share": 0.02,
                "result": {"train": {"tokens": 6e7, "steps": 900, "seconds": 200.0, "tokens_per_s": 3e5}},
                "corpus": {
                    "kind": "python_packages", "train_tokens": 10**8, "vocab_size": 16384, "held_out": ["attrs"]
                },
                "decoding": [{"epoch": epoch} for epoch in range(5)],
                "curves": {
                    "train/loss_backbone": curve, "train/loss_recycle": [[x, y + 0.5] for x, y in curve],
                    "val/agreement": [[x * 1e6, x / 10] for x in range(1, 6)],
                    "decode/acceptance": [[x * 1e6, x / 8] for x in range(1, 6)],
                    "decode/speedup_alternating": [[x * 1e6, 1.7] for x in range(1, 6)],
                    "decode/speedup_verified": [[x * 1e6, 1 + x / 9] for x in range(1, 6)],
                },
            },
            "trained": {
                "status": "complete", "seconds": 45.0, "calls": calls("bench", "evaluate"), "rows": trained,
                "metrics": {"val/ppl_backbone": 4.5, "val/agreement": 0.8},
            },
        },
        **changes,
    }  # fmt: skip
