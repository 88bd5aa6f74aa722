"""Export folders: written atomically, and replaced only if an export wrote everything in them."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recyclegpt.export.safetensors import is_written_by_export
from recyclegpt.files import temporary_beside

EXPORTED = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "README.md",
    "modeling_recyclegpt.py",
    "custom_generate",
    "custom_generate/generate.py",
)
"""All that an export may hold. Anything else in a folder is somebody's work."""
WEIGHTS = "*.safetensors"
"""Every format writes at least one; its header tells an export from another checkpoint with the same file names."""


def occupied(folder: Path, overwrite: bool) -> str | None:
    """Why the folder must not be written to; None if it may be."""
    if not folder.exists():
        return None
    if folder.is_symlink() or not folder.is_dir():
        return f"{folder} is a file or a link; give a folder"
    paths = sorted([*folder.glob("*"), *folder.glob("*/*")])
    names = [path.relative_to(folder).as_posix() for path in paths]
    foreign = [name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in EXPORTED)]
    weights = [path for path in paths if path.match(WEIGHTS)]
    foreign += [path.name for path in weights if not is_written_by_export(path)]
    if foreign or (names and not weights):
        named = ", ".join(foreign[:3] or names[:3])
        return f"{folder} holds files that no export wrote ({named}); give another folder"
    if names and not overwrite:
        return f"{folder} is not empty; give another folder, or overwrite=true to replace the export in it"
    return None


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `folder` when the block ends without an error.

    Raises:
        OSError: it cannot be made or moved; what was there before is there again.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    new, old = temporary_beside(folder), temporary_beside(folder)
    new.mkdir()
    try:
        yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for rest in (new, old):
            shutil.rmtree(rest, ignore_errors=True)
