"""The program run in this process, on a small corpus, and one trained run that all tests of a session share."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from filelock import FileLock

from recyclegpt.commands.main import main

SMALL = ("debug=smoke", "data=text_files", "data.tokenizer.vocab_size=300", "~callbacks.trade_off")
"""Makes any training run take a second: two epochs of three steps, no picture. `small_on(corpus)` adds the corpus."""
EVERY_STEP = "checkpointing.every_n_steps=1"
KEEP_ALL = "checkpointing.keep=9"
TINY_SHAPE = ("model.num_layers=1", "model.hidden_size=32", "model.num_heads=2", "model.intermediate_size=64")
BRIEF_BENCH = (
    *("bench.prompt_tokens=[8]", "bench.new_tokens=[8]", "bench.repetitions=1"),
    *("bench.strategies=[alternating]", "bench.breakdown=false"),
)
SMALLER: dict[str, tuple[str, ...]] = {
    "train": ("debug=smoke",),
    "adapt": ("debug=smoke_pretrained",),
    "generate": ("decoding.max_new_tokens=8",),
    "generate-corpus": ("num_documents=24", "num_val_documents=12", "prompt_tokens=4", "decoding.max_new_tokens=40"),
    "bench": (*BRIEF_BENCH, "bench.vocab_size=64", "bench.num_prompts=1", *TINY_SHAPE),
    "bench-runs": BRIEF_BENCH,
    "bench-training": (*TINY_SHAPE, "device=cpu", "vocab_size=64", "batch_size=1", "row_length=8", "repetitions=1"),
}
"""Overrides that make a documented command of any size take a second or two."""
ONE_JOB_STEP = ("trainer.max_epochs=1", "trainer.limit_train_batches=1", "callbacks=no_monitor", "~callbacks.trade_off")
"""More of them for the jobs of a sweep."""
OLDER, NEWEST = "step_0000002.ckpt", "step_0000006.ckpt"
"""Two checkpoints of the shared run."""


def small_on(corpus: Path) -> list[str]:
    """`SMALL` on a folder of texts."""
    return [*SMALL, f"data.paths=[{corpus}]"]


def run_in(folder: Path, argv: Sequence[str], stdin: str = "") -> tuple[int, str]:
    """Exit code of a command in a folder, and everything that it printed and logged."""
    shown = io.StringIO()
    root, own = logging.getLogger(), logging.getLogger("recyclegpt")
    handlers, levels = list(root.handlers), (root.level, own.level)
    handler = logging.StreamHandler(shown)
    handler.setLevel(logging.WARNING)
    own.addHandler(handler)
    before, given = Path.cwd(), sys.stdin
    os.chdir(folder)
    sys.stdin = io.StringIO(stdin)
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            code = main([str(argument) for argument in argv])
    finally:
        sys.stdin = given
        os.chdir(before)
        own.removeHandler(handler)
        root.handlers[:] = handlers
        root.setLevel(levels[0])
        own.setLevel(levels[1])
    return code, shown.getvalue()


def once(factory: pytest.TempPathFactory, name: str, fill: Callable[[Path], None]) -> Path:
    """A folder filled by the first process of this test session that asks for it, and read by all."""
    root = factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder, done = root / name, root / f"{name}.done"
    with FileLock(root / f"{name}.lock"):
        if not done.exists():
            folder.mkdir()
            fill(folder)
            done.touch()
    return folder


def write_corpus(folder: Path) -> None:
    """Forty short text files with enough pattern to learn from."""
    draw = random.Random(0)
    names = ["alpha", "beta", "gamma", "delta", "omega"]
    for number in range(40):
        lines = []
        for _ in range(60):
            name, other = draw.choice(names), draw.choice(names)
            lines.append(f"def {name}({other}, n={draw.randrange(10)}):\n    return {other} + {name}(n)\n")
        (folder / f"part{number:02}.txt").write_text("\n".join(lines), encoding="utf-8")


def train_shared_run(folder: Path, corpus: Path) -> None:
    """`run`, with a checkpoint after every step and the decoding monitor, and what it printed in `printed.txt`."""
    code, text = run_in(folder, ["train", *small_on(corpus), EVERY_STEP, KEEP_ALL, "hydra.run.dir=run"])
    assert code == 0, text
    (folder / "printed.txt").write_text(text, encoding="utf-8")
