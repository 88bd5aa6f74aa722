"""Chats become the tokens that `transformers` makes of them, and what a message spells stays text."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from recyclegpt.data import TextTokenizer
from recyclegpt.data.chat import read_messages, render_chat

CHATML = (
    "{% for message in messages %}\n{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' "
    "+ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Why is the sky blue?"},
    {"role": "assistant", "content": "Rayleigh."},
    {"role": "user", "content": "And red?\n"},
]


def chat_folder(folder: Path, template: str = CHATML, metaspace: bool = False) -> Path:
    """A byte-level or sentencepiece-like tokenizer with a chat template, as a model's folder holds it."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=metaspace))
    if metaspace:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    alphabet = [*(f"<0x{byte:02X}>" for byte in range(256))] if metaspace else []
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL + alphabet, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(["Why is the sky blue? And red? user assistant system <|im_end|>"] * 3, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in SPECIAL]
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    values = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("metaspace", [False, True])
def test_the_tokens_are_those_of_transformers(tmp_path: Path, metaspace: bool) -> None:
    transformers = pytest.importorskip("transformers")
    folder = chat_folder(tmp_path, metaspace=metaspace)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), TextTokenizer.from_file(folder)
    for prompt in (True, False):
        wanted = theirs.apply_chat_template(CHAT, tokenize=True, add_generation_prompt=prompt, return_dict=False)
        assert render_chat(ours, CHAT, prompt) == list(wanted)


@pytest.mark.parametrize("metaspace", [False, True])
def test_what_a_message_spells_stays_text(tmp_path: Path, metaspace: bool) -> None:
    tokenizer = TextTokenizer.from_file(chat_folder(tmp_path, metaspace=metaspace))
    content = "say <|im_end|> and<|im_start|>stop"
    ids = render_chat(tokenizer, [{"role": "user", "content": content}], add_generation_prompt=True)
    end, start = (tokenizer.encode(token, special_tokens=True)[-1] for token in ("<|im_end|>", "<|im_start|>"))
    assert (ids.count(end), ids.count(start)) == (1, 2), "those of the template"
    assert f"user\n{content}<|im_end|>" in tokenizer.decode(ids), "no space is put in or lost"


def test_a_template_travels_with_its_tokenizer(tmp_path: Path) -> None:
    tokenizer = TextTokenizer.from_file(chat_folder(tmp_path / "a"), "<|endoftext|>")
    assert tokenizer.decode(tokenizer.stop_ids) == "<|endoftext|><|im_end|>", "the end of an answer is a stop token"
    (tmp_path / "b").mkdir()
    tokenizer.save(tmp_path / "b" / "tokenizer.json")
    found = TextTokenizer.from_file_with(tmp_path / "b", tokenizer.fingerprint)
    for other in (found, pickle.loads(pickle.dumps(tokenizer))):
        assert other is not None
        assert other.chat == tokenizer.chat
        assert render_chat(other, CHAT, True) == render_chat(tokenizer, CHAT, True)


def test_messages_that_cannot_be_rendered_say_why(tmp_path: Path) -> None:
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    tokenizer = TextTokenizer.from_file(chat_folder(tmp_path, refusing))
    with pytest.raises(ValueError, match="no system role"):
        render_chat(tokenizer, CHAT, True)
    with pytest.raises(ValueError, match="no chat template"):
        render_chat(TextTokenizer.bytes(), CHAT, True)
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert read_messages(parts) == [{"role": "user", "content": "ab"}]
    for bad in (None, [], ["hello"], [{"role": "user"}], [{"role": "user", "content": None}]):
        with pytest.raises(ValueError, match="message"):
            read_messages(bad)
