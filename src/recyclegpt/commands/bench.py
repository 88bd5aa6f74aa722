"""`recyclegpt bench`: how fast the decoders are, compared with the ceilings that the cost of their passes allows."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from recyclegpt.commands.bench_grid import measure_grid, read_grid
from recyclegpt.commands.bench_prompts import measure_prompts
from recyclegpt.configuration.compose import compose_or_explain
from recyclegpt.errors import ConfigError, RunError
from recyclegpt.files import finite, write_json
from recyclegpt.reporting.figure import draw_png
from recyclegpt.reporting.figures import bench_figure
from recyclegpt.runs.folder import remove_empty_parents

log = logging.getLogger("recyclegpt")


def run(argv: Sequence[str]) -> int:
    cfg = compose_or_explain("bench", list(argv))
    grid = read_grid(cfg)
    with output_folder(cfg.output_dir) as folder:
        if cfg.prompts is not None:
            document = measure_prompts(cfg, grid, cfg.checkpoint, folder)
        else:
            document = measure_grid(cfg, grid, cfg.checkpoint)
            write_json(folder / "bench.json", document)
            try:
                if (figure := bench_figure(document)).panels:
                    draw_png(figure, folder / "bench.png")
            except ImportError:
                log.warning("bench.png was not drawn: pip install 'recyclegpt[report]'")
    print(json.dumps(finite(document)))
    return 0


@contextlib.contextmanager
def output_folder(output_dir: str | None) -> Iterator[Path]:
    """Made before anything is measured, since a grid may take an hour; gone again if measuring failed.

    Raises:
        ConfigError: it cannot be made.
    """
    now = datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S")
    folder = Path("outputs/bench", now) if output_dir is None else Path(str(output_dir)).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output_dir: {folder} cannot be written ({error})") from error
    try:
        yield folder
    except (ConfigError, RunError):
        with contextlib.suppress(OSError):  # it holds something: it was there before
            folder.rmdir()
            remove_empty_parents(folder)
        raise
    print(f"\nwritten to {folder}")
