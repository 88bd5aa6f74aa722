"""`recyclegpt train`: fit, validate, decode each epoch, and leave a run folder behind."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig

from recyclegpt.callbacks import DecodingMonitor, EpochSummary, HyperParameters, Throughput
from recyclegpt.callbacks.provenance import write_provenance
from recyclegpt.cli.announce import announce, shown
from recyclegpt.cli.combinations import (
    find_problems,
    num_steps,
    sweep_problems,
    warn_of_settings_without_effect,
)
from recyclegpt.cli.hydra_entry import hydra_run
from recyclegpt.cli.instantiate import build, build_all
from recyclegpt.cli.measured_on import name_of
from recyclegpt.cli.model_of_config import make_model, pretrained_backbone
from recyclegpt.cli.result import make_result, model_facts, result_table
from recyclegpt.cli.resume import LOCK, check_resumable, checkpoint_to_resume, folder_to_continue, is_complete, locked
from recyclegpt.cli.run_folder import (
    PROVENANCE,
    RESULT,
    claim,
    config_hash,
    remove_empty_parents,
    to_plain,
    write_json,
)
from recyclegpt.cli.sweep_job import in_multirun, progress_line, runs_beside_others
from recyclegpt.data import TextDataModule
from recyclegpt.data.declared_ends import declare_ends
from recyclegpt.errors import ConfigError, RunError, Stopped
from recyclegpt.evaluation import unigram_loss
from recyclegpt.evaluation.contention import OtherLoad, is_contended
from recyclegpt.models import has_native_bf16, named_dtype
from recyclegpt.training import LitRecycleGPT
from recyclegpt.training.checkpoint import FOLDER, TOKENIZER, hyper_parameters
from recyclegpt.training.checkpoint_file import list_checkpoints
from recyclegpt.training.checkpoint_io import VerifiedCheckpointIO

log = logging.getLogger("recyclegpt")
TRACEBACK = "traceback.txt"


def run(argv: Sequence[str], config_name: str = "train") -> int:
    """The command; `config_name` is the config it begins from."""
    arguments = [*argv, *folder_to_continue(argv, config_name)]
    hydra_run(train_job, config_name, arguments, also_check=find_problems)
    return 0


def train_job(cfg: DictConfig) -> float | None:
    """One run, alone or as a job of a sweep.

    Returns:
        Held-out perplexity of the backbone, for sweepers that optimise.

    Raises:
        ConfigError: all that is wrong with the config.
    """
    folder = Path(cfg.paths.output_dir)
    multirun = in_multirun()
    start_afresh()
    if multirun:
        print(f"\nsweep   {progress_line()}", file=sys.stderr)
    if multirun and (problems := sweep_problems(cfg)):
        raise ConfigError(problems)
    warn_of_settings_without_effect(cfg)
    digest = config_hash(cfg)
    claim(folder, digest)
    with locked(folder):
        begun = claim(folder, digest)  # again: another process may have been here while this one waited
        if begun and is_complete(folder):
            if cfg.resume == "never" and not multirun:
                raise ConfigError(
                    f"{folder}: holds a completed run of this config; choose another folder, or read its {RESULT}"
                )
            log.info("%s is complete, skipped", folder)
            return None
        if begun and cfg.resume == "never" and list_checkpoints(folder / FOLDER):
            raise ConfigError(
                f"{folder}: holds an unfinished run of this config; resume=auto goes on with it, "
                "or choose another folder"
            )
        provenance = _changed_at(folder / PROVENANCE)
        try:
            return _train(cfg, folder, digest)
        except BaseException as error:
            if isinstance(error, ConfigError) and _changed_at(folder / PROVENANCE) == provenance:
                _leave_no_trace(folder)
                raise
            told = _told(error, cfg, folder, digest)
            if told is error:
                raise
            raise told from error


def _changed_at(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def _leave_no_trace(folder: Path) -> None:
    """Remove the folder that Hydra has made for a run that did not begin; one that was there before stays."""
    if {path.name for path in folder.iterdir()} <= {".hydra", "train.log", LOCK}:
        shutil.rmtree(folder)
        remove_empty_parents(folder)


def _told(error: BaseException, cfg: DictConfig, folder: Path, digest: str) -> BaseException:
    """Leave a record of what ended a run, and say it as the program's own errors do."""
    if isinstance(error, SIGTERMException):  # it came in the moment before our own handler was there
        error = Stopped("stopped by SIGTERM; the same command with resume=auto goes on", 128 + signal.SIGTERM)
    elif isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
        # Lightning answers a second Ctrl-C, which stops at once, with sys.exit.
        error = Stopped("stopped by Ctrl-C at once; the same command with resume=auto goes on", 128 + signal.SIGINT)
    elif not isinstance(error, ConfigError | RunError | Stopped):
        (folder / TRACEBACK).write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        log.error("%s failed, see its %s: %s", folder, TRACEBACK, error)
    write_json(folder / RESULT, make_result("failed", digest, cfg.seed, error))
    return error


