"""A config as a Trainer: callbacks, logger, precision."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from omegaconf import DictConfig

from recyclegpt.callbacks import EpochSummary, HyperParameters, Throughput
from recyclegpt.callbacks.checkpoints import VerifiedCheckpointIO
from recyclegpt.configuration.build import build
from recyclegpt.errors import ConfigError
from recyclegpt.hardware.measure import keep_freed_memory
from recyclegpt.models import has_native_bf16

log = logging.getLogger("recyclegpt")
INTERACTIVE_STEP = "4294967290"
"""SLURM's number for the shell of an allocation, in which nothing was started side by side."""


def reset_globals() -> None:
    """Put back the global settings that an earlier job of the same process may have left behind."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)
    torch.use_deterministic_algorithms(False)
    torch.set_default_dtype(torch.float32)
    keep_freed_memory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    # Tips and device lists of Lightning; what matters here is logged by ourselves.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*does not have many workers which may be a bottleneck.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    # A run that resumes from another folder's checkpoint keeps its own from then on.
    warnings.filterwarnings("ignore", message="The dirpath has changed from .*")


def make_trainer(cfg: DictConfig, plain: dict[str, Any], digest: str, first_step: int, resumes: bool) -> Trainer:
    callbacks = [callback for callback in build(cfg.callbacks, "callbacks").values() if callback is not None]
    callbacks += [HyperParameters({"control": plain["sweep"]["control"] or "none", **_compared(plain)})]
    callbacks += [EpochSummary()]
    if not any(isinstance(callback, Throughput) for callback in callbacks):
        callbacks.append(Throughput())  # `result.json` needs what it counts
    # What a killed run logged after its last checkpoint is logged again: TensorBoard has to forget it.
    forgets = resumes and cfg.logger is not None and str(cfg.logger.get("_target_")).endswith(".TensorBoardLogger")
    logger = build(cfg.logger, "logger", **({"purge_step": first_step} if forgets else {})) or False
    if not logger:  # there is nowhere to write it, and Lightning would refuse
        callbacks = [callback for callback in callbacks if not isinstance(callback, LearningRateMonitor)]
    precision = cfg.trainer.precision
    if precision == "auto":
        precision = "bf16-mixed" if has_native_bf16(trains_on(cfg)) else "32-true"
    plugins: list[Any] = [VerifiedCheckpointIO({"config_hash": digest})]
    plugins += _environment(cfg)
    trainer: Trainer = build(
        cfg.trainer,
        "trainer",
        overfit_batches=0,
        callbacks=callbacks,
        logger=logger,
        precision=precision,
        plugins=plugins,
    )
    return trainer


def _environment(cfg: DictConfig) -> list[ClusterEnvironment]:
    """How Lightning learns of a run's other processes: none on one device; SLURM's tasks where `srun` started them.

    What an allocation has left in the environment of one process is not heeded.

    Raises:
        ConfigError: several processes were started for one device, or by `srun` in a way that Lightning does not read.
    """
    of_step = os.environ.get("SLURM_STEP_ID", INTERACTIVE_STEP) != INTERACTIVE_STEP
    if not of_step and (tasks := os.environ.get("SLURM_NTASKS", "1")) != "1":
        log.warning("SLURM_NTASKS=%s is ignored, since srun has not started this process", tasks)
    if cfg.trainer.devices in (1, "1", [0]) and cfg.trainer.get("num_nodes", 1) == 1:
        alone = {"RANK": "0", "LOCAL_RANK": "0", "SLURM_PROCID": "0", "OMPI_COMM_WORLD_SIZE": "1"}
        alone |= {"SLURM_NTASKS": "1"} if of_step else {}
        alone |= {"WORLD_SIZE": "1"} if "RANK" in os.environ else {}  # by torchrun; Lightning leaves it alone
        if told := [name for name, value in alone.items() if os.environ.get(name, value) != value]:
            raise ConfigError(
                f"trainer.devices: 1, but {', '.join(f'{name}={os.environ[name]}' for name in told)} says that this is "
                f"one of several processes; start one (srun -n1), unset {' '.join(told)}, or ask for more devices"
            )
        return [LightningEnvironment()]
    if not SLURMEnvironment.detect():
        return []
    if not of_step:
        return [LightningEnvironment()]
    try:
        return [SLURMEnvironment(auto_requeue=False)]  # CheckpointEverySteps requeues the job
    except RuntimeError as error:
        raise ConfigError(f"trainer: srun's variables do not fit ({error}); or start without srun") from error


def trains_on(cfg: DictConfig) -> torch.device:
    """The kind of device that the trainer will choose."""
    on_cuda = cfg.trainer.accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available()
    return torch.device("cuda" if on_cuda else "cpu")


def matmul_precision(cfg: DictConfig) -> str:
    """How exact products of fp32 are: on CUDA those that mixed precision leaves in fp32 may use TF32."""
    return "high" if trains_on(cfg).type == "cuda" and cfg.trainer.precision != "32-true" else "highest"


def _compared(plain: dict[str, Any]) -> dict[str, Any]:
    """The settings by which runs are compared: what is learnt and how, not how it is watched or kept."""
    left_out = ("callbacks", "logger", "paths", "sweep", "checkpointing", "resume")
    return {
        key: _compared(value) if isinstance(value, dict) else value
        for key, value in plain.items()
        if key not in left_out and not key.startswith("_")
    }
