"""The three decoders. A strategy says how many tokens to recycle and which of them to keep; the loop is shared.

B batch, m recycled tokens, V vocabulary. A backbone pass reads its own last token and the m recycled after it, so
`logits_BmV` holds m + 1 rows: row j is the backbone's distribution of the token after recycled token j.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from recyclegpt.decoding.sampling import Sampler, processed_probabilities
from recyclegpt.errors import ConfigError
from recyclegpt.models import MAX_RECYCLED


class Strategy(Protocol):
    """What a decoder decides; implement these four members to add one."""

    @property
    def name(self) -> str:
        """Word used in configs, tags and tables."""
        ...

    @property
    def num_recycled(self) -> int:
        """Tokens m the module proposes after each backbone pass."""
        ...

    @property
    def lossless(self) -> bool:
        """Whether a recycled token is final only after the backbone has checked it."""
        ...

    def judge(
        self, logits_BmV: Tensor, recycled_Bm: Tensor, proposed: list[Tensor | None], sampler: Sampler
    ) -> tuple[Tensor, Tensor]:
        """Number of recycled tokens kept `(B,)`, and the backbone's own next token after those `(B,)`.

        `proposed[j]` is the distribution recycled token j was drawn from, None when greedy.
        """
        ...


@dataclass(frozen=True)
class Autoregressive:
    """One backbone pass a token: the baseline."""

    name = "autoregressive"
    num_recycled = 0
    lossless = True

    def judge(
        self,
        logits_BmV: Tensor,
        recycled_Bm: Tensor,
        proposed: list[Tensor | None],
        sampler: Sampler,
    ) -> tuple[Tensor, Tensor]:
        token_B, _ = sampler.choose(logits_BmV[:, 0])
        return recycled_Bm.new_zeros(len(recycled_Bm)), token_B


@dataclass(frozen=True)
class Alternating:
    """The paper's decoder: recycled tokens are kept without a check. m + 1 tokens a backbone pass, not exact."""

    num_recycled: int = 1
    name = "alternating"
    lossless = False

    def __post_init__(self) -> None:
        _check_num_recycled(self.num_recycled)

    def judge(
        self,
        logits_BmV: Tensor,
        recycled_Bm: Tensor,
        proposed: list[Tensor | None],
        sampler: Sampler,
    ) -> tuple[Tensor, Tensor]:
        token_B, _ = sampler.choose(logits_BmV[:, -1])
        return recycled_Bm.new_full((len(recycled_Bm),), self.num_recycled), token_B


@dataclass(frozen=True)
class Verified:
    """The backbone pass that reads the recycled tokens also checks them. 1 + m * acceptance tokens a pass, lossless.

    Greedy keeps a token that is the argmax. Sampling keeps it with probability min(1, p / q) and draws the next from
    what is left of p, so the text has exactly the backbone's distribution (Leviathan et al., arXiv 2211.17192;
    Chen et al., arXiv 2302.01318).
    """

    num_recycled: int = 1
    name = "verified"
    lossless = True

    def __post_init__(self) -> None:
        _check_num_recycled(self.num_recycled)

    def judge(
        self, logits_BmV: Tensor, recycled_Bm: Tensor, proposed: list[Tensor | None], sampler: Sampler
    ) -> tuple[Tensor, Tensor]:
        if sampler.config.greedy:
            best_Bm = logits_BmV.argmax(dim=-1)
            kept_B = _leading(best_Bm[:, :-1] == recycled_Bm)
            return kept_B, best_Bm.gather(1, kept_B[:, None]).squeeze(1)
        p_BmV = processed_probabilities(logits_BmV, sampler.config)
        q_BmV = torch.stack([q for q in proposed if q is not None], dim=1)
        p_Bm = p_BmV[:, :-1].gather(2, recycled_Bm[..., None]).squeeze(2)
        q_Bm = q_BmV.gather(2, recycled_Bm[..., None]).squeeze(2)
        kept_B = _leading(sampler.uniform(q_Bm) * q_Bm < p_Bm)
        # Behind the last recycled token nothing was proposed: with q = 0 there, all of p is left.
        q_BmV = torch.cat([q_BmV, torch.zeros_like(q_BmV[:, :1])], dim=1)
        row_B1V = kept_B[:, None, None].expand(-1, 1, p_BmV.shape[-1])
        p_BV = p_BmV.gather(1, row_B1V).squeeze(1)
        rest_BV = (p_BV - q_BmV.gather(1, row_B1V).squeeze(1)).clamp(min=0)
        # Where p and q agree to the last bit a rejection is a rounding accident and p itself is the right distribution.
        rest_BV = torch.where(rest_BV.sum(dim=-1, keepdim=True) > 0, rest_BV, p_BV)
        return kept_B, sampler.draw(rest_BV)


def make_strategy(name: str, num_recycled: int = 1) -> Strategy:
    """The strategy of this name.

    Raises:
        ConfigError: the name is unknown, or `num_recycled` out of range.
    """
    if name == "autoregressive":
        return Autoregressive()
    if name == "alternating":
        return Alternating(num_recycled)
    if name == "verified":
        return Verified(num_recycled)
    raise ConfigError(f"strategy: {name!r} is unknown; choose from autoregressive, alternating, verified")


def _leading(accepted_Bm: Tensor) -> Tensor:
    """Number of True before the first False in each row."""
    return accepted_Bm.long().cumprod(dim=1).sum(dim=1)


def _check_num_recycled(num_recycled: int) -> None:
    if not 1 <= num_recycled <= MAX_RECYCLED:
        raise ConfigError(f"num_recycled: {num_recycled} is not between 1 and {MAX_RECYCLED}")
