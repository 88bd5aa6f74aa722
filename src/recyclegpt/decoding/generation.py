"""What a decoder returns."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple


class NewTokens(NamedTuple):
    """Tokens of one row that have just become final."""

    row: int
    tokens: list[int]
    drafted: list[bool]
    """Which of them the drafter wrote."""


@dataclass
class Counts:
    """Sums over rows and steps; ratios are taken once, at the end."""

    num_backbone_passes: int = 0
    """Passes of the whole batch, the prefill among them."""
    num_tokens: int = 0
    """Tokens written, over all rows."""
    num_row_steps: int = 0
    """Steps of rows that had not ended, over all rows; the prefill is none."""
    num_matched: int = 0
    """Verified tokens that equal the backbone's argmax at that place."""
    verified_at: Counter[int] = field(default_factory=Counter)
    """Drafted tokens that a backbone pass has read and could therefore verify, by position: 1 is drafted first."""
    accepted_at: Counter[int] = field(default_factory=Counter)
    """Of those, how many stayed in the text."""

    @property
    def num_verified(self) -> int:
        return self.verified_at.total()

    @property
    def num_accepted(self) -> int:
        return self.accepted_at.total()

    @property
    def acceptance_by_position(self) -> list[float]:
        """Share of the tokens drafted first, second, ... in a step that were accepted, of all drafted there."""
        return [self.accepted_at[place] / number for place, number in sorted(self.verified_at.items())]

    @property
    def agreement(self) -> float | None:
        """Share of verified tokens that equal the backbone's argmax; None if none was verified."""
        return self.num_matched / self.num_verified if self.num_verified else None

    @property
    def acceptance(self) -> float | None:
        """Acceptance rate: share of verified tokens that were accepted; None if none was verified."""
        return self.num_accepted / self.num_verified if self.num_verified else None

    @property
    def mean_accepted_length(self) -> float | None:
        """Tokens per backbone pass and row after the prefill, 1 + accepted; None if there was no step."""
        return 1 + self.num_accepted / self.num_row_steps if self.num_row_steps else None

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


@dataclass
class Generation:
    """Continuations of a batch of prompts, without the prompts."""

    tokens: list[list[int]]
    drafted: list[list[bool]]
    """Which of the tokens the drafter wrote."""
    finish: list[str]
    """Why each row ended: `stop` (at a stop token or string, which is kept), `length` (`max_new_tokens` written) or
    `context` (prompt and text fill the context)."""
    counts: Counts = field(default_factory=Counts)
