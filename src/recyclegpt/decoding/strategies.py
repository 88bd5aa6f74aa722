"""The three decoders. A strategy says how many tokens are drafted and which of them are accepted; the loop is shared.

B batch, m drafted tokens, V vocabulary. A backbone pass reads its own last token and the m drafted after it, so
`VerifyLogits` holds m + 1 rows: row j is the backbone's opinion of the token after drafted token j.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from recyclegpt.decoding.sampling import Sampler, processed_probabilities
from recyclegpt.decoding.text_buffer import row_at
from recyclegpt.errors import ConfigError
from recyclegpt.models import MAX_RECYCLED

DRAFTERS = ("module", "ngram", "ngram+module", "token_recycling", "self_speculative", "early_exit")
ARGUMENTS = {
    "self_speculative": (
        r"[am]\d+(\.[am]\d+)*",
        "what it skips, such as self_speculative:a3.a5.m5 (attention, SwiGLU)",
    ),
    "early_exit": (r"[1-9]\d*", "the number of layers that it runs, such as early_exit:2"),
}
"""What may follow the name of a drafter and a colon."""


class DraftTokens(NamedTuple):
    """What the drafter proposed in the last step. Of row b only the first `count_B[b]` tokens are proposed."""

    tokens_Bm: Tensor
    count_B: Tensor
    distributions_BmV: Tensor | None
    """What each was drawn from under rejection sampling, else None."""


class VerifyLogits(NamedTuple):
    """What the backbone says after each of the T newest tokens: m + 1, or fewer where no row has m drafted ones."""

    logits_BTV: Tensor
    best_BT: Tensor
    """The most likely token after each, repetition penalty applied."""
    chosen_BT: Tensor | None
    """What autoregressive decoding writes after each; None under rejection sampling, which draws later."""
    seen_BTV: Tensor | None
    """Which tokens the text holds up to each row, for the repetition penalty; None without one."""


@dataclass(frozen=True)
class Strategy:
    """What a decoder decides. To add one, subclass it.

    Raises:
        ConfigError: naming every field out of range.
    """

    num_recycled: int = 1
    """Tokens m drafted after each backbone pass."""
    confidence_threshold: float = 0.0
    """Let the module draft only while the product of its largest probabilities is above this: 0 always, 1 never."""
    drafter: str = "module"
    """What drafts: `module`; `ngram` (lookup in prompt and text); `ngram+module` (lookup first); `token_recycling`
    (what the backbone last chose after a token); `self_speculative` or `early_exit` (parts of the backbone), which may
    be followed by a colon and an argument (`ARGUMENTS`)."""
    adaptive: bool = False
    """On a CPU: draft as many of the `num_recycled` tokens as pay (`DraftLength`), whatever the threshold."""
    name: ClassVar[str]
    """Word used in configs, tags and tables."""
    lossless: ClassVar[bool]
    """Whether a drafted token is final only after the backbone has verified it."""

    def __post_init__(self) -> None:
        problems = []
        if not 1 <= self.num_recycled <= MAX_RECYCLED:
            problems.append(f"num_recycled: {self.num_recycled} is not between 1 and {MAX_RECYCLED}")
        if not 0 <= self.confidence_threshold <= 1:
            problems.append(
                f"confidence_threshold: {self.confidence_threshold} is not between 0 (always draft) and 1 (never draft)"
            )
        name, colon, argument = self.drafter.partition(":")
        if name not in DRAFTERS:
            problems.append(f"drafter: {self.drafter!r} is unknown; choose from {', '.join(DRAFTERS)}")
        elif colon and name not in ARGUMENTS:
            problems.append(f"drafter: {name} takes nothing after its name, and there is {argument!r}")
        elif colon and not re.fullmatch(ARGUMENTS[name][0], argument):
            problems.append(f"drafter: {self.drafter!r} should say {ARGUMENTS[name][1]}")
        elif self.drafter != "module" and not self.lossless:
            problems.append(f"drafter: {self.drafter} guesses, and {self.name} decoding checks nothing; use verified")
        if self.adaptive and not self.lossless:
            problems.append(f"adaptive: {self.name} decoding checks nothing, so drafts must be few; use verified")
        if problems:
            raise ConfigError(problems)

    @property
    def label(self) -> str:
        """Tells it from the others of a bench."""
        return f"{self.name} {self.num_recycled} {self.drafter}{' adaptive' if self.adaptive else ''}"

    @property
    def needs_module(self) -> bool:
        """Whether it decodes only models with a recyclable module."""
        return self.num_recycled > 0 and self.drafter.endswith("module")

    @property
    def state(self) -> tuple[Tensor, ...]:
        """Tensors that `verify` changes in place; usually none."""
        return ()

    def verify(self, backbone: VerifyLogits, drafts: DraftTokens, sampler: Sampler) -> tuple[Tensor, Tensor]:
        """Number of drafted tokens accepted `(B,)`, at most `count_B`, and the backbone's token after those `(B,)`.

        Here all are accepted. It may not wait for the device: no `.item()`, no branch on a value.
        """
        return drafts.count_B, _choose(backbone, drafts.count_B, sampler)


@dataclass(frozen=True)
class Autoregressive(Strategy):
    """One backbone pass per token: the baseline."""

    num_recycled: int = field(default=0, init=False)
    confidence_threshold: float = field(default=0.0, init=False)
    drafter: str = field(default="module", init=False)
    adaptive: bool = field(default=False, init=False)
    name = "autoregressive"
    lossless = True

    def __post_init__(self) -> None:
        """There is nothing to check."""


@dataclass(frozen=True)
class Alternating(Strategy):
    """The paper's decoder: drafted tokens are accepted unverified. m + 1 tokens per backbone pass, not exact.

    `confidence_threshold` trades speed for exactness: at 0 every drafted token is accepted, at 1 none is.
    """

    name = "alternating"
    lossless = False


@dataclass(frozen=True)
class Verified(Strategy):
    """The backbone pass that reads the drafted tokens also verifies them. 1 + accepted tokens per pass, lossless.

    A drafted token is accepted if autoregressive decoding would write it: the argmax, or in coupled sampling the token
    that the noise of its position picks. Rejection sampling accepts it with probability min(1, p / q) and draws the
    next from what is left of p, so the text has exactly the backbone's distribution (Leviathan et al., arXiv
    2211.17192; Chen et al., arXiv 2302.01318).

    `confidence_threshold` saves module calls that would likely be rejected. It looks at the largest probability of the
    module's distribution, never at that of the token drawn: dropping a token because it was unlikely biases the text.
    """

    name = "verified"
    lossless = True

    def verify(self, backbone: VerifyLogits, drafts: DraftTokens, sampler: Sampler) -> tuple[Tensor, Tensor]:
        tokens_Bm, count_B, q_BmV = drafts
        m = tokens_Bm.shape[1]  # fewer than `num_recycled` where no row has more
        drafted_Bm = torch.arange(m, device=count_B.device) < count_B[:, None]
        if backbone.chosen_BT is not None:
            accepted_B = _leading(drafted_Bm & (backbone.chosen_BT[:, :-1] == tokens_Bm))
            return accepted_B, _choose(backbone, accepted_B, sampler)
        assert q_BmV is not None
        q_BmV = q_BmV[:, :m]
        p_BTV = processed_probabilities(backbone.logits_BTV, sampler.config, backbone.seen_BTV)
        p_Bm = p_BTV[:, :-1].gather(2, tokens_Bm[..., None]).squeeze(2)
        q_Bm = q_BmV.gather(2, tokens_Bm[..., None]).squeeze(2)
        accepted_B = _leading(drafted_Bm & (sampler.uniform_Bm[:, :m] * q_Bm < p_Bm))
        # Where nothing was drafted nothing was rejected: with q = 0 there, all of p is left.
        q_BTV = torch.cat([q_BmV * drafted_Bm[..., None], torch.zeros_like(p_BTV[:, :1])], dim=1)
        p_BV = row_at(p_BTV, accepted_B)
        rest_BV = (p_BV - row_at(q_BTV, accepted_B)).clamp(min=0)
        # Where p and q agree to the last bit a rejection is a rounding accident and p itself is the right distribution.
        rest_BV = torch.where(rest_BV.sum(dim=-1, keepdim=True) > 0, rest_BV, p_BV)
        return accepted_B, sampler.pick(rest_BV, 0)


def make_strategy(
    name: str,
    num_recycled: int = 1,
    confidence_threshold: float = 0.0,
    drafter: str = "module",
    adaptive: bool = False,
) -> Strategy:
    """The strategy of this name.

    Raises:
        ConfigError: the name is unknown, or a number out of range.
    """
    kinds: dict[str, type[Strategy]] = {kind.name: kind for kind in (Alternating, Verified)}
    if name == Autoregressive.name:
        return Autoregressive()
    if name not in kinds:
        raise ConfigError(f"strategy: {name!r} is unknown; choose from autoregressive, {', '.join(kinds)}")
    return kinds[name](num_recycled, confidence_threshold, drafter, adaptive)


def _choose(backbone: VerifyLogits, accepted_B: Tensor, sampler: Sampler) -> Tensor:
    """The backbone's own token after the first `accepted_B` drafted ones, `(B,)`."""
    if backbone.chosen_BT is not None:
        return backbone.chosen_BT.gather(1, accepted_B[:, None]).squeeze(1)
    seen_BV = None if backbone.seen_BTV is None else row_at(backbone.seen_BTV, accepted_B)
    return sampler.pick(processed_probabilities(row_at(backbone.logits_BTV, accepted_B), sampler.config, seen_BV), 0)


def _leading(accepted_Bm: Tensor) -> Tensor:
    """Number of True before the first False in each row."""
    return accepted_Bm.long().cumprod(dim=1).sum(dim=1)
