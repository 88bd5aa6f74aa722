"""Finds run folders and reads them as plain values.

A half-written, corrupt or foreign file is reported and does not stop a report.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from recyclegpt.errors import ConfigError

Plain = str | int | float | bool | None

UNREADABLE = (OSError, ValueError, RecursionError, yaml.YAMLError)
"""What reading a half-written, corrupt or foreign file may raise."""


def plain(value: Any) -> Plain:
    """`value` as number, text, bool or None; a list becomes JSON."""
    return value if value is None or isinstance(value, str | bool | int | float) else json.dumps(value, default=str)


def number(value: Any) -> float | None:
    """`value` if it is a finite number (a bool is not one), else None."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


def flatten(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Plain]]:
    """Leaves of a nested mapping under dotted keys; interpolations stay text."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", plain(value)


def read_yaml(path: Path) -> Any:
    """The document in a YAML file; raises one of `UNREADABLE`."""
    # The parser in C is ten times as fast, but not in every build of PyYAML.
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(path.read_text(encoding="utf-8"), Loader=loader)


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises one of `UNREADABLE`."""
    document = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(document, dict):
        raise ValueError(f"holds {type(document).__name__}, not a JSON object")
    return document


COMPLETED, FAILED, UNFINISHED = "completed", "failed", "unfinished"
BOOKKEEPING = ("hydra", "paths", "logger", "name", "seed", "sweep", "resume")
"""Parts of a config that say which run it is and where it is stored, not what it does."""
SPEEDS = (
    *(f"decode/{name}" for name in ("tokens_per_s_", "speedup_", "verify_cost", "draft_cost")),
    *("decode/ceiling_alternating", "decode/ceiling_verified", "train.tokens_per_s", "train.seconds"),
)
"""How metrics begin that other programs on the machine distort. The byte ceiling is arithmetic, and stays."""


@dataclass
class Run:
    folder: Path
    status: str = UNFINISHED
    error: str | None = None
    control: str | None = None
    seed: int | None = None
    settings: dict[str, Plain] = field(default_factory=dict)
    """The config's leaves under dotted keys, less seed, names and paths; empty where it could not be read."""
    metrics: dict[str, float | None] = field(default_factory=dict)
    """By the tags of `result.json`: perplexities, shares (0 to 1), tokens/s, ratios; also `train.*` and `model.*`."""
    hardware: dict[str, Plain] = field(default_factory=dict)
    config_hash: str | None = None
    overrides: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    bench: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `bench.json` at batch 1; empty: no such file, or contended."""
    bench_hardware: dict[str, Any] = field(default_factory=dict)
    contended: bool = False
    """Other programs used the processors while speeds were measured; those speeds are None."""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def has_module(self) -> bool:
        size = self.metrics.get("model.num_parameters_recycle")
        return bool(size) if size is not None else self.settings.get("recycle.num_layers") != 0


class Runs(list[Run]):
    """The runs of a report, in order of their folders."""

    def __init__(self) -> None:
        super().__init__()
        self.missing: list[str] = []
        """Overrides of a sweep's jobs that have no folder."""
        self.problems: dict[Path, str] = {}
        """Files that could not be used, and why."""

    def of_status(self, status: str) -> list[Run]:
        return [run for run in self if run.status == status]


def read_runs(*folders: Path | str) -> Runs:
    """Read all runs in or below `folders`: sweep folders, run folders, or any folder above them.

    Raises:
        ConfigError: a folder does not exist, or none of them holds a run or a list of jobs.
    """
    places = [Path(folder).expanduser() for folder in folders]
    if absent := [place for place in places if not place.is_dir()]:
        raise ConfigError([f"{place}: there is no such folder" for place in absent])
    runs = Runs()
    found: dict[Path, Run] = {}
    jobs: list[tuple[Path, dict[str, Any]]] = []
    for folder, subfolders, files in (found for place in places for found in os.walk(place)):
        path = Path(folder)
        begun = "train.log" in files and ".hydra" in subfolders
        if begun or "provenance.json" in files or "result.json" in files:
            subfolders.clear()
            if path.resolve() not in found:
                found[path.resolve()] = _read_run(path, runs.problems)
        elif "jobs.json" in files:
            with _noting(path / "jobs.json", runs.problems):
                jobs += [(path, job) for job in read_json_object(path / "jobs.json")["jobs"]]
    runs.extend(sorted(found.values(), key=lambda run: (run.folder.parent, _natural(run.name))))
    missing = [job for sweep, job in jobs if not any(_is_of(run, sweep, job) for run in runs)]
    runs.missing = [" ".join(job["overrides"]) for job in missing]
    if not runs and not missing:
        names = ", ".join(str(place) for place in places)
        hint = "give a sweep folder, such as outputs/sweeps/NAME/TAG, or a run folder"
        problems = [f"{path}: {reason}" for path, reason in runs.problems.items()]
        raise ConfigError([f"{names}: no runs found; {hint}", *problems])
    return runs


