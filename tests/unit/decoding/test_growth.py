"""Ten thousand tokens in one go: memory is allocated at the start and does not grow."""

from __future__ import annotations

import gc
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
def test_memory_does_not_grow_over_ten_thousand_tokens(strategy: Strategy, sampling: SamplingConfig) -> None:
    torch.manual_seed(0)
    model = RecycleGPT(ModelConfig(256, 10_100, num_layers=1, hidden_size=16, num_heads=2), RecycleConfig(1)).eval()
    decoder = Decoder.optimised(model)
    sampler = Sampler.seeded(sampling, 1, 0, model.device)
    written = 0
    before: tuple[int, int] | None = None
    for emitted in decoder.stream([[1, 2, 3]], strategy, 10_000, sampler):
        written += len(emitted.tokens)
        if written >= 1000 and before is None:
            gc.collect()
            before = resident_bytes(), len(gc.get_objects())
    assert written == 10_000
    assert before is not None
    gc.collect()
    # 9,000 tokens of this model's cache, allocated a cycle, would be 1.4 MB a tensor: hundreds of MB in all.
    assert resident_bytes() - before[0] < 8 * 2**20
    assert len(gc.get_objects()) - before[1] < 1000
