"""Small files that readers see as they were or as they are meant to be, never in part."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

TEMPORARY = ".tmp"
"""How the name of a file that is being written ends."""


def temporary_beside(path: Path) -> Path:
    """A name nobody else uses, in the same folder: a renaming is atomic only inside one file system."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")


def write_whole(path: Path, text: str) -> None:
    """Write a text file, brought to the disk before it takes its name.

    Raises:
        OSError: it cannot be written; an earlier file of this name is as it was.
    """
    temporary = temporary_beside(path)
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
