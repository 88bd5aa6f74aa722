"""Every family gives `transformers`' logits and greedy text, whichever version of it wrote the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from recyclegpt.decoding import Autoregressive, Decoder
from recyclegpt.models.huggingface import load_backbone

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
    "rope_theta": 500.0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24, "rope_theta": 1000.0}
CHECKPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("Llama", {}),
    "Llama 3.1": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "Llama, all biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 6}),
    "Llama, interpolated": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
    "Llama, dynamic": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
    "SmolLM": ("Llama", {"tie_word_embeddings": True, "num_attention_heads": 3, "num_key_value_heads": 1}),
    "Mistral": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "Mistral, window": ("Mistral", {"sliding_window": 64}),
    "Qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "Qwen2, YaRN": ("Qwen2", {"rope_parameters": YARN}),
    "Qwen3": ("Qwen3", {"head_dim": 20, "tie_word_embeddings": True}),
    "Qwen3, YaRN, biases": (
        "Qwen3",
        {"head_dim": 10, "attention_bias": True, "rope_parameters": {**YARN, "beta_fast": 16.0, "mscale": 1.2}},
    ),
}


def checkpoint(name: str, folder: Path, max_shard_size: str = "5GB") -> torch.nn.Module:
    """Write a random checkpoint of a family with `transformers`; return its model."""
    family, changed = CHECKPOINTS[name]
    torch.manual_seed(len(name))
    config = getattr(transformers, f"{family}Config")(**(SHAPE | changed))
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return model


def as_version_4_wrote_it(folder: Path) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text())
    rope = values.pop("rope_parameters")
    values["torch_dtype"] = values.pop("dtype")
    values["rope_theta"] = rope.pop("rope_theta")
    values["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    values["transformers_version"] = "4.44.0"
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_and_greedy_text_equal_transformers(name: str, version: int, tmp_path: Path) -> None:
    theirs = checkpoint(name, tmp_path, max_shard_size="20KB" if version == 4 else "5GB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 or version == 5
    if version == 4:
        as_version_4_wrote_it(tmp_path)
    ours = load_backbone(tmp_path)
    length = ours.config.context_length
    tokens_BT = torch.randint(61, (2, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(tokens_BT).logits
        logits = ours(tokens_BT)
        prompt = tokens_BT[:1, :7]
        text = theirs.double().generate(  # without a mask, tokens equal to the padding would be left out
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=length - 7, pad_token_id=0
        )
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()
    written = Decoder(ours.double()).generate([prompt[0].tolist()], Autoregressive(), length - 7).tokens
    assert written == [text[0, 7:].tolist()]
    fused = Decoder.optimised(load_backbone(tmp_path), torch.float32)
    with torch.no_grad():
        assert (
            fused.model.logits(fused.model.backbone_states(tokens_BT)) - expected
        ).abs().max() <= 1e-4 * expected.abs().max()


def test_half_precision_checkpoints_are_read_in_the_dtype_asked_for(tmp_path: Path) -> None:
    checkpoint("Qwen3", tmp_path).bfloat16().save_pretrained(tmp_path)
    single, half = load_backbone(tmp_path), load_backbone(tmp_path, torch.bfloat16)
    assert {weight.dtype for weight in single.parameters()} == {torch.float32}
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    assert half.rotary.cos_SD.dtype == torch.float32
    for one, other in zip(single.parameters(), half.parameters(), strict=True):
        assert torch.equal(one.bfloat16(), other)
