"""`recyclegpt bench`: how fast the decoders are, compared with the ceilings that the cost of their passes allows."""

from __future__ import annotations

import json
from collections.abc import Sequence

from recyclegpt.commands.bench_grid import measure_grid, read_grid
from recyclegpt.commands.bench_output import draw, output_folder
from recyclegpt.commands.bench_prompts import measure_prompts, read_one
from recyclegpt.configuration.compose import compose_or_explain
from recyclegpt.files import finite, write_json

EXAMPLES = (
    ("a shape with random weights, drafting one, two and four tokens", "model=gpt_125m bench.num_recycled=[1,2,4]"),
    ("a checkpoint, together with transformers", "checkpoint=outputs/train bench.baselines=[transformers]"),
    ("your own prompts, by category", "checkpoint=outputs/train prompts=prompts.jsonl"),
)


def run(argv: Sequence[str]) -> int:
    """The command."""
    cfg = compose_or_explain("bench", list(argv))
    # All settings are looked at first: a mistake leaves no folder behind.
    if cfg.prompts is not None:
        device, config, compiled = read_one(cfg)
        with output_folder(cfg.output_dir) as folder:
            document = measure_prompts(cfg, device, config, compiled)
            write_json(folder / "prompts.json", document)
    else:
        grid = read_grid(cfg)
        with output_folder(cfg.output_dir) as folder:
            document = measure_grid(cfg, grid)
            write_json(folder / "bench.json", document)
            draw(folder, document)
    print(json.dumps(finite(document)))
    return 0
