"""From logits to a token: temperature, top-k, top-p, and draws that do not depend on the other rows of a batch.

B batch, V vocabulary, m recycled tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recyclegpt.errors import ConfigError

MIN_TEMPERATURE = 1e-4
"""Below it, logits divided by the temperature overflow; what is sampled there is greedy anyway."""


@dataclass(frozen=True)
class SamplingConfig:
    """How a token is chosen from logits; filters act in the order of the fields, as in `transformers`.

    Raises:
        ConfigError: naming every field out of range.
    """

    temperature: float = 0.0
    """0 takes the most likely token."""
    top_k: int | None = None
    """Keep the k most likely tokens; null keeps all."""
    top_p: float = 1.0
    """Keep the fewest tokens whose probabilities reach this sum; 1 keeps all."""

    def __post_init__(self) -> None:
        problems = []
        if self.temperature != 0 and not MIN_TEMPERATURE <= self.temperature < float("inf"):
            problems.append(
                f"temperature: {self.temperature} is neither 0 (greedy) nor a number from {MIN_TEMPERATURE} on"
            )
        if self.top_k is not None and self.top_k < 1:
            problems.append(f"top_k: {self.top_k} keeps no token; use null to keep all")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p: {self.top_p} is not in (0, 1]; use 1 to keep all")
        if problems:
            raise ConfigError(problems)

    @property
    def greedy(self) -> bool:
        """Whether no random number is used."""
        return self.temperature == 0


def processed_probabilities(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Probabilities `(..., V)` that a token is drawn from: fp32 (fp64 for fp64 logits), after every filter.

    Raises:
        ValueError: the configuration is greedy, which has no distribution.
    """
    if config.greedy:
        raise ValueError("greedy decoding has no distribution; take the argmax")
    logits = logits.double() if logits.dtype == torch.float64 else logits.float()
    logits = logits / config.temperature
    if config.top_k is not None and config.top_k < logits.shape[-1]:
        threshold = logits.topk(config.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    probabilities = logits.softmax(dim=-1)
    if config.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        # A token goes when those before it already reach top_p; the first always stays.
        beyond = ordered.cumsum(dim=-1) - ordered >= config.top_p
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered.masked_fill(beyond, 0))
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    return probabilities


class Sampler:
    """Draws for the rows of one batch. Each row has its own generator, so a row's text is the same in any batch."""

    def __init__(self, config: SamplingConfig, generators: Sequence[torch.Generator]) -> None:
        self.config = config
        self.generators = list(generators)

    @classmethod
    def seeded(cls, config: SamplingConfig, batch: int, seed: int, device: torch.device) -> Sampler:
        """Row b draws from a generator seeded with `seed + b`."""
        return cls(config, [torch.Generator(device=device).manual_seed(seed + row) for row in range(batch)])

    def choose(self, logits_BV: Tensor) -> tuple[Tensor, Tensor | None]:
        """A token for each row, and the distribution it was drawn from (None when greedy)."""
        if self.config.greedy:
            return logits_BV.argmax(dim=-1), None
        probabilities_BV = processed_probabilities(logits_BV, self.config)
        return self.draw(probabilities_BV), probabilities_BV

    def draw(self, weights_BV: Tensor) -> Tensor:
        """A token for each row with probability proportional to its weight.

        The largest of weight / exponential noise is such a draw, and needs no synchronisation with the device.
        """
        noise_BV = torch.stack(
            [torch.empty_like(row).exponential_(generator=generator) for row, generator in self._rows(weights_BV)]
        )
        return (weights_BV / noise_BV).argmax(dim=-1)

    def uniform(self, like_Bm: Tensor) -> Tensor:
        """Numbers in [0, 1), shaped as the argument."""
        return torch.stack(
            [torch.empty_like(row).uniform_(generator=generator) for row, generator in self._rows(like_Bm)]
        )

    def _rows(self, values: Tensor) -> zip[tuple[Tensor, torch.Generator]]:
        return zip(values, self.generators, strict=True)
