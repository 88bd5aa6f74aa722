"""`recyclegpt bench-runs runs=FOLDER`: the runs of a sweep measured one after another, with nothing else running.

What the monitor saw while a sweep ran may have been disturbed. This leaves a `bench.json` in every run folder, and
resumes where it was stopped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import DictConfig

from recyclegpt.commands.bench_grid import Grid, measure_grid, read_grid
from recyclegpt.commands.bench_prompts import measure_prompts
from recyclegpt.configuration.compose import compose_or_explain, to_plain
from recyclegpt.data.prompts import OVERALL
from recyclegpt.errors import ConfigError
from recyclegpt.files import finite, write_json
from recyclegpt.runs.folder import RESULT, is_complete

FILE_NAME = "bench.json"


def run(argv: Sequence[str]) -> int:
    cfg = compose_or_explain("bench_runs", list(argv))
    grid = read_grid(cfg)
    others = ("device", "seed", "prompts", "prompt_chat", "prompt_special_tokens", "decoding")
    settings = asdict(grid.settings) | {name: to_plain(cfg)[name] for name in others}
    top = Path(str(cfg.runs)).expanduser()
    folders = sorted(path.parent for path in top.rglob(RESULT) if is_complete(path.parent))
    if not folders:
        raise ConfigError(f"runs: {top} holds no complete run (a folder with a {RESULT}); train first")
    documents: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for number, folder in enumerate(folders, start=1):
        name = str(folder.relative_to(top))
        print(f"run {number} of {len(folders)}: {name}", file=sys.stderr)
        if (earlier := _measured(folder, settings)) is not None:
            documents[name] = earlier
            continue
        try:
            documents[name] = _measure(cfg, grid, str(folder)) | {"settings": settings}
        except ConfigError as error:  # one damaged run does not keep the others from being measured
            failed[name] = str(error)
            print(f"{name} was not measured: {error}", file=sys.stderr)
            continue
        write_json(folder / FILE_NAME, documents[name])
        print()
    print(json.dumps(finite({"runs": documents, "failed": failed})))
    return 1 if failed else 0


def _measure(cfg: DictConfig, grid: Grid, run: str) -> dict[str, Any]:
    """The document of a grid on the run's held-out text, or of a set of prompts, of which it has the overall rows."""
    if cfg.prompts is None:
        return measure_grid(cfg, grid, run)
    with TemporaryDirectory() as folder:
        document = measure_prompts(cfg, grid, run, Path(folder))
    return document | {"rows": [row for row in document["rows"] if row["category"] == OVERALL]}


def _measured(folder: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """An earlier measurement of these settings and this result, made while the machine had nothing else to do."""
    file = folder / FILE_NAME
    if not file.exists() or file.stat().st_mtime < (folder / RESULT).stat().st_mtime:
        return None
    document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    current = document.get("settings") == settings and not document["hardware"]["contended"]
    return document if current else None
