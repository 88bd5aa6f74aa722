"""The training run of a GPU report: its settings, and as many steps as fit into what is left of the time.

The schedule of the learning rate has to know the number of steps before the first one. So the speed is taken from the
`training` part, which has measured this shape just before, and the steps are counted from it, instead of stopping a
run in the middle of its schedule (`trainer.max_time`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from recyclegpt.cli.compose import compose_or_explain
from recyclegpt.cli.instantiate import build_all
from recyclegpt.cli.run_folder import write_json
from recyclegpt.evaluation.flops import flops_per_token

EXPERIMENT = "gpt_125m_python"
SHAPE = "gpt_125m"
SHORTEST_S = 300.0
"""With less, most of it would not be training; the next start has more."""
START_S = 75.0
"""Importing, reading the cached corpus, compiling the first step."""
EPOCH_S = 8.0
"""Validation, decoding and a checkpoint, each epoch."""
MARGIN = 0.88
"""A step of the run does more than one of the benchmark: it reads rows, unrolls the module, logs."""
RUN_EXPECTED_S = 420.0


@dataclass(frozen=True)
class Planned:
    """The command of the run."""

    argv: tuple[str, ...]
    folder: Path
    seconds: float
    """What it is expected to take."""
    note: str


def train_settings(device: str, smoke: bool) -> tuple[str, ...]:
    """Overrides of `recyclegpt train`. A smoke run reads this package's own source: it is everywhere, and small."""
    experiment = f"experiment={EXPERIMENT}"
    if not smoke:
        return (experiment,)
    source = str(Path(__file__).parents[1]).replace("'", "\\'")
    corpus = ("data=python_stdlib", f"data.root='{source}'", "data.tokenizer.vocab_size=300")
    return (experiment, "debug=smoke", f"trainer={'gpu' if device == 'cuda' else 'cpu'}", *corpus)


def plan_run(
    folder: Path,
    code: str,
    settings: Sequence[str],
    corpus: Mapping[str, Any],
    measured: Mapping[str, Any] | None,
    seconds: float,
) -> Planned:
    """How the run is called. A plan that was made for this code and these settings is kept: its run can go on.

    Args:
        folder: of the part; the run's folder lies in it.
        code: commit and changes.
        settings: overrides of `train`.
        corpus: what `measure=corpus` found; its vocabulary decides what a step costs.
        measured: document of the training benchmark of `SHAPE`; None: it was not measured.
        seconds: that the run may take, from its start to its end.
    """
    asked = {"code": code, "settings": list(settings)}
    plan = _read(folder / "plan.json")
    if plan is None or {key: plan.get(key) for key in asked} != asked:
        cfg = compose_or_explain("train", list(settings), check_values=False)
        batches, note = _batches_an_epoch(cfg, corpus, measured, seconds)
        plan = asked | {"batches_an_epoch": batches, "seconds": max(seconds, SHORTEST_S), "note": note}
        if seconds >= SHORTEST_S:
            write_json(folder / "plan.json", plan)
    else:
        plan |= {"note": f"{plan['note']} As planned by an earlier start; without {folder} it is planned anew."}
    length = [f"trainer.limit_train_batches={plan['batches_an_epoch']}"] if plan["batches_an_epoch"] else []
    run = folder / f"run-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]}"
    quoted = str(run).replace("\\", "\\\\").replace("'", "\\'")
    argv = ("train", *settings, *length, "resume=auto", f"hydra.run.dir='{quoted}'")
    return Planned(argv, run, float(plan["seconds"]), str(plan["note"]))


def _batches_an_epoch(
    cfg: DictConfig, corpus: Mapping[str, Any], measured: Mapping[str, Any] | None, seconds: float
) -> tuple[int | None, str]:
    row = next((row for row in (measured or {}).get("rows", ()) if row.get("recycle_num_layers")), None)
    if row is None:
        return None, "Training speed was not measured before, so the run has the steps of its settings."
    rate = row["tokens_per_s"] * row["flops_per_token"] / _flops_per_token(cfg, int(corpus["vocab_size"]))
    batches = batches_that_fit(seconds, rate / (cfg.data.batch_size * cfg.data.row_length), cfg.trainer.max_epochs)
    return batches, f"{batches} batches an epoch fit into {seconds:.0f} s at an expected {rate:,.0f} tokens/s."


def batches_that_fit(seconds: float, batches_per_s: float, num_epochs: int) -> int:
    """Batches of an epoch, so that the whole run ends within `seconds`."""
    return max(1, int((seconds - START_S - num_epochs * EPOCH_S) * batches_per_s * MARGIN / num_epochs))


def _flops_per_token(cfg: DictConfig, vocab_size: int) -> float:
    built = build_all(cfg, ["model", "recycle"], {"model": {"vocab_size": vocab_size}})
    return flops_per_token(
        built["model"], built["recycle"], seq_len=cfg.data.row_length, num_unrolled=cfg.loss.num_unrolled
    ).total


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
