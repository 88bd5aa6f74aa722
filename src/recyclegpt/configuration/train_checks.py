"""What is wrong with a training config: values, and settings that are impossible together. All of it at once."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf, open_dict

from recyclegpt.checkpoints.load import find_checkpoint
from recyclegpt.configuration.build import build, section_problems
from recyclegpt.errors import ConfigError, Problems
from recyclegpt.models import ModelConfig, has_native_bf16
from recyclegpt.models.huggingface import PretrainedBackbone
from recyclegpt.models.parameter_count import memory_problems

log = logging.getLogger("recyclegpt")
VOCABULARY_MULTIPLE = 64
"""A vocabulary of our own is padded to a multiple of this: matrix products of such sizes are faster."""


def build_parts(cfg: DictConfig) -> dict[str, Any]:
    """What a run is made of, by group: model, recycle, loss, data, optimizer, scheduler; and `draft_ids`.

    The model is a shape whose vocabulary is not yet known, or a pretrained backbone; the ids are those of a file.
    With a pretrained backbone `cfg.data.tokenizer` becomes that of the checkpoint. Nothing is read or written but the
    config of a checkpoint.

    Raises:
        ConfigError: all that is wrong with the config.
    """
    problems = Problems(section_problems(cfg) + check_combinations(cfg))
    if not problems.found:
        _shorten_warmup(cfg)
    parts: dict[str, Any] = {}
    with problems.under():
        # The vocabulary is known only once the tokenizer is; the rest of the shape can be judged without it.
        parts["model"] = pretrained_backbone(cfg) or build(cfg.model, "model", vocab_size=VOCABULARY_MULTIPLE)
    parts["draft_ids"], extra = None, {}
    if isinstance(file := cfg.recycle.get("draft_vocab"), str):
        extra = {"draft_vocab": 2}
        with problems.under():
            parts["draft_ids"] = read_draft_ids(file)
            extra = {"draft_vocab": len(parts["draft_ids"])}
    for key in ("recycle", "loss", "data", "optimizer", "scheduler"):
        with problems.under():
            parts[key] = build(cfg[key], key, **(extra if key == "recycle" else {}))
    if {"model", "recycle"} <= parts.keys():
        model = parts["model"]
        shape = model if isinstance(model, ModelConfig) else model.config
        problems.found += memory_problems(shape, parts["recycle"])
    if {"optimizer", "scheduler"} <= parts.keys() and not any(text.startswith("trainer.") for text in problems.found):
        problems.found += _try_optimizer(cfg, parts)
    problems.raise_any()
    return parts


def is_pretrained(model: DictConfig) -> bool:
    """Whether the model group names a checkpoint (`model=hf`), and not a shape."""
    return str(model.get("_target_")).endswith(f".{PretrainedBackbone.__name__}")


def pretrained_backbone(cfg: DictConfig) -> PretrainedBackbone | None:
    """The checkpoint that `cfg.model` names; None where it is a shape. The corpus then takes its tokenizer.

    Raises:
        ConfigError: the checkpoint cannot be used, or another tokenizer is asked for.
    """
    if not is_pretrained(cfg.model):
        return None
    if not isinstance(cfg.model.path, str):
        raise ConfigError(f"model.path: {cfg.model.path} is no text; begin a name that is a number with ./ (./2024)")
    backbone: PretrainedBackbone = build(cfg.model, "model")
    tokenizer = OmegaConf.select(cfg, "data.tokenizer")
    if tokenizer is not None:
        if tokenizer.kind == "byte" or (tokenizer.kind == "file" and tokenizer.path is None):
            raise ConfigError(f"data.tokenizer.kind: {tokenizer.kind}, but {backbone.path} has its own; leave it out")
        with open_dict(cfg):
            if tokenizer.kind != "file":
                tokenizer.kind, tokenizer.path = "file", str(backbone.folder)
    return backbone


def num_steps(cfg: DictConfig) -> int:
    """Optimizer steps of the whole run, unless a clock or early stopping ends it before."""
    most = cfg.trainer.get("max_steps")
    return epoch_steps(cfg) if most in (None, -1) else min(most, epoch_steps(cfg))


def _shorten_warmup(cfg: DictConfig) -> None:
    """Let a run that `max_steps` makes too short for its warm-up have a shorter one, and say so."""
    steps, warmup = num_steps(cfg), cfg.scheduler.get("num_warmup_steps")
    if steps == epoch_steps(cfg) or type(warmup) is not int:
        return
    room = steps - round(cfg.scheduler.get("decay_fraction", 0.0) * steps)
    if warmup > room >= 0:
        log.warning("scheduler.num_warmup_steps: %d does not fit into max_steps=%d; using %d", warmup, steps, room)
        cfg.scheduler.num_warmup_steps = room


def epoch_steps(cfg: DictConfig) -> int:
    """Optimizer steps of all epochs; the last window of an epoch steps even if it is not full."""
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
    most, steps = cfg.recycle.get("num_drafted"), (cfg.loss.get("num_unrolled", 1), cfg.decoding.num_recycled)
    problems += [
        f"{key}: {value}, but a call of this module drafts at most recycle.num_drafted={most} tokens"
        for key, value in zip(("loss.num_unrolled", "decoding.num_recycled"), steps, strict=True)
        if most is not None and value > most
    ]
    if cfg.recycle.get("kind") == "hidden_transfer":
        exits = cfg.loss.get("early_exit_weight") or cfg.loss.get("layer_dropout")
        if exits or (not cfg.backbone.frozen and cfg.loss.get("backbone_grad_scale", 1) != 1):
            problems.append("recycle.kind: hidden_transfer takes loss.backbone_grad_scale=1 and no early exit")
    if cfg.resume not in ("never", "auto") and not Path(cfg.resume).expanduser().exists():
        problems.append(f"resume: {cfg.resume} does not exist; give never, auto, a run folder or a .ckpt file")
    return problems


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
        if type(trainer[key]) is not int or trainer[key] < 1
    ]
    most = trainer.get("max_steps", -1)
    if most is not None and (type(most) is not int or most == 0 or most < -1):
        problems.append(f"trainer.max_steps: {most} is not a positive whole number of optimizer steps")
    if type(few := trainer.get("overfit_batches", 0)) is not int or few < 0:
        problems.append(f"trainer.overfit_batches: {few} is not a whole number of batches to repeat; 0 repeats none")
    if trainer.get("fast_dev_run"):
        problems.append("trainer.fast_dev_run: its run would look complete; leave it out and use debug=smoke")
    if OmegaConf.select(cfg, "callbacks.checkpoint") is None:
        problems.append("callbacks.checkpoint: without it nothing that was learnt would be kept; leave it in")
    if trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        problems.append(f"trainer.accelerator: {trainer.accelerator}, but torch sees no CUDA device; use trainer=cpu")
    return problems


def _monitor_problems(cfg: DictConfig) -> list[str]:
    """Against what makes every epoch's decoding fail or leaves nothing to time."""
    monitor, recycled = OmegaConf.select(cfg, "callbacks.decoding_monitor"), cfg.decoding.num_recycled
    if monitor is None or not isinstance(cfg.model.context_length, int):
        return []
    problems = []
    if monitor.new_tokens <= recycled + 1:
        problems.append(f"callbacks.decoding_monitor.new_tokens: too few to time a step; give {recycled + 2} or more")
    if monitor.prompt_tokens + monitor.new_tokens > cfg.model.context_length:
        problems.append("callbacks.decoding_monitor: prompt_tokens + new_tokens exceed model.context_length")
    return problems


