"""Tests in pairs, run in this order: the first spoils the global state, the second finds it as it should be."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra


def test_state_spoilt(tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)
    torch.set_num_threads(2)
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    os.environ["PL_GLOBAL_SEED"] = "7"
    os.environ.pop("HF_HUB_OFFLINE")
    os.chdir(tmp_path)
    logging.getLogger().addHandler(logging.StreamHandler())
    logging.getLogger().setLevel(logging.CRITICAL)
    GlobalHydra.instance().hydra = object()  # type: ignore[assignment]


def test_state_restored() -> None:
    assert torch.get_default_dtype() == torch.float32
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == 1
    assert not torch.distributed.is_initialized()
    assert "PL_GLOBAL_SEED" not in os.environ
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert Path.cwd() != Path(tempfile.gettempdir())
    assert all(type(handler) is not logging.StreamHandler for handler in logging.getLogger().handlers)
    assert logging.getLogger().level != logging.CRITICAL
    assert not GlobalHydra.instance().is_initialized()


@pytest.fixture(scope="module")
def _spoils_before_the_first_test() -> None:
    os.environ["PL_GLOBAL_SEED"] = "7"
    torch.use_deterministic_algorithms(True)
    torch.set_default_dtype(torch.float64)


@pytest.mark.usefixtures("_spoils_before_the_first_test")
def test_what_a_wider_fixture_leaves_is_put_right() -> None:
    assert "PL_GLOBAL_SEED" not in os.environ
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_default_dtype() == torch.float32


def test_random_numbers_drawn() -> None:
    assert torch.rand(1).item() == torch.rand(1, generator=torch.Generator().manual_seed(0)).item()


def test_caches_are_temporary() -> None:
    for name in ("RECYCLEGPT_CACHE", "HF_DATASETS_CACHE", "HF_HOME"):
        assert Path(os.environ[name]).is_relative_to(tempfile.gettempdir())
