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
from recyclegpt.runs.folder import RESULT

FILE_NAME = "bench.json"
EXAMPLES = (
    ("every complete run of a sweep", "runs=outputs/sweeps/recycle_depth"),
    ("two draft lengths for each, quickly", "runs=outputs/sweeps/smoke bench.num_recycled=[1,2] bench.repetitions=2"),
    ("on a GPU", "runs=outputs/sweeps/recycle_depth device=cuda"),
)


def run(argv: Sequence[str]) -> int:
    """The command: measures every complete run that has no trustworthy `bench.json` of the same settings yet."""
    cfg = compose_or_explain("bench_runs", list(argv))
    grid = read_grid(cfg)
    settings = asdict(grid.settings) | {"device": cfg.device, "seed": cfg.seed}
    top = Path(str(cfg.runs)).expanduser()
    folders = sorted(path.parent for path in top.rglob(RESULT) if (_read(path) or {}).get("status") == "completed")
    if not folders:
        raise ConfigError(f"runs: {top} holds no complete run (a folder with a {RESULT}); train first")
    documents: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for number, folder in enumerate(folders, start=1):
        name = str(folder.relative_to(top))
        earlier = _read(folder / FILE_NAME)
        if earlier is not None and _is_current(folder, earlier, settings):
            documents[name] = earlier
            continue
        print(f"run {number} of {len(folders)}: {name}", file=sys.stderr)
        try:
            documents[name] = measure_grid(cfg, grid, str(folder)) | {"settings": settings}
        except ConfigError as error:  # one damaged run does not keep the others from being measured
            failed[name] = "; ".join(error.problems)
            print(f"{name} was not measured: {failed[name]}", file=sys.stderr)
            continue
        write_json(folder / FILE_NAME, documents[name])
        print()
    print(json.dumps(finite({"runs": documents, "failed": failed})))
    return 1 if failed else 0


def _is_current(folder: Path, earlier: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether an earlier measurement is of these settings, of this result, and had the machine to itself."""
    try:
        newer = (folder / FILE_NAME).stat().st_mtime >= (folder / RESULT).stat().st_mtime
        return newer and earlier["settings"] == settings and not earlier["hardware"].get("contended")
    except (OSError, KeyError, TypeError, AttributeError):
        return False


def _read(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None
