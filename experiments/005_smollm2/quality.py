"""What alternating decoding costs in the texts that it writes: a part of `measure.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recyclegpt.checkpoints.load import LoadedModel
from recyclegpt.evaluation.perplexity import continuation_nll

SHOWN = 6


def judge_texts(trained: LoadedModel, rounds_file: Path, target: Path) -> list[dict[str, Any]]:
    """The backbone's loss (nats a token) on what autoregressive and alternating decoding wrote, of a file of rounds.

    The first texts of each go to `target`, to be read.
    """
    header, *rounds = map(json.loads, rounds_file.read_text(encoding="utf-8").splitlines())
    rounds = [one for one in rounds if one["repetition"] == 0]
    prompts = [row for of_category in header["prompts"].values() for row in of_category]
    rows, lines = [], []
    for number, about in enumerate(header["decoders"]):
        if about["dtype"] != "bfloat16" or about["label"].startswith("verified"):
            continue
        texts = [text for one in rounds for text in one["runs"][number]["texts"]]
        loss = continuation_nll(trained.model, prompts, texts)
        rows.append({"category": "overall", "strategy": about["label"], "dtype": "bfloat16", "backbone_nll": loss})
        lines += [f"# {about['label']}", ""]
        for text in texts[:SHOWN]:
            lines += [trained.tokenizer.decode(text), "", "---", ""]
    target.write_text("\n".join(lines), encoding="utf-8")
    return rows
