"""A working folder for one case, what is copied into it, and the program run there."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import random
import shutil
import stat
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recyclegpt.checkpoints.file import sidecar
from recyclegpt.commands.main import main

MARKER = "executed"
"""The file that every payload tries to make in the working folder."""
SETTINGS = (
    "debug=smoke",
    "data.tokenizer.vocab_size=300",
    "callbacks=no_monitor",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=3",
    "checkpoint.every_n_steps=1",
)
TEXT = ("data=text_files", "data.paths=[corpus]")
SMALL = (SETTINGS[0], *TEXT, *SETTINGS[1:])
ON_SHARDS = (SETTINGS[0], "data=tokenized", "data.path=shards", *SETTINGS[2:])
NEWEST = "step_0000003.ckpt"
OLDER = "step_0000002.ckpt"


def make_base(folder: Path) -> None:
    """What cases start from: a corpus, a run on it, its tokens as shards, a run on those, and the run's backbone."""
    write_corpus(folder / "corpus")
    for argv in (
        ["train", *SMALL, "hydra.run.dir=run"],
        ["tokenize", *TEXT, "data.tokenizer.vocab_size=300", "output=shards"],
        ["train", *ON_SHARDS, "hydra.run.dir=run_on_shards", "logger=none"],
        ["export", "checkpoint=run", "format=llama", "out=pretrained"],
    ):
        code, text = run_in(folder, argv)
        assert code == 0, text


def write_corpus(folder: Path, num_files: int = 6) -> None:
    """Short text files with enough pattern to learn from."""
    folder.mkdir()
    draw = random.Random(0)
    names = ["alpha", "beta", "gamma", "delta", "omega"]
    for number in range(num_files):
        lines = [
            f"def {draw.choice(names)}({draw.choice(names)}, n={draw.randrange(10)}):\n    return n\n"
            for _ in range(150)
        ]
        (folder / f"part{number}.txt").write_text("".join(lines), encoding="utf-8")


@dataclass(frozen=True)
class Place:
    """The folder that a case is prepared in, which is the working folder of its command."""

    root: Path
    base: Path

    def copy(self, *names: str) -> None:
        """Copy parts of the base: `corpus`, `run`, `shards`, `run_on_shards`, `pretrained`."""
        for name in names:
            shutil.copytree(self.base / name, self.root / name)

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file, its folders made where they are missing."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def write_json(self, name: str, document: Any) -> Path:
        """Write a JSON file."""
        return self.write(name, json.dumps(document))

    def change_json(self, name: str, change: Callable[[Any], Any]) -> None:
        """Change the document of a JSON file; what `change` returns takes its place, None: it was changed in place."""
        document = json.loads((self.root / name).read_text(encoding="utf-8"))
        changed = change(document)
        self.write_json(name, document if changed is None else changed)

    def checkpoint(self, name: str = NEWEST, run: str = "run") -> Path:
        """A checkpoint of a copied run."""
        return self.root / run / "checkpoints" / name

    def change_checkpoint(self, change: Callable[[dict[str, Any]], Any]) -> None:
        """Change the content of the newest checkpoint, which is written anew with a checksum that fits."""
        self.copy("run")
        path = self.checkpoint()
        content = torch.load(path, weights_only=True)
        change(content)
        path.unlink()
        torch.save(content, path)
        found = path.read_bytes()
        described = {"format": 1, "size": len(found), "sha256": hashlib.sha256(found).hexdigest()}
        sidecar(path).write_text(json.dumps(described), encoding="utf-8")

    def overwrite_checkpoint(self, content: bytes) -> None:
        """Put other bytes in place of the newest checkpoint, without a checksum: as a file from elsewhere."""
        self.copy("run")
        path = self.checkpoint()
        sidecar(path).unlink()
        path.unlink()
        path.write_bytes(content)

    def experiment(self, text: str | bytes) -> list[str]:
        """Write an experiment file of the user's, and say how it is chosen."""
        self.write(
            "mine/experiment/bad.yaml", b"# @package _global_\n" + (text.encode() if isinstance(text, str) else text)
        )
        return ["--config-dir", "mine", "experiment=bad"]


def run_in(folder: Path, argv: Sequence[str], stdin: str = "") -> tuple[int, str]:
    """Exit code of a command in a folder, and all that it printed and logged."""
    shown = io.StringIO()
    logger = logging.getLogger("recyclegpt")
    handler = logging.StreamHandler(shown)
    handler.setLevel(logging.WARNING)
    logger.addHandler(handler)
    before, level, given = Path.cwd(), logger.level, sys.stdin
    os.chdir(folder)
    sys.stdin = io.StringIO(stdin)
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            code = main([str(argument) for argument in argv])
    finally:
        sys.stdin = given
        os.chdir(before)
        logger.removeHandler(handler)
        logger.setLevel(level)
    return code, shown.getvalue()


def snapshot(folder: Path) -> dict[str, str]:
    """Everything below a folder: kind or content of each entry by its name."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            target = str(path.readlink()) if stat.S_ISLNK(mode) else ""
            found[str(path.relative_to(folder))] = f"{stat.S_IFMT(mode):o} {target}"
    return found
