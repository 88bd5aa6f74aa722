"""Rotary position embedding, and how pretrained models stretch it over longer texts.

B batch, T positions, H heads, D head width, S positions in the tables.
"""

# No `from __future__ import annotations`: Hydra looks at the types of the fields.

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recyclegpt.errors import ConfigError

KINDS = ("none", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class RopeScaling:
    """How the frequencies of a rotary embedding are changed. Each kind reads only the numbers listed for it.

    `linear`: `factor` (position interpolation, Chen et al., arXiv 2306.15595). `llama3`: `factor`, `low_freq_factor`,
    `high_freq_factor`, `original_context` (Llama 3.1). `yarn`: `factor`, `original_context`, `beta_fast`, `beta_slow`,
    `attention_factor`, `truncate` (Peng et al., arXiv 2309.00071).

    Raises:
        ConfigError: naming every field that cannot work.
    """

    kind: str = "none"
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    """Factor of cosines and sines."""
    truncate: bool = True
    """Round the borders of YaRN's ramp to whole dimensions."""

    def __post_init__(self) -> None:
        possible = {
            "factor": self.factor >= 1,
            "original_context": self.kind not in ("llama3", "yarn") or self.original_context >= 1,
            "high_freq_factor": self.kind != "llama3" or 0 < self.low_freq_factor < self.high_freq_factor,
            "beta_fast": self.kind != "yarn" or 0 < self.beta_slow < self.beta_fast,
            "attention_factor": self.attention_factor > 0,
        }
        if self.kind not in KINDS:
            raise ConfigError(f"rope_scaling.kind: {self.kind!r} is unknown; choose from {', '.join(KINDS)}")
        if problems := [name for name, fits in possible.items() if not fits]:
            raise ConfigError(f"rope_scaling: {', '.join(problems)} of {self} cannot work")


def frequencies(head_dim: int, theta: float, scaling: RopeScaling, device: torch.device | str = "cpu") -> Tensor:
    """Angle per position for each pair of a head: `(D / 2,)` in fp32, in the order of operations of `transformers`.

    Far positions multiply a rounding error, so another order would show in the logits of long texts.
    """
    exponents = torch.arange(0, head_dim, 2, device=device).float() / head_dim
    frequency = 1.0 / theta**exponents
    if scaling.kind == "linear":
        return frequency / scaling.factor
    if scaling.kind == "llama3":
        # Fast pairs stay, slow ones are stretched by the factor, those in between are blended.
        turns = scaling.original_context * frequency / (2 * math.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        share = ((turns - low) / (high - low)).clamp(0, 1)
        return (1 - share) * frequency / scaling.factor + share * frequency
    if scaling.kind == "yarn":
        return _yarn(theta**exponents, head_dim, theta, scaling)
    return frequency


def _yarn(wavelength: Tensor, head_dim: int, theta: float, scaling: RopeScaling) -> Tensor:
    """The same blend, linear in the pair's number, between bounds given in turns within the original context."""

    def pair_that_turns(times: float) -> float:
        return head_dim * math.log(scaling.original_context / (times * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    width = last - first or 0.001
    stretched = ((torch.arange(head_dim // 2, device=wavelength.device).float() - first) / width).clamp(0, 1)
    return (1.0 / (scaling.factor * wavelength)) * stretched + (1.0 / wavelength) * (1 - stretched)


class Rotary(nn.Module):
    """Cosines and sines of the rotary embedding (Su et al., arXiv 2104.09864), halves rotated as in LLaMA."""

    def __init__(self, head_dim: int, theta: float, num_positions: int, scaling: RopeScaling | None = None) -> None:
        super().__init__()
        self.head_dim, self.theta, self.num_positions = head_dim, theta, num_positions
        self.scaling = scaling or RopeScaling()
        self.register_buffer("cos_SD", torch.empty(num_positions, head_dim), persistent=False)
        self.register_buffer("sin_SD", torch.empty(num_positions, head_dim), persistent=False)
        self.fill()

    cos_SD: Tensor
    sin_SD: Tensor

    def fill(self) -> None:
        """Compute the tables in fp32 on their device; called again once a meta-device model is materialised."""
        device = self.cos_SD.device
        frequency = frequencies(self.head_dim, self.theta, self.scaling, device)
        angle = torch.outer(torch.arange(self.num_positions, device=device).float(), frequency)
        angle = torch.cat([angle, angle], dim=-1)
        self.cos_SD.copy_(angle.cos() * self.scaling.attention_factor)
        self.sin_SD.copy_(angle.sin() * self.scaling.attention_factor)

    def forward(self, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the tables for these positions, `(..., T, 1, D)`: they broadcast over heads."""
        return self.cos_SD[positions_BT].unsqueeze(-2), self.sin_SD[positions_BT].unsqueeze(-2)


def rotate(x_BTHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + D/2) of a head by its position's angle."""
    low, high = x_BTHD.chunk(2, dim=-1)
    turned = x_BTHD * cos + torch.cat([-high, low], dim=-1) * sin
    return turned.to(x_BTHD.dtype)
