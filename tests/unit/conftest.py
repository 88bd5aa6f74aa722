"""Small random models, as unlike their initial weights as possible."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT

Make = Callable[..., RecycleGPT]


@pytest.fixture
def make() -> Make:
    """`make(seed, recycle, **shape)`: a model whose norms, biases and weights are all random."""

    def made(seed: int = 0, recycle: RecycleConfig | None = None, **shape: object) -> RecycleGPT:
        values = {"vocab_size": 97, "context_length": 256, "num_layers": 2, "hidden_size": 32, "num_heads": 4, **shape}
        model = RecycleGPT(ModelConfig(**values), recycle).eval()  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.empty_like(parameter).normal_(std=0.2, generator=generator)
                parameter.copy_(noise + 1 if parameter.ndim == 1 else noise)
        return model.requires_grad_(False)

    return made
