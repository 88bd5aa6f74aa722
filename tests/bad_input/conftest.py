"""What all cases start from, made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.small_run import once, run_in


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, trained: Path, corpus: Path) -> Path:
    """A corpus, the shared run on it, its tokens as shards, and the run's backbone in Hugging Face layout."""

    def fill(folder: Path) -> None:
        shutil.copytree(corpus, folder / "corpus")
        shutil.copytree(trained / "run", folder / "run")
        tokenizer = ["data.tokenizer.kind=file", "data.tokenizer.path=run/checkpoints"]
        for argv in (
            ["tokenize", "data=text_files", "data.paths=[corpus]", *tokenizer, "output_dir=shards"],
            ["export", "checkpoint=run", "format=llama", "output_dir=pretrained"],
        ):
            code, text = run_in(folder, argv)
            assert code == 0, text

    return once(tmp_path_factory, "bad-input-base", fill)
