"""Acceptance of verified decoding on the prompts of this folder: greedy, and drawn from the backbone's distribution.

python experiments/004_adapting/acceptance.py RUN_FOLDER [RUN_FOLDER ...] prints a line of CSV for each.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from recyclegpt.checkpoints.load import load_trained
from recyclegpt.decoding import Counts, Decoder, SamplingConfig, Verified

NEW_TOKENS, BATCH = 128, 16
SAMPLINGS = {"greedy": SamplingConfig(), "sampled": SamplingConfig(temperature=1.0)}


def main() -> None:
    prompts = [
        json.loads(line)["prompt"] for line in (Path(__file__).parent / "prompts.jsonl").read_text().splitlines()
    ]
    print("run,decoding,checked,kept,acceptance")
    for run in sys.argv[1:]:
        trained = load_trained(run)
        decoder = Decoder.optimised(trained.model, torch.bfloat16)
        rows = [trained.tokenizer.encode_prompt(prompt) for prompt in prompts]
        for name, sampling in SAMPLINGS.items():
            counts = Counts()
            for begin in range(0, len(rows), BATCH):
                batch = rows[begin : begin + BATCH]
                stops = trained.tokenizer.stop_ids
                counts += decoder.generate(batch, Verified(1), NEW_TOKENS, sampling, stops, seed=begin).counts
            print(f"{run},{name},{counts.num_verified},{counts.num_accepted},{counts.acceptance:.4f}", flush=True)


if __name__ == "__main__":
    main()
