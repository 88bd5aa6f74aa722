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
from typing import Any

from recyclegpt.commands.bench_grid import measure_grid, read_grid
from recyclegpt.configuration.compose import compose_or_explain
from recyclegpt.errors import ConfigError
from recyclegpt.files import finite, write_json
from recyclegpt.runs.folder import RESULT, is_complete

FILE_NAME = "bench.json"


def run(argv: Sequence[str]) -> int:
    cfg = compose_or_explain("bench_runs", list(argv))
    grid = read_grid(cfg)
    settings = asdict(grid.settings) | {"device": cfg.device, "seed": cfg.seed}
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
            documents[name] = measure_grid(cfg, grid, str(folder)) | {"settings": settings}
        except ConfigError as error:  # one damaged run does not keep the others from being measured
            failed[name] = str(error)
            print(f"{name} was not measured: {error}", file=sys.stderr)
            continue
        write_json(folder / FILE_NAME, documents[name])
        print()
    print(json.dumps(finite({"runs": documents, "failed": failed})))
    return 1 if failed else 0


def _measured(folder: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """An earlier measurement of these settings and this result, made while the machine had nothing else to do."""
    file = folder / FILE_NAME
    if not file.exists() or file.stat().st_mtime < (folder / RESULT).stat().st_mtime:
        return None
    document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    current = document.get("settings") == settings and not document["hardware"]["contended"]
    return document if current else None
