"""The program run in this process, in an empty folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from recyclegpt.commands.main import main
from tests.small_run import small_on


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`run("train", "seed=2")` is `recyclegpt train seed=2`, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def command(*argv: object) -> int:
        return main([str(argument) for argument in argv])

    return command


@pytest.fixture
def small(corpus: Path) -> list[str]:
    """Settings that make any training run take seconds."""
    return small_on(corpus)
