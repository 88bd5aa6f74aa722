"""A training run, put together and run: everything that may be refused first, then the folder, then the training."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.strategies import ModelParallelStrategy
from omegaconf import DictConfig
from torch.optim import Optimizer

from recyclegpt.callbacks import DecodingMonitor, Throughput
from recyclegpt.checkpoints.load import FOLDER, TOKENIZER, hyper_parameters
from recyclegpt.configuration.compose import to_plain
from recyclegpt.configuration.hydra_app import shares_machine, write_hydra_folder
from recyclegpt.configuration.train_checks import build_parts, epoch_steps, num_steps
from recyclegpt.data import TextDataModule
from recyclegpt.data.tokenizer import write_stop_tokens
from recyclegpt.errors import ConfigError, RunError
from recyclegpt.evaluation import unigram_loss
from recyclegpt.files import relative, write_json
from recyclegpt.hardware.device import ExternalCpuLoad, device_name, is_contended
from recyclegpt.hardware.measure import memory_of
from recyclegpt.models import RecycleGPT, named_dtype
from recyclegpt.models.parameter_count import model_facts
from recyclegpt.runs.folder import RESULT, write_provenance
from recyclegpt.runs.model import BuiltModel, make_model
from recyclegpt.runs.result import make_result, result_table
from recyclegpt.runs.resume import check_resumable, checkpoint_to_resume
from recyclegpt.runs.trainer import make_trainer, matmul_precision
from recyclegpt.training import LitRecycleGPT
from recyclegpt.training.dual_loss import ACCEPTED_LENGTH
from recyclegpt.training.module_start import SAMPLE_TOKENS, begin_with_last_layers, can_begin_with_last_layers
from recyclegpt.training.state_cache import StateCache, states_key
from recyclegpt.training.step_cost import memory_plan

T = TypeVar("T")
log = logging.getLogger("recyclegpt")


class PreparedRun(NamedTuple):
    """A run that nothing speaks against, before anything is written."""

    module: LitRecycleGPT
    built: BuiltModel
    datamodule: TextDataModule
    trainer: Trainer
    optimizer: Optimizer
    checkpoint: Path | None
    """The checkpoint it resumes from."""
    first_step: int
    """Optimizer steps done there."""
    unigram_loss: float


def prepare_run(cfg: DictConfig, folder: Path, digest: str) -> PreparedRun:
    """Build everything a run needs.

    Raises:
        ConfigError: something is wrong with config, corpus, model or checkpoint; the folder is as it was.
    """
    parts = build_parts(cfg)
    plain = to_plain(cfg)
    datamodule: TextDataModule = parts["data"]
    few = cfg.trainer.get("overfit_batches", 0)
    datamodule.connect(cfg.model.context_length, 2 + cfg.loss.num_unrolled, cfg.seed, overfit_batches=few)
    datamodule.setup()
    # Reads the tokens, so that ids beyond the vocabulary are found before anything is written.
    counts_V = datamodule.unigram_counts()
    seed_everything(cfg.seed, workers=True, verbose=False)
    built = make_model(cfg, parts, datamodule.tokenizer, counts_V)
    torch.set_float32_matmul_precision(matmul_precision(cfg))
    num_bytes = torch.from_numpy(datamodule.tokenizer.token_num_bytes(built.model.config.vocab_size))
    module = LitRecycleGPT(
        built.model,
        parts["loss"],
        parts["optimizer"],
        parts["scheduler"],
        num_steps(cfg),
        num_bytes,
        hyper_parameters(built.model, plain, built.backbone),
        cfg.training.max_skipped_steps,
        use_compile=cfg.training.compile,
        activation_checkpointing=int(cfg.training.activation_checkpointing),
        backbone_external=built.backbone is not None,
    )
    # The trainer makes it again; an impossible schedule is found here, before the first batches are read.
    optimizer = module.configure_optimizers()["optimizer"]
    point = checkpoint_to_resume(cfg, folder, num_steps(cfg))
    first_step = 0 if point is None else point.step
    trainer = make_trainer(cfg, plain, digest, first_step, resumes=(folder / "tensorboard").exists())
    datamodule.check_lengths(trainer.world_size)
    if point is not None:
        check_resumable(point, cfg, built, datamodule, trainer.world_size)
    unigram = unigram_loss(counts_V, datamodule.val_tokens(2_000_000))
    wanted = cfg.backbone.copy_last_layers and cfg.module is None
    if point is None and wanted and can_begin_with_last_layers(built.model):
        _begin_with_last_layers(built.model, datamodule)
    if cfg.training.cache_states:
        accepts = cfg.loss.target == ACCEPTED_LENGTH and built.model.draft_ids is not None
        module.state_cache = _state_cache(built.model, datamodule, trainer, accepts)
    # Of the resume point only the path is kept: its content maps the whole file.
    path = None if point is None else point.path
    return PreparedRun(module, built, datamodule, trainer, optimizer, path, first_step, unigram)


def _begin_with_last_layers(model: RecycleGPT, data: TextDataModule) -> None:
    sample, length = data.corpus.sample(SAMPLE_TOKENS), data.row_length
    num_rows = min(SAMPLE_TOKENS, sample.num_tokens) // length
    explained = begin_with_last_layers(model, torch.from_numpy(sample.read(0, num_rows * length)).view(-1, length))
    log.info(
        "the module begins with the backbone's last layers; its fold explains %.0f%% of their input", 100 * explained
    )


def _state_cache(model: RecycleGPT, data: TextDataModule, trainer: Trainer, normalisers: bool) -> StateCache:
    """Raises ConfigError where rows do not come again, processes need each other's weights, or the disk is full."""
    if data.train_num_rows is None or isinstance(trainer.strategy, ModelParallelStrategy):
        raise ConfigError("training.cache_states: needs a corpus on disk, and not trainer=fsdp; set it to false")
    if model.recyclable is not None and model.recyclable.tap is not None:
        raise ConfigError(
            f"training.cache_states: holds final states, and recycle.kind={model.recycle_config.kind} reads those of "
            "an earlier layer; set it to false"
        )
    kept = ("data", "tokenizer", "row_length", "mask_documents")
    facts = {key: data.settings[key] for key in kept} | {"num_rows": data.train_num_rows}
    facts |= {"dtype": str(model.dtype), "precision": str(trainer.precision), "device": model.device.type}
    folder = data.cache_dir / "states" / states_key(model, facts)
    return StateCache(folder, data.train_num_rows, data.row_length, model.config.hidden_size, normalisers)


