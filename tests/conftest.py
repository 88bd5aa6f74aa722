"""Keeps tests apart: no network, caches in a temporary folder, and global state put back after every test.

torch, Hydra and datasets are touched only where a test has imported them, so that a test without them stays fast.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# The models are so small that a second thread only waits, and on a busy machine spins: on two busy cores one test took
# 10 s with one thread and 90 s with two; on idle ones there was no difference.
NUM_THREADS = 1
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
    OMP_NUM_THREADS=str(NUM_THREADS),
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
)
# Compiled once for all processes and sessions: a library's name tells its sources, torch and processor.
KERNELS = Path(__file__).parents[1] / ".pytest_cache" / "kernels"
KERNELS.mkdir(parents=True, exist_ok=True)
(CACHE / "recyclegpt").mkdir()
(CACHE / "recyclegpt" / "kernels").symlink_to(KERNELS)
# A fixture of a wider scope may train, and leave these behind before the first test that uses it begins.
LEFT_BY_LIGHTNING = {
    "PL_GLOBAL_SEED",
    "PL_SEED_WORKERS",
    "LOCAL_RANK",
    "NODE_RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
}
LEFT_BY_LIGHTNING -= os.environ.keys()


def pytest_unconfigure() -> None:
    shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(autouse=True)
def _restored_environment() -> Iterator[None]:
    """Lightning leaves its seed and ranks in the environment; the next test would read them."""
    for name in LEFT_BY_LIGHTNING & os.environ.keys():
        del os.environ[name]
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
def _torch_as_imported() -> Iterator[None]:
    """Set before a test as well as after it: fixtures of a wider scope leave settings behind too."""
    random.seed(SEED)
    if (torch := sys.modules.get("torch")) is not None:
        _reset(torch)
    if "recyclegpt.kernels" in sys.modules:
        _compile_kernels()
    if (stopwatch := sys.modules.get("recyclegpt.hardware.measure")) is not None:
        stopwatch.COPY_BYTES["cpu"] = 2**20  # gigabytes would be moved in each bench
    yield
    if (torch := sys.modules.get("torch")) is not None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        _reset(torch)


@functools.cache
def _compile_kernels() -> None:
    """In one process, while the others wait."""
    from filelock import FileLock

    from recyclegpt.kernels import build

    with FileLock(KERNELS / "lock"), contextlib.suppress(build.KernelsUnavailableError):
        build.load()


def _reset(torch: ModuleType) -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(NUM_THREADS)
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    if torch.get_float32_matmul_precision() != "highest":
        torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.deterministic = torch.backends.cudnn.benchmark = False


FAMILIES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "MistralForCausalLM": {"sliding_window": None, "head_dim": 10},
    "Qwen2ForCausalLM": {"tie_word_embeddings": True},
    "Qwen3ForCausalLM": {"head_dim": 12},
}


@pytest.fixture
def tiny_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Writes a checkpoint in Hugging Face layout: random weights wide enough that texts vary, 300 tokens."""

    def write(architecture: str = "LlamaForCausalLM", name: str = "pretrained", seed: int = 0) -> Path:
        import torch
        from safetensors.torch import save_file

        from recyclegpt.data import TextTokenizer
        from recyclegpt.models import RecycleGPT
        from recyclegpt.models.huggingface import read_config

        folder = tmp_path / name
        folder.mkdir()
        shape = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
        shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 160}
        values = {"architectures": [architecture], "rope_theta": 5000.0, **shape, **FAMILIES[architecture]}
        (folder / "config.json").write_text(json.dumps(values))
        model = RecycleGPT(read_config(folder))
        generator = torch.Generator().manual_seed(seed)
        names = {f"model.{name}": weight for name, weight in model.backbone.named_parameters()}
        if not model.config.tie_embeddings:
            names["lm_head.weight"] = model.lm_head.weight
        weights = {
            name: torch.randn(weight.shape, generator=generator) * 0.2 + (weight.ndim == 1)
            for name, weight in names.items()
        }
        save_file(weights, folder / "model.safetensors")
        TextTokenizer.train(["def alpha(beta, n=3):\n    return beta + alpha(n)\n"], 300).save(
            folder / "tokenizer.json"
        )
        return folder

    return write


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of short texts."""
    from tests.small_run import once, write_corpus

    return once(tmp_path_factory, "corpus", write_corpus)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A folder with `run`, which `small` has trained, and `printed.txt`. Read only: copy the run to change it."""
    from tests.small_run import once, train_shared_run

    return once(tmp_path_factory, "trained", lambda folder: train_shared_run(folder, corpus))


@pytest.fixture(scope="session")
def stdlib(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in for the interpreter's standard library."""
    folder = tmp_path_factory.mktemp("stdlib")
    for number in range(60):
        lines = [f"def function_{number}_{line}(value):\n    return value + {line * number}\n" for line in range(40)]
        (folder / f"module{number}.py").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in for a site-packages folder: thirty packages, some of which are held out by their names."""
    folder = tmp_path_factory.mktemp("packages")
    for number in range(30):
        (folder / f"some{number}").mkdir()
        for part in range(4):
            lines = [
                f"def function_{number}_{part}_{line}(value):\n    return value_of_{number} + {line} * value + {part}\n"
                for line in range(40)
            ]
            (folder / f"some{number}" / f"part{part}.py").write_text("\n".join(lines), encoding="utf-8")
    return folder
