"""What is wrong with a checkpoint is named, all of it at once; memory stays near the model's size."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from recyclegpt.errors import ConfigError
from recyclegpt.models import RecycleConfig, RecycleGPT
from recyclegpt.models.huggingface import PretrainedBackbone, load_backbone, location, read_config

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"model.embed_tokens.weight": (31, 16), "model.norm.weight": (16,)}
    for layer in ("model.layers.0.", "model.layers.1."):
        shapes |= {f"{layer}self_attn.{name}_proj.weight": (16, 16) for name in "qkvo"}
        shapes |= {f"{layer}mlp.{name}_proj.weight": (24, 16) for name in ("gate", "up")}
        shapes |= {f"{layer}mlp.down_proj.weight": (16, 24)}
        shapes |= {f"{layer}{name}.weight": (16,) for name in ("input_layernorm", "post_attention_layernorm")}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file(weights(), tmp_path / "model.safetensors")
    return tmp_path


def changed(folder: Path, **values: Any) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | values))


def stored(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = weights()
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def refusal(folder: Path | str) -> str:
    with pytest.raises(ConfigError) as error:
        load_backbone(folder)
    return "\n".join(error.value.problems)


def test_weights_arrive_and_a_fresh_module_stands_on_them(folder: Path) -> None:
    model = load_backbone(folder, recycle=RecycleConfig(1))
    for name, weight in weights().items():
        assert torch.equal(model.state_dict()[name.replace("model.", "backbone.", 1)], weight)
    assert model.lm_head.weight is model.backbone.embed_tokens.weight
    assert model.recyclable is not None
    assert all(torch.isfinite(weight).all() for weight in model.recyclable.parameters())
    folded = model.recyclable.fc(torch.cat([weights()["model.embed_tokens.weight"], torch.randn(31, 16)], dim=-1))
    assert 0.5 < float(folded.detach().std()) < 2, "the fold does not fit this embedding's scale"


def test_a_context_of_ones_own(folder: Path) -> None:
    assert load_backbone(folder, context_length=20).config.context_length == 20
    kept = PretrainedBackbone(str(folder), context_length=20)
    assert (kept.context_length, kept.config.context_length) == (20, 64)
    with pytest.raises(ConfigError, match="65 is not between 1 and the 64"):
        load_backbone(folder, context_length=65)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not supported"),
        ({"hidden_act": "gelu", "vocab_size": 0}, "hidden_act 'gelu'"),
        ({"num_attention_heads": 3}, "num_heads: 3 does not divide"),
        ({"rms_norm_eps": 0}, "norm_eps: 0.0 is not positive"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"rope_scaling": {"type": "longrope", "factor": 2}}, "rope_type 'longrope' is not supported"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "low_freq_factor of llama3"),
        ({"rope_parameters": {"full_attention": {}, "sliding": {}}}, "differ by layer"),
        (
            {
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
                "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            },
            "contradict each other",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_what_is_not_supported_is_named(folder: Path, values: dict[str, Any], message: str) -> None:
    changed(folder, **values)
    assert message in refusal(folder)


def test_a_key_of_the_shape_that_is_missing(folder: Path) -> None:
    short = {key: value for key, value in CONFIG.items() if key not in ("hidden_size", "intermediate_size")}
    (folder / "config.json").write_text(json.dumps(short))
    problems = refusal(folder)
    assert "hidden_size is missing" in problems
    assert "intermediate_size is missing" in problems


def test_tensors_that_are_missing_foreign_or_of_another_shape(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.norm.weight"]
        tensors["model.layers.1.self_attn.q_proj.weight"] = torch.zeros(8, 16)
        tensors["model.layers.1.self_attn.q_proj.bias"] = torch.zeros(16)
        tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(24, 16, dtype=torch.int8)

    stored(folder, change)
    problems = refusal(folder)
    assert "model.norm.weight is missing" in problems
    assert "q_proj.weight is F32 [8, 16], its config says [16, 16]" in problems
    assert "q_proj.bias is not part of the architecture" in problems
    assert "up_proj.weight is I8" in problems


def test_leftovers_of_old_versions_and_a_tied_head_are_no_problem(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    stored(folder, change)
    load_backbone(folder)


def test_a_tied_lm_head_that_differs_from_the_embedding(folder: Path) -> None:
    stored(folder, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(31, 16)}))
    assert "lm_head.weight differs from the embedding" in refusal(folder)


def test_a_weight_that_is_not_finite(folder: Path) -> None:
    stored(folder, lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))
    assert "model.norm.weight is not finite" in refusal(folder)


def test_files_that_are_damaged_missing_or_elsewhere(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:200])
    assert "model.safetensors: cannot be read" in refusal(folder)
    (folder / "model.safetensors").unlink()
    assert "holds neither" in refusal(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}))
    assert "not a file of this folder" in refusal(folder)
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    problems = refusal(folder)
    assert "one.safetensors: cannot be read" in problems
    assert "two.safetensors: cannot be read" in problems
    index.write_text("[]")
    assert "index.json: cannot be read" in refusal(folder)
    for content in ("[]", "{", None):
        if content is None:
            (folder / "config.json").unlink()
        else:
            (folder / "config.json").write_text(content)
        assert "config.json: cannot be read" in refusal(folder)


def test_paths_and_names_that_lead_nowhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("no connection\nand more")

    assert "is not a folder" in refusal("./nothing")
    assert "is not a folder" in refusal(folder / "config.json")
    monkeypatch.setattr(location, "snapshot_download", unreachable)
    assert "could not be read from the hub (no connection)" in refusal("owner/name")
    monkeypatch.setattr(location, "snapshot_download", lambda *_, **__: str(folder))
    assert isinstance(load_backbone("owner/name"), RecycleGPT)


def test_fingerprints_tell_checkpoints_apart(folder: Path) -> None:
    before = PretrainedBackbone(str(folder)).fingerprint()
    assert PretrainedBackbone(str(folder)).fingerprint() == before
    stored(folder, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].add_(1e-3))
    assert PretrainedBackbone(str(folder)).fingerprint() != before


MEASURED = """
import sys, torch
from recyclegpt.models.huggingface import load_backbone
def status(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return int(line.split()[1]) * 1024
load_backbone(sys.argv[1], torch.bfloat16, context_length=64)  # what torch itself loads on first use
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
model = load_backbone(sys.argv[1], torch.bfloat16, context_length=64)
print((status("VmHWM") - before) / sum(weight.numel() * 2 for weight in model.parameters()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_peaks_near_the_size_of_the_model(tmp_path: Path) -> None:
    """Of a checkpoint in shards: the model, and the shard that is mapped just then."""
    values = CONFIG | {"hidden_size": 512, "intermediate_size": 2048, "vocab_size": 8192, "num_hidden_layers": 24}
    (tmp_path / "config.json").write_text(json.dumps(values | {"num_attention_heads": 8}))
    with torch.device("meta"):
        model = RecycleGPT(read_config(tmp_path))
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for name, weight in model.backbone.named_parameters():
        part = name.split(".")[1] if name.startswith("layers") else "ends"
        shards.setdefault(f"model-{part}.safetensors", {})[f"model.{name}"] = torch.zeros_like(
            weight, device="cpu", dtype=torch.bfloat16
        )
    for file, tensors in shards.items():
        save_file(tensors, tmp_path / file)
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    ran = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )
    assert float(ran.stdout) < 1.3, f"memory peaked at {float(ran.stdout):.2f} times the model"
