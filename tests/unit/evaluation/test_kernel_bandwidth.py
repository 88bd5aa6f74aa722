"""Times of kernels become bytes a second, for every product of a pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from recyclegpt.decoding.cuda_kernels import sizes
from recyclegpt.evaluation import kernel_bandwidth as module
from recyclegpt.evaluation.kernel_bandwidth import SHARED_BYTES, kernel_bandwidth, products
from recyclegpt.models import ModelConfig

PAPER = ModelConfig(32000, 2048, 38, 1664, 13, intermediate_size=4480)


def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed; it is made for Linux alone")
    config = ModelConfig(64, 96, 1, 64, 2, num_kv_heads=1, intermediate_size=96)
    monkeypatch.setattr(module, "SET_BYTES", 100_000)
    timed = []

    def timer(calls: Sequence[Callable[[], object]]) -> float:
        timed.append((len(calls), sizes.launch.overlap))
        return 1e-6

    rows = kernel_bandwidth(config, torch.device("cpu"), (1, 3), 96, timer=timer, copy_bytes_per_s=1e11)
    assert len(rows) == len(timed) == 2 * (6 * 5 + 2 + 4)
    assert [overlap for _, overlap in timed] == [row["overlap"] for row in rows]
    down = next(row for row in rows if row["kernel"] == "down_proj" and row["rows"] == 3 and row["overlap"])
    assert down["bytes"] == 2 * 64 * 96
    assert down["bytes_per_s"] == pytest.approx(2 * 64 * 96 / 1e-6)
    assert down["of_copy"] == pytest.approx(0.12288)
    assert down["sizes"] == {"outputs": 8, "parts": 8, "depth": 64, "stages": 4}
    whole = [row for row in rows if row["kernel"] == "whole pass"]
    assert {(row["rows"], row["fetch"], row["overlap"]) for row in whole} == {
        (n, fetch, overlap) for n in (1, 3) for fetch in (False, True) for overlap in (False, True)
    }
    layer = 64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 96 + 2 * 64
    assert whole[0]["bytes"] == 2 * (layer + 64 + 64 * 64)
    attend = [row for row in rows if row["kernel"] == "attend"][-1]
    assert attend["bytes"] == 2 * 2 * 96 * 32
    # Weights enough that none still lies in the cache when its turn comes again.
    parts = [pair for pair in zip(timed, rows, strict=True) if pair[1] not in whole]
    assert all(count * row["bytes"] >= 100_000 for (count, _), row in parts)


def test_products_are_those_of_the_layers() -> None:
    per_layer = sum(product.outputs * product.inputs for product in products(PAPER)[:4])
    assert per_layer == 4 * 1664**2 + 3 * 1664 * 4480
    assert {product.name: product.outputs for product in products(PAPER)}["lm_head"] == 32000


def test_candidates_fit() -> None:
    for product in products(PAPER):
        candidates = list(product.candidates())
        assert len(candidates) == len(set(candidates)) > 5
        assert all(how.shared_bytes(16 * product.halves) <= SHARED_BYTES for how in candidates)
        if product.halves == 2:
            assert all(product.outputs % how.outputs == 0 for how in candidates)
