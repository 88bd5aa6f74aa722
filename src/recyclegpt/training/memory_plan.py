"""How much memory a training step needs, told from the shapes before anything is allocated.

Counted is what eager execution holds at the end of the forward pass, which is the peak of a step; compiling keeps less.
What libraries and the allocator's gaps take (a twentieth to a tenth) is not in it, nor what backward passes hold for a
moment.

B batch, T positions, M = B * T rows, C model width, V vocabulary, H heads, G key/value heads, D head width, F SwiGLU
width, K unrolled steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from torch import nn
from torch.optim import Optimizer

from recyclegpt.models import ModelConfig, RecycleGPT
from recyclegpt.training.compile import layers_of
from recyclegpt.training.cross_entropy import rows_of_chunk

PRECISIONS = {"32-true": (4, 4), "bf16-mixed": (4, 2), "bf16-true": (2, 2), "64-true": (8, 8)}
"""Bytes of a weight and of a product's result, by the names that `trainer.precision` has."""
_STEP_BYTES = 4
"""AdamW counts the steps of every parameter in a tensor of its own."""


@dataclass(frozen=True)
class StepShape:
    """What of a run decides its memory."""

    batch: int
    row_length: int
    precision: str = "bf16-mixed"
    num_unrolled: int = 1
    recompute_every: int = 0
    masked: bool = False
    """Whether attention is kept inside documents."""
    chunk_size: int | None = None
    on_cuda: bool = False
    """There one kernel computes a norm and keeps its input alone."""
    num_shards: int = 1
    """Processes that weights, gradients and optimizer state are spread over (FSDP)."""
    bucketed: bool = False
    """Whether gradients are summed in buckets, a second copy of them (DDP)."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on each device."""

    parameters: int
    gradients: int
    optimizer: int
    narrow_weights: int
    """Copies of the matrices in the format of mixed precision."""
    activations: int
    """What the backward pass needs of the layers, and one layer that is run again where layers are."""
    logits: int
    """A chunk of logits, and the gradients of states and classifier that are computed along with the loss."""

    @property
    def total(self) -> int:
        """Sum of all."""
        return sum(getattr(self, field.name) for field in fields(self))

    def describe(self, available: float | None = None) -> str:
        """One line, in GB (10^9 bytes); `available`: bytes of the device."""
        parts = [
            f"{getattr(self, field.name) / 1e9:.3g} GB {field.name.replace('_', ' ')}"
            for field in fields(self)
            if getattr(self, field.name)
        ]
        of = "" if available is None else f" of {available / 1e9:.3g} GB"
        return f"{', '.join(parts)} = {self.total / 1e9:.3g} GB{of}"


def memory_plan(model: RecycleGPT, optimizer: Optimizer, step: StepShape) -> MemoryPlan:
    """The plan of a model, which may lie on the meta device, and of the optimizer over its parameters."""
    weight_bytes, narrow = PRECISIONS[step.precision]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = sum(_bytes(parameter, step.precision) for parameter in model.parameters())
    gradients = sum(parameter.numel() for parameter in trained) * weight_bytes
    state = optimizer_bytes(optimizer, weight_bytes)
    whole_weights = whole_gradients = 0
    if step.num_shards > 1:
        # Gathered whole: what belongs to the step as a whole, and the layer that runs with the one fetched next.
        layers = [sum(parameter.numel() for parameter in layer.parameters()) for layer in layers_of(model)]
        rest = (sum(parameter.numel() for parameter in model.parameters()) - sum(layers)) * weight_bytes
        whole_weights, whole_gradients = rest + 2 * max(layers) * weight_bytes, rest + max(layers) * weight_bytes
    narrow_weights = 0
    if narrow != weight_bytes:
        linear = [part for part in model.modules() if isinstance(part, nn.Linear) and part is not model.lm_head]
        narrow_weights = narrow * sum(part.weight.numel() for part in linear if part.weight.requires_grad)
    kept, recomputed = activation_bytes(model, step)
    head_kept, chunk = logits_bytes(model, step)
    return MemoryPlan(
        parameters=weights // step.num_shards + whole_weights,
        gradients=gradients // step.num_shards * (2 if step.bucketed else 1) + whole_gradients,
        optimizer=state // step.num_shards,
        narrow_weights=narrow_weights,
        activations=kept + recomputed,
        logits=head_kept + chunk,
    )


def optimizer_bytes(optimizer: Optimizer, weight_bytes: int = 4) -> int:
    """State after the first step: one copy of what Muon updates, two and a counter of what AdamW does (or another)."""

    def numel(groups: Iterable[dict[str, Any]]) -> int:
        return sum(parameter.numel() for group in groups for parameter in group["params"])

    muon = [group for group in optimizer.param_groups if group.get("kind") == "muon"]
    others = [group for group in optimizer.param_groups if group.get("kind") != "muon"]
    counters = _STEP_BYTES * sum(len(group["params"]) for group in others)
    return (numel(muon) + 2 * numel(others)) * weight_bytes + counters


