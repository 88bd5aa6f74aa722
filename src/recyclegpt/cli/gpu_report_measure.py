"""`recyclegpt gpu-report measure=...`: what a GPU report measures that no other command does, one thing a process."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from omegaconf import OmegaConf

from recyclegpt.cli.compose import compose_or_explain
from recyclegpt.cli.evaluate import corpus_of
from recyclegpt.cli.gpu_report_run import train_settings
from recyclegpt.cli.health.device import nvidia_smi
from recyclegpt.cli.instantiate import build_all
from recyclegpt.cli.measured_on import name_of
from recyclegpt.decoding.cuda_kernels import usable
from recyclegpt.evaluation.bandwidth import CopyTimer
from recyclegpt.evaluation.device_checks import device_checks
from recyclegpt.evaluation.kernel_bandwidth import kernel_bandwidth
from recyclegpt.evaluation.matmul_rate import matmul_flops_per_s

QUERIED = ("driver_version", "memory.total", "power.limit", "clocks.max.sm", "clocks.max.memory")
"""What nvidia-smi is asked for."""
COPIES = 20
PAPER, SMALLEST = "paper_1b3", "gpt_125m"
"""Shapes whose kernels are measured: of a report, and of a smoke run."""


def machine(device: torch.device, smoke: bool) -> dict[str, Any]:
    """The device, its driver and versions, and what copies and matrix products reach on it."""
    copies = CopyTimer(device, 2**20 if smoke else None)
    copies.measure(COPIES)
    flops = matmul_flops_per_s(device, size=64, rounds=3) if smoke else matmul_flops_per_s(device)
    return {
        "device": name_of(device),
        "python": platform.python_version(),
        **{package: _version(package) for package in ("torch", "triton", "transformers", "lightning")},
        "cuda": torch.version.cuda,
        "platform": platform.platform(),
        "copy_bytes_per_s": copies.bytes_per_s,
        "matmul_flops_per_s": flops,
        **(_of_cuda(device) if device.type == "cuda" else {}),
    }


def _of_cuda(device: torch.device) -> dict[str, Any]:
    facts = torch.cuda.get_device_properties(device)
    answers = {field: next(iter(nvidia_smi(field)), None) for field in QUERIED}
    return {
        "capability": f"{facts.major}.{facts.minor}",
        "memory_bytes": facts.total_memory,
        "multiprocessors": facts.multi_processor_count,
        "driver": answers.pop("driver_version"),
        "nvidia_smi": answers,
    }


def corpus(device: torch.device, smoke: bool) -> dict[str, Any]:
    """Makes and caches the tokens of the run's corpus, so that the run finds them, and says what they are."""
    begin = time.monotonic()
    cfg = compose_or_explain("train", list(train_settings(device.type, smoke)), check_values=False)
    datamodule = corpus_of(OmegaConf.to_container(cfg.data, resolve=True))
    datamodule.prepare()
    source = getattr(datamodule, "source", None)
    names = getattr(source, "packages", None)
    return {
        "kind": str(getattr(source, "kind", type(source).__name__)),
        "fingerprint": datamodule.fingerprint,
        "train_tokens": datamodule.train_num_tokens,
        "vocab_size": datamodule.vocab_size,
        "held_out": sorted(names("val")) if callable(names) else None,
        "seconds": time.monotonic() - begin,
    }


def checks(device: torch.device, smoke: bool) -> dict[str, Any]:
    """Whether what is fast computes what its slow twin computes, on this device."""
    return {"rows": device_checks(device, tiny=smoke)}


def kernels(device: torch.device, smoke: bool, tune: bool = False) -> dict[str, Any]:
    """Bytes per second of every decoding kernel alone, beside torch's product; `tune`: in other sizes too."""
    if device.type != "cuda":
        note = "The kernels are for CUDA; on a CPU their arithmetic is tested, not their speed."
        return {"rows": [], "notes": [note]}
    if not usable(device, torch.bfloat16):
        return {"rows": [], "notes": ["Triton does not work here, or the device is too old for the kernels."]}
    cfg = compose_or_explain("bench", [f"model={SMALLEST if smoke else PAPER}"])
    shape = build_all(cfg, ["model"], {"model": {"vocab_size": cfg.bench.vocab_size}})["model"]
    rows = kernel_bandwidth(shape, device, tune=tune)
    return {"rows": [{**row, "sizes": json.dumps(row["sizes"])} for row in rows]}


MEASURES: Mapping[str, Callable[[torch.device, bool], dict[str, Any]]] = {
    "machine": machine,
    "checks": checks,
    "kernels": kernels,
    "kernel_sizes": partial(kernels, tune=True),
    "corpus": corpus,
}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
