"""A verified decoder with given acceptance rates: what drafting is worth if the drafter were accepted that often.

Random weights are as fast as trained ones, but their acceptance means nothing. Every pass is computed as usual and its
verdict is then replaced, so the speed is real and the text is meaningless.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from recyclegpt.decoding import DraftTokens, Sampler, Verified, VerifyLogits

PATTERN_LENGTH = 4096
"""The verdicts are fixed, and repeat after this many steps."""


@dataclass(frozen=True)
class SimulatedAcceptance(Verified):
    """Accepts the token drafted k-th with the k-th of these rates where all before it were accepted."""

    rates: tuple[float, ...] = (1.0,)
    """The last one also holds for every later position."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # Spread more evenly than random draws: a short text accepts about the share that was asked for.
        m = self.num_recycled
        rates = (*self.rates, *[self.rates[-1]] * m)[:m]
        pattern = [
            next((place for place, rate in enumerate(rates) if _spread(step, place) >= rate), m)
            for step in range(PATTERN_LENGTH)
        ]
        object.__setattr__(self, "_pattern", torch.tensor(pattern))
        object.__setattr__(self, "_turn", torch.zeros((), dtype=torch.long))

    _pattern: ClassVar[Tensor]
    _turn: ClassVar[Tensor]

    @property
    def state(self) -> tuple[Tensor, ...]:
        return (self._turn,)

    def verify(self, backbone: VerifyLogits, drafts: DraftTokens, sampler: Sampler) -> tuple[Tensor, Tensor]:
        """Do the work of `Verified`, then accept as many tokens as the pattern says."""
        _, token_B = super().verify(backbone, drafts, sampler)
        if self._pattern.device != token_B.device:
            object.__setattr__(self, "_pattern", self._pattern.to(token_B.device))
            object.__setattr__(self, "_turn", self._turn.to(token_B.device))
        # Not `pattern[turn]`: an index without dimensions makes the host wait for its value.
        accepted_B = self._pattern.index_select(0, self._turn.view(1)).expand_as(token_B)
        self._turn.add_(1).remainder_(PATTERN_LENGTH)
        return accepted_B, token_B


def _spread(step: int, place: int) -> float:
    """A number in [0, 1): fractional part of a multiple of the square root of a prime."""
    return (step + 1) * math.sqrt((2, 3, 5, 7, 11, 13, 17, 19)[place]) % 1
