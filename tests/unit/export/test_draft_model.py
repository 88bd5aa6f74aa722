"""Draft folders against the loaders' documented arithmetic, recomputed from the written files alone.

The reference shares no code with this package: layers, rotary embedding and norms are those of `transformers`, the
target is what `transformers` makes of the exported backbone, and names are compared with the loaders' own.

B batch, T positions, C model width, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from recyclegpt.errors import ConfigError
from recyclegpt.export.draft_model import draft_config, draft_weights
from recyclegpt.export.safetensors import write_json, write_weights
from recyclegpt.models import RecycleConfig, RecycleGPT
from recyclegpt.models.huggingface.llama_layout import backbone_config, backbone_weights
from recyclegpt.models.rope import RopeScaling

transformers = pytest.importorskip("transformers")

Make = Callable[..., RecycleGPT]
EAGLE = {"final_norm": False, "first_input_norm": False}
SHAPE: dict[str, Any] = {"num_kv_heads": 2, "head_dim": 16, "tie_embeddings": False, "rope_theta": 5e4}
"""As unlike the defaults of the two configs as possible: a key that is left out shows."""


class Reference(nn.Module):
    """What `EagleMistralForCausalLM` (`vllm`) or `EagleLlamaForCausalLM` (`eagle`) computes with a folder."""

    def __init__(self, folder: Path, kind: str) -> None:
        super().__init__()
        self.kind = kind
        values = json.loads((folder / "config.json").read_text())
        assert values["architectures"] == ["EagleMistralForCausalLM" if kind == "vllm" else "EagleLlamaForCausalLM"]
        config = transformers.AutoConfig.for_model(**values)
        assert type(config).__name__ == ("MistralConfig" if kind == "vllm" else "LlamaConfig")
        config._attn_implementation = "eager"
        family = "Mistral" if kind == "vllm" else "Llama"
        theirs = import_module(f"transformers.models.{family.lower()}.modeling_{family.lower()}")
        layer, norm, rotary = (
            getattr(theirs, f"{family}{part}") for part in ("DecoderLayer", "RMSNorm", "RotaryEmbedding")
        )
        self.model = nn.Module()
        self.model.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.model.layers = nn.ModuleList(layer(config, number) for number in range(config.num_hidden_layers))
        if kind == "vllm":
            self.model.norm = norm(config.hidden_size, eps=config.rms_norm_eps)
        else:
            self.model.layers[0].input_layernorm = nn.Identity()
        self.rotary = rotary(config)
        weights = load_file(folder / "model.safetensors")
        prefix = "" if kind == "vllm" else "model."  # this loader puts it before every name
        self.load_state_dict({f"{prefix}{name}": weight for name, weight in weights.items()}, strict=True)

    def forward(self, embedded_BTC: Tensor, hidden_BTC: Tensor, positions_T: Tensor) -> Tensor:
        """The state that the target's head reads, and that stands in for the target's own at the next step."""
        x_BTC = self.model.fc(torch.cat([embedded_BTC, hidden_BTC], dim=-1))
        T = len(positions_T)
        mask_11TT = torch.full((T, T), float("-inf")).triu(1)[None, None]
        turns = self.rotary(x_BTC, positions_T[None])
        for layer in self.model.layers:
            x_BTC = layer(x_BTC, attention_mask=mask_11TT, position_embeddings=turns)
        return self.model.norm(x_BTC) if self.kind == "vllm" else x_BTC


def write_pair(model: RecycleGPT, kind: str, folder: Path) -> tuple[Any, Reference]:
    """The target as `transformers` loads it, and the reference draft, both from files."""
    target, draft = folder / "target", folder / "draft"
    target.mkdir()
    draft.mkdir()
    write_json(target / "config.json", backbone_config(model.config, torch.float32))
    write_weights(target, backbone_weights(model), torch.float32, "5GB")
    write_json(draft / "config.json", draft_config(model, kind, torch.float32))
    write_weights(draft, draft_weights(model, kind), torch.float32, "5GB")
    return transformers.AutoModelForCausalLM.from_pretrained(target), Reference(draft, kind)


@pytest.mark.parametrize(
    ("kind", "recycle", "shape"),
    [
        ("vllm", RecycleConfig(3), SHAPE),
        ("vllm", RecycleConfig(1), {"qkv_bias": True}),
        ("vllm", RecycleConfig(2), {"qk_norm": True, "num_heads": 3, "head_dim": 8}),
        ("vllm", RecycleConfig(1), {"rope_scaling": RopeScaling("llama3", factor=8.0, original_context=16)}),
        ("eagle", RecycleConfig(3, **EAGLE), SHAPE),
        ("eagle", RecycleConfig(1, **EAGLE), {"norm_eps": 1e-3}),
    ],
)
@torch.no_grad()
def test_the_draft_speaks_as_the_module(
    kind: str, recycle: RecycleConfig, shape: dict[str, Any], make: Make, tmp_path: Path
) -> None:
    model = make(recycle=recycle, **shape)
    target, draft = write_pair(model, kind, tmp_path)
    tokens_BT = torch.randint(97, (1, 30), generator=torch.Generator().manual_seed(1))
    hidden_BTC = target.model(tokens_BT[:, :-2]).last_hidden_state
    embedded_BTC = target.get_input_embeddings()(tokens_BT)
    T = tokens_BT.shape[1] - 2
    # Row t: the target's state of token t, the embedding of token t + 1, at position t.
    first_BTC = draft(embedded_BTC[:, 1:-1], hidden_BTC, torch.arange(T))
    # The next proposal: one row more, in which the draft's own state stands in for the one not computed.
    second_BTC = draft(embedded_BTC[:, 1:], torch.cat([hidden_BTC, first_BTC[:, -1:]], dim=1), torch.arange(T + 1))
    views_NBT = torch.stack([tokens_BT[:, step : step + T] for step in range(3)])
    ours = model.states(views_NBT, num_unrolled=2).recycled_KBTC
    for state, expected in ((ours[0], first_BTC), (ours[1][:, -1], second_BTC[:, -1])):
        logits, wanted = model.logits(state), target.lm_head(expected)
        assert (logits - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@torch.no_grad()
def test_the_comparison_notices_a_norm_too_many(make: Make, tmp_path: Path) -> None:
    model = make(recycle=RecycleConfig(1, **EAGLE))
    _, draft = write_pair(model, "eagle", tmp_path)
    draft.model.layers[0].input_layernorm = nn.RMSNorm(32)
    tokens_BT = torch.randint(97, (1, 12))
    hidden_BTC = model.backbone_states(tokens_BT)
    state = draft(model.backbone.embed_tokens(tokens_BT), hidden_BTC, torch.arange(12))
    expected = model.logits(model.recycle(tokens_BT, hidden_BTC))
    assert (model.logits(state) - expected).abs().max() > 0.1 * expected.abs().max()


@pytest.mark.parametrize(
    ("kind", "recycle", "words"),
    [
        ("vllm", None, ["recycle.num_layers=0"]),
        ("vllm", RecycleConfig(1, norm_inputs=True), ["recycle.norm_inputs=true", "format=recyclegpt"]),
        ("vllm", RecycleConfig(1, **EAGLE), ["recycle.final_norm=true", "use format=eagle"]),
        ("vllm", RecycleConfig(1, final_norm=False), ["train with both true"]),
        ("eagle", RecycleConfig(1), ["recycle.final_norm=false", "use format=vllm"]),
        (
            "eagle",
            RecycleConfig(1, norm_inputs=True, first_input_norm=False),
            ["recycle.norm_inputs=true", "train with both false"],
        ),
    ],
)
def test_what_a_loader_would_compute_otherwise_is_refused(
    kind: str, recycle: RecycleConfig | None, words: list[str], make: Make
) -> None:
    with pytest.raises(ConfigError) as caught:
        draft_config(make(recycle=recycle), kind, torch.float32)
    for word in words:
        assert word in str(caught.value)


def test_heads_that_a_llama_cannot_have(make: Make) -> None:
    with pytest.raises(ConfigError, match="heads"):
        draft_config(make(recycle=RecycleConfig(1, **EAGLE), num_heads=3, head_dim=8), "eagle", torch.float32)