def _is_of(run: Run, sweep: Path, job: dict[str, Any]) -> bool:
    # A run has more overrides: those that hold for all jobs.
    is_job = run.control == job["control"] and set(job["overrides"]) <= set(run.overrides)
    return is_job and run.folder.is_relative_to(sweep)


def _natural(name: str) -> list[int | str]:
    """Sorts `num_layers-10` after `num_layers-9`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _read_run(folder: Path, problems: dict[Path, str]) -> Run:
    run = Run(folder)
    with _noting(path := folder / ".hydra/overrides.yaml", problems):
        run.overrides = tuple(read_yaml(path))
    with _noting(path := folder / ".hydra/config.yaml", problems):
        config = read_yaml(path)
        run.control, run.seed = config.get("sweep", {}).get("control"), config.get("seed")
        run.settings = dict(flatten({key: value for key, value in config.items() if key not in BOOKKEEPING}))
    with _noting(path := folder / "provenance.json", problems):
        run.provenance = read_json_object(path)
        run.config_hash = run.provenance.get("config_hash")
    with _noting(path := folder / "result.json", problems, optional=True):
        _take_result(run, read_json_object(path))
    with _noting(path := folder / "bench.json", problems, optional=True):
        _take_bench(run, read_json_object(path))
    return run


def _take_result(run: Run, result: dict[str, Any]) -> None:
    if result["status"] not in (COMPLETED, FAILED):
        raise ValueError(f"status is {result['status']!r}")
    run.hardware = {name: plain(value) for name, value in result["hardware"].items()}
    run.contended = run.hardware.get("contended") is True
    sections = {f"{name}.{key}": value for name in ("train", "model") for key, value in result[name].items()}
    values = result["metrics"] | sections
    run.metrics = {
        name: None if run.contended and name.startswith(SPEEDS) else number(value) for name, value in values.items()
    }
    run.status, run.error, run.config_hash = result["status"], result.get("error"), result["config_hash"]


def _take_bench(run: Run, document: dict[str, Any]) -> None:
    """Replace the monitor's speeds by those of `bench.json` at batch 1 and the run's own number of recycled tokens."""
    if document["hardware"].get("contended") is True:
        raise ValueError("its speeds are contended (other programs used the machine), and are left out")
    run.bench_hardware = document["hardware"]
    run.bench = [row for row in document["rows"] if row.get("batch", 1) == 1]
    num_recycled, dtype = run.settings.get("decoding.num_recycled", 1), run.hardware.get("decode_dtype")
    # A grid over dtypes has several rows per decoder; the run's own dtype comes first.
    rows = sorted(run.bench, key=lambda row: row.get("dtype") != dtype)
    for strategy in ("autoregressive", "alternating", "verified"):
        mine = [row for row in rows if row["strategy"] == strategy and row["num_recycled"] in (0, num_recycled)]
        row = mine[0] if mine else {}
        names = {"tokens_per_s": f"decode/tokens_per_s_{strategy}"}
        if strategy != "autoregressive":
            names |= {"speedup": f"decode/speedup_{strategy}", "ceiling_measured": f"decode/ceiling_{strategy}"}
        if strategy == "alternating":
            names |= {key: f"decode/{key}" for key in ("verify_cost", "draft_cost", "ceiling_bytes", "agreement")}
        if strategy == "verified" and not row.get("acceptance_given"):
            names |= {key: f"decode/{key}" for key in ("acceptance", "mean_accepted_length")}
            shares = enumerate(row.get("acceptance_by_position") or (), start=1)
            run.metrics |= {f"decode/acceptance_by_position/{place}": number(share) for place, share in shares}
        run.metrics |= {metric: value for key, metric in names.items() if (value := number(row.get(key))) is not None}


@contextmanager
def _noting(path: Path, problems: dict[Path, str], optional: bool = False) -> Iterator[None]:
    """Whatever goes wrong with a file inside the block goes into `problems`."""
    try:
        yield
    except FileNotFoundError:
        if not optional:
            problems[path] = "is missing"
    except UNREADABLE as error:
        problems[path] = f"cannot be read: {' '.join(str(error).split())}"[:300]
    except (AttributeError, KeyError, TypeError) as error:
        problems[path] = f"does not hold what it should: {type(error).__name__}: {error}"[:300]
