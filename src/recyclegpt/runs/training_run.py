"""The one function that puts a training run together."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Trainer, seed_everything
from omegaconf import DictConfig

from recyclegpt.callbacks import DecodingMonitor, Throughput
from recyclegpt.checkpoints.load import FOLDER, TOKENIZER, hyper_parameters
from recyclegpt.configuration.hash import to_plain
from recyclegpt.configuration.instantiate import build_all
from recyclegpt.configuration.pretrained import pretrained_backbone
from recyclegpt.configuration.train_checks import (
    num_steps,
)
from recyclegpt.data import TextDataModule
from recyclegpt.data.tokenizer import write_stop_tokens
from recyclegpt.errors import ConfigError
from recyclegpt.evaluation import unigram_loss
from recyclegpt.files import relative, write_json
from recyclegpt.hardware.contention import ExternalCpuLoad, is_contended
from recyclegpt.hardware.device import device_name
from recyclegpt.models import named_dtype
from recyclegpt.models.parameter_count import model_facts
from recyclegpt.runs.announce import announce
from recyclegpt.runs.folder import RESULT
from recyclegpt.runs.model import make_model
from recyclegpt.runs.provenance import write_provenance
from recyclegpt.runs.result import make_result, result_table
from recyclegpt.runs.resume import check_resumable, checkpoint_to_resume
from recyclegpt.runs.sweep_progress import in_multirun, runs_beside_others
from recyclegpt.runs.trainer import compiles, make_trainer, matmul_precision
from recyclegpt.training import LitRecycleGPT

log = logging.getLogger("recyclegpt")


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


def train_run(cfg: DictConfig, folder: Path, digest: str) -> float | None:
    backbone = pretrained_backbone(cfg)
    plain = to_plain(cfg)
    built = build_all(cfg, ["recycle", "loss", "data", "optimizer", "scheduler"])
    datamodule: TextDataModule = built["data"]
    datamodule.connect(cfg.model.context_length, num_views=2 + cfg.loss.num_unrolled, seed=cfg.seed)
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
    trainer = make_trainer(cfg, plain, digest, first_step, goes_on=(folder / "tensorboard").exists())
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
        write_stop_tokens(folder / FOLDER, made.tokenizer.stop_ids)
    announce(cfg, folder, datamodule, model, trainer, optimizer, checkpoint)
    del optimizer

    with ExternalCpuLoad() as load:
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
    print(f"\nrun folder: {relative(folder)}")
    return metrics["val/ppl_backbone"]


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
        "device": device_name(device),
        "dtype": str(trainer.precision),
        "decode_dtype": str(decode).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "contended": contended,
        "others_cpu": others,
    }
