"""What a training step costs, counted from the shapes: floating-point operations and, roughly, memory.

C model width, H heads, G key/value heads, D head width, F SwiGLU width, V vocabulary, T row length, K unrolled steps.

The estimate of memory counts what eager execution holds at the end of the forward pass, the peak of a step; compiled
layers keep less. Allocator gaps and library workspaces (5 to 10 percent) are not counted. Layers are counted in bytes
per row (position).
"""

from __future__ import annotations

import math

from torch.optim import Optimizer

from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT
from recyclegpt.training.cross_entropy import rows_of_chunk


def flops_per_token(
    model: ModelConfig, recycle: RecycleConfig, seq_len: int, num_unrolled: int = 1, train_backbone: bool = True
) -> float:
    """Operations of training on one position, forward and backward: the usual 6 per matrix weight, plus attention.

    Matrix multiplications only, a multiply-add being two, as in PaLM (arXiv 2204.02311, appendix B): attention counts
    all `seq_len` keys although half are masked; norms, rotations, softmax, embedding look-ups, recomputation and the
    optimizer are not counted.

    `train_backbone=False`: embedding, backbone and LM head are frozen, so the backbone runs forward only and without a
    loss, and the backward pass of the LM head computes no gradient of its weight. A teacher's logits are not counted.

    NaN with a draft module of another kind, whose operations nobody has counted.
    """
    if recycle.num_layers and recycle.kind not in ("recyclable", "loop"):
        return math.nan
    width, head_width = model.hidden_size, model.head_dim
    attention_weights = 2 * width * head_width * (model.num_heads + model.num_kv_heads)
    layer_forward = 2 * (attention_weights + 3 * width * model.intermediate_size)

    def layers(count: int, num_keys: int) -> int:
        # Scores and weighted values: D multiply-adds each per head and key.
        return count * (layer_forward + 4 * model.num_heads * head_width * num_keys)

    num_steps = num_unrolled if recycle.num_layers else 0
    backbone = (3 if train_backbone else 1) * layers(model.num_layers, seq_len)
    # Step k also looks at its own k - 1 earlier rows.
    module = 3 * sum(layers(recycle.num_layers, seq_len + step) + 4 * width * width for step in range(num_steps))
    head = 2 * width * model.vocab_size
    draft_head = 2 * width * (recycle.draft_vocab or model.vocab_size)
    heads = 3 * (head + num_steps * draft_head) if train_backbone else 2 * num_steps * draft_head
    return float(backbone + module + heads)


PRECISIONS = {"32-true": (4, 4), "bf16-mixed": (4, 2), "bf16-true": (2, 2), "64-true": (8, 8)}
"""Bytes of a weight and of an activation, by the names of `trainer.precision`."""


def memory_plan(
    model: RecycleGPT,
    optimizer: Optimizer,
    batch: int,
    row_length: int,
    precision: str = "bf16-mixed",
    num_unrolled: int = 1,
    recompute_every: int = 0,
    masked: bool = False,
) -> int:
    """Bytes on a device that holds the whole model (the meta device will do) and the optimizer over its parameters.

    Args:
        batch, row_length: B and T.
        precision: a key of `PRECISIONS`.
        num_unrolled: steps of the module that are trained.
        recompute_every: every n-th layer is recomputed in the backward pass; 0: none.
        masked: whether attention is kept within documents.
    """
    wide, narrow = PRECISIONS[precision]
    state = 0
    for parameter in model.parameters():
        # In mixed precision a frozen backbone may be stored in a narrow dtype of its own.
        state += parameter.numel() * (parameter.element_size() if precision == "bf16-mixed" else wide)
        cast = parameter.ndim > 1 and narrow != wide
        state += parameter.numel() * parameter.requires_grad * (wide + narrow * cast)  # gradient, narrow copy
    for group in optimizer.param_groups:
        copies = 1 if group.get("kind") == "muon" else 2
        state += copies * wide * sum(parameter.numel() for parameter in group["params"])

    def layer(config: ModelConfig, stream: int, num_keys: int) -> int:
        """One layer: norms with their narrowed outputs, attention (`num_keys`: columns of its mask), SwiGLU."""
        width, heads = config.hidden_size, (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        norms = 4 * width * max(4, stream) + (5 if stream != narrow else 2) * width * narrow
        mask = num_keys * narrow // (1 if masked else batch)
        return norms + heads * narrow + 4 * config.num_heads + mask + 4 * config.intermediate_size * narrow

    def stack(num_layers: int, one: int, layer_input: int) -> int:
        again = -(-num_layers // recompute_every) if recompute_every else 0
        return (num_layers - again) * one + again * layer_input

    kept = recomputed = 0
    if any(parameter.requires_grad for parameter in model.backbone.parameters()):
        recomputed = layer(model.config, wide, row_length if masked else 0)
        kept = stack(len(model.backbone.layers), recomputed, model.config.hidden_size * wide)
    if model.recyclable is not None:
        plain, depth = model.config.plain, model.recyclable.depth
        for k in range(1, num_unrolled + 1):
            one = layer(plain, narrow, k * row_length if masked or k > 1 else 0)
            # Keys and values of the earlier steps, repeated for all heads by the attention of unrolled training.
            one += (k - 1) * 2 * plain.num_heads * plain.head_dim * narrow
            kept += stack(depth, one, plain.hidden_size * narrow) + 4 * plain.hidden_size * narrow
            recomputed = max(recomputed, one)
    activations = batch * row_length * (kept + (recomputed if recompute_every else 0))
    return state + activations + _losses(model, batch * row_length, wide, narrow, num_unrolled)


def _losses(model: RecycleGPT, num_rows: int, wide: int, narrow: int, num_unrolled: int) -> int:
    trained, width, vocabulary = model.lm_head.weight.requires_grad, model.config.hidden_size, model.config.vocab_size
    num_losses = num_unrolled if model.recyclable is not None else 0
    drafted = model.recycle_config.draft_vocab or vocabulary
    kept = num_rows * width * (num_losses * narrow + wide * trained)
    kept += (vocabulary + num_losses * drafted) * width * wide * trained
    # Logits, their softmax in fp32 and its narrow copy.
    chunk = min(num_rows, rows_of_chunk(vocabulary, model.lm_head.weight.is_cuda))
    return kept + chunk * vocabulary * (2 * narrow + max(4, narrow))
