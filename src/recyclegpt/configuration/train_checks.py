"""What is wrong with a training config: values, and settings that are impossible together. All of it at once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from recyclegpt.checkpoints.load import find_checkpoint
from recyclegpt.configuration.composition_errors import value_problems
from recyclegpt.configuration.instantiate import build
from recyclegpt.configuration.pretrained import VOCABULARY_MULTIPLE, is_pretrained, pretrained_backbone
from recyclegpt.configuration.schemas import section_problems
from recyclegpt.errors import ConfigError
from recyclegpt.models import ModelConfig, RecycleConfig, has_native_bf16
from recyclegpt.models.huggingface import PretrainedBackbone
from recyclegpt.models.parameter_count import memory_problems

log = logging.getLogger("recyclegpt")


def build_parts(cfg: DictConfig) -> dict[str, Any]:
    """What a run is made of, by group: model, recycle, loss, data, optimizer, scheduler.

    The model is a shape whose vocabulary is not yet known, or a pretrained backbone.
    With a pretrained backbone `cfg.data.tokenizer` becomes that of the checkpoint. Nothing is read or written but the
    config of a checkpoint.

    Raises:
        ConfigError: all that is wrong with the config.
    """
    if problems := value_problems(cfg):
        raise ConfigError(problems)
    problems = section_problems(cfg) + check_combinations(cfg)
    parts: dict[str, Any] = {}
    for key in ("model", "recycle", "loss", "data", "optimizer", "scheduler"):
        try:
            if key == "model":
                # The vocabulary is known only once the tokenizer is; the rest of the shape can be judged without it.
                parts[key] = pretrained_backbone(cfg) or build(cfg.model, "model", vocab_size=VOCABULARY_MULTIPLE)
            else:
                parts[key] = build(cfg[key], key)
        except ConfigError as error:
            problems += error.problems
    if "model" in parts and "recycle" in parts:
        problems += _memory_problems(parts["model"], parts["recycle"])
    if {"optimizer", "scheduler"} <= parts.keys() and not any(problem.startswith("trainer.") for problem in problems):
        problems += _try_optimizer(cfg, parts)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return parts


def num_steps(cfg: DictConfig) -> int:
    """Optimizer steps of the whole run; the last window of an epoch steps even if it is not full."""
    return int(cfg.trainer.max_epochs * -(-cfg.trainer.limit_train_batches // cfg.trainer.accumulate_grad_batches))


def sweep_problems(cfg: DictConfig) -> list[str]:
    """What a job of a multirun may not ask for, though a single run may."""
    trainer = cfg.trainer
    if trainer.devices in (1, "1", [0]) and trainer.get("num_nodes", 1) == 1:
        return []
    return [
        f"trainer.devices: {trainer.devices} in a multirun; Lightning's child processes would start the sweep again. "
        "Use one device a job (trainer.devices=1), or a launcher that gives each job its own process"
    ]


def check_combinations(cfg: DictConfig) -> list[str]:
    """Every impossible combination of a training config, each with its remedy."""
    problems = _trainer_problems(cfg) + _monitor_problems(cfg) + _backbone_problems(cfg)
    if cfg.resume not in ("never", "auto") and not Path(cfg.resume).expanduser().exists():
        problems.append(f"resume: {cfg.resume} does not exist; give never, auto, a run folder or a .ckpt file")
    return problems


def _memory_problems(model: ModelConfig | PretrainedBackbone, recycle: RecycleConfig) -> list[str]:
    return memory_problems(model if isinstance(model, ModelConfig) else model.config, recycle)


def _try_optimizer(cfg: DictConfig, parts: Mapping[str, Any]) -> list[str]:
    """Optimizer and schedule look at their settings only when they are given something to optimise."""
    weight = torch.nn.Parameter(torch.zeros(1, 1))
    tries: dict[str, dict[str, Any]] = {
        "optimizer": {"named_parameters": [("weight", weight)]},
        "scheduler": {"optimizer": torch.optim.SGD([weight], lr=1.0), "num_steps": num_steps(cfg)},
    }
    problems = []
    for key, arguments in tries.items():
        try:
            parts[key](**arguments)
        except ConfigError as error:
            problems += error.problems
        except (TypeError, ValueError) as error:
            problems.append(f"{key}: {cfg[key].get('_target_')} cannot be used here ({error})")
    return problems


def _trainer_problems(cfg: DictConfig) -> list[str]:
    trainer = cfg.trainer
    problems = [
        f"trainer.{key}: {trainer[key]} is not a positive whole number; an epoch is a fixed number of batches"
        for key in ("limit_train_batches", "max_epochs", "accumulate_grad_batches")
        if not _is_positive(trainer[key])
    ]
    if trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        problems.append(
            f"trainer.accelerator: {trainer.accelerator}, but torch sees no CUDA device here; use trainer=cpu"
        )
    return problems


def _monitor_problems(cfg: DictConfig) -> list[str]:
    monitor, context = OmegaConf.select(cfg, "callbacks.decoding_monitor"), cfg.model.context_length
    sizes = None if monitor is None else (monitor.prompt_tokens, monitor.new_tokens)
    if sizes is None or not all(map(_is_positive, (context, *sizes))):
        return []
    problems = []
    recycled, (prompt, new) = cfg.decoding.num_recycled, sizes
    if new <= recycled + 1:
        problems.append(
            f"callbacks.decoding_monitor.new_tokens: the prefill already writes {new} when decoding.num_recycled="
            f"{recycled}, so nothing is left to time; give {recycled + 2} or more"
        )
    if prompt + new > context:
        problems.append(
            f"callbacks.decoding_monitor: prompt_tokens + new_tokens = {prompt + new} exceed "
            f"model.context_length={context}; lower them"
        )
    return problems


def _backbone_problems(cfg: DictConfig) -> list[str]:
    problems = []
    frozen, checkpoint, pretrained = cfg.backbone.frozen, cfg.backbone.checkpoint, is_pretrained(cfg.model)
    if frozen and checkpoint is None and not pretrained:
        problems.append(
            "backbone.frozen: a backbone of random weights would stay random; give backbone.checkpoint=... or model=hf"
        )
    elif frozen and cfg.recycle.num_layers == 0:
        problems.append("backbone.frozen: recycle.num_layers=0 means no module, so nothing is left to train")
    if pretrained and cfg.model.get("dtype") not in (None, "float32"):
        precision = cfg.trainer.precision
        if precision == "auto" and has_native_bf16(torch.device("cuda" if torch.cuda.is_available() else "cpu")):
            precision = "bf16-mixed"
        if not frozen or precision != "bf16-mixed":
            problems.append(
                f"model.dtype: {cfg.model.dtype} is for a frozen backbone in trainer.precision=bf16-mixed; "
                "set model.dtype=float32"
            )
    if checkpoint is not None and pretrained:
        problems.append("backbone.checkpoint: model=hf brings a backbone already; leave one of the two out")
    elif checkpoint is not None:
        try:
            find_checkpoint(str(checkpoint))
        except ConfigError as error:
            problems += [f"backbone.{problem}" for problem in error.problems]
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


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
