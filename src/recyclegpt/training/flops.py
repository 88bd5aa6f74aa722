"""Floating-point operations of a training step, counted from the shapes.

C model width, H heads, G key/value heads, D head width, F SwiGLU width, V vocabulary, T row length, K unrolled steps.
"""

from __future__ import annotations

from recyclegpt.models import ModelConfig, RecycleConfig


def flops_per_token(
    model: ModelConfig, recycle: RecycleConfig, seq_len: int, num_unrolled: int = 1, train_backbone: bool = True
) -> float:
    """Operations of training on one position, forward and backward: the usual 6 per matrix weight, plus attention.

    Matrix multiplications only, a multiply-add being two, as in PaLM (arXiv 2204.02311, appendix B): attention counts
    all `seq_len` keys although half are masked; norms, rotations, softmax, embedding look-ups, recomputation and the
    optimizer are not counted.

    `train_backbone=False`: embedding, backbone and LM head are frozen, so the backbone runs forward only and without a
    loss, and the backward pass of the LM head computes no gradient of its weight. A teacher's logits are not counted.
    """
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
