"""RecycleGPT: backbone, recyclable module and the LM head they share.

B batch, T positions, C model width, V vocabulary, D draft vocabulary, N views, K unrolled steps.
"""

# No `from __future__ import annotations`: the hub mixin rebuilds the two configs from the annotations of `__init__`.

import functools
from collections.abc import Callable, Container
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from recyclegpt.errors import ConfigError
from recyclegpt.models.backbone import Backbone
from recyclegpt.models.config import MAX_RECYCLED, ModelConfig, RecycleConfig
from recyclegpt.models.draft_module import Attend, Rows
from recyclegpt.models.drafts import make_draft_module
from recyclegpt.models.kv_cache import KVCache
from recyclegpt.models.layers import AttentionInputs, initialise, scale_gradient
from recyclegpt.models.rope import Rotary
from recyclegpt.models.unrolled import UnrolledKVStore, document_mask


class States(NamedTuple):
    """States of backbone and module over whole rows, before the LM head."""

    hidden_BTC: Tensor
    recycled_KBTC: list[Tensor]
    own_loss: Callable[[], Tensor] | None = None
    """The loss of the module's kind (`DraftModule.own_loss`) and its share; None: cross entropy is all there is."""
    own_share: float = 0.0


class RecycleGPT(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="recyclegpt",
    license="apache-2.0",
    tags=["recyclegpt", "text-generation"],
):
    """A decoder-only language model that can also predict one token further from states it has already computed.

    `p_backbone(x_{t+1}) = softmax(W h_t)` and `p_recycle(x_{t+2}) = softmax(W r_t)` with one LM head W
    (RecycleGPT, arXiv 2308.03421). `from_pretrained`, `save_pretrained` and `push_to_hub` come from `huggingface_hub`.
    """

    def __init__(self, model: ModelConfig, recycle: RecycleConfig | None = None) -> None:
        super().__init__()
        recycle = RecycleConfig(num_layers=0) if recycle is None else recycle
        self.config, self.recycle_config = model, recycle
        self.backbone = Backbone(model)
        self.recyclable = make_draft_module(model, recycle)
        if self.recyclable is not None:
            self.recyclable.attach(self.backbone)
        self.lm_head = nn.Linear(model.hidden_size, model.vocab_size, bias=False)
        self.draft_lm_head: nn.Module | None = None  # of a model prepared for decoding: `draft_head`, packed
        num_positions = model.context_length + 2 * MAX_RECYCLED
        self.rotary = Rotary(model.head_dim, model.rope_theta, num_positions, model.rope_scaling)
        initialise(self, model.init_std)
        if self.recyclable is not None:
            self.recyclable.balance(model.init_std)
        if model.tie_embeddings:
            self.lm_head.weight = self.backbone.embed_tokens.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        """The backbone's logits `(B, T, V)` for token ids `(B, T)`, attending causally."""
        return self.logits(self.backbone_states(input_ids))

    # --- the two passes and the LM head: decoding uses these and nothing else ---

    def backbone_states(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        num_slots_read: int | None = None,
    ) -> Tensor:
        """The backbone's states `hidden_BTC` for these tokens.

        Without a cache the rows attend to each other causally (or by `mask`). With one, the tokens are written at
        `positions_BT` and attend to every earlier slot; `num_slots_read` bounds the slots read.
        """
        states_BTC = self._in_one_call(tokens_BT, None, positions_BT, cache)
        if states_BTC is not None:
            return states_BTC
        return self.backbone(tokens_BT, self._attention_inputs(tokens_BT, positions_BT, mask, cache, num_slots_read))

    def tapped_states(
        self, tokens_BT: Tensor, positions_BT: Tensor, cache: KVCache, num_slots_read: int, tap: int
    ) -> tuple[Tensor, Tensor]:
        """The backbone's states as `backbone_states` gives them, and what its layer number `tap` reads."""
        attending = self._attention_inputs(tokens_BT, positions_BT, None, cache, num_slots_read)
        return self.backbone.tapped(tokens_BT, attending, tap)

    def partial_states(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor,
        skipped: Container[str],
        cache: KVCache,
        num_slots_read: int | None = None,
    ) -> Tensor:
        """States as `backbone_states` gives them, but operator by operator and without the `skipped` parts."""
        attending = self._attention_inputs(tokens_BT, positions_BT, None, cache, num_slots_read)
        return self.backbone.partial(tokens_BT, attending, skipped)

    def recycle(
        self,
        tokens_BT: Tensor,
        hidden_BTC: Tensor,
        positions_BT: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        num_slots_read: int | None = None,
    ) -> Tensor:
        """The module's states `recycled_BTC`: row t reads token x_{t+1} (`tokens_BT[:, t]`) and state h_t.

        Raises:
            ValueError: the model has no recyclable module.
        """
        if self.recyclable is None:
            raise ValueError("this model has no recyclable module (recycle.num_layers=0); decode it autoregressively")
        states_BTC = self._in_one_call(tokens_BT, hidden_BTC, positions_BT, cache)
        if states_BTC is not None:
            return states_BTC
        embedded_BTC = self.backbone.embed_tokens(tokens_BT)
        return self.recyclable(
            embedded_BTC, hidden_BTC, self._attention_inputs(tokens_BT, positions_BT, mask, cache, num_slots_read)
        )

    def attend(self, cache: KVCache, num_slots_read: int) -> Attend:
        """What the rows of a one-call module may attend to in decoding."""

        def inputs(positions_BR: Tensor, last_BR: Tensor | None = None) -> AttentionInputs:
            # Only rows that nobody reads stand beyond the last slot or rotation.
            positions_BR = positions_BR.clamp(max=min(num_slots_read, self.rotary.num_positions) - 1)
            if last_BR is None:
                return self._attention_inputs(positions_BR, positions_BR, None, cache, num_slots_read)
            attending = RecycleGPT._attention_inputs(self, positions_BR, positions_BR, None, cache, num_slots_read)
            return replace(attending, mask=cache.slots_S[:num_slots_read] <= last_BR[:, None, :, None])

        return inputs

    def logits(self, state_BTC: Tensor) -> Tensor:
        """Logits `(..., V)` of states of either kind."""
        return self.lm_head(state_BTC)

    def draft_logits(self, state_BTC: Tensor) -> Tensor:
        """Logits `(..., D)` of the module's states over its draft vocabulary; column i is token `draft_ids[i]`."""
        if self.draft_lm_head is not None:
            return self.draft_lm_head(state_BTC)
        return self.logits(state_BTC) if self.draft_ids is None else F.linear(state_BTC, self.draft_head)

    @property
    def draft_ids(self) -> Tensor | None:
        """Token ids that the module may propose, ascending `(D,)`; None: all."""
        return None if self.recyclable is None else self.recyclable.draft_ids

    @property
    def draft_head(self) -> Tensor:
        """The LM head's rows `(D, C)` that the module uses; gradients reach the head through them."""
        return self.lm_head.weight if self.draft_ids is None else self.lm_head.weight[self.draft_ids]

    # --- training ---

    def states(
        self,
        views_NBT: Tensor,
        documents_NBT: Tensor | None = None,
        num_unrolled: int = 1,
        backbone_grad_scale: float = 1.0,
        hidden_BTC: Tensor | None = None,
    ) -> States:
        """States of backbone and module over whole rows, for training and scoring.

        Args:
            views_NBT: the row and the same row one, two, ... tokens later; step k of the module reads view k.
            documents_NBT: number of the document each token belongs to; attention then stays within documents.
            num_unrolled: steps K of the module, at most those that one call drafts if it has that number.
            backbone_grad_scale: share of the recycle loss's gradient that reaches embedding and backbone, 0 to 1.
            hidden_BTC: the backbone's states, where they are known.

        Returns:
            `hidden_BTC` and K tensors `recycled_BTC` (none if the model has no module).

        Raises:
            ConfigError: the module drafts fewer tokens than K.
        """
        if num_unrolled > (self.recycle_config.num_drafted or num_unrolled):
            raise ConfigError(f"num_unrolled: {num_unrolled}, but it drafts {self.recycle_config.num_drafted} tokens")
        mask = None if documents_NBT is None else document_mask(documents_NBT[0])
        module, tapped_BTC, store = self.recyclable, None, UnrolledKVStore()
        if module is not None and module.tap is not None and num_unrolled:
            if hidden_BTC is not None or (backbone_grad_scale < 1 and self.lm_head.weight.requires_grad):
                raise ConfigError(
                    f"recycle.kind: {self.recycle_config.kind} reads a layer within the backbone, so known states "
                    "(training.cache_states) do not serve it, nor does a loss.backbone_grad_scale below 1"
                )
            attending = self._attention_inputs(views_NBT[0], None, mask, None, None)
            hidden_BTC, tapped_BTC = self.backbone.tapped(views_NBT[0], replace(attending, memory=store), module.tap)
        elif hidden_BTC is None:
            hidden_BTC = self.backbone_states(views_NBT[0], mask=mask)
        if module is None or not num_unrolled:
            return States(hidden_BTC, [])
        state_BTC = scale_gradient(hidden_BTC if tapped_BTC is None else tapped_BTC, backbone_grad_scale)
        embedding_VC = scale_gradient(self.backbone.embed_tokens.weight, backbone_grad_scale)
        head_VC = scale_gradient(self.lm_head.weight, backbone_grad_scale if module.own_share else 1.0)
        rows = Rows(state_BTC, views_NBT, embedding_VC, self.rotary, mask, documents_NBT, head_VC, store=store)
        recycled = module.states(rows, num_unrolled)
        own_loss = functools.partial(module.own_loss, rows) if module.own_share else None
        return States(hidden_BTC, recycled, own_loss, module.own_share)

    def exit_states(
        self, tokens_BT: Tensor, documents_NBT: Tensor | None, num_layers: int, dropped_LB: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The backbone's states in training for an early exit, and those of the exit (`Backbone.exit_states`)."""
        mask = None if documents_NBT is None else document_mask(documents_NBT[0])
        inputs = self._attention_inputs(tokens_BT, None, mask, None, None)
        return self.backbone.exit_states(tokens_BT, inputs, num_layers, dropped_LB)

    # --- bookkeeping ---

    def materialise(self, device: torch.device | str = "cpu") -> None:
        """Allocate memory for a model made on the meta device, whose weights have yet to be loaded.

        Also computes the rotary tables in fp32 and ties a tied LM head again, which `to_empty` does not do.
        """
        self.to_empty(device=device)
        self.rotary.float().fill()
        if self.draft_ids is not None:
            torch.arange(len(self.draft_ids), out=self.draft_ids)
        if self.config.tie_embeddings:
            self.lm_head.weight = self.backbone.embed_tokens.weight

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.backbone.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the states."""
        return self.backbone.embed_tokens.weight.dtype

    def num_parameters(self) -> int:
        """All parameters, a tied LM head counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def num_parameters_recycle(self) -> int:
        """Parameters of the recyclable module alone (it shares embedding and LM head)."""
        return 0 if self.recyclable is None else sum(parameter.numel() for parameter in self.recyclable.parameters())

    def _in_one_call(
        self, tokens_BT: Tensor, hidden_BTC: Tensor | None, positions_BT: Tensor | None, cache: KVCache | None
    ) -> Tensor | None:
        """The states of backbone or (with `hidden_BTC`) module where one operator computes them; else None."""
        return None

    def _attention_inputs(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None,
        mask: Tensor | None,
        cache: KVCache | None,
        num_slots_read: int | None,
    ) -> AttentionInputs:
        if positions_BT is None:
            positions_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
            if cache is not None:
                positions_BT = positions_BT.expand_as(tokens_BT)
        cos, sin = self.rotary(positions_BT)
        if cache is not None:
            mask = cache.set_positions(positions_BT, num_slots_read)
        return AttentionInputs(cos, sin, mask, cache)
