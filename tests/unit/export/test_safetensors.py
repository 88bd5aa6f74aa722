"""Weight files are as readable as any other file, and say who wrote them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from recyclegpt.export.safetensors import is_written_by_export, write_weights


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


def test_an_export_is_known_by_its_weights(tmp_path: Path) -> None:
    write_weights(tmp_path, {"a": torch.ones(9)}, torch.bfloat16, "5GB")
    path = tmp_path / "model.safetensors"
    assert is_written_by_export(path)
    save_file(load_file(path), path, metadata={"format": "pt"})
    assert not is_written_by_export(path)
    path.write_bytes(b"{}")
    assert not is_written_by_export(path)
    assert not is_written_by_export(tmp_path / "nowhere")
