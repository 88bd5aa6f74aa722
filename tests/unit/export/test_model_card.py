"""The card says what was measured, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from recyclegpt.export.model_card import CardFacts, model_card

FACTS = CardFacts(
    title="a-model",
    kind="recyclegpt",
    step=200,
    depth=2,
    num_parameters=5_288_064,
    num_parameters_recycle=959_424,
    num_recycled=1,
    data={"_target_": "recyclegpt.data.TextFilesData", "paths": ["books"], "batch_size": 4},
    usage="model = ...",
)
RESULT: dict[str, Any] = {
    "format": 1,
    "status": "completed",
    "seed": 3,
    "metrics": {
        "val/ppl_backbone": 35.53,
        "val/ppl_recycle": 36.01,
        "val/bits_per_byte": None,
        "decode/speedup_alternating": 1.317,
        "decode/ceiling_alternating": 1.441,
        "decode/speedup_verified": None,
    },
    "train": {"steps": 200, "tokens": 819_200, "seconds": 379.2},
    "hardware": {"device": "AMD EPYC", "decode_dtype": "bfloat16", "threads": 2, "contended": False},
}
PROVENANCE = {"argv": ["/somewhere/__main__.py", "train", "name=a b"], "versions": {"recyclegpt": "0.1.0"}}


def card(folder: Path, facts: CardFacts = FACTS, **changes: Any) -> str:
    (folder / "result.json").write_text(json.dumps(RESULT | changes))
    (folder / "provenance.json").write_text(json.dumps(PROVENANCE))
    return model_card(facts, folder / "result.json", folder / "provenance.json")


def test_numbers_stand_with_their_ceiling_command_and_place(tmp_path: Path) -> None:
    text = card(tmp_path)
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "recyclegpt"
    for word in (
        "# a-model",
        "| perplexity of the backbone | 35.53 |",
        "| alternating over autoregressive | 1.317 |",
        "| its ceiling, from the measured cost of the passes | 1.441 |",
        "Measured with batch 1, 1 recycled per pass, AMD EPYC, bfloat16, 2 threads.",
        "`recyclegpt train 'name=a b'`",
        "819,200 tokens in 200 steps, 379 s",
        'TextFilesData (paths ["books"])',
        "- seed: 3, one run; differences",
        "Alternating decoding is not exact",
    ):
        assert word in body


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    text = card(tmp_path)
    assert "bits per byte" not in text
    assert "verified over autoregressive" not in text
    for word in ("None", "null", "nan", "batch_size"):
        assert word not in text


def test_numbers_of_other_weights_are_not_claimed(tmp_path: Path) -> None:
    text = card(tmp_path, replace(FACTS, step=100))
    assert "35.53" not in text
    assert "these weights are from step 100, the run's numbers from 200" in text
    assert "819,200" not in text


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_without_readable_numbers_there_are_none(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    text = model_card(FACTS, tmp_path / "result.json", tmp_path / "provenance.json")
    assert "The run left no numbers." in text
    assert "- 200 steps" in text
    assert "command" not in text


def test_a_backbone_alone_says_nothing_of_recycling(tmp_path: Path) -> None:
    text = card(tmp_path, replace(FACTS, kind="llama"))
    assert "perplexity of the backbone" in text
    assert "library_name: transformers" in text
    for word in ("perplexity of the module", "Speed", "Limits", "speculative"):
        assert word not in text
