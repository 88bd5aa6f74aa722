"""Weight files are as readable as any other file, and say who wrote them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recyclegpt.export.safetensors import write_weights


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_weights_have_the_usual_mode(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_weights(tmp_path, {"a": torch.ones(9), "b": torch.ones(9)}, torch.float32, 40)
    finally:
        os.umask(before)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~mask}
    assert torch.equal(load_file(files[0])["a"], torch.ones(9))
