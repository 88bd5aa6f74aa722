"""`recyclegpt bench`: how fast the decoders are, compared with the ceilings that the cost of their passes allows."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence

from recyclegpt.commands.bench_grid import measure_grid, read_grid
from recyclegpt.commands.bench_output import output_folder
from recyclegpt.commands.bench_prompts import measure_prompts
from recyclegpt.configuration.compose import compose_or_explain
from recyclegpt.files import finite, write_json
from recyclegpt.reporting.bench_figure import draw_bench

log = logging.getLogger("recyclegpt")
EXAMPLES = (
    ("a shape with random weights, drafting one, two and four tokens", "model=gpt_125m bench.num_recycled=[1,2,4]"),
    ("a checkpoint, together with transformers", "checkpoint=outputs/train bench.baselines=[transformers]"),
    ("your own prompts, by category", "checkpoint=outputs/train prompts=prompts.jsonl"),
)


def run(argv: Sequence[str]) -> int:
    """The command."""
    cfg = compose_or_explain("bench", list(argv))
    grid = read_grid(cfg)
    with output_folder(cfg.output_dir) as folder:
        if cfg.prompts is not None:
            document = measure_prompts(cfg, grid, folder)
        else:
            document = measure_grid(cfg, grid, cfg.checkpoint)
            write_json(folder / "bench.json", document)
            try:
                draw_bench(document, folder / "bench.png")
            except ImportError:
                log.warning("bench.png was not drawn: pip install 'recyclegpt[report]'")
    print(json.dumps(finite(document)))
    return 0