def open_folder(cfg: DictConfig, run: PreparedRun, folder: Path, digest: str) -> None:
    """Write what a run folder holds from the start: `.hydra/`, `provenance.json` and the tokenizer. First process only.

    Raises:
        ConfigError: the folder cannot be written.
    """
    try:
        (folder / FOLDER).mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder / FOLDER}: cannot be made ({error.strerror}); choose another folder") from error
    write_hydra_folder(cfg, folder)
    write_provenance(
        folder,
        digest,
        resumed_from=None if run.checkpoint is None else str(run.checkpoint),
        data_fingerprint=run.datamodule.fingerprint,
        tokenizer_fingerprint=run.datamodule.tokenizer.fingerprint,
        data_settings=run.datamodule.settings,
    )
    run.built.tokenizer.save(folder / FOLDER / TOKENIZER)
    write_stop_tokens(folder / FOLDER, run.built.tokenizer.stop_ids)
    announce(cfg, run, folder)


def announce(cfg: DictConfig, run: PreparedRun, folder: Path) -> None:
    """Print sizes, steps and folder to stderr, and warn where the planned memory exceeds what the device has."""
    model, data, trainer = run.built.model, run.datamodule, run.trainer
    facts, tokens, device = model_facts(model), data.train_num_tokens, trainer.strategy.root_device
    batch = data.batch_size * data.row_length * cfg.trainer.accumulate_grad_batches * trainer.world_size
    every_n = int(cfg.training.activation_checkpointing)
    shape = (data.batch_size, data.row_length, str(trainer.precision), cfg.loss.num_unrolled, every_n)
    planned, available = memory_plan(model, run.optimizer, *shape, data.mask_documents), memory_of(device)
    if isinstance(trainer.strategy, ModelParallelStrategy):
        planned //= trainer.world_size  # each process holds a share of the weights
    memory = f"about {planned / 1e9:.2g}" + ("" if available is None else f" of {available / 1e9:.3g}") + " GB"
    clocks = [type(one).__name__ for one in trainer.callbacks if isinstance(one, Timer | EarlyStopping)]  # type: ignore[attr-defined]
    until = f" (fewer where {' or '.join(clocks)} ends the run; the schedules count on all)" if clocks else ""
    places = [cfg.data[key] for key in ("paths", "name", "path", "root") if cfg.data.get(key)]
    amount = "an endless stream" if tokens is None else f"{tokens:,} training tokens"
    lines = {
        "model": f"{facts['num_parameters']:,} parameters: backbone of {model.config.num_layers} layers, module of "
        f"{model.recycle_config.num_layers} ({facts['recycle_overhead']:.0%} more)",
        "data": f"{' '.join([data.source.kind, *map(str, places)])}: {amount}, vocabulary "
        f"{data.tokenizer.vocab_size:,}",
    }
    if model.draft_ids is not None:
        drafted = f"{len(model.draft_ids):,} of {model.config.vocab_size:,} token ids"
        lines["drafts"] = f"{drafted}, {run.built.coverage:.2%} of the training tokens"
    threads = torch.get_num_threads()
    lines |= {
        "run": f"{num_steps(cfg)} steps of {batch:,} tokens{until}, {trainer.precision} on {device.type}, "
        f"{threads} threads",
        "memory": memory,
        "folder": str(relative(folder)),
    }
    if (cache := run.module.state_cache) is not None:
        lines["states"] = f"{cache.num_bytes / 1e9:.3g} GB in {cache.folder}, {cache.share:.0%} of the rows there"
    if run.checkpoint is not None:
        lines["resumed"] = str(relative(run.checkpoint))
    print("\n".join(f"{name:7} {text}" for name, text in lines.items()), file=sys.stderr)
    most = epoch_steps(cfg)
    for key, steps in (("max_steps", trainer.max_steps), ("min_steps", trainer.min_steps or 0)):
        if steps > most:
            why = f"the epochs end after {most} steps; raise trainer.max_epochs"
            log.warning("trainer.%s=%d is not reached: %s", key, steps, why)
    if available is not None and planned > available:
        log.warning(
            "the memory of %s may not suffice (%s); set training.activation_checkpointing=true, lower data.batch_size "
            "(trainer.accumulate_grad_batches makes up for it), or train with trainer=fsdp on several GPUs",
            device,
            memory,
        )


