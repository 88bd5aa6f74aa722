from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from recyclegpt.configuration.train_checks import read_draft_ids
from recyclegpt.data import TextTokenizer
from recyclegpt.errors import ConfigError
from recyclegpt.runs.model import frequent_ids

TOKENIZER = TextTokenizer.train(["def add(a, b):\n    return a + b\n" * 20], vocab_size=290)


def test_the_most_frequent_ids_and_all_bytes_and_special_tokens() -> None:
    counts = np.random.default_rng(0).integers(0, 4, TOKENIZER.vocab_size)
    always = {token for token in range(TOKENIZER.vocab_size) if TOKENIZER.token_num_bytes()[token] == 1}
    always |= {TOKENIZER.eos_id}
    ids = frequent_ids(counts, TOKENIZER, 265)
    others = sorted({*range(TOKENIZER.vocab_size)} - always, key=lambda token: (-counts[token], token))
    assert ids.tolist() == sorted([*always, *others[: 265 - 257]])
    for size in (256, TOKENIZER.vocab_size + 1):
        with pytest.raises(ConfigError, match="not between 257"):
            frequent_ids(counts, TOKENIZER, size)


def test_a_list_of_ids(tmp_path: Path) -> None:
    file = tmp_path / "ids.json"
    file.write_text(json.dumps([7, 3, 5]))
    assert read_draft_ids(file).tolist() == [3, 5, 7]
    for wrong in ("[1, 1]", "{}", "[1, -2]", "[1"):
        file.write_text(wrong)
        with pytest.raises(ConfigError, match=r"recycle.draft_vocab: .*ids.json"):
            read_draft_ids(file)
