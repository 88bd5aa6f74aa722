"""The backbone is LLaMA: the same weights give `transformers`' logits."""

from __future__ import annotations

import pytest
import torch

from recyclegpt.models import ModelConfig, RecycleGPT

transformers = pytest.importorskip("transformers")


def randomised(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.empty_like(parameter).normal_(std=0.1, generator=generator)
            parameter.copy_(noise + 1 if parameter.ndim == 1 else noise)


def llama_with_weights_of(model: RecycleGPT) -> torch.nn.Module:
    config = model.config
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.norm_eps,
            rope_theta=config.rope_theta,
            max_position_embeddings=config.context_length,
            tie_word_embeddings=config.tie_embeddings,
            attention_bias=False,
        )
    ).eval()
    state = {name.replace("backbone.", "model."): value for name, value in model.state_dict().items()}
    llama.load_state_dict(state, strict=True)
    return llama


@pytest.mark.parametrize("seed", range(6))
def test_logits_equal_transformers(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*choices: int) -> int:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    groups, kv_heads, head_dim = draw(1, 2, 4), draw(1, 2, 3), draw(8, 16)
    config = ModelConfig(
        vocab_size=draw(61, 128),
        context_length=48,
        num_layers=draw(1, 2, 3),
        hidden_size=groups * kv_heads * head_dim if seed % 2 else 40,
        num_heads=groups * kv_heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=draw(24, 56),
        rope_theta=float(draw(10_000, 500_000)),
        tie_embeddings=bool(seed % 2),
    )
    model = RecycleGPT(config).eval()
    randomised(model, seed)
    tokens_BT = torch.randint(config.vocab_size, (2, 37), generator=generator)
    with torch.no_grad():
        ours = model(tokens_BT)
        theirs = llama_with_weights_of(model)(tokens_BT).logits
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()
    assert theirs.abs().max() > 0.1, "logits too small for the comparison to mean anything"
