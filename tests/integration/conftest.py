"""A small corpus, and the program run in this process."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from recyclegpt.commands.main import main


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short text files with enough pattern to learn from."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    names = ["alpha", "beta", "gamma", "delta", "omega"]
    for number in range(40):
        lines = []
        for _ in range(60):
            name, other = draw.choice(names), draw.choice(names)
            lines.append(f"def {name}({other}, n={draw.randrange(10)}):\n    return {other} + {name}(n)\n")
        (folder / f"part{number:02}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


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
    return ["debug=smoke", "data=text_files", f"data.paths=[{corpus}]", "data.tokenizer.vocab_size=300"]