def fit(cfg: DictConfig, run: PreparedRun, folder: Path, digest: str) -> float | None:
    """Train, validate, write `result.json` and print it.

    Returns:
        Held-out perplexity of the backbone; None without validation, and in all processes but the first.
    """
    trainer = run.trainer
    with ExternalCpuLoad() as load:
        trainer.fit(run.module, run.datamodule, ckpt_path=run.checkpoint, weights_only=True)
    if trainer.global_step == run.first_step < num_steps(cfg):
        raise RunError("nothing was trained: trainer.max_time is over already; give more")
    if run.module.validated_step != trainer.global_step:
        # Nothing was left to train, or the run ended where no validation was due.
        trainer.validate(run.module, datamodule=run.datamodule, verbose=False)
    if not trainer.is_global_zero:
        return None
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    throughput = next(_callbacks(trainer, Throughput))
    result = make_result(
        "completed",
        digest,
        cfg.seed,
        model=model_facts(run.built.model),
        metrics=metrics | {"val/loss_unigram": run.unigram_loss},
        train={
            "steps": trainer.global_step,
            "tokens": throughput.total_tokens,
            "seconds": throughput.total_seconds,
            "tokens_per_s": throughput.total_tokens / throughput.total_seconds,
        },
        hardware=_hardware(cfg, trainer, load.share),
    )
    write_json(folder / RESULT, result)
    print(result_table(result, cfg.decoding.num_recycled))
    if trainer.global_step < num_steps(cfg):
        print(f"\nended before its {num_steps(cfg)} steps; the last one is saved: resume={relative(folder)} continues")
    print(f"\nrun folder: {relative(folder)}")
    return metrics.get("val/ppl_backbone")


def _hardware(cfg: DictConfig, trainer: Trainer, others_training: float | None) -> dict[str, Any]:
    device = trainer.strategy.root_device
    monitored = (monitor.others_cpu for monitor in _callbacks(trainer, DecodingMonitor))
    others = {"training": others_training, "decoding": next(monitored, None)}
    # What others do on the processors does not slow a GPU down; another job of the same sweep does.
    shares = [share for share in others.values() if share is not None and device.type == "cpu"]
    return {
        "device": device_name(device),
        "dtype": str(trainer.precision),
        "decode_drafter": cfg.decoding.drafter,
        "decode_dtype": str(named_dtype(cfg.decoding.dtype, device, decoding=True)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "contended": shares_machine() or is_contended(max(shares, default=None)),
        "others_cpu": others,
    }


def _callbacks(trainer: Trainer, kind: type[T]) -> Iterator[T]:
    return (callback for callback in trainer.callbacks if isinstance(callback, kind))  # type: ignore[attr-defined]
