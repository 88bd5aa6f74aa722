"""What `auto` settings of a training run stand for, on a machine with a GPU and without."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf

from recyclegpt.runs.trainer import matmul_precision, trains_on


@pytest.mark.parametrize(
    ("accelerator", "there", "device"),
    [("gpu", True, "cuda"), ("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu")],
)
def test_auto_follows_the_device(accelerator: str, there: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    cfg = OmegaConf.create({"trainer": {"accelerator": accelerator, "precision": "auto"}})
    assert trains_on(cfg).type == device
    assert matmul_precision(cfg) == ("high" if device == "cuda" else "highest")
    cfg.trainer.precision = "32-true"
    assert matmul_precision(cfg) == "highest", "fp32 was asked for by name"