def start_afresh() -> None:
    """Put back the global settings a former job of the same process may have left behind."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)
    torch.use_deterministic_algorithms(False)
    torch.set_default_dtype(torch.float32)
    torch.set_float32_matmul_precision("highest")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    # Tips and device lists of Lightning; what matters here is logged by ourselves.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*does not have many workers which may be a bottleneck.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    # A run that goes on from another folder's checkpoint keeps its own from then on.
    warnings.filterwarnings("ignore", message="The dirpath has changed from .*")


def _train(cfg: DictConfig, folder: Path, digest: str) -> float | None:
    backbone = pretrained_backbone(cfg)
    plain = to_plain(cfg)
    built = build_all(cfg, ["recycle", "loss", "data", "optimizer", "scheduler"])
    datamodule: TextDataModule = built["data"]
    datamodule.prepare()
    seed_everything(cfg.seed, workers=True, verbose=False)
    made = make_model(cfg, backbone, built["recycle"], datamodule)
    model = made.model
    num_bytes = torch.zeros(model.config.vocab_size, dtype=torch.long)
    num_bytes[: datamodule.vocab_size] = torch.from_numpy(datamodule.tokenizer.token_num_bytes())
    torch.set_float32_matmul_precision(matmul_precision(cfg))
    module = LitRecycleGPT(
        model,
        built["loss"],
        built["optimizer"],
        built["scheduler"],
        num_steps(cfg),
        num_bytes,
        hyper_parameters(model, plain, made.backbone),
        cfg.max_skipped_steps,
        compiles(cfg),
        int(cfg.activation_checkpointing),
    )
    # Made again by the trainer; here so that an impossible schedule is told now, not after the first batches are read.
    optimizer = module.configure_optimizers()["optimizer"]
    begun = checkpoint_to_resume(cfg, folder, num_steps(cfg))
    first_step = 0 if begun is None else begun.step
    trainer = _make_trainer(cfg, plain, digest, first_step, goes_on=(folder / "tensorboard").exists())
    datamodule.check_lengths(trainer.world_size)
    checkpoint = None if begun is None else begun.path
    if begun is not None:
        check_resumable(begun, cfg, made, datamodule, trainer.world_size)
        del begun  # it maps the whole file
    # Reads the tokens, so that ids beyond the vocabulary are found before anything is written.
    unigram = unigram_loss(datamodule.unigram_counts(), datamodule.val_tokens(2_000_000))
    try:
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder / FOLDER}: cannot be made ({error.strerror}); choose another folder, or repair this one"
        ) from error
    write_provenance(
        folder,
        digest,
        resumed_from=None if checkpoint is None else str(checkpoint),
        data_fingerprint=datamodule.fingerprint,
        tokenizer_fingerprint=datamodule.tokenizer.fingerprint,
        data_settings=datamodule.settings,
    )
    made.tokenizer.save(folder / FOLDER / TOKENIZER)
    if len(made.tokenizer.stop_ids) > 1:
        declare_ends(folder / FOLDER, made.tokenizer.stop_ids)
    announce(cfg, folder, datamodule, model, trainer, optimizer, checkpoint)
    del optimizer

    with OtherLoad() as load:
        trainer.fit(module, datamodule, ckpt_path=checkpoint, weights_only=True)
    if "val/loss_backbone" not in trainer.callback_metrics:
        # Resumed from the checkpoint of the last step: nothing was left to train, and so nothing was validated.
        trainer.validate(module, datamodule=datamodule, verbose=False)

    if not trainer.is_global_zero:
        return None
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()} | {"val/loss_unigram": unigram}
    throughput = next(callback for callback in trainer.callbacks if isinstance(callback, Throughput))  # type: ignore[attr-defined]
    result = make_result(
        "completed",
        digest,
        cfg.seed,
        model=model_facts(model),
        metrics=metrics,
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
    print(f"\nrun folder: {shown(folder)}")
    return metrics["val/ppl_backbone"]


def _make_trainer(cfg: DictConfig, plain: dict[str, Any], digest: str, first_step: int, goes_on: bool) -> Trainer:
    callbacks = [callback for callback in build(cfg.callbacks, "callbacks").values() if callback is not None]
    callbacks += [HyperParameters({"control": plain["sweep"]["control"] or "none", **_compared(plain)})]
    callbacks += [EpochSummary()]
    if not any(isinstance(callback, Throughput) for callback in callbacks):
        callbacks.append(Throughput())
    # What a killed run logged after its last checkpoint is logged again: TensorBoard is told to forget it.
    purge = {"purge_step": first_step} if goes_on and _is_tensorboard(cfg.logger) else {}
    logger = build(cfg.logger, "logger", **purge) or False
    if not logger:  # there is nowhere to write it, and Lightning would refuse
        callbacks = [callback for callback in callbacks if not isinstance(callback, LearningRateMonitor)]
    precision = cfg.trainer.precision
    if precision == "auto":
        precision = "bf16-mixed" if has_native_bf16(trains_on(cfg)) else "32-true"
    plugins: list[Any] = [VerifiedCheckpointIO({"config_hash": digest})]
    if SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))  # Checkpoints puts the job back, outside of the handler
    extra = {"callbacks": callbacks, "logger": logger, "precision": precision, "plugins": plugins}
    trainer: Trainer = build(cfg.trainer, "trainer", **extra)
    return trainer


def trains_on(cfg: DictConfig) -> torch.device:
    """The kind of device that the trainer will choose."""
    on_cuda = cfg.trainer.accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available()
    return torch.device("cuda" if on_cuda else "cpu")


def compiles(cfg: DictConfig) -> bool:
    """Whether layers and loss are compiled."""
    return trains_on(cfg).type == "cuda" if cfg.compile == "auto" else bool(cfg.compile)


def matmul_precision(cfg: DictConfig) -> str:
    """How exact products of fp32 are: on CUDA those that mixed precision leaves in fp32 may use TF32."""
    return "high" if trains_on(cfg).type == "cuda" and cfg.trainer.precision != "32-true" else "highest"


def _is_tensorboard(logger: DictConfig | None) -> bool:
    return logger is not None and str(logger.get("_target_")).endswith(".TensorBoardLogger")


def _compared(plain: dict[str, Any]) -> dict[str, Any]:
    """The settings by which runs are compared: what is learnt from what, and how; not how it is watched or kept."""
    left_out = ("callbacks", "logger", "paths", "sweep", "checkpoint", "resume")
    return {
        key: _compared(value) if isinstance(value, dict) else value
        for key, value in plain.items()
        if key not in left_out and not key.startswith("_")
    }


def _hardware(cfg: DictConfig, trainer: Trainer, others_training: float | None) -> dict[str, Any]:
    device = trainer.strategy.root_device
    decode = named_dtype(cfg.decoding.dtype, device, decoding=True)
    monitors = [callback for callback in trainer.callbacks if isinstance(callback, DecodingMonitor)]  # type: ignore[attr-defined]
    others = {"training": others_training, "decoding": monitors[0].others_cpu if monitors else None}
    shares = [share for share in others.values() if share is not None]
    # What others do on the processors does not slow a GPU down; another job of the same sweep does.
    contended = is_contended(max(shares)) if shares and device.type == "cpu" else None
    if in_multirun() and runs_beside_others(HydraConfig.get().launcher):
        contended = True
    return {
        "device": name_of(device),
        "dtype": str(trainer.precision),
        "decode_dtype": str(decode).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "contended": contended,
        "others_cpu": others,
    }
