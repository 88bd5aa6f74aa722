"""`recyclegpt bench runs=SWEEP_FOLDER`: the runs of a sweep measured one after another, with nothing else running.

What the monitor saw while a sweep ran may have been disturbed. This leaves a `bench.json` in every run folder, and
goes on where it was stopped.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict

from recyclegpt.commands import bench_decoding
from recyclegpt.errors import ConfigError
from recyclegpt.files import write_json
from recyclegpt.runs.folder import RESULT

FILE_NAME = "bench.json"


def bench_runs(cfg: DictConfig) -> dict[str, Any]:
    """Measure every complete run that has no trustworthy `bench.json` of the same settings yet.

    Returns:
        `{"runs": {folder: document}, "failed": {folder: reason}}`, those measured earlier included.

    Raises:
        ConfigError: there is no complete run, or a checkpoint is named as well.
    """
    top = Path(str(cfg.runs)).expanduser()
    if cfg.checkpoint is not None or cfg.bench.output is not None:
        raise ConfigError(
            "runs: measures every run of a folder into the run's own; leave checkpoint and bench.output out"
        )
    folders = sorted(path.parent for path in top.rglob(RESULT) if _status(path) == "completed")
    if not folders:
        raise ConfigError(f"runs: {top} holds no complete run (a folder with a {RESULT}); train first")
    asked = _plain(
        {**{key: v for key, v in cfg.bench.items() if key != "output"}, "device": cfg.device, "seed": cfg.seed}
    )
    documents: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for number, folder in enumerate(folders, start=1):
        name = str(folder.relative_to(top))
        done = _read(folder / FILE_NAME)
        if done is not None and _is_current(folder, done, asked):
            documents[name] = done
            continue
        print(f"run {number} of {len(folders)}: {name}", file=sys.stderr)
        own = copy.deepcopy(cfg)
        with open_dict(own):
            own.checkpoint, own.runs = str(folder), None
        try:
            documents[name] = bench_decoding.measure(own) | {"settings": asked}
        except ConfigError as error:  # one damaged run does not keep the others from being measured
            failed[name] = "; ".join(error.problems)
            print(f"{name} was not measured: {failed[name]}", file=sys.stderr)
            continue
        write_json(folder / FILE_NAME, documents[name])
        print()
    return {"runs": documents, "failed": failed}


def _is_current(folder: Path, done: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Whether an earlier measurement is of these settings, of this result, and had the machine to itself."""
    try:
        newer = (folder / FILE_NAME).stat().st_mtime >= (folder / RESULT).stat().st_mtime
        return newer and done["settings"] == asked and not done["hardware"].get("contended")
    except (OSError, KeyError, TypeError, AttributeError):
        return False


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=list))


def _status(path: Path) -> str | None:
    found = _read(path)
    return None if found is None else found.get("status")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None
