"""What proposes tokens for the backbone to verify: a draft module, lookup, both, or parts of the backbone itself.

To add another one, implement `Drafter` in a file of its own, name it in `strategies.DRAFTERS` and choose it in
`make_drafter`; session, strategies and loop stay as they are. B batch, T positions, C model width, m drafted tokens.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from recyclegpt.decoding.draft_length import DraftLength
from recyclegpt.decoding.drafters.chain import BackbonePass
from recyclegpt.decoding.drafters.collapse import CollapseDrafter
from recyclegpt.decoding.drafters.module import ModelPass, ModuleDrafter
from recyclegpt.decoding.drafters.ngram import NgramDrafter
from recyclegpt.decoding.drafters.one_call import OneCallDrafter
from recyclegpt.decoding.drafters.partial_backbone import PartialBackboneDrafter
from recyclegpt.decoding.drafters.rounds import RoundsDrafter
from recyclegpt.decoding.drafters.token_recycling import TokenRecyclingDrafter
from recyclegpt.decoding.sampling import Sampler
from recyclegpt.decoding.strategies import Strategy
from recyclegpt.decoding.text_buffer import TextBuffer
from recyclegpt.models import KVCache, RecycleGPT
from recyclegpt.models.drafts.query_ctc import QueryCTC
from recyclegpt.models.rounds import RoundsModule

__all__ = ["BackbonePass", "Drafter", "ModuleDrafter", "make_drafter", "make_module_drafter"]


class Drafter(Protocol):
    """Writes m tokens after the backbone's newest one. Its tensors are allocated once and stay in place."""

    num_drafted_B: Tensor
    """How many of the m tokens of each row the drafter proposes."""
    distributions_BmV: Tensor | None
    """What each was drawn from, for rejection sampling; else None."""

    exits_early: bool
    """Whether the host may ask how many tokens are drafted, so that the backbone reads no more than those."""

    length: DraftLength | None
    """How many tokens pay, in adaptive drafting."""

    table_BV: Tensor | None
    """What else `draft` changes in place, a row for each of the batch; None if nothing."""

    @property
    def cache(self) -> KVCache | None:
        """Keys and values of its own; None if it needs none."""

    def draft(self, made: BackbonePass) -> None:
        """Propose the tokens that follow the newest one of the backbone's pass; it may not wait for the device."""
        ...


def make_drafter(
    model: RecycleGPT,
    strategy: Strategy,
    sampler: Sampler,
    text: TextBuffer,
    backbone_cache: KVCache,
    recycle: ModelPass | None = None,
) -> Drafter | None:
    """The drafter of a session; None where nothing is drafted. `recycle` stands in for the model's, compiled."""
    if not strategy.num_recycled:
        return None
    if strategy.drafter == "token_recycling":
        return TokenRecyclingDrafter(model, strategy, sampler, text)
    if strategy.drafter.startswith(("self_speculative", "early_exit")):
        return PartialBackboneDrafter(model, strategy, sampler, text, backbone_cache)
    given = model, strategy, sampler, text, backbone_cache, recycle
    module = make_module_drafter(*given) if strategy.needs_module else None
    return module if strategy.drafter == "module" else NgramDrafter(strategy, sampler, text, module)


def make_module_drafter(
    model: RecycleGPT,
    strategy: Strategy,
    sampler: Sampler,
    text: TextBuffer,
    backbone_cache: KVCache,
    recycle: ModelPass | None = None,
) -> ModuleDrafter:
    """The model's draft module as a drafter."""
    kind = ModuleDrafter if model.recycle_config.num_drafted is None else OneCallDrafter
    if isinstance(model.recyclable, QueryCTC):
        kind = CollapseDrafter
    elif isinstance(model.recyclable, RoundsModule):
        kind = RoundsDrafter
    return kind(model, strategy, sampler, text, backbone_cache, recycle)
