"""What `recyclegpt train` prints before it begins: sizes, steps, the run folder, and whether the memory suffices."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from omegaconf import DictConfig
from torch.optim import Optimizer

from recyclegpt.configuration.train_checks import num_steps
from recyclegpt.data import TextDataModule
from recyclegpt.files import relative
from recyclegpt.hardware.memory import memory_of
from recyclegpt.models import RecycleGPT
from recyclegpt.models.parameter_count import model_facts
from recyclegpt.training.memory_plan import StepShape, memory_plan

log = logging.getLogger("recyclegpt")


def announce(
    cfg: DictConfig,
    folder: Path,
    datamodule: TextDataModule,
    model: RecycleGPT,
    trainer: Trainer,
    optimizer: Optimizer,
    checkpoint: Path | None,
) -> None:
    """Print it to stderr, and warn where the planned memory exceeds what the device has."""
    facts, tokens, device = model_facts(model), datamodule.train_num_tokens, trainer.strategy.root_device
    batch = datamodule.batch_size * datamodule.row_length * cfg.trainer.accumulate_grad_batches * trainer.world_size
    sharded = isinstance(trainer.strategy, ModelParallelStrategy)
    step = StepShape(
        batch=datamodule.batch_size,
        row_length=datamodule.row_length,
        precision=str(trainer.precision),
        num_unrolled=cfg.loss.num_unrolled,
        recompute_every=int(cfg.training.activation_checkpointing),
        masked=datamodule.mask_documents,
        chunk_size=cfg.loss.chunk_size,
        on_cuda=device.type == "cuda",
        num_shards=trainer.world_size if sharded else 1,
        bucketed=trainer.world_size > 1 and not sharded,
    )
    planned, available = memory_plan(model, optimizer, step), memory_of(device)
    memory = f"about {planned / 1e9:.2g}" + ("" if available is None else f" of {available / 1e9:.3g}") + " GB"
    lines = [
        f"model   {facts['num_parameters']:,} parameters: backbone of {model.config.num_layers} layers, module of "
        f"{model.recycle_config.num_layers} ({facts['recycle_overhead']:.0%} more)",
        f"data    {'an endless stream' if tokens is None else f'{tokens:,} training tokens'}, "
        f"vocabulary {datamodule.vocab_size:,}",
        f"run     {num_steps(cfg)} steps of {batch:,} tokens, {trainer.precision} on {device.type}, "
        f"{torch.get_num_threads()} threads",
        f"memory  {memory}",
        f"folder  {relative(folder)}",
    ]
    if checkpoint is not None:
        lines.append(f"resumed {relative(checkpoint)}")
    print("\n".join(lines), file=sys.stderr)
    if available is not None and planned > available:
        log.warning(
            "the memory of %s may not suffice (%s); set training.activation_checkpointing=true, lower data.batch_size "
            "(trainer.accumulate_grad_batches makes up for it), or train with trainer=fsdp on several GPUs",
            device,
            memory,
        )
