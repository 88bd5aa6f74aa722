"""What a decoder hands back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class NewTokens(NamedTuple):
    """Tokens of one row that have just become final."""

    row: int
    tokens: list[int]
    recycled: list[bool]
    """Which of them the recyclable module wrote."""


@dataclass
class Counts:
    """Sums over rows and cycles; ratios are taken once, at the end."""

    num_backbone_passes: int = 0
    """Passes of the whole batch, the prompt's among them."""
    num_tokens: int = 0
    """Tokens emitted, over all rows."""
    num_verified: int = 0
    """Recycled tokens that a backbone pass has read and could therefore check."""
    num_matched: int = 0
    """Of those, how many equal the backbone's argmax at that place."""
    num_accepted: int = 0
    """Of those, how many stayed in the text."""

    @property
    def agreement(self) -> float | None:
        """Share of checked tokens that equal the backbone's argmax; None if none was checked."""
        return self.num_matched / self.num_verified if self.num_verified else None

    @property
    def acceptance(self) -> float | None:
        """Share of checked tokens that were kept; None if none was checked."""
        return self.num_accepted / self.num_verified if self.num_verified else None

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


@dataclass
class Generation:
    """Continuations of a batch of prompts, without the prompts."""

    tokens: list[list[int]]
    recycled: list[list[bool]]
    finish: list[str]
    """Per row: `stop` (a stop token, kept as the last one), `length` (as many tokens as asked for) or `context`."""
    counts: Counts = field(default_factory=Counts)
