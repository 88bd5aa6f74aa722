"""Two processes are interrupted, then resume with two: bit-identical, and all of them stop when one is asked to."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

STRATEGIES = {
    "ddp": ["trainer.devices=2", "trainer.strategy=ddp"],
    "fsdp": ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy.data_parallel_size=2"],
}
SETTINGS = ["trainer.limit_train_batches=12", "trainer.accumulate_grad_batches=2", "checkpointing.every_n_steps=3"]
INTERRUPTIONS = [
    ("training_step,0,9,1,SIGKILL", None),
    ("validation_step,0,1,0,SIGKILL", None),
    ("training_step,1,4,1,SIGTERM", 128 + signal.SIGTERM),
    ("training_step,1,8,0,SIGUSR1", 128 + signal.SIGUSR1),
]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_two_go_on_with_two(make_runs: Callable[..., Any], strategy: str, num_workers: int) -> None:
    runs = make_runs(*SETTINGS, *STRATEGIES[strategy], f"data.num_workers={num_workers}", "optimizer=muon")
    runs.finish("reference")
    for place, expected in INTERRUPTIONS:
        code = runs.start("parts", kill_at=place).wait(120)
        assert code == expected if expected else code != 0, place
    runs.finish("parts")
    runs.assert_equal("parts", "reference")
    assert {place[2] for place in runs.rows("parts")} == {0, 1}
