"""Prompts from held-out tokens, and those that people bring."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recyclegpt.data import TextTokenizer, prompts
from recyclegpt.data.packed_rows import TokenArray
from recyclegpt.data.prompts import OVERALL, Prompt, chat_in, draw_prompts, encode_prompts, read_prompts
from recyclegpt.errors import ConfigError
from tests.chat_tokenizer import write_chat_tokenizer

END = 0


def corpus(lengths: list[int], ends: bool = True) -> np.ndarray:
    """Documents of these lengths, every token another one, so that a prompt says where it was taken."""
    tokens: list[int] = []
    for length in lengths:
        begin = len(tokens) + 1
        tokens += [*range(begin, begin + length), END]
    return np.array(tokens if ends else tokens[:-1], np.int64)


def places(tokens: np.ndarray, length: int) -> tuple[list[int], list[int]]:
    """Where documents that are long enough begin, and where else a window of one lies."""
    begins, inside = [], []
    for start in range(len(tokens) - length + 1):
        if END in tokens[start : start + length]:
            continue
        (begins if start == 0 or tokens[start - 1] == END else inside).append(start)
    return begins, inside


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(1, 4), st.booleans(), st.data())
def test_documents_first_then_windows_none_twice(
    lengths: list[int], length: int, ends: bool, data: st.DataObject
) -> None:
    tokens = corpus(lengths, ends)
    begins, inside = places(tokens, length)
    num = data.draw(st.integers(1, len(begins) + len(inside) + 2))
    seed = data.draw(st.integers(0, 3))
    if num > len(begins) + len(inside):
        with pytest.raises(ConfigError, match=f"holds {len(begins) + len(inside)} of"):
            draw_prompts(TokenArray(tokens), END, num, length, seed)
        return
    drawn = draw_prompts(TokenArray(tokens), END, num, length, seed)
    assert drawn.shape == (num, length)
    where = [int(prompt[0]) - 1 for prompt in drawn]
    assert [tokens[start : start + length].tolist() for start in where] == drawn.tolist()
    assert len(set(where)) == num
    assert set(where[: len(begins)]) <= set(begins)
    assert set(where[len(begins) :]) <= set(inside)


def test_seed_decides_and_all_are_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "_CHUNK", 7)  # end tokens are found across what is read at once
    tokens = TokenArray(corpus([5] * 40))
    first = draw_prompts(tokens, END, 10, 3, seed=1)
    assert first.tolist() == draw_prompts(tokens, END, 10, 3, seed=1).tolist()
    assert first.tolist() != draw_prompts(tokens, END, 10, 3, seed=2).tolist()
    every = draw_prompts(tokens, END, 120, 3, seed=1)
    begins, inside = places(corpus([5] * 40), 3)
    assert sorted(prompt[0] - 1 for prompt in every) == sorted(begins + inside)


CHATML = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
QUESTION = [{"role": "user", "content": "Why?"}]


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_all_forms_of_lines_are_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.jsonl",
        {"category": "qa", "prompt": "Why?", "more": 1},
        "",
        {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."], "reference": []},
        {"question_id": 82, "category": "writing", "turns": ["One turn."]},
        {"prompt": "No category."},
        {"messages": [{"role": "user", "content": "A chat."}]},
    )
    assert [(prompt.category, prompt.text) for prompt in read_prompts(path)] == [
        ("qa", "Why?"), ("writing", "Write."), ("writing", "One turn."), ("all", "No category."), ("all", None)
    ]  # fmt: skip


def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path) -> None:
    good = {"category": "qa", "prompt": "Why?"}
    faulty: list[object] = ["{", [1], {"messages": ["x"]}, {"prompt": "\ud800"}, {"category": "qa"}]
    faulty += [{"turns": []}, {"category": "qa", "prompt": ""}, {"category": OVERALL, "prompt": "x"}]
    for bad in faulty:
        with pytest.raises(ConfigError, match=r"p\.jsonl:2: "):
            read_prompts(write(tmp_path / "p.jsonl", good, bad))
    with pytest.raises(ConfigError, match=r"p\.jsonl is empty"):
        read_prompts(write(tmp_path / "p.jsonl"))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_prompts(tmp_path / "nowhere.jsonl")


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    text = "a\u2028b\u2029c\x85d"
    lines = [json.dumps({"category": "qa", "prompt": text}, ensure_ascii=False)] * 2
    (tmp_path / "p.jsonl").write_bytes("\r\n".join(lines).encode() + b"\n")
    assert read_prompts(tmp_path / "p.jsonl") == [Prompt(text, None, "qa")] * 2
    path = write(tmp_path / "p.jsonl", *lines, "{")
    with pytest.raises(ConfigError, match=r"p\.jsonl:3: not JSON"):
        read_prompts(path)


def test_a_prompt_s_special_tokens_are_tokens_where_the_tokenizer_has_a_template(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = TextTokenizer.from_file(write_chat_tokenizer(tmp_path))
    rows = {}
    for kind in ("auto", "tokens", "characters"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            (rows[kind],) = encode_prompts(tokenizer, [Prompt(CHATML)], kind)
        assert len(caplog.records) == 1, "said once"
        assert f"read as {kind.replace('auto', 'tokens')};" in caplog.text
    answered = [*QUESTION, {"role": "assistant", "content": "an answer, which is what comes next"}]
    question, both = Prompt("Why?", QUESTION), Prompt(None, answered)
    assert encode_prompts(tokenizer, [question, both], "auto") == [rows["auto"]] * 2
    assert rows["auto"] == rows["tokens"] != rows["characters"]
    assert tokenizer.decode(rows["characters"]) == CHATML
    plain = TextTokenizer.bytes()
    assert encode_prompts(plain, [question, Prompt("<|endoftext|>")], "auto") == [
        [*b"Why?"], [*b"<|endoftext|>"]
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="prompt 1: tokenizer: it has no chat template"):
        encode_prompts(plain, [both], "auto")
    with pytest.raises(ConfigError, match="prompt_special_tokens: 'yes' is unknown"):
        encode_prompts(plain, [], "yes")


def test_a_chat_is_told_from_other_texts() -> None:
    chat = json.dumps({"messages": QUESTION})
    assert chat_in(f"\n{chat}\n") == QUESTION
    for text in ("", "{", "Why?", '{"a": 1}', "[1]"):
        assert chat_in(text) is None
    for bad in (f"{chat}\n{chat}", '{"messages": "Why?"}', '{"prompt": "Why?"}'):
        with pytest.raises(ValueError, match=r"first chat|are not|row of prompts"):
            chat_in(bad)


def test_a_list_of_messages_is_a_chat_and_an_answer_left_out_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert chat_in(json.dumps(QUESTION)) == QUESTION
    assert chat_in("[1, 2]") is None
    tokenizer = TextTokenizer.from_file(write_chat_tokenizer(tmp_path))
    answered = [*QUESTION, {"role": "assistant", "content": "Because"}]
    prompts = [Prompt(None, QUESTION), Prompt(None, answered)]
    with caplog.at_level(logging.WARNING, "recyclegpt"):
        one, other = encode_prompts(tokenizer, prompts, "auto")
    assert one == other
    assert "1 of 2 chats end with an answer, which is left out" in caplog.text
