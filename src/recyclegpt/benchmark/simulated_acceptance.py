"""A verified decoder whose acceptance is given: what recycling is worth if the module agrees so often.

Random weights have the latency of trained ones, but not their acceptance. Every pass is computed as usual and its
verdict is then replaced, so the speed is real and the text means nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from recyclegpt.decoding import DraftTokens, Sampler, Verified, VerifyLogits


@dataclass(frozen=True)
class SimulatedAcceptance(Verified):
    """Keeps each recycled token with this probability, as long as it kept the one before."""

    probability: float = 1.0
    pattern_length: int = 4096
    """The verdicts are fixed, and repeat after so many cycles."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # Multiples of an irrational number, another for each place, are spread more evenly than random draws: a short
        # text keeps about the share that was asked for.
        m = self.num_recycled
        pattern = [
            next((place for place in range(m) if _spread(cycle, place) >= self.probability), m)
            for cycle in range(self.pattern_length)
        ]
        object.__setattr__(self, "pattern", torch.tensor(pattern))
        object.__setattr__(self, "turn", torch.zeros((), dtype=torch.long))

    def verify(self, reading: VerifyLogits, proposals: DraftTokens, sampler: Sampler) -> tuple[Tensor, Tensor]:
        """Do the work of `Verified`, then keep as many tokens as this cycle's turn says."""
        _, token_B = super().verify(reading, proposals, sampler)
        device = token_B.device
        if self.pattern.device != device:  # type: ignore[attr-defined]
            object.__setattr__(self, "pattern", self.pattern.to(device))  # type: ignore[attr-defined]
            object.__setattr__(self, "turn", self.turn.to(device))  # type: ignore[attr-defined]
        # Not `pattern[turn]`: an index without dimensions makes the host wait for its value.
        kept_B = self.pattern.index_select(0, self.turn.view(1)).expand_as(token_B)  # type: ignore[attr-defined]
        self.turn.add_(1).remainder_(self.pattern_length)  # type: ignore[attr-defined]
        return kept_B, token_B


def _spread(cycle: int, place: int) -> float:
    """A number in [0, 1): fractional part of a multiple of the square root of a prime."""
    return (cycle + 1) * math.sqrt((2, 3, 5, 7, 11, 13, 17, 19)[place]) % 1
