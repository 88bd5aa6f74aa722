"""Chats become the tokens that `transformers` makes of them, and what a message spells stays text."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from recyclegpt.data import TextTokenizer
from recyclegpt.data.chat import read_messages, render_chat
from tests.chat_tokenizer import write_chat_tokenizer

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Why is the sky blue?"},
    {"role": "assistant", "content": "Rayleigh."},
    {"role": "user", "content": "And red?\n"},
]


@pytest.mark.parametrize("metaspace", [False, True])
def test_the_tokens_are_those_of_transformers(tmp_path: Path, metaspace: bool) -> None:
    transformers = pytest.importorskip("transformers")
    folder = write_chat_tokenizer(tmp_path, metaspace=metaspace)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), TextTokenizer.from_file(folder)
    for prompt in (True, False):
        wanted = theirs.apply_chat_template(CHAT, tokenize=True, add_generation_prompt=prompt, return_dict=False)
        assert render_chat(ours, CHAT, prompt) == list(wanted)


@pytest.mark.parametrize("metaspace", [False, True])
def test_what_a_message_spells_stays_text(tmp_path: Path, metaspace: bool) -> None:
    tokenizer = TextTokenizer.from_file(write_chat_tokenizer(tmp_path, metaspace=metaspace))
    content = "say <|im_end|> and<|im_start|>stop"
    ids = render_chat(tokenizer, [{"role": "user", "content": content}], add_generation_prompt=True)
    end, start = (tokenizer.encode(token, special_tokens=True)[-1] for token in ("<|im_end|>", "<|im_start|>"))
    assert (ids.count(end), ids.count(start)) == (1, 2), "those of the template"
    assert f"user\n{content}<|im_end|>" in tokenizer.decode(ids), "no space is put in or lost"


def test_a_template_travels_with_its_tokenizer(tmp_path: Path) -> None:
    tokenizer = TextTokenizer.from_file(write_chat_tokenizer(tmp_path / "a"), "<|endoftext|>")
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
    tokenizer = TextTokenizer.from_file(write_chat_tokenizer(tmp_path, refusing))
    with pytest.raises(ValueError, match="no system role"):
        render_chat(tokenizer, CHAT, True)
    with pytest.raises(ValueError, match="no chat template"):
        render_chat(TextTokenizer.bytes(), CHAT, True)
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert read_messages(parts) == [{"role": "user", "content": "ab"}]
    for bad in (None, [], ["hello"], [{"role": "user"}], [{"role": "user", "content": None}]):
        with pytest.raises(ValueError, match="message"):
            read_messages(bad)
