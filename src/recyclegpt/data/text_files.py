"""Any text on disk: files, folders and patterns; plain text, JSON lines and Parquet."""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from recyclegpt.data.readers import read_jsonl, read_parquet, read_text
from recyclegpt.data.source import Record, Split, sha256_of
from recyclegpt.errors import ConfigError

_JSONL = {".jsonl", ".ndjson"}
_PARQUET = {".parquet", ".pq"}
# fmt: off
_NOT_TEXT = {
    ".7z", ".bz2", ".gz", ".tar", ".tgz", ".whl", ".xz", ".zip", ".zst",
    ".avi", ".bmp", ".gif", ".ico", ".jpeg", ".jpg", ".mov", ".mp3", ".mp4", ".png", ".tif", ".tiff", ".wav", ".webp",
    ".doc", ".docx", ".odt", ".otf", ".pdf", ".ppt", ".pptx", ".ttf", ".woff", ".woff2", ".xls", ".xlsx",
    ".arrow", ".bin", ".ckpt", ".db", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth", ".safetensors", ".sqlite",
    ".a", ".dll", ".exe", ".mo", ".o", ".pyc", ".pyd", ".so",
}
# fmt: on
"""Archives, pictures and sounds, documents and fonts, arrays, compiled code: left out of folders and patterns."""
_MANY_FILES = 20


class TextFiles:
    """Text files as a corpus.

    A document is a plain text file, a JSON line or a Parquet row; bad lines and rows are left out and counted. Without
    `val_paths`, every 1/`val_fraction`-th document is held out for validation; where there are fewer than twenty plain
    text files, the tail of each, cut at a line end.

    Args:
        paths: files, folders (with their subfolders, hidden files left out) and patterns (`*`, `**`); `~` is expanded.
        val_paths: the same for validation; these files are left out of training.
        val_fraction: share of the text kept for validation where `val_paths` is not given.
        field: the field of JSON lines and Parquet rows that holds the text.

    Raises:
        ConfigError: naming every path that matches no file.
    """

    kind = "text_files"

    def __init__(
        self, paths: list[str], val_paths: list[str] | None = None, val_fraction: float = 0.05, field: str = "text"
    ) -> None:
        problems: list[str] = []
        if not 0 < val_fraction < 1:
            problems.append(f"data.val_fraction: {val_fraction} is not between 0 and 1")
        found = _find("data.paths", paths, problems)
        self.val_files = _find("data.val_paths", val_paths, problems) if val_paths is not None else None
        held_out = set(self.val_files or ())
        self.files = [file for file in found if file not in held_out]
        if found and not self.files:
            problems.append("data.val_paths: names every file of data.paths, so that none is left to train on")
        if problems:
            raise ConfigError(problems)
        self.val_fraction = val_fraction
        self.field = field

    def fingerprint(self) -> str:
        """sha256 of names, contents and the rule that divides them. Reads every file each time."""
        digest = hashlib.sha256(json.dumps([self.kind, 1, self.val_fraction, self.field]).encode())
        for role, files in (("train", self.files), ("val", self.val_files or [])):
            for file in files:
                try:
                    content = sha256_of(file) if file.is_file() else "no regular file"
                except OSError:
                    content = "unreadable"
                digest.update(json.dumps([role, file.name, content]).encode())
        return digest.hexdigest()

    def records(self, split: Split) -> Iterator[Record]:
        """Documents file by file, sorted by path."""
        if self.val_files is not None:
            for file in self.files if split == "train" else self.val_files:
                yield from self._read(file)
            return
        period = max(2, round(1 / self.val_fraction))
        num_texts = sum(not _holds_rows(file) for file in self.files)
        text_number, row_numbers = itertools.count(), itertools.count()
        for file in self.files:
            if _holds_rows(file):
                # The second of each `period`, so that two documents are enough for both splits.
                for record, number in zip(self._read(file), row_numbers, strict=False):
                    if (number % period == 1) == (split == "val"):
                        yield record
            elif num_texts >= _MANY_FILES:
                if (next(text_number) % period == 1) == (split == "val"):
                    yield from self._read(file)
            else:
                yield from self._read(file, split)

    def _read(self, file: Path, split: Split | None = None) -> Iterator[Record]:
        if file.suffix.lower() in _JSONL:
            return read_jsonl(file, self.field)
        if file.suffix.lower() in _PARQUET:
            return read_parquet(file, self.field)
        return read_text(file, split, self.val_fraction)


def _holds_rows(file: Path) -> bool:
    return file.suffix.lower() in _JSONL | _PARQUET


def _find(key: str, paths: Sequence[str], problems: list[str]) -> list[Path]:
    """Every file that `paths` names, sorted, once each; appends to `problems`."""
    paths = [paths] if isinstance(paths, str) else paths
    if not paths:
        problems.append(f"{key}: empty; name at least one file, folder or pattern")
    found: set[Path] = set()
    for given in paths:
        path = Path(given).expanduser()
        if path.exists() and not path.is_dir():
            found.add(path.resolve())
        else:
            files = _files_in(path)
            texts = [file for file in files if file.suffix.lower() not in _NOT_TEXT]
            if not texts:
                why = "matches no file" if "*" in given else "holds no text file" if path.is_dir() else "does not exist"
                problems.append(f"{key}: {given!r} {why}; name a file, a folder or a pattern that does")
            found.update(file.resolve() if file.is_file() else file.absolute() for file in texts)
    return sorted(found)


def _files_in(path: Path) -> list[Path]:
    """Files of a folder or pattern. Pipes and broken links are among them: reading them reports the problem."""
    if path.is_dir():
        parts = {file: file.relative_to(path).parts for file in path.rglob("*")}
        inside = [file for file in parts if not any(part[0] == "." or part == "__pycache__" for part in parts[file])]
    else:
        inside = [Path(name) for name in glob.glob(str(path), recursive=True)]  # noqa: PTH207
    return [file for file in inside if not file.is_dir()]
