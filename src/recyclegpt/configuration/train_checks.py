"""What is wrong with a training config: types, values, and settings that are impossible together. All of it at once."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf, open_dict

from recyclegpt.checkpoints.load import find_checkpoint
from recyclegpt.configuration.instantiate import build_all, check, locate
from recyclegpt.configuration.pretrained import VOCABULARY_MULTIPLE, is_pretrained
from recyclegpt.data import TextDataModule
from recyclegpt.decoding import make_strategy
from recyclegpt.errors import ConfigError
from recyclegpt.models import ModelConfig, RecycleConfig, has_native_bf16, named_dtype
from recyclegpt.models.huggingface import PretrainedBackbone
from recyclegpt.models.parameter_count import memory_problems
from recyclegpt.training import LossConfig

GROUPS = ("model", "recycle", "loss", "data", "optimizer", "scheduler", "trainer", "callbacks", "logger")
GIVEN = {"model": ("vocab_size",), "trainer": ("callbacks", "logger", "precision")}
"""Arguments that no config holds, or that are worked out from what it holds."""
_LONGEST_NAME = 200
KINDS: Mapping[str, type | tuple[type, ...]] = {
    "model": (ModelConfig, PretrainedBackbone),
    "recycle": RecycleConfig,
    "loss": LossConfig,
    "data": TextDataModule,
}
"""What the nodes that are built before a run have to be."""
CLASSES: Mapping[str, type] = {"trainer": Trainer, "callbacks": Callback, "logger": Logger}
"""What targets have to be classes of, whose objects are made in the run alone."""
PRECISIONS = ("auto", "32-true", "bf16-mixed", "bf16-true", "64-true")

log = logging.getLogger("recyclegpt")


def find_problems(cfg: DictConfig) -> list[str]:
    """All that is wrong with a config, found before anything is read or written: types, values, and combinations."""
    cfg = copy.deepcopy(cfg)
    with open_dict(cfg):
        cfg.paths.output_dir = "outputs"  # known only to Hydra, once it runs
    mistyped = {key: check(cfg[key], key, extra=GIVEN.get(key, ())) for key in GROUPS}
    problems = [problem for found in mistyped.values() for problem in found]
    sound = [key for key in GROUPS if not mistyped[key]]
    if not problems:
        problems += check_combinations(cfg)
    try:
        # The vocabulary is known only once the tokenizer is; the rest of the shape can be judged without it.
        wanted = [key for key in sound if key not in ("trainer", "logger")]
        vocabulary = {} if is_pretrained(cfg.model) else {"vocab_size": VOCABULARY_MULTIPLE}
        built = build_all(cfg, wanted, {"model": vocabulary})
    except ConfigError as error:
        return problems + error.problems
    kinds = _kind_problems(cfg, built, sound)
    if kinds:
        return problems + kinds
    if "model" in built and "recycle" in built:
        model = built["model"]
        problems += memory_problems(model if isinstance(model, ModelConfig) else model.config, built["recycle"])
    # Optimizer and schedule look at their settings only when they are given something to optimise.
    weight = torch.nn.Parameter(torch.zeros(1, 1))
    steps = max(1, num_steps(cfg)) if "trainer" in sound else 1
    for key, arguments in (
        ("optimizer", {"named_parameters": [("weight", weight)]}),
        ("scheduler", {"optimizer": torch.optim.SGD([weight], lr=1.0), "num_steps": steps}),
    ):
        if key in sound and "trainer" in sound:
            try:
                made = built[key](**arguments)
            except ConfigError as error:
                problems += error.problems
            except (TypeError, ValueError) as error:
                problems.append(f"{key}: {cfg[key].get('_target_')} cannot be used here ({error})")
            else:
                kind = torch.optim.Optimizer if key == "optimizer" else torch.optim.lr_scheduler.LRScheduler
                if not isinstance(made, kind):
                    problems.append(f"{key}: {cfg[key].get('_target_')} makes no {kind.__name__}")
    return problems


def _kind_problems(cfg: DictConfig, built: Mapping[str, Any], sound: Sequence[str]) -> list[str]:
    """Nodes whose target may be built, but not there."""
    problems = [
        f"{key}: {type(built[key]).__name__} is not a {_name(kind)}, which {key} has to be"
        for key, kind in KINDS.items()
        if key in built and not isinstance(built[key], kind)
    ]
    for key in (key for key in CLASSES if key in sound):
        node, kind = cfg[key], CLASSES[key]
        children = {key: node} if node is None or "_target_" in node else {f"{key}.{k}": v for k, v in node.items()}
        for name, child in children.items():
            if not isinstance(child, DictConfig) or "_target_" not in child:
                continue
            found = locate(child["_target_"])
            if not (isinstance(found, type) and issubclass(found, kind)):
                problems.append(f"{name}: {child['_target_']} is not a {kind.__name__}, which {name} has to be")
    return problems


def _name(kind: type | tuple[type, ...]) -> str:
    return kind.__name__ if isinstance(kind, type) else " or ".join(one.__name__ for one in kind)


def num_steps(cfg: DictConfig) -> int:
    """Optimizer steps of the whole run; the last window of an epoch steps even if it is not full."""
    return int(cfg.trainer.max_epochs * -(-cfg.trainer.limit_train_batches // cfg.trainer.accumulate_grad_batches))


def check_combinations(cfg: DictConfig) -> list[str]:
    """Every impossible combination of a training config, each with its remedy."""
    problems = _check_lengths(cfg) + _check_trainer(cfg) + _check_decoding(cfg)
    problems += [
        f"callbacks.{name}: has no _target_; name a class, or set callbacks.{name}=null to leave it out"
        for name, node in cfg.callbacks.items()
        if node is not None and "_target_" not in node
    ]
    if cfg.resume not in ("never", "auto") and not Path(cfg.resume).expanduser().exists():
        problems.append(f"resume: {cfg.resume} does not exist; give never, auto, a run folder or a .ckpt file")
    problems += _check_backbone(cfg)
    for key in ("every_n_steps", "keep"):
        if not _positive(cfg.checkpoint[key]):
            problems.append(f"checkpoint.{key}: {cfg.checkpoint[key]} is not a positive whole number")
    if not isinstance(cfg.checkpoint.max_failed, int) or cfg.checkpoint.max_failed < 0:
        problems.append(f"checkpoint.max_failed: {cfg.checkpoint.max_failed} is not a whole number of at least 0")
    if not isinstance(cfg.max_skipped_steps, int) or cfg.max_skipped_steps < 0:
        problems.append(f"max_skipped_steps: {cfg.max_skipped_steps} is not a whole number of at least 0")
    if not isinstance(cfg.seed, int) or not 0 <= cfg.seed < 2**32:
        problems.append(f"seed: {cfg.seed} is not a whole number from 0 to 4294967295")
    problems += _name_problems(cfg)
    if not isinstance(cfg.compile, bool) and cfg.compile != "auto":
        problems.append(f"compile: {cfg.compile} is neither true, false nor auto")
    if not isinstance(cfg.activation_checkpointing, int) or cfg.activation_checkpointing < 0:
        problems.append(
            f"activation_checkpointing: {cfg.activation_checkpointing} is neither true nor false; "
            "a whole number n stands for every n-th layer"
        )
    return problems


def _name_problems(cfg: DictConfig) -> list[str]:
    """Names of folders that are none: they would lead elsewhere, or no file system takes them."""
    problems = []
    for key in ("name", "sweep.name", "sweep.tag"):
        value = OmegaConf.select(cfg, key)
        text = str(value) if key != "name" and isinstance(value, int | float) else value
        if not isinstance(text, str) or text in ("", ".", "..") or set(text) & set("/\\=,") or not text.isprintable():
            shown = f"{value!r:.80}"
            problems.append(f"{key}: {shown} is not a folder's name; use letters, digits, - and _")
        elif len(text.encode()) > _LONGEST_NAME:
            problems.append(f"{key}: is too long for a folder's name; {_LONGEST_NAME} bytes are allowed")
    return problems


def _check_backbone(cfg: DictConfig) -> list[str]:
    problems = []
    frozen, checkpoint = cfg.backbone.frozen, cfg.backbone.checkpoint
    if not isinstance(frozen, bool):
        problems.append(f"backbone.frozen: {frozen} is not true or false")
    elif frozen and checkpoint is None and not is_pretrained(cfg.model):
        problems.append(
            "backbone.frozen: a backbone of random weights would stay random; give backbone.checkpoint=... or model=hf"
        )
    elif frozen and cfg.recycle.num_layers == 0:
        problems.append("backbone.frozen: recycle.num_layers=0 means no module, so nothing is left to train")
    if is_pretrained(cfg.model) and cfg.model.get("dtype") not in (None, "float32"):
        precision = cfg.trainer.precision
        if precision == "auto" and has_native_bf16(torch.device("cuda" if torch.cuda.is_available() else "cpu")):
            precision = "bf16-mixed"
        if not frozen or precision != "bf16-mixed":
            problems.append(
                f"model.dtype: {cfg.model.dtype} is for a frozen backbone in trainer.precision=bf16-mixed; "
                "set model.dtype=float32"
            )
    if checkpoint is not None and is_pretrained(cfg.model):
        problems.append("backbone.checkpoint: model=hf brings a backbone already; leave one of the two out")
    elif checkpoint is not None:
        try:
            find_checkpoint(str(checkpoint))
        except ConfigError as error:
            problems += [f"backbone.{problem}" for problem in error.problems]
    return problems


def _check_lengths(cfg: DictConfig) -> list[str]:
    problems = []
    context = cfg.model.context_length
    monitor = OmegaConf.select(cfg, "callbacks.decoding_monitor")
    if monitor is not None and _positive(context):
        recycled = cfg.decoding.num_recycled
        if _positive(recycled) and 0 < monitor.new_tokens <= recycled + 1:
            problems.append(
                f"callbacks.decoding_monitor.new_tokens: {monitor.new_tokens} are written by the prompt's pass already "
                f"when decoding.num_recycled={recycled}, so nothing is left to time; give {recycled + 2} or more"
            )
        needed = monitor.prompt_tokens + monitor.new_tokens
        if needed > context:
            problems.append(
                f"callbacks.decoding_monitor: prompt_tokens + new_tokens = {needed} exceed "
                f"model.context_length={context}; lower them"
            )
    return problems


def _check_trainer(cfg: DictConfig) -> list[str]:
    trainer = cfg.trainer
    problems = [
        f"trainer.{key}: {trainer[key]} is not a positive whole number; an epoch is a fixed number of batches"
        for key in ("limit_train_batches", "max_epochs", "accumulate_grad_batches")
        if isinstance(trainer[key], (int, float)) and not _positive(trainer[key])
    ]
    if trainer.precision not in PRECISIONS:
        problems.append(f"trainer.precision: {trainer.precision!r} is unknown; choose from {', '.join(PRECISIONS)}")
    if trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        problems.append(
            f"trainer.accelerator: {trainer.accelerator}, but torch sees no CUDA device here; use trainer=cpu"
        )
    return problems


def sweep_problems(cfg: DictConfig) -> list[str]:
    """What a job of a multirun may not ask for, though a single run may."""
    trainer = cfg.trainer
    if trainer.devices in (1, "1", [0]) and trainer.get("num_nodes", 1) == 1:
        return []
    return [
        f"trainer.devices: {trainer.devices} in a multirun; Lightning's child processes would start the sweep again. "
        "Use one device a job (trainer.devices=1), or a launcher that gives each job its own process"
    ]


def _check_decoding(cfg: DictConfig) -> list[str]:
    decoding = cfg.decoding
    problems = []
    try:
        make_strategy(decoding.strategy, decoding.num_recycled, decoding.confidence)
    except ConfigError as error:
        problems += [f"decoding.{problem}" for problem in error.problems]
    try:
        named_dtype(decoding.dtype, torch.device("cpu"), decoding=True)
    except ConfigError as error:
        problems += [f"decoding.{problem}" for problem in error.problems]
    return problems


def warn_of_settings_without_effect(cfg: DictConfig) -> None:
    """Log what is possible and probably not meant."""
    unrolled, recycled = cfg.loss.num_unrolled, cfg.decoding.num_recycled
    if cfg.recycle.num_layers == 0 and unrolled != 1:
        log.warning("loss.num_unrolled=%d has no effect: recycle.num_layers=0 means no module", unrolled)
    elif cfg.recycle.num_layers and recycled > unrolled:
        log.warning(
            "decoding.num_recycled=%d, but the module is trained for loss.num_unrolled=%d: "
            "later recycled tokens will agree less",
            recycled,
            unrolled,
        )


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
