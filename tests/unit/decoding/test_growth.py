"""A long text: memory is allocated at the start and does not grow."""

from __future__ import annotations

import gc
import itertools
from pathlib import Path

import pytest
import torch

from recyclegpt.decoding import Alternating, Decoder, Sampler, SamplingConfig, Strategy, Verified
from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux for the process's memory")
@pytest.mark.parametrize(
    ("strategy", "sampling"),
    [(Alternating(8), SamplingConfig()), (Verified(2), SamplingConfig(temperature=1.0, top_p=0.9))],
)
@pytest.mark.parametrize("num_tokens", [4_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_text(strategy: Strategy, sampling: SamplingConfig, num_tokens: int) -> None:
    torch.manual_seed(0)
    model = RecycleGPT(
        ModelConfig(256, num_tokens + 100, num_layers=1, hidden_size=16, num_heads=2), RecycleConfig(1)
    ).eval()
    decoder = Decoder.optimised(model)
    sampler = Sampler.seeded(sampling, 1, 0, model.device)
    written = 0
    marks: list[tuple[int, int]] = []
    for emitted in decoder.stream([[1, 2, 3]], strategy, num_tokens, sampler):
        written += len(emitted.tokens)
        if written >= num_tokens // 4 * (1 + len(marks)):
            gc.collect()
            marks.append((resident_bytes(), len(gc.get_objects())))
    assert written == num_tokens
    # What is kept a step is kept in every part of the text; what grows once is the allocator's, or another test's
    # that ran in this process. This model's cache, allocated a step, would be a hundred MB and more.
    grown = [(after[0] - before[0], after[1] - before[1]) for before, after in itertools.pairwise(marks)]
    assert len(grown) == 3
    assert min(num_bytes for num_bytes, _ in grown) < 2 * 2**20
    assert min(num_objects for _, num_objects in grown) < 300
