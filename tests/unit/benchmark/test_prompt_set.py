"""What is counted of the texts that decoders write after a set of prompts."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from recyclegpt.benchmark.prompt_set import VARIED, Contender, Round, Texts, decode_rounds, fit_prompts, prompt_rows
from recyclegpt.benchmark.speed import Run
from recyclegpt.data.prompts import OVERALL
from recyclegpt.decoding import Alternating, Autoregressive, Counts, Decoder, Verified
from recyclegpt.errors import ConfigError
from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT


def test_long_prompts_keep_their_end(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert fit_prompts([[*range(9)], [1], []], context=10, new_tokens=5, start=7) == [[4, 5, 6, 7, 8], [1], [7]]
    assert "1 of 3 prompts are longer than 5 tokens" in caplog.text
    with pytest.raises(ConfigError, match=r"bench\.new_tokens: 10 leave no room"):
        fit_prompts([[1]], context=10, new_tokens=10, start=7)


def test_rows_count_what_the_decoders_wrote(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = ModelConfig(19, 64, num_layers=1, hidden_size=16, num_heads=2)
    model = RecycleGPT(config, RecycleConfig(1)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.4)
    decoder, num = Decoder(model), 16
    prompts = {"a": [[1, 2, 3], [4]], "b": [[5, 6, 7, 8, 9]]}
    about = {"dtype": "float64"}
    strategies = [Autoregressive(), Alternating(1), Verified(1), Alternating(2)]
    contenders = [Contender(decoder, strategy, about) for strategy in strategies]
    texts, file = Texts(num, repetitions=2), tmp_path / "rounds.jsonl"
    rounds = decode_rounds(contenders, prompts, texts, file, about)
    assert [(one.repetition, one.category) for one in rounds] == [
        (0, "a"),
        (0, "a"),
        (0, "b"),
        (1, "a"),
        (1, "a"),
        (1, "b"),
    ]
    rows = prompt_rows(contenders, rounds)
    assert [(row["category"], row["strategy"], row["num_recycled"]) for row in rows if row["category"] != VARIED] == [
        (category, name, m)
        for category in ("a", "b", OVERALL)
        for name, m in (("autoregressive", 0), ("alternating", 1), ("verified", 1), ("alternating", 2))
    ]
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:4]) + lines[4][:40])
    whole = prompt_rows(contenders, decode_rounds(contenders, prompts, texts, file, about))
    for key in ("num_prompts", "equal", "acceptance_by_position", "mean_accepted_length", "repetitive"):
        assert [row[key] for row in whole] == [row[key] for row in rows], "continued after a line that was cut off"
    assert len(file.read_text().splitlines()) == 7
    with pytest.raises(ConfigError, match="holds a measurement of another dtype"):
        decode_rounds(contenders, prompts, texts, file, {"dtype": "float32"})
    by_key = {(row["category"], row["strategy"], row["num_recycled"]): row for row in rows}
    for row in (row for row in rows if row["category"] != VARIED):
        assert row["num_prompts"] == {"a": 2, "b": 1, OVERALL: 3}[row["category"]]
        assert row["spread"][0] <= row["tokens_per_s"] <= row["spread"][1]
        assert row["speedup_interval"][0] <= row["speedup"] * 1.5, "two repetitions of milliseconds differ"
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


def test_texts_that_repeat_themselves_are_left_out_of_the_last_rows() -> None:
    looping, varied = [1, 2, 3, 4] * 6, [*range(24)]
    runs = [Run(10, seconds, counts=Counts(), texts=[text]) for text, seconds in ((looping, 1.0), (varied, 2.0))]
    contender = Contender(None, Autoregressive(), {"dtype": "float32"})  # type: ignore[arg-type]
    rows = prompt_rows([contender], [Round(0, "a", [run]) for run in runs])
    assert [(row["category"], row["num_prompts"], row["repetitive"], row["tokens_per_s"]) for row in rows] == [
        ("a", 2, 0.5, 20 / 3),
        (OVERALL, 2, 0.5, 20 / 3),
        (VARIED, 1, 0, 5.0),
    ]
