"""What every kind of draft module has in common: whole rows in training, a call or a chain of calls in decoding.

Row t of step k drafts x_{t+1+k}: it has seen the backbone's state h_t and the token x_{t+1}.

B batch, T positions, C model width, V vocabulary, D draft vocabulary, N views, K steps, m drafted tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recyclegpt.errors import ConfigError
from recyclegpt.models.backbone import Backbone
from recyclegpt.models.config import ModelConfig, RecycleConfig
from recyclegpt.models.layers import AttentionInputs, KVStore
from recyclegpt.models.rope import Rotary
from recyclegpt.models.unrolled import UnrolledKVStore, unrolled_mask

ROWS_AT_ONCE = 256
"""Of logits, as in the dual loss on a CPU."""


class Attend(Protocol):
    """What rows at these positions `(B, R)` may attend to in decoding: the slots of the cache up to their own.

    With `last_BR` each row sees the slots up to that one, which may be before its own.
    """

    def __call__(self, positions_BR: Tensor, last_BR: Tensor | None = None) -> AttentionInputs: ...


@dataclass
class Rows:
    """Whole rows of text with the backbone's states, in training and scoring."""

    hidden_BTC: Tensor
    views_NBT: Tensor
    embedding_VC: Tensor
    rotary: Rotary
    mask: Tensor | None
    """`(B, 1, T, T)` where attention stays within documents; None: causal."""
    documents_NBT: Tensor | None
    head_VC: Tensor
    queries: list[Tensor] = field(default_factory=list)
    """States `(B, T, C)` of further rows, which a kind keeps here for its own loss."""
    store: UnrolledKVStore = field(default_factory=UnrolledKVStore)
    """Keys and values of the backbone's rows, for a kind that taps it."""

    def embedded(self, step: int) -> Tensor:
        """E(x_{t+step}) for each row t, `(B, T, C)`."""
        return F.embedding(self.views_NBT[step], self.embedding_VC)

    def counted(self, step: int) -> Tensor:
        """1 for the rows `(B, T)` whose token of a step is of their own document, else 0."""
        if self.documents_NBT is None:
            return torch.ones_like(self.views_NBT[0], dtype=torch.float32)
        return (self.documents_NBT[0] == self.documents_NBT[1 + step]).float()

    def attending(self, step: int, memory: KVStore | None = None) -> AttentionInputs:
        """Of rows at positions t + step - 1, which see what `memory` returns: `step` blocks of T keys."""
        mask = self.mask if self.mask is None or step == 1 else unrolled_mask(step, self.mask)
        T = self.views_NBT.shape[-1]
        cos, sin = self.rotary(torch.arange(step - 1, T + step - 1, device=self.views_NBT.device))
        return AttentionInputs(cos, sin, mask, memory)


