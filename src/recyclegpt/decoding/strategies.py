"""The three decoders. A strategy says how many tokens to recycle and which of them to keep; the loop is shared.

B batch, m recycled tokens, V vocabulary. A backbone pass reads its own last token and the m recycled after it, so
a `VerifyLogits` holds m + 1 rows: row j is the backbone's opinion of the token after recycled token j.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from recyclegpt.decoding.sampling import Sampler, processed_probabilities
from recyclegpt.errors import ConfigError
from recyclegpt.models import MAX_RECYCLED


class DraftTokens(NamedTuple):
    """What the module proposed in the last cycle. Row b stands behind its first `count_B[b]` tokens only."""

    tokens_Bm: Tensor
    count_B: Tensor
    distributions_BmV: Tensor | None
    """What each was drawn from; None when greedy."""


class VerifyLogits(NamedTuple):
    """What the backbone says after each of the T = m + 1 newest tokens."""

    logits_BTV: Tensor
    best_BT: Tensor
    """The most likely token after each, repetition penalty applied: what greedy decoding writes."""
    seen_BTV: Tensor | None
    """Which tokens the text holds up to each row, for the repetition penalty; None without one."""


class Strategy(Protocol):
    """What a decoder decides; implement these five members to add one."""

    @property
    def name(self) -> str:
        """Word used in configs, tags and tables."""
        ...

    @property
    def num_recycled(self) -> int:
        """Tokens m the module proposes after each backbone pass."""
        ...

    @property
    def confidence(self) -> float:
        """Recycle only while the largest probability of the module's distribution is above this."""
        ...

    @property
    def lossless(self) -> bool:
        """Whether a recycled token is final only after the backbone has checked it."""
        ...

    def verify(self, reading: VerifyLogits, proposals: DraftTokens, sampler: Sampler) -> tuple[Tensor, Tensor]:
        """Number of recycled tokens kept `(B,)`, at most `count_B`, and the backbone's next token after those `(B,)`.

        It may not wait for the device: no `.item()`, no branch on a value.
        """
        ...


@dataclass(frozen=True)
class Autoregressive:
    """One backbone pass a token: the baseline."""

    name = "autoregressive"
    num_recycled = 0
    confidence = 0.0
    lossless = True

    def verify(self, reading: VerifyLogits, proposals: DraftTokens, sampler: Sampler) -> tuple[Tensor, Tensor]:
        return proposals.count_B, _choose(reading, proposals.count_B, sampler)


@dataclass(frozen=True)
class Alternating:
    """The paper's decoder: recycled tokens are kept without a check. m + 1 tokens a backbone pass, not exact.

    `confidence` is the dial between exact and fast: at 0 every recycled token is kept, at 1 none is.
    """

    num_recycled: int = 1
    confidence: float = 0.0
    name = "alternating"
    lossless = False

    def __post_init__(self) -> None:
        _check(self.num_recycled, self.confidence)

    def verify(self, reading: VerifyLogits, proposals: DraftTokens, sampler: Sampler) -> tuple[Tensor, Tensor]:
        return proposals.count_B, _choose(reading, proposals.count_B, sampler)


@dataclass(frozen=True)
class Verified:
    """The backbone pass that reads the recycled tokens also checks them. 1 + m * acceptance tokens a pass, lossless.

    Greedy keeps a token that is the argmax. Sampling keeps it with probability min(1, p / q) and draws the next from
    what is left of p, so the text has exactly the backbone's distribution (Leviathan et al., arXiv 2211.17192;
    Chen et al., arXiv 2302.01318).

    `confidence` saves module calls that would likely be in vain. It looks at the largest probability of the module's
    distribution, never at that of the token drawn: a token that is dropped because it was unlikely biases the text.
    """

    num_recycled: int = 1
    confidence: float = 0.0
    name = "verified"
    lossless = True

    def __post_init__(self) -> None:
        _check(self.num_recycled, self.confidence)

    def verify(self, reading: VerifyLogits, proposals: DraftTokens, sampler: Sampler) -> tuple[Tensor, Tensor]:
        tokens_Bm, count_B, q_BmV = proposals
        offered_Bm = torch.arange(self.num_recycled, device=count_B.device) < count_B[:, None]
        if q_BmV is None:
            kept_B = _leading(offered_Bm & (reading.best_BT[:, :-1] == tokens_Bm))
            return kept_B, _choose(reading, kept_B, sampler)
        p_BTV = processed_probabilities(reading.logits_BTV, sampler.config, reading.seen_BTV)
        p_Bm = p_BTV[:, :-1].gather(2, tokens_Bm[..., None]).squeeze(2)
        q_Bm = q_BmV.gather(2, tokens_Bm[..., None]).squeeze(2)
        kept_B = _leading(offered_Bm & (sampler.uniform_Bm * q_Bm < p_Bm))
        # Where nothing was proposed nothing was rejected: with q = 0 there, all of p is left.
        q_BTV = torch.cat([q_BmV * offered_Bm[..., None], torch.zeros_like(q_BmV[:, :1])], dim=1)
        p_BV = _row(p_BTV, kept_B)
        rest_BV = (p_BV - _row(q_BTV, kept_B)).clamp(min=0)
        # Where p and q agree to the last bit a rejection is a rounding accident and p itself is the right distribution.
        rest_BV = torch.where(rest_BV.sum(dim=-1, keepdim=True) > 0, rest_BV, p_BV)
        return kept_B, sampler.pick(rest_BV, 0)


def make_strategy(name: str, num_recycled: int = 1, confidence: float = 0.0) -> Strategy:
    """The strategy of this name.

    Raises:
        ConfigError: the name is unknown, or a number out of range.
    """
    if name == "autoregressive":
        return Autoregressive()
    if name == "alternating":
        return Alternating(num_recycled, confidence)
    if name == "verified":
        return Verified(num_recycled, confidence)
    raise ConfigError(f"strategy: {name!r} is unknown; choose from autoregressive, alternating, verified")


def _choose(reading: VerifyLogits, kept_B: Tensor, sampler: Sampler) -> Tensor:
    """The backbone's own token after the `kept_B` first recycled ones, `(B,)`."""
    if sampler.config.greedy:
        return reading.best_BT.gather(1, kept_B[:, None]).squeeze(1)
    seen_BV = None if reading.seen_BTV is None else _row(reading.seen_BTV, kept_B)
    return sampler.choose(_row(reading.logits_BTV, kept_B), 0, seen_BV)[0]


def _row(values_BTV: Tensor, index_B: Tensor) -> Tensor:
    """Row `index_B[b]` of each batch entry, `(B, V)`."""
    return values_BTV.gather(1, index_B[:, None, None].expand(-1, 1, values_BTV.shape[-1])).squeeze(1)


def _leading(accepted_Bm: Tensor) -> Tensor:
    """Number of True before the first False in each row."""
    return accepted_Bm.long().cumprod(dim=1).sum(dim=1)


def _check(num_recycled: int, confidence: float) -> None:
    problems = []
    if not 1 <= num_recycled <= MAX_RECYCLED:
        problems.append(f"num_recycled: {num_recycled} is not between 1 and {MAX_RECYCLED}")
    if not 0 <= confidence <= 1:
        problems.append(f"confidence: {confidence} is not between 0 (always recycle) and 1 (never)")
    if problems:
        raise ConfigError(problems)
