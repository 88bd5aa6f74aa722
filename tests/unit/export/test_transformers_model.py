"""The exported folder through both of its doors: the same logits, the same text, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from recyclegpt import ModelConfig, RecycleConfig, RecycleGPT, generate
from recyclegpt.decoding import SamplingConfig
from recyclegpt.errors import ConfigError
from recyclegpt.export.safetensors import write_json, write_weights
from recyclegpt.models.huggingface.own_layout import CODE, own_config, own_weights

transformers = pytest.importorskip("transformers")

VOCABULARY = 61
PROMPTS = torch.randint(1, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def tied(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def model(tied: bool) -> RecycleGPT:
    shape = ModelConfig(
        VOCABULARY, context_length=64, num_layers=2, hidden_size=32, num_heads=4, num_kv_heads=2, tie_embeddings=tied
    )
    made = RecycleGPT(shape, RecycleConfig(2)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            noise = torch.empty_like(parameter).normal_(std=0.2, generator=generator)
            parameter.copy_(noise + 1 if parameter.ndim == 1 else noise)
    return made.requires_grad_(False)


@pytest.fixture(scope="module")
def folder(model: RecycleGPT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    write_json(folder / "config.json", own_config(model, torch.float32, end_token=0))
    write_json(folder / "generation_config.json", {"eos_token_id": 0, "pad_token_id": 0})
    write_weights(folder, own_weights(model), torch.float32, "5GB")
    for place, code in CODE.items():
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text(code)
    return folder


@pytest.fixture
def theirs(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


def continued(theirs: Any, **settings: Any) -> list[list[int]]:
    settings = {"attention_mask": torch.ones_like(PROMPTS), "max_new_tokens": 20, "eos_token_id": None, **settings}
    written: torch.Tensor = theirs.generate(PROMPTS, **settings)
    assert torch.equal(written[:, : PROMPTS.shape[1]], PROMPTS)
    return written[:, PROMPTS.shape[1] :].tolist()


def test_both_doors_lead_to_the_same_logits(model: RecycleGPT, folder: Path, theirs: Any) -> None:
    ours = model.logits(model.backbone_states(PROMPTS))
    again = RecycleGPT.from_pretrained(folder)
    assert again.config == model.config
    assert again.recycle_config == model.recycle_config
    assert torch.equal(again.logits(again.backbone_states(PROMPTS)), ours)
    assert torch.equal(
        again.recycle(PROMPTS, again.backbone_states(PROMPTS)), model.recycle(PROMPTS, model.backbone_states(PROMPTS))
    )
    output = theirs(PROMPTS, labels=PROMPTS)
    assert torch.equal(output.logits, ours)
    expected = F.cross_entropy(ours[:, :-1].flatten(0, 1), PROMPTS[:, 1:].flatten())
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    output.loss.backward()
    assert theirs.backbone.embed_tokens.weight.grad.abs().sum() > 0


def test_padding_changes_nothing(theirs: Any) -> None:
    alone = theirs(PROMPTS[:1]).logits
    padded = F.pad(PROMPTS[:1], (4, 0))
    real = F.pad(torch.ones_like(PROMPTS[:1]), (4, 0))
    assert torch.allclose(theirs(padded, attention_mask=real).logits[:, 4:], alone, atol=1e-5)
    texts = [
        theirs.generate(tokens, attention_mask=mask, max_new_tokens=12, eos_token_id=None)[:, -12:]
        for tokens, mask in ((PROMPTS[:1], torch.ones_like(PROMPTS[:1])), (padded, real))
    ]
    assert torch.equal(*texts)


@pytest.mark.parametrize("strategy", ["autoregressive", "alternating", "verified"])
def test_generate_recycles(strategy: str, model: RecycleGPT, theirs: Any) -> None:
    expected = generate(model, PROMPTS.tolist(), 20, strategy, num_recycled=2).tokens
    assert continued(theirs, strategy=strategy, num_recycled=2) == expected


def test_every_way_to_ask_for_it(model: RecycleGPT, folder: Path, theirs: Any) -> None:
    from recyclegpt.export.transformers_model import recycle

    expected = generate(model, PROMPTS.tolist(), 20, "alternating").tokens
    by_folder = {"custom_generate": str(folder), "trust_remote_code": True}
    assert continued(theirs, strategy="alternating", **by_folder) == expected
    plain = {"attention_mask": torch.ones_like(PROMPTS), "max_new_tokens": 20, "eos_token_id": None}
    for way in (recycle, str(folder)):
        trust = {"trust_remote_code": True} if isinstance(way, str) else {}
        written = transformers.GenerationMixin.generate(
            theirs, PROMPTS, custom_generate=way, strategy="alternating", **plain, **trust
        )
        assert written[:, PROMPTS.shape[1] :].tolist() == expected
    slow = transformers.GenerationMixin.generate(theirs, PROMPTS, **plain)
    assert slow[:, PROMPTS.shape[1] :].tolist() == continued(theirs), "verified is the default, and lossless"


def test_a_row_ends_at_the_end_token_and_is_padded(model: RecycleGPT, theirs: Any) -> None:
    free = generate(model, PROMPTS.tolist(), 20, "autoregressive").tokens
    end = free[0][3]
    expected = generate(model, PROMPTS.tolist(), 20, "autoregressive", stop_tokens=[end]).tokens
    width = max(map(len, expected))
    assert continued(theirs, eos_token_id=end) == [row + [0] * (width - len(row)) for row in expected]
    assert len(expected[0]) == free[0].index(end) + 1


def test_sampling_obeys_its_settings_and_the_global_generator(theirs: Any) -> None:
    def draw(seed: int, **settings: Any) -> list[list[int]]:
        torch.manual_seed(seed)
        return continued(theirs, do_sample=True, **settings)

    assert draw(1) == draw(1) != draw(2)
    assert draw(1, top_k=1) == continued(theirs), "one token left to choose from"
    assert draw(1, top_p=1e-6) == continued(theirs)
    assert draw(1, temperature=1e-3, top_k=0) == continued(theirs)


def test_the_settings_reach_the_sampler(theirs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from recyclegpt.decoding import Decoder

    seen: list[SamplingConfig] = []
    original = Decoder.generate

    def spy(self: Decoder, *arguments: Any, **settings: Any) -> Any:
        seen.append(arguments[3])
        return original(self, *arguments, **settings)

    monkeypatch.setattr(Decoder, "generate", spy)
    continued(theirs, do_sample=True, temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, repetition_penalty=1.2)
    continued(theirs, repetition_penalty=1.2)
    assert seen == [SamplingConfig(0.7, 5, 0.9, 0.1, 1.2), SamplingConfig(repetition_penalty=1.2)]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"num_beams": 2}, "num_beams: 2"),
        ({"no_repeat_ngram_size": 2}, "NoRepeatNGramLogitsProcessor"),
        ({"max_time": 3.0}, "MaxTimeCriteria"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate"),
        ({"streamer": object()}, "streamer"),
        ({"assistant_model": object()}, "assistant_model"),
        ({"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens"),
        ({"penalty_alpha": 0.5, "top_k": 4}, "penalty_alpha"),
        ({"strategy": "guessing"}, "strategy: 'guessing'"),
        ({"num_recycled": 99}, "num_recycled: 99"),
        ({"max_new_tokens": 20, "do_sample": True, "temperature": 1e-9}, "temperature"),
    ],
)
def test_what_the_decoders_cannot_do_is_refused_by_name(theirs: Any, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        continued(theirs, **settings)


def test_weights_that_change_are_decoded_as_they_are(theirs: Any) -> None:
    before = continued(theirs)
    with torch.no_grad():
        theirs.backbone.norm.weight.mul_(-1)
    after = continued(theirs)
    assert after != before
    assert after == generate(theirs.core, PROMPTS.tolist(), 20, "autoregressive").tokens


def test_save_pretrained_writes_the_folder_again(model: RecycleGPT, theirs: Any, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    ours = model.logits(model.backbone_states(PROMPTS))
    assert torch.equal(again(PROMPTS).logits, ours)
    assert continued(again, strategy="alternating") == continued(theirs, strategy="alternating")
    through_the_other_door = RecycleGPT.from_pretrained(tmp_path)
    assert torch.equal(through_the_other_door.logits(through_the_other_door.backbone_states(PROMPTS)), ours)


def test_bf16_keeps_the_rotary_tables_in_fp32(model: RecycleGPT, folder: Path) -> None:
    half = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half.rotary.cos_SD, model.rotary.cos_SD)


def test_a_larger_embedding_is_shared_by_all_parts(model: RecycleGPT, theirs: Any) -> None:
    theirs.resize_token_embeddings(VOCABULARY + 3)
    logits = theirs(PROMPTS).logits
    assert logits.shape[-1] == VOCABULARY + 3
    assert torch.allclose(logits[..., :VOCABULARY], model.logits(model.backbone_states(PROMPTS)), atol=1e-5)
