"""`recyclegpt evaluate tasks=[...]`: benchmarks of `lm-eval`, scored by the backbone, the module, and both in turn."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recyclegpt.checkpoints.load import load_trained
from recyclegpt.configuration.build import not_positive, read_settings
from recyclegpt.configuration.command_settings import device_and_dtype, prepare_scoring, read_decoding
from recyclegpt.console import print_table
from recyclegpt.data.chat import encode_marked
from recyclegpt.decoding import Decoder
from recyclegpt.errors import ConfigError, Problems
from recyclegpt.evaluation.local_tasks import LOCAL
from recyclegpt.evaluation.scoring import SCORINGS, BatchGenerator, Scorer

log = logging.getLogger("recyclegpt")

WRITTEN = "written"
"""Column of the tasks that want text to be written: a decoder's, whatever the scoring is."""
Results = dict[str, dict[str, Any]]
"""By task: number of samples and, by metric and column, value and standard error."""


@dataclass
class TaskSettings:
    """The settings of `tasks=`; conf/evaluate.yaml says what each means."""

    tasks: list[str]
    tasks_path: str | None
    scorings: list[str]
    limit: int | float | None
    num_fewshot: int | None
    apply_chat_template: bool
    batch_size: int
    bootstrap_iters: int
    seed: int

    def __post_init__(self) -> None:
        problems = not_positive(self, "batch_size")
        if not self.scorings or set(self.scorings) - set(SCORINGS):
            problems.append(f"scorings: {self.scorings} is unknown; choose from {', '.join(SCORINGS)}")
        if self.limit is not None and not (0 < self.limit < 1 or (self.limit >= 1 and self.limit == int(self.limit))):
            problems.append(f"limit: {self.limit} is neither a positive whole number nor a share between 0 and 1")
        if problems:
            raise ConfigError(problems)


def evaluate_tasks(cfg: DictConfig) -> dict[str, Any]:
    """Score, and print the table. Everything is checked before a model is loaded, the tasks' data included.

    Returns:
        The document that is printed last.
    """
    problems = Problems()
    with problems.under():
        settings = read_settings(TaskSettings, cfg)
    with problems.under():
        decoding, device, decoding_dtype = read_decoding(cfg)
    with problems.under():
        _, dtype = device_and_dtype(cfg.device, cfg.dtype)
    problems.raise_any()
    wanted = _tasks(cfg, settings.tasks)
    from recyclegpt.evaluation.lm_eval_adapter import RecycleLM, find_tasks, run_tasks

    tasks = find_tasks(wanted, settings.tasks_path)
    trained = load_trained(cfg.checkpoint, device, cfg.module)
    chat = settings.apply_chat_template
    if chat and trained.tokenizer.chat is None:
        raise ConfigError(f"apply_chat_template: the tokenizer of {trained.path} has no chat template; leave it out")
    if not chat and trained.tokenizer.chat is not None:
        log.warning("the tokenizer has a chat template, which apply_chat_template=true applies")
    dtype, autocast = prepare_scoring(trained, cfg.dtype, dtype)
    scorer = Scorer(trained.model, settings.scorings, decoding.num_recycled, settings.batch_size, autocast=autocast)
    strategy, generator = decoding.make_strategy(), None
    if tasks.generative:
        strategy = decoding.strategy_for(trained.model)
        decoder = Decoder.optimised(
            trained.model, decoding_dtype, decoding.compile, draft_dtype=decoding.named_draft_dtype()
        )
        encode = partial(encode_marked, trained.tokenizer) if chat else None
        generator = BatchGenerator(decoder, strategy, trained.tokenizer, settings.batch_size, decoding.seed, encode)
    results: Results = {}
    for scoring in scorer.scorings:
        adapter = RecycleLM(scorer, trained.tokenizer, scoring, generator, chat)
        scored = run_tasks(
            tasks, adapter, settings.bootstrap_iters, settings.seed,
            limit=settings.limit, num_fewshot=settings.num_fewshot, apply_chat_template=chat,
        )  # fmt: skip
        for name, result in scored.items():
            column = WRITTEN if name in tasks.generative else scoring
            row = results.setdefault(name, {"num_samples": result["num_samples"], "metrics": {}})
            for metric, value in result["metrics"].items():
                row["metrics"].setdefault(metric, {})[column] = value
        if tasks.generative >= set(scored):
            break  # texts are written once, and nothing is scored
    _print({name: result for name, result in results.items() if name not in tasks.summed_up}, [*scorer.scorings])
    parts = [f"scored in {str(dtype).removeprefix('torch.')}", f"{scorer.num_recycled} drafted when alternating"]
    if tasks.generative:
        parts.append(f"texts written by {strategy.name} decoding")
    if settings.limit is not None:
        parts.append(f"at most {settings.limit} examples of a task: a quick look, not a result")
    print(f"\n{'; '.join(parts)}")
    return {
        "checkpoint": str(trained.path),
        "step": trained.step,
        "dtype": str(dtype).removeprefix("torch."),
        "scorings": list(scorer.scorings),
        "num_recycled": scorer.num_recycled,
        "strategy": strategy.name,
        **{
            name: getattr(settings, name)
            for name in ("limit", "num_fewshot", "apply_chat_template", "bootstrap_iters", "seed")
        },
        "num_cut": scorer.num_cut,
        "tasks": results,
    }


def _tasks(cfg: DictConfig, wanted: Sequence[str]) -> list[str | dict[str, Any]]:
    """All tasks, families spelt out, and made from files where the user names those.

    Raises:
        ConfigError: files are not named, or hold something else.
    """
    names = dict.fromkeys(member for name in wanted for member in cfg.task_families.get(name, [name]))
    files: Any = OmegaConf.to_container(cfg.task_files)
    if lacking := [name for name in names if name in LOCAL and files[name] is None]:
        raise ConfigError([f"tasks: {name} is read from your files; set task_files.{name}=..." for name in lacking])
    return [LOCAL[name](files[name]) if name in LOCAL else name for name in names]


def _print(results: Results, scorings: list[str]) -> None:
    """A row a task and metric."""
    used = {column for result in results.values() for values in result["metrics"].values() for column in values}
    columns = [column for column in [*scorings, WRITTEN] if column in used]
    compared = {"backbone", "alternating"} <= used
    rows = []
    for name, result in results.items():
        for metric, values in result["metrics"].items():
            row: list[object] = [name, metric, result["num_samples"]]
            for column in columns:
                found = values.get(column, {})
                row += [found.get("value"), found.get("stderr")]
            if compared:
                both = {"backbone", "alternating"} <= set(values)
                # Rounded: sums in another order differ in their last digits.
                row.append(round(values["alternating"]["value"] - values["backbone"]["value"], 9) if both else None)
            rows.append(row)
    header = ["task", "metric", "n", *(word for column in columns for word in (column, "stderr"))]
    print_table(rows, header=[*header, *(["alternating - backbone"] if compared else [])])
