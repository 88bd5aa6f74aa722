"""Reading sets of prompts, and what is counted of the texts."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from recyclegpt.benchmark.prompt_set import OVERALL, Prompt, bench_prompts, fit_prompts, read_prompts
from recyclegpt.decoding import Alternating, Autoregressive, Decoder, Verified
from recyclegpt.errors import ConfigError
from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_both_forms_of_lines_are_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.jsonl",
        {"category": "qa", "prompt": "Why?", "more": 1},
        "",
        {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."], "reference": []},
        {"question_id": 82, "category": "writing", "turns": ["One turn."]},
    )
    assert read_prompts(path) == [Prompt("qa", "Why?"), Prompt("writing", "Write."), Prompt("writing", "One turn.")]


def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path) -> None:
    good = {"category": "qa", "prompt": "Why?"}
    for bad in ("{", [1], {"prompt": "x"}, {"category": "qa"}, {"category": "qa", "turns": []},
                {"category": "qa", "prompt": ""}, {"category": OVERALL, "prompt": "x"}):  # fmt: skip
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
    assert read_prompts(tmp_path / "p.jsonl") == [Prompt("qa", text)] * 2
    path = write(tmp_path / "p.jsonl", *lines, "{")
    with pytest.raises(ConfigError, match=r"p\.jsonl:3: is not JSON"):
        read_prompts(path)


def test_long_prompts_keep_their_end(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert fit_prompts([[*range(9)], [1], []], context=10, new_tokens=5, start=7) == [[4, 5, 6, 7, 8], [1], [7]]
    assert "1 of 3 prompts are longer than 5 tokens" in caplog.text
    with pytest.raises(ConfigError, match=r"bench\.new_tokens: 10 leave no room"):
        fit_prompts([[1]], context=10, new_tokens=10, start=7)


def test_rows_count_what_the_decoders_wrote() -> None:
    torch.manual_seed(1)
    config = ModelConfig(19, 64, num_layers=1, hidden_size=16, num_heads=2)
    model = RecycleGPT(config, RecycleConfig(1)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.4)
    decoder, num = Decoder(model), 16
    prompts = {"a": [[1, 2, 3], [4]], "b": [[5, 6, 7, 8, 9]]}
    strategies = [Alternating(1), Verified(1), Alternating(2)]
    rows = bench_prompts(decoder, prompts, strategies, num, repetitions=2)
    assert [(row["category"], row["strategy"], row["num_recycled"]) for row in rows] == [
        (category, name, m)
        for category in ("a", "b", OVERALL)
        for name, m in (("autoregressive", 0), ("alternating", 1), ("verified", 1), ("alternating", 2))
    ]
    by_key = {(row["category"], row["strategy"], row["num_recycled"]): row for row in rows}
    for row in rows:
        assert row["num_prompts"] == {"a": 2, "b": 1, OVERALL: 3}[row["category"]]
        assert row["spread"][0] <= row["tokens_per_s"] <= row["spread"][1]
        if row["strategy"] != "alternating":
            assert row["equal"] == 1
        if row["strategy"] == "autoregressive":
            assert row["speedup"] == row["mean_accepted_length"] == 1
            assert row["acceptance"] is None
    for m in (1, 2):
        same = []
        for prompt in [*prompts["a"], *prompts["b"]]:
            (mine,) = decoder.generate([prompt], Alternating(m), num).tokens
            (theirs,) = decoder.generate([prompt], Autoregressive(), num).tokens
            same.append(mine == theirs)
        row = by_key[OVERALL, "alternating", m]
        assert row["equal"] == sum(same) / 3
        assert row["mean_accepted_length"] == m + 1
    verified = by_key[OVERALL, "verified", 1]
    assert verified["mean_accepted_length"] == pytest.approx(1 + verified["acceptance"])