def activation_bytes(model: RecycleGPT, step: StepShape) -> tuple[int, int]:
    """What is kept for the backward pass of backbone and module, and what a layer that is run again takes there."""
    weight_bytes, narrow = PRECISIONS[step.precision]
    config, rows = model.config, step.batch * step.row_length
    kept = recomputed = 0
    if any(parameter.requires_grad for parameter in model.backbone.parameters()):
        keys = step.row_length if step.masked else 0
        # The embedding is not narrowed, and so neither is the stream of states that the layers add to.
        layer = _layer_bytes(config, weight_bytes, narrow, step, keys)
        kept += rows * _stack_bytes(len(model.backbone.layers), layer, config.hidden_size * weight_bytes, step)
        kept += rows * _norm_bytes(config.hidden_size, weight_bytes, step)
        recomputed = layer
    if model.recyclable is not None:
        plain = config.plain
        for number in range(1, step.num_unrolled + 1):
            # The fold is a product, and narrows the module's stream.
            keys = number * step.row_length if step.masked or step.num_unrolled > 1 else 0
            layer = _layer_bytes(plain, narrow, narrow, step, keys)
            remembered = 2 * plain.num_kv_heads * plain.head_dim * narrow if step.num_unrolled > 1 else 0
            layer += (number - 1) * remembered
            if number > 1 and not step.masked:
                # `causal_and_own` keeps the keys and values of all steps spread over all heads.
                layer += number * 2 * (plain.num_heads - plain.num_kv_heads) * plain.head_dim * narrow
            at_least = plain.hidden_size * narrow + remembered
            kept += rows * _stack_bytes(len(model.recyclable.layers), layer, at_least, step)
            kept += rows * (2 * plain.hidden_size * narrow + _norm_bytes(plain.hidden_size, narrow, step))
            recomputed = max(recomputed, layer)
    return kept, rows * recomputed if step.recompute_every else 0


def logits_bytes(model: RecycleGPT, step: StepShape) -> tuple[int, int]:
    """What the losses keep, and what one chunk of logits takes."""
    weight_bytes, narrow = PRECISIONS[step.precision]
    head, width = model.lm_head.weight, model.config.hidden_size
    rows, vocabulary = step.batch * step.row_length, model.config.vocab_size
    num_module_losses = 0 if model.recyclable is None else step.num_unrolled
    trains_head = head.requires_grad
    kept = num_module_losses * rows * width * narrow + (rows * width * weight_bytes if trains_head else 0)
    if trains_head:
        kept += (1 + num_module_losses) * head.numel() * weight_bytes
    m = min(rows, rows_of_chunk(vocabulary, step.on_cuda, step.chunk_size))
    # Logits, their softmax in fp32 and its narrow copy; the classifier, and its gradient, in the format of products.
    chunk = m * vocabulary * (2 * narrow + max(4, narrow))
    chunk += head.numel() * narrow * ((narrow != weight_bytes) + trains_head)
    return kept, chunk


def _bytes(parameter: nn.Parameter, precision: str) -> int:
    # In mixed precision a frozen backbone may lie there in a narrow format of its own.
    element = parameter.element_size() if precision == "bf16-mixed" else PRECISIONS[precision][0]
    return parameter.numel() * element


def _stack_bytes(count: int, layer: int, at_least: int, step: StepShape) -> int:
    """Bytes a row of all layers of a stack; of one that is run again only what it was given."""
    again = -(-count // step.recompute_every) if step.recompute_every else 0
    return (count - again) * layer + again * at_least


def _layer_bytes(config: ModelConfig, stream: int, narrow: int, step: StepShape, keys: int) -> int:
    """Bytes a row that the backward pass of one layer needs; `keys`: columns of its mask, 0 without one."""
    width, heads = config.hidden_size, config.num_heads * config.head_dim
    kv_heads = config.num_kv_heads * config.head_dim
    # Each product narrows its input for itself: three copies after the first norm, two after the second.
    copies = 5 if stream != narrow else 2
    norms = 2 * _norm_bytes(width, stream, step) + copies * width * narrow
    if config.qk_norm:
        norms += _norm_bytes(heads, narrow, step) + _norm_bytes(kv_heads, narrow, step)
    attention = narrow * (2 * heads + 2 * kv_heads) + max(4, narrow) * config.num_heads
    # A mask becomes numbers to add to the scores, once a layer; without documents one serves all rows of the batch.
    mask = keys * narrow // (1 if step.masked else step.batch)
    return norms + attention + mask + 4 * config.intermediate_size * narrow


def _norm_bytes(width: int, stream: int, step: StepShape) -> int:
    """Bytes a row that RMSNorm keeps: its input and one number; in parts, as on a CPU, the normalised states too."""
    wide = max(4, stream)
    return width * stream + 4 if step.on_cuda else 2 * width * wide + wide
