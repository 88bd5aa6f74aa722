"""Which speeds of a run count: the bench's before the monitor's, and none measured while the machine was shared."""

from __future__ import annotations

from typing import Any

from recyclegpt.reporting.plain_values import number
from recyclegpt.reporting.runs import Run

DECODERS = ("alternating", "verified")
SPEED_METRICS = (
    *(f"decode/tokens_per_s_{name}" for name in ("autoregressive", *DECODERS)),
    *(f"decode/speedup_{name}" for name in DECODERS),
    *(f"decode/ceiling_{name}" for name in DECODERS),
    "decode/verify_cost",
    "decode/draft_cost",
)
"""Metrics that other programs on the machine distort. The byte ceiling is arithmetic, and stays."""
SPEED_TRAIN = ("tokens_per_s", "seconds")


RENAMED = {"rho": "verify_cost", "c": "draft_cost", "tokens_per_pass": "mean_accepted_length"}
"""Keys in documents of earlier versions, with and without `decode/`."""


def leave_out_contended(run: Run) -> None:
    """Blank the speeds of a run whose machine was shared while they were measured."""
    if run.hardware.get("contended") is not True:
        return
    run.contended = True
    for name in SPEED_METRICS:
        if name in run.metrics:
            run.metrics[name] = None
    for name in SPEED_TRAIN:
        if name in run.train:
            run.train[name] = None


def take_bench(run: Run, document: dict[str, Any]) -> None:
    """Replace the monitor's speeds by those of `bench.json` at batch 1 and the run's own number of recycled tokens.

    Raises:
        ValueError: the document has no rows.
    """
    rows = document.get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("holds no list of rows")
    rows = [{RENAMED.get(key, key): value for key, value in row.items()} for row in rows]
    hardware = document.get("hardware")
    if isinstance(hardware, dict) and hardware.get("contended") is True:
        raise ValueError("its speeds are contended (other programs used the machine), and are left out")
    run.bench_hardware = hardware if isinstance(hardware, dict) else {}
    run.bench = [row for row in rows if row.get("batch", 1) == 1]
    num_recycled = run.settings.get("decoding.num_recycled", 1)
    dtype = run.hardware.get("decode_dtype")
    # A grid over dtypes has several rows per decoder; the run's own dtype comes first.
    mine = sorted(run.bench, key=lambda row: row.get("dtype") != dtype)
    for strategy in ("autoregressive", *DECODERS):
        for row in mine:
            if row.get("strategy") == strategy and (
                strategy == "autoregressive" or row.get("num_recycled") == num_recycled
            ):
                _take_row(run, strategy, row)
                break


def _take_row(run: Run, strategy: str, row: dict[str, Any]) -> None:
    names = {"tokens_per_s": f"decode/tokens_per_s_{strategy}"}
    if strategy != "autoregressive":
        names |= {"speedup": f"decode/speedup_{strategy}", "ceiling_measured": f"decode/ceiling_{strategy}"}
    if strategy == "alternating":
        names |= {key: f"decode/{key}" for key in ("verify_cost", "draft_cost", "ceiling_bytes", "agreement")}
    if strategy == "verified" and not row.get("acceptance_given"):
        names |= {key: f"decode/{key}" for key in ("acceptance", "mean_accepted_length")}
    for key, metric in names.items():
        value = number(row.get(key))
        if value is not None:
            run.metrics[metric] = value
