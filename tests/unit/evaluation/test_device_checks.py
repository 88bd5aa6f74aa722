"""The checks of a device pass where all is right, and each fails where its fast path is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from recyclegpt.decoding import Verified
from recyclegpt.evaluation import device_checks as checked

CPU = torch.device("cpu")


def test_all_is_right_here() -> None:
    rows = checked.device_checks(CPU, tiny=True)
    assert len(rows) == 5
    assert [row for row in rows if not row["passed"]] == []
    equal = ("text", "Muon")  # to the last bit on a CPU
    assert all(row["error"] > 0 for row in rows if not any(word in row["check"] for word in equal))


def off_by(share: float) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a function whose result is wrong by this share."""

    def spoil(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: function(*args, **kwargs) * (1 + share)

    return spoil


def failed(name: str) -> list[str]:
    rows = checked.device_checks(CPU, tiny=True, only=name)
    assert all(row["why"] is None for row in rows)
    return [row["check"] for row in rows if not row["passed"]]


def test_wrong_attention_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked, "causal_and_own", off_by(0.05)(checked.causal_and_own))
    assert failed("unrolled")


def test_a_wrong_loss_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = checked.chunked_cross_entropy

    def wrong(*args: Any, **kwargs: Any) -> Any:
        rows = plain(*args, **kwargs)
        return rows._replace(total=rows.total * 1.05)

    monkeypatch.setattr(checked, "chunked_cross_entropy", wrong)
    assert failed("cross entropy")


def test_a_wrong_update_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked.Muon, "step_batched", lambda self: [torch.optim.Muon.step(self) for _ in range(2)])
    assert failed("Muon")


def test_wrong_logits_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = checked.fuse

    def wrong(model: Any, dtype: torch.dtype, use_kernels: bool) -> Any:
        fused = plain(model, dtype, use_kernels=use_kernels)
        if use_kernels:
            monkeypatch.setattr(fused, "classify", off_by(0.05)(fused.classify))
        return fused

    monkeypatch.setattr(checked, "fuse", wrong)
    assert failed("logits")


def test_text_that_is_not_lossless_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def keep_all(self: Verified, reading: Any, proposals: Any, sampler: Any) -> tuple[Tensor, Tensor]:
        return proposals.count_B, reading.best_BT.gather(1, proposals.count_B[:, None]).squeeze(1)

    monkeypatch.setattr(Verified, "judge", keep_all)
    assert failed("verified")


def test_a_check_that_breaks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked, "batched_muon", lambda _model: 1 / 0)
    (row,) = checked.device_checks(CPU, tiny=True, only="Muon")
    assert row == {
        "check": "training: Muon in batched products",
        "error": None,
        "allowed": None,
        "passed": False,
        "why": "ZeroDivisionError: division by zero",
    }
