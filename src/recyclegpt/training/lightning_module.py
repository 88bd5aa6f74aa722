"""The LightningModule: training and validation steps, optimizer, non-finite steps."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from recyclegpt.data import Batch
from recyclegpt.errors import ConfigError, RunError
from recyclegpt.models import RecycleGPT
from recyclegpt.training.dual_loss import DualLoss, LossConfig, LossTerms
from recyclegpt.training.early_exit import plan_exit
from recyclegpt.training.held_out import HeldOutMetrics
from recyclegpt.training.layers import is_sharded, set_up_layers, shard
from recyclegpt.training.state_cache import KnownStates, StateCache

NOT_FINITE = "not_finite.jsonl"
_log = logging.getLogger("recyclegpt")


class NonFiniteError(RunError):
    """Loss or gradients were NaN or infinite too many times in a row."""


class LitRecycleGPT(LightningModule):
    """Training and validation of a RecycleGPT.

    A step whose loss or gradient is not finite changes nothing: every gradient is dropped, on all ranks alike because
    they have been summed by then. Each such step leaves a line in `not_finite.jsonl` that names the rows it was
    computed from, and after `max_skipped_steps` of them in a row training stops.

    Args:
        num_steps: optimizer steps of the whole run, from the config (never from the trainer).
        token_num_bytes: `(V,)` bytes of text that each token stands for.
        hyper_parameters: plain Python config, stored in every checkpoint.
        max_skipped_steps: non-finite steps in a row that are skipped before training stops.
        use_compile: run the layers of backbone and module, and the loss, through `torch.compile`, in place.
        activation_checkpointing: every n-th layer is recomputed in the backward pass, not kept; 0: none.
        backbone_external: a frozen backbone stays where it was read from, and checkpoints hold the module alone.
    """

    def __init__(
        self,
        model: RecycleGPT,
        loss: LossConfig,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LambdaLR],
        num_steps: int,
        token_num_bytes: Tensor,
        hyper_parameters: dict[str, Any] | None = None,
        max_skipped_steps: int = 10,
        use_compile: bool = False,
        activation_checkpointing: int = 0,
        backbone_external: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.dual_loss = DualLoss(loss, use_compile)
        self.optimizer_factory, self.scheduler_factory = optimizer, scheduler
        self.num_steps = num_steps
        self.max_skipped_steps = max_skipped_steps
        self.num_skipped_steps = self.num_skipped_in_a_row = 0
        self._window: list[tuple[Batch, Tensor]] = []
        """Batches of the next optimizer step, and their losses."""
        self._grad_norm = torch.zeros(())
        self.state_cache: StateCache | None = None
        """Where the states of a frozen backbone are kept; None: they are computed in each step."""
        self.register_buffer("token_num_bytes_V", token_num_bytes.long(), persistent=False)
        self.held_out: HeldOutMetrics | None = None
        self.validated_step: int | None = None
        """Optimizer steps done when held-out text was last measured."""
        self.save_hyperparameters(hyper_parameters or {})
        self.backbone_external = backbone_external
        self.strict_loading = not backbone_external
        set_up_layers(model, use_compile, activation_checkpointing, loss.num_unrolled)

    token_num_bytes_V: Tensor

    def configure_model(self) -> None:
        """Shard the weights over processes if the strategy has set up a mesh (`trainer=fsdp`)."""
        if self.device_mesh is not None and not is_sharded(self.model):
            shard(self, self.model, self.device_mesh["data_parallel"])

    def loss_terms(self, batch: Batch, known: KnownStates | None = None) -> LossTerms:
        """The dual loss on a batch, with the recycle weight of the current step."""
        views_NBT, documents_NBT, config = batch.views_NBT, batch.documents_NBT, self.dual_loss.config
        hidden_BTC, best_BT, normaliser_BT = (None, None, None) if known is None else known
        exit_BTC = None
        if self.training and (config.early_exit_weight or config.layer_dropout):
            plan = plan_exit(self.model.config.num_layers, config.layer_dropout, views_NBT[0], self.trainer.global_step)
            hidden_BTC, exit_BTC = self.model.exit_states(views_NBT[0], documents_NBT, *plan)
        states = self.model.states(
            views_NBT, documents_NBT, config.num_unrolled, config.backbone_grad_scale, hidden_BTC
        )
        terms: LossTerms = self.dual_loss(
            *(states, self.model.lm_head.weight, views_NBT, documents_NBT, self._progress),
            *(self.model.draft_ids, best_BT, normaliser_BT, exit_BTC),
        )
        return terms

    @property
    def _progress(self) -> float:
        return self.trainer.global_step / self.num_steps

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        known = None if self.state_cache is None else self.state_cache.states(self.model, batch)
        terms = self.loss_terms(batch, known)
        self.log("train/loss", terms.loss.detach(), prog_bar=True)
        if terms.backbone is not None:
            self.log("train/loss_backbone", terms.backbone.nll_M.mean())
        if terms.exit is not None:
            self.log("train/loss_exit", terms.exit.nll_M.mean())
        if terms.recycle_K:
            for step, rows in enumerate(terms.recycle_K, start=1):
                name = "train/loss_recycle" if step == 1 else f"train/loss_recycle_{step}"
                mask_M = terms.draft_mask_BT.flatten() * (1.0 if rows.inside_M is None else rows.inside_M)
                self.log(name, (rows.nll_M * mask_M).sum() / mask_M.sum().clamp(min=1))
            self.log("train/recycle_weight", self.dual_loss.config.recycle_weight_at(self._progress))
        loss = terms.loss.detach()
        self._window.append((batch, loss))
        # A loss that is not finite makes all gradients non-finite: here, and after the reduction on every other rank.
        return terms.loss * torch.where(torch.isfinite(loss), 1.0, math.nan)

    def on_validation_epoch_start(self) -> None:
        """Begin new sums."""
        self.held_out = HeldOutMetrics(self.token_num_bytes_V, self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a held-out batch to the sums."""
        assert self.held_out is not None, "Lightning calls on_validation_epoch_start first"
        self.held_out.add(self.loss_terms(batch), batch.views_NBT)

    def on_validation_epoch_end(self) -> None:
        """Reduce the sums over ranks, then divide once and log."""
        assert self.held_out is not None
        for name in ("sums", "by_confidence", "by_place"):
            setattr(self.held_out, name, self.trainer.strategy.reduce(getattr(self.held_out, name), reduce_op="sum"))
        self.log_dict(self.held_out.metrics())
        self.validated_step = None if self.trainer.sanity_checking else self.trainer.global_step

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Drop every gradient if one is not finite; the optimizer then leaves all weights unchanged."""
        grads = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        self._grad_norm = torch.nn.utils.get_total_norm(grads)
        norm = self._grad_norm.full_tensor() if isinstance(self._grad_norm, DTensor) else self._grad_norm
        self.log("train/grad_norm", norm)
        window, self._window = self._window, []
        if torch.isfinite(norm):
            self.num_skipped_in_a_row = 0
        else:
            self._skip_step(window, float(norm))
        self.log("train/skipped_steps", float(self.num_skipped_steps))

    def _skip_step(self, window: list[tuple[Batch, Tensor]], norm: float) -> None:
        self.num_skipped_steps += 1
        self.num_skipped_in_a_row += 1
        for parameter in self.parameters():
            parameter.grad = None
        step, file = self.trainer.global_step, Path(self.trainer.default_root_dir) / NOT_FINITE
        batches = [
            {"rows": None if batch.rows_B is None else batch.rows_B.tolist(), "loss": str(loss.item())}
            for batch, loss in window
        ]
        line = {"format": 1, "step": step, "rank": self.global_rank, "grad_norm": str(norm), "batches": batches}
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as opened:  # one short write per line, so that ranks do not interleave
            opened.write(json.dumps(line) + "\n")
        _log.warning("step %d: loss or gradient was not finite, so it was skipped; its rows are in %s", step, file)
        if self.num_skipped_in_a_row > self.max_skipped_steps:
            raise NonFiniteError(
                f"loss or gradient was not finite {self.num_skipped_in_a_row} steps in a row, last at step {step}; "
                f"lower optimizer.lr, or train in fp32 (trainer.precision=32-true); their rows are in {file}"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the counts of skipped steps; leave out an external backbone."""
        if self.backbone_external:
            weights = checkpoint["state_dict"].items()
            checkpoint["state_dict"] = {key: value for key, value in weights if key.startswith("model.recyclable.")}
        checkpoint["skipped_steps"] = [self.num_skipped_steps, self.num_skipped_in_a_row]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the counts of skipped steps."""
        self.num_skipped_steps, self.num_skipped_in_a_row = checkpoint.get("skipped_steps", (0, 0))

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by the norm of all gradients: Lightning's own clipping refuses fused optimizers in mixed precision."""
        if gradient_clip_algorithm not in (None, "norm"):
            raise ConfigError(f"trainer.gradient_clip_algorithm: {gradient_clip_algorithm} is not supported; use norm")
        if gradient_clip_val:  # the norm has just been taken, by on_before_optimizer_step
            torch.nn.utils.clip_grads_with_norm_(self.parameters(), gradient_clip_val, self._grad_norm)

    def configure_optimizers(self) -> Any:
        """One optimizer over all trainable parameters, its schedule stepped after every optimizer step."""
        optimizer = self.optimizer_factory(self.model.named_parameters())
        scheduler = self.scheduler_factory(optimizer, num_steps=self.num_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
