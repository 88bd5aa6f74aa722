"""Query rows trained with CTC: alignments of twice as many rows with the next K tokens (NARVL, arXiv 2403.02249).

B batch, T positions, C model width, D draft vocabulary, K tokens, Q = 2 K query rows, M = B * T rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recyclegpt.models.config import ModelConfig, RecycleConfig
from recyclegpt.models.draft_module import Attend, Rows, in_chunks
from recyclegpt.models.drafts.mask_rows import MaskRows


class QueryCTC(MaskRows):
    """After the true pair come Q query rows `[e_q ; h_t]`; each says a token, or blank (a learned row beside the head).

    The loss is -log of the sum over all alignments that give x_{t+2} .. x_{t+1+K} once repetitions are merged and
    blanks dropped: `F.ctc_loss(..., zero_infinity=True)` as in github.com/amazon-science/NARVL,
    `criterions/ofa_nat_loss.py`; decoder-only it is the CTC drafter of arXiv 2412.00061. Corpus labels only.

    What it is not: NARVL answers a question about an image in one shot, from an encoder; here the next K tokens alone
    are aligned, the best token of each row is collapsed, and the backbone verifies the result. `val/agreement` and
    `val/loss_recycle` look at the first query row, whose token need not be the first.
    """

    own_share = 1.0

    def __init__(self, config: ModelConfig, recycle: RecycleConfig) -> None:
        super().__init__(config, recycle)
        self.spare_rows = recycle.num_drafted or 0
        self.mask_embed = nn.Embedding(2 * self.spare_rows + 1, config.hidden_size)
        self.blank_embed = nn.Parameter(torch.zeros(config.hidden_size))

    def balance(self, embedding_std: float) -> None:
        """See `MaskRows`."""
        super().balance(embedding_std)
        nn.init.zeros_(self.blank_embed)

    def states(self, rows: Rows, num_steps: int) -> list[Tensor]:
        """See `DraftModule`; those of the first K query rows."""
        rows.queries = super().states(rows, 2 * num_steps + 1)[1:]
        return rows.queries[:num_steps]

    def draft(
        self, embedded_BTC: Tensor, hidden_BTC: Tensor, positions_BT: Tensor, newest_B: Tensor, num: int, attend: Attend
    ) -> Tensor:
        """The states of the 2 m query rows, `(B, 2 m, C)`."""
        return super().draft(embedded_BTC, hidden_BTC, positions_BT, newest_B, 2 * num + 1, attend)[:, 1:]

    def align(self, state_BQC: Tensor, logits_BQD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best column of each row, whether collapsing keeps it, and its probability, all `(B, Q)`."""
        log_p_BQD = self._log_p(state_BQC, logits_BQD)
        p_BQ, best_BQ = log_p_BQD.exp().max(dim=-1)
        before_BQ = F.pad(best_BQ, (1, -1), value=-1)
        return best_BQ, (best_BQ != before_BQ) & (best_BQ < logits_BQD.shape[-1]), p_BQ

    def own_loss(self, rows: Rows) -> Tensor:
        """See `DraftModule`."""
        K, head_DC = len(rows.queries) // 2, rows.head_VC
        target_MK, counted_M = rows.views_NBT[2 : 2 + K].flatten(1).t(), rows.counted(K).flatten()
        if self.draft_ids is not None:
            head_DC = head_DC.index_select(0, self.draft_ids)
            counted_M = counted_M * torch.isin(target_MK, self.draft_ids).all(dim=1)
            target_MK = torch.searchsorted(self.draft_ids, target_MK).clamp(max=len(self.draft_ids) - 1)

        def losses(state_mQC: Tensor, target_mK: Tensor, counted_m: Tensor) -> Tensor:
            log_p_QmD = self._log_p(state_mQC, F.linear(state_mQC, head_DC)).transpose(0, 1)
            num_rows, num_tokens = (torch.full((len(target_mK),), n) for n in (len(log_p_QmD), K))
            loss_m = F.ctc_loss(
                log_p_QmD, target_mK, num_rows, num_tokens, blank=len(head_DC), reduction="none", zero_infinity=True
            )
            return (loss_m * counted_m).sum()

        state_MQC = torch.stack([state_BTC.flatten(0, 1) for state_BTC in rows.queries], dim=1)
        return torch.stack(in_chunks(losses, state_MQC, target_MK, counted_M)).sum() / (K * len(counted_M))

    def _log_p(self, state: Tensor, logits: Tensor) -> Tensor:
        blank = (state @ self.blank_embed.to(state.dtype))[..., None]
        return torch.cat([logits, blank], dim=-1).log_softmax(-1, dtype=torch.promote_types(state.dtype, torch.float32))


Module = QueryCTC
