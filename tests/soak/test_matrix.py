"""The whole resume matrix, each case with a SIGKILL of its own at an exact place."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

POINTS = {
    "first step": "training_step,0,1,0,SIGKILL",
    "inside an accumulation window": "training_step,0,7,0,SIGKILL",
    "validation step": "validation_step,0,1,0,SIGKILL",
    "epoch boundary": "on_train_epoch_start,1,0,0,SIGKILL",
    "mid epoch": "training_step,1,2,0,SIGKILL",
    "last step": "training_step,1,11,0,SIGKILL",
}
SETTINGS = ("trainer.limit_train_batches=12", "trainer.accumulate_grad_batches=2", "checkpointing.every_n_steps=3")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_matrix(make_runs: Callable[..., Any], num_workers: int, precision: str) -> None:
    runs = make_runs(*SETTINGS, f"data.num_workers={num_workers}", f"trainer.precision={precision}")
    runs.finish("reference")
    for number, place in enumerate(POINTS.values()):
        name = f"point{number}"
        assert runs.start(name, kill_at=place).wait(300) == -signal.SIGKILL
        runs.finish(name)
        runs.assert_equal(name, "reference")
    for place in POINTS.values():  # in the order of the run: a resume of a resume of a resume
        code = runs.start("all", kill_at=place).wait(300)
        assert code == -signal.SIGKILL, place
    runs.finish("all")
    runs.assert_equal("all", "reference")