def in_chunks(function: Callable[..., Tensor], *rows: Tensor) -> list[Tensor]:
    """The function of a few rows at a time, recomputed in the backward pass: logits of all rows are never held."""
    chunks = zip(*(x.split(ROWS_AT_ONCE) for x in rows), strict=True)
    if not torch.is_grad_enabled():
        return [function(*chunk) for chunk in chunks]
    return [checkpoint(function, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]


def rows_of_call(positions_BT: Tensor, newest_B: Tensor, num: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows R = T + m - 1 of a call that reads the true pairs and m - 1 = `num` - 1 more rows after the newest one.

    They take the places of rejected pairs, then those after the pairs; where pairs were rejected, the last rows are
    not used.

    Returns:
        Positions `(B, R)`; the pair each row belongs to `(B, R)`; how many rows after the newest pair it is `(B, R)`.
    """
    row_R = torch.arange(positions_BT.shape[1] + num - 1, device=newest_B.device)
    newest_B1 = newest_B[:, None]
    return positions_BT[:, :1] + row_R, torch.minimum(row_R, newest_B1), (row_R - newest_B1).clamp(min=0)


def rows_at(values_BTC: Tensor, index_BR: Tensor) -> Tensor:
    """Rows `index_BR[b]` of each batch entry, `(B, R, C)`."""
    return values_BTC.gather(1, index_BR[..., None].expand(-1, -1, values_BTC.shape[-1]))


class DraftModule(nn.Module):
    """Base of the kinds in `drafts/`. A one-call kind implements `states` and `draft`, a chain `states` and `forward`.

    Args:
        config: shape of the backbone.
        recycle: shape of the module; a one-call kind drafts up to its `num_drafted` tokens.

    Raises:
        ConfigError: `num_drafted` or `draft_vocab` does not fit the kind or the backbone.
    """

    one_call = True
    """Whether one call gives the states of all m tokens; else each call reads the state and token before it."""
    own_share = 0.0
    """Share of `own_loss` in the module's loss; the rest is the cross entropy of its states."""
    tap: int | None = None
    """Backbone layer whose input it reads in place of the final state, in the backbone's own KV cache; else None."""
    spare_rows = 0
    """Rows of a call beyond one a token."""
    recompute_every = 0
    """See `Backbone.recompute_every`."""
    layers: nn.ModuleList
    """Its transformer layers, which alone have a KV cache of its own."""
    draft_ids: Tensor | None
    """The token ids that the module may propose, ascending `(D,)`; None: all."""

    def __init__(self, config: ModelConfig, recycle: RecycleConfig) -> None:
        super().__init__()
        if self.one_call != (recycle.num_drafted is not None):
            wanted = "the tokens that one call drafts" if self.one_call else "null, since each call drafts one token"
            raise ConfigError(f"num_drafted: {recycle.num_drafted}; kind={recycle.kind} needs {wanted}")
        if recycle.draft_vocab is not None and recycle.draft_vocab > config.vocab_size:
            raise ConfigError(f"draft_vocab: {recycle.draft_vocab} is more than vocab_size={config.vocab_size}")
        # Low ids until the frequent ones are known: the earliest merges of a byte-pair vocabulary are common.
        self.register_buffer("draft_ids", None if recycle.draft_vocab is None else torch.arange(recycle.draft_vocab))

    @property
    def depth(self) -> int:
        """Layers that a row passes, which is how many a KV cache holds."""
        return len(self.layers)

    def num_calls(self, num: int) -> int:
        """Calls that drafting `num` tokens takes."""
        return 1 if self.one_call else num

    def attach(self, backbone: Backbone) -> None:
        """Keep what it runs of the backbone; called again where that is put in place of another."""

    def balance(self, embedding_std: float) -> None:
        """Set initial weights that `initialise` cannot know; `embedding_std` is that of the embedding's numbers."""

    def states(self, rows: Rows, num_steps: int) -> list[Tensor]:
        """States `(B, T, C)` of the steps 1..K over whole rows, for the LM head."""
        raise NotImplementedError

    def own_loss(self, rows: Rows) -> Tensor:
        """A loss of its own, in nats a token: the mean over all B * T rows, masked ones counted as zero.

        It follows `states` of the same rows.
        """
        raise NotImplementedError

    def draft(
        self, embedded_BTC: Tensor, hidden_BTC: Tensor, positions_BT: Tensor, newest_B: Tensor, num: int, attend: Attend
    ) -> Tensor:
        """States `(B, m, C)` of the m = `num` tokens after the newest pair, in one call.

        Args:
            embedded_BTC: E(x_{t+1}) of each pair of the backbone pass.
            hidden_BTC: h_t of each.
            positions_BT: t of each, one after another.
            newest_B: the last of the T pairs that belongs to the text; those after it were rejected, or are padding.
            num: tokens to draft.
            attend: what rows at given positions see, the keys and values that they write there among it.
        """
        raise NotImplementedError

    def follow(self, state_BTC: Tensor, embedded_BTC: Tensor) -> Tensor:
        """The state of a one-call kind once the token just before the drafted one is known, given its embedding."""
        return state_BTC
