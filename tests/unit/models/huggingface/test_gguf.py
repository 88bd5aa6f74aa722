"""GGUF files: logits and tokens as `transformers` has them, every type of tensor, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config
from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer
from transformers.integrations.gguf.dequant import dequantize

from recyclegpt.checkpoints.load import load_trained
from recyclegpt.commands.main import main
from recyclegpt.data import TextTokenizer
from recyclegpt.data.tokenizer import write_stop_tokens
from recyclegpt.errors import ConfigError
from recyclegpt.models.huggingface import load_backbone
from recyclegpt.models.huggingface.gguf import TYPES
from tests.chat_tokenizer import CHATML

TEXTS = [
    "Why, it's  1234\n\n  56 x",
    "naïve été 東京 \U0001f600\r\n\tdef f(x): return x**2  # 'll",
    "<|im_end|>a <think> b",
]
SHAPE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip
FAMILIES: dict[str, tuple[type[PreTrainedConfig], str, dict[str, Any]]] = {
    "llama": (LlamaConfig, "llama", {"tie_word_embeddings": True}),
    "llama3": (
        LlamaConfig,
        "llama",
        {
            "max_position_embeddings": 16384,
            "rope_parameters": {
                "rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
            },
        },
    ),
    "mistral": (MistralConfig, "llama", {"head_dim": 32, "sliding_window": None}),
    "qwen2": (Qwen2Config, "qwen2", {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}),
    "qwen3": (Qwen3Config, "qwen3", {"tie_word_embeddings": True}),
}  # fmt: skip


@pytest.fixture(scope="module")
def vocabulary() -> TextTokenizer:
    texts = [Path(__file__).read_text(encoding="utf-8"), *TEXTS[:2]]
    return TextTokenizer.train(texts, 500)


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: TextTokenizer, pre: str = "gpt-2") -> None:
    content = tokenizer._content["model"]
    added = ["<|im_start|>", "<|im_end|>", "<think>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*content["vocab"], *added])
    writer.add_token_types([3] + [1] * (len(content["vocab"]) - 1) + [3, 3, 4])
    writer.add_token_merges([" ".join(pair) for pair in content["merges"]])
    writer.add_bos_token_id(len(content["vocab"]))
    writer.add_eos_token_id(len(content["vocab"]) + 1)
    writer.add_chat_template(CHATML)


def write_model(
    path: Path, family: str, tokenizer: TextTokenizer, kind: str = "F32", **changed: Any
) -> tuple[Any, dict[str, torch.Tensor]]:
    """A random model of `transformers` in a GGUF file, as llama.cpp's converter writes it, and its weights there."""
    kinds, architecture, own = FAMILIES[family]
    torch.manual_seed(0)
    config = kinds(**SHAPE | {"vocab_size": tokenizer.vocab_size + 3} | own | changed)
    model = AutoModelForCausalLM.from_config(config).eval()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim if family != "qwen2" else 16)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    add_tokenizer(writer, tokenizer)
    if family == "llama3":
        plain = 1 / 5e5 ** (torch.arange(0, 16, 2).float() / 16)
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq).numpy())
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    stored, weights = gguf.GGMLQuantizationType[kind], model.state_dict()
    for name, weight in weights.items():
        torch.nn.init.normal_(weight, 1.0 if "norm" in name else 0.0, 0.1)
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = weight.numpy()
        if architecture == "llama" and any(part in name for part in ("q_proj", "k_proj")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            values = values.reshape(heads, 2, len(values) // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)
        quantised = values.ndim == 2
        if quantised and kind.endswith("_K"):  # the package cannot make these: any bytes but the scales
            block, size = gguf.GGML_QUANT_SIZES[stored]
            data = np.random.default_rng(0).integers(
                0, 256, (*values.shape[:-1], values.shape[-1] // block, size), np.uint8
            )
            at = size - 2 if kind == "Q6_K" else 0
            scales = np.full((*data.shape[:-1], 2 if kind != "Q6_K" else 1), 1e-4, np.float16)
            data[..., at : at + scales.shape[-1] * 2] = scales.view(np.uint8)
            data = data.reshape(*values.shape[:-1], -1)
            weights[name] = dequantize(torch.from_numpy(data).flatten(), stored.value).view(weight.shape)
        else:
            data = gguf.quantize(values, stored) if quantised else values
            weights[name] = (
                torch.from_numpy(gguf.dequantize(gguf.quantize(weight.numpy(), stored), stored))
                if quantised
                else weight
            )
        writer.add_tensor(
            names.get_name(name, (".weight", ".bias")),
            data,
            raw_dtype=stored if quantised else None,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model, weights


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(tmp_path: Path, vocabulary: TextTokenizer, family: str) -> None:
    theirs, _ = write_model(tmp_path / "m.gguf", family, vocabulary)
    ours, input_ids = load_backbone(tmp_path / "m.gguf"), torch.randint(vocabulary.vocab_size, (2, 50))
    assert ours.config.tie_embeddings == theirs.config.tie_word_embeddings
    with torch.no_grad():
        expected = theirs(input_ids).logits
        assert (ours(input_ids) - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_of_tensor(tmp_path: Path, vocabulary: TextTokenizer, kind: str) -> None:
    wide = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_hidden_layers": 1}
    _, weights = write_model(tmp_path / "m.gguf", "qwen3", vocabulary, kind, **wide)
    for name, weight in load_backbone(tmp_path / "m.gguf").backbone.state_dict().items():
        torch.testing.assert_close(weight, weights[f"model.{name}"], rtol=1e-5, atol=1e-6)


def write_tokenizer(path: Path, tokenizer: TextTokenizer, pre: str) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    if pre == "sentencepiece":
        vocab = tokenizer._content["model"]["vocab"]
        pieces = [token.replace("Ġ", "▁") for token in vocab if token not in ("<|endoftext|>", "▁")]
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
        writer.add_tokenizer_model("llama")
        writer.add_token_list(tokens)
        writer.add_token_scores([-float(number) for number in range(len(tokens))])
        writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(pieces))
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
    else:
        add_tokenizer(writer, tokenizer, pre)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "tekken", "sentencepiece", "smollm"])
def test_tokens_are_those_of_transformers(tmp_path: Path, vocabulary: TextTokenizer, pre: str) -> None:
    path = write_tokenizer(tmp_path / "m.gguf", vocabulary, pre)
    ours = TextTokenizer.from_file(path)
    architecture, found, _ = get_gguf_tokenizer(str(path))
    theirs, _ = convert_gguf_tokenizer(architecture, found)
    if pre == "smollm":  # not known there: digits stand alone
        digits = pre_tokenizers.Digits(individual_digits=True)
        theirs.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    for text in TEXTS:
        ids = ours.encode(text, special_tokens=True)
        assert ids == theirs.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids) == text
    ours.save(tmp_path / "tokenizer.json")
    write_stop_tokens(tmp_path, ours.stop_ids)
    again = TextTokenizer.from_file(tmp_path / "tokenizer.json")
    assert again is not None
    assert bool(ours.start_ids) == (pre in ("llama-bpe", "tekken", "sentencepiece"))
    assert ours.eos_token == ("</s>" if pre == "sentencepiece" else "<|im_end|>")


def test_a_file_does_what_a_folder_does(
    tmp_path: Path, vocabulary: TextTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its text, its export, and a module trained on it."""
    path = tmp_path / "m.gguf"
    theirs, _ = write_model(path, "llama", vocabulary, max_position_embeddings=512)
    prompt = f"checkpoint={path}", "--chat", "Why?", "decoding.strategy=autoregressive", "decoding.max_new_tokens=8"
    assert main(["generate", *prompt]) == 0
    said = capsys.readouterr().out
    folder = tmp_path / "exported"
    assert main(["export", f"checkpoint={path}", "format=llama", f"output_dir={folder}"]) == 0
    capsys.readouterr()
    assert main(["generate", f"checkpoint={folder}", *prompt[1:]]) == 0
    assert capsys.readouterr().out == said
    (tmp_path / "text.txt").write_text("\n\n".join(TEXTS * 40), encoding="utf-8")
    quick = ["debug=smoke_pretrained", "data=text_files", f"data.paths=[{tmp_path}/text.txt]", "callbacks=no_monitor"]
    assert main(["adapt", f"model.path={path}", *quick, f"hydra.run.dir={tmp_path}/run"]) == 0
    trained = load_trained(tmp_path / "run")
    assert trained.backbone == path
    assert torch.equal(trained.model.backbone.norm.weight, theirs.model.norm.weight)
    assert main(["evaluate", f"checkpoint={path}", "data=text_files", f"data.paths=[{tmp_path}/text.txt]"]) == 0


def test_what_is_refused(tmp_path: Path, vocabulary: TextTokenizer) -> None:
    def refusal(data: bytes) -> str:
        bad.write_bytes(data)
        with pytest.raises(ConfigError) as error:
            load_backbone(bad)
        assert all("bad.gguf" in problem for problem in error.value.problems)
        assert len(error.value.problems) < 3
        return "\n".join(error.value.problems)

    bad, path = tmp_path / "bad.gguf", tmp_path / "m.gguf"
    write_model(path, "qwen2", vocabulary)
    sound = path.read_bytes()
    for end in (2, 10, 100, 3000, len(sound) // 2, len(sound) - 70):
        assert "again" in refusal(sound[:end]) or end == 2
    assert "gemma is not supported" in refusal(sound.replace(b"\x05\0\0\0\0\0\0\0qwen2", b"\x05\0\0\0\0\0\0\0gemma"))
    assert "qwen2.block_count: None is not a number" in refusal(
        sound.replace(b"qwen2.block_count", b"qwen2.block_c0unt")
    )
    assert "blk.0.ffn_gote.weight is not part of" in refusal(sound.replace(b"blk.0.ffn_gate", b"blk.0.ffn_gote"))
    at = sound.index(b"output_norm.weight") + len("output_norm.weight") + 4 + 8
    assert "output_norm.weight: its type IQ4_NL is not supported" in refusal(sound[:at] + b"\x14" + sound[at + 1 :])
    bad.write_bytes(sound.replace(b"gpt-2", b"gpt-9"))
    with pytest.raises(ConfigError, match=r"tokenizer.ggml.pre: gpt-9 is not supported"):
        TextTokenizer.from_file(bad)
