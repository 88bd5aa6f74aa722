"""A malformed input: the folder it is prepared in, the command that meets it, and what the message has to name."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recyclegpt.checkpoints.file import sidecar
from tests.small_run import NEWEST

MARKER = "executed"
"""The file that every payload tries to create in the working folder."""
CORPUS = "CORPUS"
"""Stands in an argument for the folder of the shared corpus."""
REFUSED, DONE = 2, 0


class Payload:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {MARKER}",)


def saved(value: Any) -> bytes:
    """What `torch.save` writes."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


@dataclass(frozen=True)
class Place:
    """The folder that a case is prepared in, which is the working folder of its command."""

    root: Path
    base: Path

    def copy(self, *names: str) -> None:
        """Copy parts of the base: `corpus`, `run`, `shards`, `pretrained`."""
        for name in names:
            shutil.copytree(self.base / name, self.root / name)

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file; missing folders are created."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def pipe(self, name: str) -> None:
        """A named pipe, which a reader would wait at for ever."""
        (self.root / name).unlink(missing_ok=True)
        os.mkfifo(self.root / name)

    def change_json(self, name: str, change: Callable[[Any], Any]) -> None:
        """Change the document of a JSON file in place."""
        document = json.loads((self.root / name).read_text(encoding="utf-8"))
        change(document)
        self.write(name, json.dumps(document))

    def flip_bit(self, name: str, at: int) -> None:
        """Change one bit of a file."""
        content = bytearray((self.root / name).read_bytes())
        content[at] ^= 1
        self.write(name, bytes(content))

    def replace_checkpoint(self, content: bytes) -> None:
        """Other bytes in place of the newest checkpoint, without a checksum: a file from elsewhere."""
        path = self.write(f"run/checkpoints/{NEWEST}", content)
        sidecar(path).unlink(missing_ok=True)

    def change_checkpoint(self, change: Callable[[dict[str, Any]], Any]) -> None:
        """Change the content of the newest checkpoint, and write it without a checksum."""
        content = torch.load(self.root / "run/checkpoints" / NEWEST, weights_only=True)
        change(content)
        self.replace_checkpoint(saved(content))


@dataclass(frozen=True)
class Case:
    """One malformed input.

    Attributes:
        name: what is wrong.
        argv: the command.
        words: keys or files that the message has to name.
        copies: parts of the base that are there.
        prepare: makes the bad input.
        code: 2: refused, with everything as it was; 0: the bad part is skipped and named.
    """

    name: str
    argv: Sequence[str]
    words: Sequence[str]
    copies: Sequence[str] = ()
    prepare: Callable[[Place], Any] = lambda _: None
    code: int = REFUSED


def snapshot(folder: Path) -> dict[str, str]:
    """Everything below a folder: kind or content of each entry by its name."""
    found = {}
    for path in sorted(folder.rglob("*")):
        is_file = stat.S_ISREG(path.lstat().st_mode)
        content = hashlib.sha256(path.read_bytes()).hexdigest() if is_file else str(stat.S_IFMT(path.lstat().st_mode))
        found[str(path.relative_to(folder))] = content
    return found
