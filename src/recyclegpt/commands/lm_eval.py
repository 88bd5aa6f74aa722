"""`recyclegpt evaluate tasks=[...]`: benchmarks of `lm-eval`, scored by the backbone, the module, and both in turn."""

from __future__ import annotations

import json
import logging
import math
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from recyclegpt.checkpoints.load import LoadedModel, load_trained
from recyclegpt.configuration.device import choose_device, computing_dtype
from recyclegpt.configuration.schemas import DECODING, TASKS, many, type_problems
from recyclegpt.console import print_table
from recyclegpt.decoding import Autoregressive, Decoder, Strategy, make_strategy
from recyclegpt.errors import ConfigError
from recyclegpt.evaluation.batch_generator import BatchGenerator
from recyclegpt.evaluation.local_tasks import LOCAL
from recyclegpt.evaluation.scoring import SCORINGS, Scorer
from recyclegpt.files import finite

log = logging.getLogger("recyclegpt")

WRITTEN = "written"
"""Column of the tasks that want text to be written: a decoder's, whatever the scoring is."""
Results = dict[str, dict[str, Any]]
"""By task: number of samples and, by metric and column, value and standard error."""


def evaluate_tasks(cfg: DictConfig) -> int:
    """The command. All that can be wrong is looked at before a model is loaded, the tasks' data included."""
    device, dtype, strategy, decoding_dtype = _read_settings(cfg)
    names, local = _wanted(cfg)
    from recyclegpt.evaluation.lm_eval_adapter import RecycleLM, find_tasks, run_tasks

    tasks = find_tasks([local.get(name, name) for name in names], cfg.tasks_path)
    trained = load_trained(cfg.checkpoint, device)
    dtype = computing_dtype(cfg.dtype, dtype, trained.config)
    if dtype == torch.float64:
        trained.model.double()
    scorer = Scorer(
        trained.model, many(cfg.scorings), cfg.decoding.num_recycled, cfg.batch_size,
        autocast=dtype if dtype in (torch.bfloat16, torch.float16) else None,
    )  # fmt: skip
    continuer = None
    if tasks.generative:
        if trained.model.recyclable is None and strategy.num_recycled:
            log.warning("the model has no recyclable module, so texts are written autoregressively")
            strategy = Autoregressive()
        decoder = Decoder.optimised(trained.model, decoding_dtype, cfg.decoding.compile)
        continuer = BatchGenerator(decoder, strategy, trained.tokenizer, cfg.batch_size, cfg.decoding.seed)
    results: Results = {}
    for scoring in scorer.scorings:
        adapter = RecycleLM(scorer, trained.tokenizer, scoring, continuer)
        found = run_tasks(tasks, adapter, cfg.limit, cfg.num_fewshot, cfg.bootstrap_iters, cfg.seed)
        for name, result in found.items():
            column = WRITTEN if name in tasks.generative else scoring
            row = results.setdefault(name, {"num_samples": result["num_samples"], "metrics": {}})
            for metric, value in result["metrics"].items():
                row["metrics"].setdefault(metric, {})[column] = value
        if tasks.generative >= set(found):
            break  # texts are written once, and nothing is scored
    _print(results, [*scorer.scorings], tasks.summed_up)
    _print_common(cfg, scorer, dtype, strategy if tasks.generative else None)
    print(json.dumps(finite(_document(cfg, trained, scorer, dtype, strategy, results))))
    return 0


