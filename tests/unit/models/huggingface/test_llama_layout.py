"""What is written for a Hugging Face family is loaded by `transformers` without our code, and computes the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recyclegpt import generate
from recyclegpt.errors import ConfigError
from recyclegpt.export.safetensors import INDEX, write_json, write_weights
from recyclegpt.models import ModelConfig, RecycleGPT
from recyclegpt.models.huggingface import load_backbone
from recyclegpt.models.huggingface.llama_layout import backbone_config, backbone_weights
from recyclegpt.models.rope import RopeScaling

transformers = pytest.importorskip("transformers")

Make = Callable[..., RecycleGPT]

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {"num_kv_heads": 2}),
    "llama untied": ("LlamaForCausalLM", {"tie_embeddings": False, "head_dim": 16, "rope_theta": 5e5}),
    "llama with biases": ("LlamaForCausalLM", {"qkv_bias": True, "o_bias": True, "mlp_bias": True}),
    "heads that do not divide the width": ("MistralForCausalLM", {"num_heads": 3, "head_dim": 8, "norm_eps": 1e-6}),
    "qwen2": ("Qwen2ForCausalLM", {"qkv_bias": True, "num_kv_heads": 2}),
    "qwen3": ("Qwen3ForCausalLM", {"qk_norm": True, "head_dim": 16, "num_kv_heads": 1}),
    "qwen3 with biases": ("Qwen3ForCausalLM", {"qk_norm": True, "qkv_bias": True, "o_bias": True}),
    "linear": ("LlamaForCausalLM", {"rope_scaling": RopeScaling("linear", factor=2.0)}),
    "llama3": ("LlamaForCausalLM", {"rope_scaling": RopeScaling("llama3", factor=8.0, original_context=64)}),
    "yarn": (
        "Qwen3ForCausalLM",
        {"qk_norm": True, "rope_scaling": RopeScaling("yarn", 4.0, 64, attention_factor=1.14)},
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_and_writes_the_same(family: str, make: Make, tmp_path: Path) -> None:
    architecture, shape = FAMILIES[family]
    model = make(**shape)
    write_json(tmp_path / "config.json", backbone_config(model.config, torch.float32))
    write_weights(tmp_path, backbone_weights(model), torch.float32, "20KB" if family == "llama" else "5GB")
    assert (tmp_path / INDEX).exists() == (family == "llama"), "one family is sharded"
    theirs, loading_info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(theirs).__name__ == architecture
    assert not any(loading_info.values()), loading_info
    tokens_BT = torch.randint(97, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(tokens_BT).logits
    ours = model(tokens_BT)
    assert (ours - expected).abs().max() <= 1e-4 * expected.abs().max()
    again = load_backbone(tmp_path)
    assert again.config == model.config, "what is written is what is read"
    assert torch.equal(again(tokens_BT), ours)
    prompt = tokens_BT[:1, :7]
    written = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=200, do_sample=False, pad_token_id=0
    )
    assert generate(model, prompt.tolist(), 200, "autoregressive").tokens == written[:, 7:].tolist()


def test_weights_are_converted_and_the_config_says_so(make: Make, tmp_path: Path) -> None:
    model = make(tie_embeddings=False)
    write_json(tmp_path / "config.json", backbone_config(model.config, torch.bfloat16, end_token=5))
    write_weights(tmp_path, backbone_weights(model), torch.bfloat16, "5GB")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert theirs.dtype == torch.bfloat16
    assert torch.equal(theirs.lm_head.weight, model.lm_head.weight.bfloat16())
    assert theirs.config.eos_token_id == 5
    assert theirs.config.bos_token_id is None, "Llama's default names a token that is another one here"


def test_both_spellings_say_the_same(make: Make) -> None:
    scaling = RopeScaling("llama3", factor=8.0, original_context=64)
    config = json.loads(
        json.dumps(backbone_config(ModelConfig(97, rope_theta=5e5, rope_scaling=scaling), torch.float16))
    )
    assert config["rope_parameters"] == {"rope_theta": config["rope_theta"], **config["rope_scaling"]}
    assert config["dtype"] == config["torch_dtype"] == "float16"
    plain = backbone_config(ModelConfig(97), torch.float32)
    assert plain["rope_scaling"] is None
    assert plain["rope_parameters"] == {"rope_theta": 10_000.0, "rope_type": "default"}


@pytest.mark.parametrize(
    "shape",
    [
        {"o_bias": True},
        {"qk_norm": True, "qkv_bias": True},
        {"qk_norm": True, "mlp_bias": True},
        {"qkv_bias": True, "mlp_bias": True},
        {"qkv_bias": True, "o_bias": True, "num_heads": 3, "head_dim": 8, "hidden_size": 32},
    ],
)
def test_what_no_family_has_is_refused_by_name(shape: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        backbone_config(ModelConfig(97, **shape), torch.float32)
    for flag in shape:
        if flag.endswith(("bias", "norm")):
            assert f"model.{flag}=true" in str(caught.value)
