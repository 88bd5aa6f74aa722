"""What a GPU report measures by itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from recyclegpt.cli import gpu_report_measure as measure
from recyclegpt.evaluation.matmul_rate import matmul_flops_per_s

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_a_machine_is_known_by_its_rates() -> None:
    found = measure.machine(CPU, smoke=True)
    assert found["torch"] == torch.__version__
    assert found["copy_bytes_per_s"] > 1e6
    json.dumps(found)


def test_a_rate_counts_a_multiply_add_as_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recyclegpt.evaluation.stopwatch.Stopwatch.seconds", lambda _, *calls: [1e-3] * len(calls))
    assert matmul_flops_per_s(CPU, size=10) == pytest.approx(2e6)


def test_a_cuda_device_is_told_with_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        major, minor, total_memory, multi_processor_count = 9, 0, 2**37, 132

    answers = {"driver_version": ["580.1"], "power.limit": ["700.00 W"]}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)  # noqa: ARG005
    monkeypatch.setattr(measure, "nvidia_smi", lambda field: answers.get(field, []))
    found = measure._of_cuda(CUDA)
    assert (found["driver"], found["capability"], found["memory_bytes"]) == ("580.1", "9.0", 2**37)
    assert found["nvidia_smi"]["power.limit"] == "700.00 W"
    assert found["nvidia_smi"]["clocks.max.sm"] is None


@pytest.mark.parametrize(("name", "tune"), [("kernels", False), ("kernel_sizes", True)])
def test_the_kernels_of_the_papers_shape_are_measured(name: str, tune: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def timed(shape: Any, device: torch.device, tune: bool) -> list[dict[str, Any]]:
        asked.extend((shape.hidden_size, device.type, tune))
        return [{"kernel": "lm_head", "sizes": {"outputs": 32}}, {"kernel": "attend", "sizes": None}]

    monkeypatch.setattr(measure, "usable", lambda *_: True)
    monkeypatch.setattr(measure, "kernel_bandwidth", timed)
    found = measure.MEASURES[name](CUDA, False)
    assert asked == [1664, "cuda", tune]
    assert [row["sizes"] for row in found["rows"]] == ['{"outputs": 32}', "null"]


def test_without_kernels_the_report_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "for CUDA" in measure.kernels(CPU, False)["notes"][0]
    monkeypatch.setattr(measure, "usable", lambda *_: False)
    assert "Triton" in measure.kernels(CUDA, False)["notes"][0]