def _backbone_problems(cfg: DictConfig) -> list[str]:
    problems = []
    frozen, checkpoint, pretrained = cfg.backbone.frozen, cfg.backbone.checkpoint, is_pretrained(cfg.model)
    if checkpoint is None and not pretrained:
        problems += [
            f"backbone.{key}: the backbone's weights are random; give backbone.checkpoint=... or model=hf"
            for key in ("frozen", "copy_last_layers")
            if cfg.backbone[key]
        ]
    if not frozen and cfg.training.cache_states:
        problems.append("training.cache_states: the states of a backbone that learns change; set backbone.frozen=true")
    elif frozen and (cfg.loss.get("early_exit_weight") or cfg.loss.get("layer_dropout")):
        problems.append("loss.early_exit_weight: a frozen backbone learns no early exit; set backbone.frozen=false")
    elif frozen and cfg.recycle.num_layers == 0:
        problems.append("backbone.frozen: recycle.num_layers=0 means no module, so nothing is left to train")
    if pretrained and cfg.model.get("dtype") not in (None, "float32"):
        precision = cfg.trainer.precision
        if precision == "auto" and has_native_bf16(torch.device("cuda" if torch.cuda.is_available() else "cpu")):
            precision = "bf16-mixed"
        if not frozen or precision != "bf16-mixed":
            problems.append(f"model.dtype: {cfg.model.dtype} needs a frozen backbone and bf16-mixed; set float32")
    if checkpoint is not None and pretrained:
        problems.append("backbone.checkpoint: model=hf brings a backbone already; leave one of the two out")
    elif checkpoint is not None:
        found = Problems()
        with found.under("backbone."):
            find_checkpoint(checkpoint)
        problems += found.found
    return problems


def read_draft_ids(file: str | Path) -> NDArray[np.int64]:
    """The ids `(D,)` that a JSON file lists, ascending.

    Raises:
        ConfigError: it cannot be read, or is no list of different ids.
    """
    try:
        listed = json.loads(Path(file).expanduser().read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"recycle.draft_vocab: {file} cannot be read ({error}); give a number or a list") from error
    ids = listed if isinstance(listed, list) else []
    if len(ids) < 2 or any(type(one) is not int or one < 0 for one in ids) or len({*ids}) < len(ids):
        raise ConfigError(f"recycle.draft_vocab: {file} is no JSON list of two or more different token ids")
    return np.sort(np.asarray(ids, np.int64))