def _read_settings(cfg: DictConfig) -> tuple[torch.device, torch.dtype, Strategy, torch.dtype]:
    """Device, dtype to score in, and the decoder's strategy and dtype.

    Raises:
        ConfigError: naming all that cannot be.
    """
    problems = type_problems(cfg, {"checkpoint": str, "device": str, "dtype": str, "seed": int} | dict(TASKS))
    problems += type_problems(cfg.decoding, DECODING, "decoding.")
    problems += type_problems(cfg.task_families, dict.fromkeys(cfg.task_families, str | list[str]), "task_families.")
    problems += type_problems(cfg.task_files, dict.fromkeys(LOCAL, str | list[str] | None), "task_files.")
    if "data" in cfg:
        problems.append("data: a corpus is not read where tasks are; leave data or tasks out")
    if problems:
        raise ConfigError(problems)
    problems += [
        f"scorings: {name!r} is unknown; choose from {', '.join(SCORINGS)}"
        for name in many(cfg.scorings)
        if name not in SCORINGS
    ]
    if cfg.batch_size < 1:
        problems.append(f"batch_size: {cfg.batch_size} is not a positive whole number")
    if cfg.limit is not None and not (0 < cfg.limit < 1 or (cfg.limit >= 1 and cfg.limit == int(cfg.limit))):
        problems.append(f"limit: {cfg.limit} is neither a positive whole number nor a share between 0 and 1")
    problems += [
        f"{key}: {cfg[key]} is negative; 0 is the least"
        for key in ("num_fewshot", "bootstrap_iters", "seed")
        if cfg[key] is not None and cfg[key] < 0
    ]
    if not 0 <= cfg.decoding.seed < 2**62:
        problems.append(f"decoding.seed: {cfg.decoding.seed} is not between 0 and 2^62")
    device, dtype = choose_device(cfg.device, cfg.dtype, problems, "dtype")
    _, decoding_dtype = choose_device(cfg.device, cfg.decoding.dtype, problems, "decoding.dtype", decoding=True)
    strategy: Strategy = Autoregressive()
    try:
        strategy = make_strategy(cfg.decoding.strategy, cfg.decoding.num_recycled, cfg.decoding.confidence)
    except ConfigError as error:
        problems += [f"decoding.{problem}" for problem in error.problems]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return device, dtype, strategy, decoding_dtype


def _wanted(cfg: DictConfig) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Names of all tasks, families spelt out, and the tasks that are made from files the user names.

    Raises:
        ConfigError: files are not named, or hold something else.
    """
    names: list[str] = []
    for name in many(cfg.tasks):
        names += many(cfg.task_families[name]) if name in cfg.task_families else [name]
    names = list(dict.fromkeys(names))
    problems, local = [], {}
    for name in names:
        if name in LOCAL:
            files = cfg.task_files[name]
            if files is None:
                problems.append(f"tasks: {name} is read from your files; set task_files.{name}=...")
                continue
            try:
                local[name] = LOCAL[name](OmegaConf.to_object(files) if isinstance(files, ListConfig) else files)
            except ConfigError as error:
                problems += error.problems
    if problems:
        raise ConfigError(problems)
    return names, local


def _print(results: Results, scorings: list[str], summed_up: set[str]) -> None:
    """A row a task and metric; tasks whose group has a number for all of them stand in the document alone."""
    shown = {name: result for name, result in results.items() if name not in summed_up}
    used = {column for result in shown.values() for values in result["metrics"].values() for column in values}
    columns = [column for column in [*scorings, WRITTEN] if column in used]
    compared = {"backbone", "alternating"} <= used
    rows = []
    for name, result in shown.items():
        for metric, values in result["metrics"].items():
            row: list[object] = [name, metric, result["num_samples"]]
            for column in columns:
                found = values.get(column, {})
                row += [found.get("value"), found.get("stderr")]
            if compared:
                both = [values[column]["value"] for column in ("alternating", "backbone") if column in values]
                row.append(_difference(*both) if len(both) == 2 else None)
            rows.append(tuple(row))
    header = ["task", "metric", "n", *(word for column in columns for word in (column, "stderr"))]
    print_table(rows, header=[*header, *(["alternating - backbone"] if compared else [])])


def _difference(one: float, other: float) -> float:
    """One less the other, 0 where the two differ by rounding alone."""
    return 0.0 if math.isclose(one, other, rel_tol=1e-12) else one - other


def _print_common(cfg: DictConfig, scorer: Scorer, dtype: torch.dtype, strategy: Strategy | None) -> None:
    parts = [f"scored in {str(dtype).removeprefix('torch.')}"]
    if "alternating" in scorer.scorings:
        parts.append(f"alternating with {scorer.num_recycled} recycled token{'s' * (scorer.num_recycled > 1)}")
    if strategy is not None:
        parts.append(f"texts written by {strategy.name} decoding")
    if cfg.limit is not None:
        parts.append(f"at most {cfg.limit} examples of a task: a try, not a result")
    print(f"\n{'; '.join(parts)}")


def _document(
    cfg: DictConfig, trained: LoadedModel, scorer: Scorer, dtype: torch.dtype, strategy: Strategy, results: Results
) -> dict[str, Any]:
    return {
        "checkpoint": str(trained.path),
        "step": trained.step,
        "dtype": str(dtype).removeprefix("torch."),
        "scorings": list(scorer.scorings),
        "num_recycled": scorer.num_recycled,
        "strategy": strategy.name,
        "limit": cfg.limit,
        "num_fewshot": cfg.num_fewshot,
        "bootstrap_iters": cfg.bootstrap_iters,
        "seed": cfg.seed,
        "num_cut": scorer.num_cut,
        "tasks": results,
    }
