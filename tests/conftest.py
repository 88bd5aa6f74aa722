"""Keeps tests apart: no network, caches in a temporary folder, and global state put back after every test.

torch, Hydra and datasets are touched only where a test has imported them, so that a test without them stays fast.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

MAX_THREADS = 2
SEED = 0

# Read when the libraries are imported, so set before any test module is: a fixture would come too late.
CACHE = Path(tempfile.mkdtemp(prefix="recyclegpt-tests-"))
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_EVALUATE_OFFLINE="1",
    HF_HOME=str(CACHE / "huggingface"),
    HF_DATASETS_CACHE=str(CACHE / "datasets"),
    HF_HUB_DISABLE_TELEMETRY="1",
    RECYCLEGPT_CACHE=str(CACHE / "recyclegpt"),
    OMP_NUM_THREADS=str(min(MAX_THREADS, os.cpu_count() or 1)),
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
)


def pytest_unconfigure() -> None:
    shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(autouse=True)
def _restored_environment() -> Iterator[None]:
    """Lightning leaves its seed and ranks in the environment; the next test would read them."""
    before = dict(os.environ)
    folder = Path.cwd()
    yield
    os.chdir(folder)
    for name in os.environ.keys() - before.keys() - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    for name, value in before.items():
        if name != "PYTEST_CURRENT_TEST" and os.environ.get(name) != value:
            os.environ[name] = value


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    """Hydra replaces the root logger's handlers. pytest brings its own for each phase, which stay as they are."""
    root = logging.getLogger()
    level, before = root.level, set(root.handlers)
    yield
    root.setLevel(level)
    for handler in list(root.handlers):
        if handler not in before and not type(handler).__module__.startswith("_pytest"):
            root.removeHandler(handler)
            handler.close()


@pytest.fixture(autouse=True)
def _clear_hydra() -> Iterator[None]:
    yield
    if (instance := sys.modules.get("hydra.core.global_hydra")) is not None:
        instance.GlobalHydra.instance().clear()
    if (config := sys.modules.get("hydra.core.hydra_config")) is not None:
        config.HydraConfig.instance().cfg = None


@pytest.fixture(autouse=True)
def _restored_torch() -> Iterator[None]:
    random.seed(SEED)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(min(MAX_THREADS, torch.get_num_threads()))
        torch.manual_seed(SEED)
    before = None if torch is None else _torch_settings(torch)
    yield
    if before is not None:
        _restore_torch(sys.modules["torch"], before)


def _torch_settings(torch: ModuleType) -> dict[str, object]:
    return {
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fill": torch.utils.deterministic.fill_uninitialized_memory,
        "matmul": torch.get_float32_matmul_precision(),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "grad": torch.is_grad_enabled(),
    }


def _restore_torch(torch: ModuleType, before: dict[str, object]) -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    torch.set_default_dtype(before["dtype"])
    torch.set_num_threads(before["threads"])
    torch.use_deterministic_algorithms(before["deterministic"], warn_only=before["warn_only"])
    torch.utils.deterministic.fill_uninitialized_memory = before["fill"]
    if torch.get_float32_matmul_precision() != before["matmul"]:
        torch.set_float32_matmul_precision(before["matmul"])
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before["cudnn"]
    torch.set_grad_enabled(before["grad"])
