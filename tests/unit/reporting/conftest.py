"""Run folders made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.utils.tensorboard import SummaryWriter

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`make_run("a", depth=2, seed=1, ppl=30.0)` writes the folder of a complete run below `tmp_path/sweep`."""

    def make(
        name: str,
        *,
        depth: int = 1,
        seed: int = 1,
        weight: Any = 0.3,
        control: str | None = None,
        layers: int = 8,
        ppl: float = 30.0,
        status: str = "completed",
        error: str | None = None,
        contended: bool | None = False,
        metrics: dict[str, Any] | None = None,
        bench: dict[str, Any] | None = None,
        losses: int = 0,
    ) -> Path:
        folder = tmp_path / "sweep" / name
        (folder / ".hydra").mkdir(parents=True)
        overrides = [f"recycle.num_layers={depth}", f"seed={seed}", f"loss.recycle_weight={weight}"]
        overrides += [f"++sweep.control={control}"] if control else []
        config = {
            "model": {"num_layers": layers},
            "recycle": {"num_layers": depth},
            "loss": {"recycle_weight": weight, "num_unrolled": 1},
            "data": {"paths": "${paths.data}"},
            "decoding": {"num_recycled": 1},
            "seed": seed,
            "sweep": {"name": "s", "tag": "t", "control": control},
            "name": "x",
        }
        (folder / ".hydra/overrides.yaml").write_text(yaml.safe_dump(overrides))
        (folder / ".hydra/config.yaml").write_text(yaml.safe_dump(config))
        provenance = {
            "config_hash": f"hash-{name}",
            "started": "2026-01-01T00:00:00+00:00",
            "git": {"commit": "c" * 40, "dirty": False, "diff_sha256": None},
            "data_fingerprint": f"data{seed}",
        }
        (folder / "provenance.json").write_text(json.dumps(provenance))
        result = {
            "format": 1,
            "status": status,
            "config_hash": f"hash-{name}",
            "seed": seed,
            "model": {"num_parameters": 1000 + depth, "num_parameters_recycle": depth},
            "metrics": {
                "val/ppl_backbone": ppl,
                "val/ppl_recycle": ppl + 2 if depth else None,
                "val/ppl_alternating": ppl + 1 if depth else None,
                "val/agreement": 0.7 if depth else None,
                "decode/tokens_per_s_autoregressive": 100.0,
                "decode/speedup_alternating": 1.5 if depth else None,
                "decode/speedup_verified": 1.3 if depth else None,
                "decode/ceiling_alternating": 1.6 if depth else None,
                "decode/acceptance": 0.8 if depth else None,
                **(metrics or {}),
            },
            "train": {"steps": 200, "tokens": 20_000, "seconds": 10.0, "tokens_per_s": 2000.0},
            "hardware": {"device": "cpu", "threads": 2, "decode_dtype": "bfloat16", "contended": contended},
        }
        if error is not None:
            result["error"] = error
        if status != "unfinished":
            (folder / "result.json").write_text(json.dumps(result))
        if bench is not None:
            (folder / "bench.json").write_text(json.dumps(bench))
        if losses:
            writer = SummaryWriter(folder / "tensorboard")
            for step in range(losses):
                for number in range(8):
                    writer.add_scalar(f"other/{number}", step, step)
                writer.add_scalar("train/loss_backbone", 5 - step / losses, 10 * step + 9)
                if depth:
                    writer.add_scalar("train/loss_recycle", 6 - step / losses, 10 * step + 9)
            writer.close()
        return folder

    return make
