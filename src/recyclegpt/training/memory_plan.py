"""A rough estimate of the memory that a training step needs, from the shapes alone, before anything is allocated.

It counts what eager execution holds at the end of the forward pass, the peak of a step; compiled layers keep less.
Allocator gaps and library workspaces (5 to 10 percent) are not counted. Layers are counted in bytes per row (position).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.optim import Optimizer

from recyclegpt.models import ModelConfig, RecycleGPT
from recyclegpt.models.unrolled import MOST_ROWS
from recyclegpt.training.cross_entropy import rows_of_chunk
from recyclegpt.training.layers import layers_of

PRECISIONS = {"32-true": (4, 4), "bf16-mixed": (4, 2), "bf16-true": (2, 2), "64-true": (8, 8)}
"""Bytes of a weight and of an activation, by the names of `trainer.precision`."""


@dataclass(frozen=True)
class StepShape:
    """Everything about a run that decides its memory, apart from the model and the optimizer."""

    batch: int
    row_length: int
    precision: str = "bf16-mixed"
    num_unrolled: int = 1
    recompute_every: int = 0
    masked: bool = False
    """Whether attention is kept within documents."""
    chunk_size: int | None = None
    on_cuda: bool = False
    num_shards: int = 1
    """Processes that weights, gradients and optimizer state are sharded over (FSDP)."""
    bucketed: bool = False
    """Whether gradients are summed in buckets, a second copy of them (DDP)."""


def memory_plan(model: RecycleGPT, optimizer: Optimizer, step: StepShape) -> int:
    """Bytes on each device for a model (the meta device will do) and the optimizer over its parameters."""
    wide, narrow = PRECISIONS[step.precision]
    weights, gradients, moments, casts = 0, 0, 0, 0
    for parameter in model.parameters():
        # In mixed precision a frozen backbone may be stored in a narrow dtype of its own.
        weights += parameter.numel() * (parameter.element_size() if step.precision == "bf16-mixed" else wide)
        gradients += parameter.numel() * wide * parameter.requires_grad
        casts += parameter.numel() * narrow * (parameter.requires_grad and parameter.ndim > 1 and narrow != wide)
    for group in optimizer.param_groups:
        copies = 1 if group.get("kind") == "muon" else 2
        moments += copies * wide * sum(parameter.numel() for parameter in group["params"])
    state = weights + gradients * (2 if step.bucketed else 1) + moments
    if step.num_shards > 1:
        # Gathered whole: everything outside the layers, and the running layer with the one fetched next.
        layers = [sum(parameter.numel() for parameter in layer.parameters()) for layer in layers_of(model)]
        outside = sum(parameter.numel() for parameter in model.parameters()) - sum(layers)
        state = state // step.num_shards + (2 * outside + 3 * max(layers)) * wide
    return state + casts + step.batch * step.row_length * _activations(model, step) + _losses(model, step)


def _activations(model: RecycleGPT, step: StepShape) -> int:
    wide, narrow = PRECISIONS[step.precision]
    kept = recomputed = 0
    if any(parameter.requires_grad for parameter in model.backbone.parameters()):
        layer = _layer(model.config, wide, narrow, step, step.row_length if step.masked else 0)
        kept = _stack(len(model.backbone.layers), layer, model.config.hidden_size * wide, step)
        recomputed = layer
    if model.recyclable is not None:
        plain, depth = model.config.plain, model.recyclable.depth
        for k in range(1, step.num_unrolled + 1):
            layer = _layer(plain, narrow, narrow, step, k * step.row_length if step.masked or k > 1 else 0)
            # Keys and values of the earlier steps, repeated for all heads by the attention of unrolled training.
            layer += (k - 1) * 2 * plain.num_heads * plain.head_dim * narrow
            kept += _stack(depth, layer, plain.hidden_size * narrow, step) + 4 * plain.hidden_size * narrow
            recomputed = max(recomputed, layer)
    return kept + (recomputed if step.recompute_every else 0)


def _stack(num_layers: int, layer: int, layer_input: int, step: StepShape) -> int:
    again = -(-num_layers // step.recompute_every) if step.recompute_every else 0
    return (num_layers - again) * layer + again * layer_input


def _layer(config: ModelConfig, stream: int, narrow: int, step: StepShape, keys: int) -> int:
    """One layer: norms with their narrowed outputs, attention (`keys`: columns of its mask), SwiGLU."""
    width, heads = config.hidden_size, (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    # On CUDA one kernel computes a norm and keeps its input; on a CPU the normalised states are kept too.
    norms = 2 * width * (stream if step.on_cuda else 2 * max(4, stream))
    narrowed = (5 if stream != narrow else 2) * width * narrow
    mask = keys * narrow // (1 if step.masked else step.batch)
    attention = heads * narrow + 4 * config.num_heads + mask
    if narrow == 2 and not (step.on_cuda or step.masked) and step.row_length <= MOST_ROWS:  # `in_blocks`
        attention += config.num_heads * (step.row_length // 2 + 2 * config.head_dim) * narrow
    return norms + narrowed + attention + 4 * config.intermediate_size * narrow


def _losses(model: RecycleGPT, step: StepShape) -> int:
    wide, narrow = PRECISIONS[step.precision]
    head, rows = model.lm_head.weight, step.batch * step.row_length
    num_losses = step.num_unrolled if model.recyclable is not None else 0
    kept = rows * model.config.hidden_size * (num_losses * narrow + wide * head.requires_grad)
    drafted = model.recycle_config.draft_vocab or model.config.vocab_size
    kept += (model.config.vocab_size + num_losses * drafted) * model.config.hidden_size * wide * head.requires_grad
    # Logits, their softmax in fp32 and its narrow copy.
    vocabulary = model.config.vocab_size
    chunk = min(rows, rows_of_chunk(vocabulary, step.on_cuda, step.chunk_size))
    return kept + chunk * vocabulary * (2 * narrow + max(4, narrow))
