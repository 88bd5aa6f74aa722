"""Finds run folders and reads them. A half-written, corrupt or foreign file is reported and does not stop a report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from recyclegpt.errors import ConfigError
from recyclegpt.reporting import plain_values, runs, speeds
from recyclegpt.reporting.plain_values import flatten, number, plain, read_json_object
from recyclegpt.reporting.runs import Job, Problem, Run, Runs

CONTROL_KEY = "sweep.control"
BOOKKEEPING = ("hydra", "paths", "logger", "name", "sweep", "resume")
"""Parts of a config that say where a run is stored, not what it is; the config hash ignores them too."""


def read_runs(*folders: Path | str) -> Runs:
    """Read all runs in or below `folders`: sweep folders, run folders, or any folder above them.

    Raises:
        ConfigError: a folder does not exist, or none of them holds a run or a list of jobs.
    """
    if not folders:
        raise ConfigError("no folder given: give a sweep folder, such as outputs/sweeps/NAME/TAG, or a run folder")
    places = [Path(folder).expanduser() for folder in folders]
    if absent := [place for place in places if not place.is_dir()]:
        raise ConfigError([f"{place}: there is no such folder" for place in absent])
    found = Runs()
    seen: set[Path] = set()
    for place in places:
        for folder, files in _walk(place, found.problems):
            if folder.resolve() in seen:
                continue
            seen.add(folder.resolve())
            if _is_run(folder, files):
                found.append(_read_run(folder, found.problems))
            elif "jobs.json" in files:
                found.missing += _read_jobs(folder / "jobs.json", found.problems)
    found.sort(key=lambda run: _natural(run.folder))
    found.missing = [job for job in found.missing if not any(_is_job(run, job) for run in found)]
    if not found and not found.missing:
        names = ", ".join(str(place) for place in places)
        raise ConfigError(
            [
                f"{names}: no runs found; give a sweep folder, such as outputs/sweeps/NAME/TAG, or a run folder",
                *(f"{problem.path}: {problem.reason}" for problem in found.problems),
            ]
        )
    return found


def _walk(top: Path, problems: list[Problem]) -> Iterator[tuple[Path, set[str]]]:
    def note(error: OSError) -> None:
        problems.append(Problem(Path(error.filename or top), f"cannot be listed: {error.strerror}"))

    visited: set[Path] = set()
    for place, folders, files in os.walk(top, onerror=note, followlinks=True):
        folder = Path(place)
        if folder.resolve() in visited:  # a link in a circle
            folders.clear()
            continue
        visited.add(folder.resolve())
        names = set(files)
        yield folder, names
        # Nothing of interest lies deeper in a run folder, and checkpoints may be many.
        folders[:] = [] if _is_run(folder, names) else sorted(name for name in folders if not name.startswith("."))


def _is_run(folder: Path, files: set[str]) -> bool:
    if "provenance.json" in files or "result.json" in files:
        return True
    return "train.log" in files and (folder / ".hydra" / "overrides.yaml").is_file()


def _read_run(folder: Path, problems: list[Problem]) -> Run:
    run = Run(folder)
    # The order matters: speeds are judged by the hardware that the result names.
    steps: tuple[tuple[str, bool, Callable[[Run, Path], None]], ...] = (
        (".hydra/overrides.yaml", True, _take_overrides),
        (".hydra/config.yaml", True, _take_config),
        ("provenance.json", True, _take_provenance),
        ("result.json", False, _take_result),
        ("bench.json", False, lambda run, path: speeds.take_bench(run, read_json_object(path))),
    )
    for name, expected, take in steps:
        path = folder / name
        try:
            take(run, path)
        except FileNotFoundError:
            if expected:
                problems.append(Problem(path, "is missing"))
        except plain_values.UNREADABLE as error:
            problems.append(Problem(path, _reason(error)))
            if name == "result.json":
                run.status = runs.UNREADABLE
    return run


def _take_overrides(run: Run, path: Path) -> None:
    overrides = plain_values.read_yaml(path)
    if not isinstance(overrides, list):
        raise ValueError("holds no list of overrides")
    run.overrides = tuple(str(override) for override in overrides)
    for override in run.overrides:
        key, value = plain_values.override_value(override)
        if key == CONTROL_KEY:
            run.control = None if value is None else str(value)
        elif key == "seed":
            run.seed = _seed(value)
        elif "." in key:  # without a dot it chooses a group, and is no setting by itself
            run.settings[key] = value


def _take_config(run: Run, path: Path) -> None:
    config = plain_values.read_yaml(path)
    if not isinstance(config, dict):
        raise ValueError("holds no mapping")
    leaves = dict(flatten(config))
    control = leaves.get(CONTROL_KEY)
    run.control = run.control if control is None else str(control)
    run.seed = _seed(leaves.pop("seed", None)) if "seed" in leaves else run.seed
    run.config_read = True
    run.settings = {key: value for key, value in leaves.items() if key.partition(".")[0] not in BOOKKEEPING}


def _take_provenance(run: Run, path: Path) -> None:
    run.provenance = read_json_object(path)
    if isinstance(run.provenance.get("config_hash"), str):
        run.config_hash = run.provenance["config_hash"]


def _take_result(run: Run, path: Path) -> None:
    result = read_json_object(path)
    sections: dict[str, dict[str, Any]] = {}
    for name in ("metrics", "train", "hardware", "model"):
        section = result.get(name, {})
        if not isinstance(section, dict):
            raise ValueError(f"{name} is no mapping")
        sections[name] = section
    status = result.get("status")
    if status not in (runs.COMPLETED, runs.FAILED):
        raise ValueError(f"status is {status!r}, neither completed nor failed")
    run.status = status
    error = result.get("error")
    run.error = None if error is None else ([line for line in str(error).splitlines() if line.strip()] or [""])[-1]
    run.seed = _seed(result.get("seed")) if run.seed is None else run.seed
    run.config_hash = str(result["config_hash"]) if result.get("config_hash") else run.config_hash
    run.metrics = {_tag(str(name)): number(value) for name, value in sections["metrics"].items()}
    run.train = {str(name): number(value) for name, value in sections["train"].items()}
    run.model = {str(name): number(value) for name, value in sections["model"].items()}
    run.hardware = {str(name): plain(value) for name, value in sections["hardware"].items()}
    speeds.leave_out_contended(run)


def _tag(name: str) -> str:
    key = name.removeprefix("decode/")
    return f"decode/{speeds.RENAMED[key]}" if key in speeds.RENAMED and key != name else name


def _read_jobs(path: Path, problems: list[Problem]) -> list[Job]:
    try:
        jobs = read_json_object(path).get("jobs")
        if not isinstance(jobs, list):
            raise ValueError("holds no list of jobs")
        return [
            Job(
                tuple(str(override) for override in job["overrides"]),
                None if job.get("control") is None else str(job["control"]),
                path.parent,
            )
            for job in jobs
        ]
    except (*plain_values.UNREADABLE, KeyError, TypeError, AttributeError) as error:
        problems.append(Problem(path, _reason(error)))
        return []


def _is_job(run: Run, job: Job) -> bool:
    # A run has more overrides: those that hold for all jobs.
    return (
        run.folder.is_relative_to(job.folder)
        and run.control == job.control
        and set(job.overrides) <= set(run.overrides)
    )


def _seed(value: Any) -> int | None:
    found = number(plain(value))
    return None if found is None else int(found)


def _natural(folder: Path) -> tuple[str, list[tuple[int, str]]]:
    """`num_layers-10` after `num_layers-9`."""
    name = folder.name
    digits = "".join(c if c.isdigit() else " " for c in name).split()
    letters = "".join(" " if c.isdigit() else c for c in name).split()
    return str(folder.parent), [(int(d), letter) for d, letter in zip([*digits, "0"], [*letters, ""], strict=False)]


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"cannot be read: {text or type(error).__name__}"[:300]
