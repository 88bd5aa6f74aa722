from __future__ import annotations

import json
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, processors

from recyclegpt.data import TextTokenizer
from recyclegpt.data.tokenizer import write_stop_tokens

CORPUS = ["def add(a, b):\n    return a + b\n" * 20, "Grüße an die Welt, 世界! 🙂 " * 20]
BYTES = TextTokenizer.bytes()
BPE = TextTokenizer.train(CORPUS, vocab_size=290)
text = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["byte", "bpe"])
@given(text)
def test_text_survives_and_its_bytes_are_counted(tokenizer: TextTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_num_bytes()[ids].sum() == len(text.encode())


@given(text)
def test_byte_ids_are_bytes(text: str) -> None:
    assert BYTES.encode(text) == list(text.encode())


@given(st.lists(st.integers(0, 289)))
def test_stream_gives_the_text_and_never_half_a_character(ids: list[int]) -> None:
    stream = BPE.decode_stream()
    steps = [stream.step(token_id) for token_id in ids]
    assert "".join(steps) + stream.finish() == BPE.decode(ids)


@given(text)
def test_streamed_text_has_no_replacement_character_of_its_own(text: str) -> None:
    stream = BYTES.decode_stream()
    steps = "".join(stream.step(token_id) for token_id in BYTES.encode(text))
    assert steps.count("\ufffd") == text.count("\ufffd") - stream.finish().count("\ufffd")
    assert text.startswith(steps)


def test_sizes_and_end_token() -> None:
    assert BYTES.vocab_size == 257
    assert BYTES.eos_id == 256
    assert BPE.vocab_size == 290
    assert BPE.token_num_bytes()[BPE.eos_id] == 0
    assert len(BPE.encode(CORPUS[0])) < len(CORPUS[0]) / 2


def test_text_cannot_spell_the_end_token() -> None:
    for tokenizer in (BYTES, BPE):
        ids = tokenizer.encode("a<|endoftext|>b")
        assert tokenizer.eos_id not in ids
        assert tokenizer.decode(ids) == "a<|endoftext|>b"


def test_batch_equals_one_by_one() -> None:
    assert BPE.encode_batch(CORPUS) == [BPE.encode(text) for text in CORPUS]


def test_file_round_trip_keeps_fingerprint(tmp_path: Path) -> None:
    BPE.save(tmp_path / "tokenizer.json")
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        read = TextTokenizer.from_file(path)
        assert read.fingerprint == BPE.fingerprint
        assert read.encode(CORPUS[1]) == BPE.encode(CORPUS[1])
    assert pickle.loads(pickle.dumps(BPE)).fingerprint == BPE.fingerprint
    assert BYTES.fingerprint != BPE.fingerprint


def test_training_is_repeatable() -> None:
    assert TextTokenizer.train(CORPUS, 290).fingerprint == BPE.fingerprint


def test_sentencepiece_pieces_are_counted() -> None:
    vocab = {"<unk>": 0, "</s>": 1, "▁the": 2, "é": 3, "<0xE4>": 4, "▁": 5}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    wrapped = TextTokenizer(tokenizer)
    assert wrapped.eos_token == "</s>"
    np.testing.assert_array_equal(wrapped.token_num_bytes(), [0, 0, 4, 2, 1, 1])


def test_truncation_and_template_of_a_file_are_switched_off(tmp_path: Path) -> None:
    content = json.loads(Tokenizer.from_str(json.dumps(BPE._content)).to_str())
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert TextTokenizer.from_file(tmp_path).encode(CORPUS[0]) == BPE.encode(CORPUS[0])


def byte_fallback() -> TextTokenizer:
    """As Llama 2 has it: characters without an id of their own are written byte by byte."""
    vocab = {"<unk>": 0, "</s>": 1, "▁the": 2, "é": 3, "▁": 4, "so": 5}
    vocab |= {f"<0x{byte:02X}>": 6 + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return TextTokenizer(tokenizer)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_stream_gives_what_decoding_gives_whatever_the_ids(data: st.DataObject) -> None:
    for tokenizer in (byte_fallback(), BPE):
        ids = data.draw(st.lists(st.integers(0, min(tokenizer.vocab_size, 290) - 1), max_size=30))
        stream = tokenizer.decode_stream()
        assert "".join([*map(stream.step, ids), stream.finish()]) == tokenizer.decode(ids)


def test_a_models_folder_tells_which_tokens_end_a_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(json.dumps(BPE._content))
    tokenizer.add_special_tokens([AddedToken("<|turn|>", special=True), AddedToken("<|stop|>", special=True)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    turn, stop = tokenizer.token_to_id("<|turn|>"), tokenizer.token_to_id("<|stop|>")
    assert TextTokenizer.from_file(tmp_path).stop_ids == [BPE.eos_id]
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": turn}))
    assert TextTokenizer.from_file(tmp_path).eos_token == "<|turn|>"
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [stop, turn, None, 10**9]}))
    read = TextTokenizer.from_file(tmp_path / "tokenizer.json")
    assert (read.eos_id, read.stop_ids) == (stop, [stop, turn])
    assert pickle.loads(pickle.dumps(read)).stop_ids == [stop, turn]
    chosen = TextTokenizer.from_file(tmp_path, BPE.eos_token)
    assert (chosen.eos_id, chosen.stop_ids) == (BPE.eos_id, [BPE.eos_id, stop, turn])
    for content in ("[]", "{", '{"eos_token_id": "x"}', '{"eos_token_id": [true, -1]}'):
        (tmp_path / "generation_config.json").write_text(content)
        assert TextTokenizer.from_file(tmp_path).eos_token == "<|turn|>"
    write_stop_tokens(tmp_path, [stop])
    found = TextTokenizer.from_file(tmp_path)
    assert found is not None
    assert found.stop_ids == [stop]


def with_template(template: str) -> TextTokenizer:
    tokenizer = Tokenizer.from_str(json.dumps(BPE._content))
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    ends = [(name, tokenizer.token_to_id(name)) for name in ("<s>", BPE.eos_token)]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)
    return TextTokenizer(tokenizer)


def test_documents_and_prompts_begin_as_the_template_of_a_file_says(tmp_path: Path) -> None:
    llama = with_template("<s> $A")
    start = llama._tokenizer.token_to_id("<s>")
    assert llama.start_ids == with_template(f"<s> $A {BPE.eos_token}").start_ids == [start]
    assert with_template(f"$A {BPE.eos_token}").start_ids == BPE.start_ids == BYTES.start_ids == []
    assert llama.encode("text") == BPE.encode("text")
    assert llama.encode_prompt("text") == [start, *BPE.encode("text")]
    assert llama.encode_document("text") == [start, *BPE.encode("text"), BPE.eos_id]
    assert (llama.encode_prompt(""), BPE.encode_prompt("")) == ([start], [BPE.eos_id])
    llama.save(tmp_path / "tokenizer.json")
    read = TextTokenizer.from_file(tmp_path)
    assert (read.start_ids, read.fingerprint) == ([start], llama.fingerprint)
    assert pickle.loads(pickle.dumps(llama)).start_ids == [start]


@pytest.mark.timeout(60)
def test_text_without_blanks_trains_in_time() -> None:
    line = "".join(random.Random(0).choices("ACGT", k=400_000))
    assert TextTokenizer.train([f"{line}\n{line[::-1]}\n"], 600).vocab_size == 600
