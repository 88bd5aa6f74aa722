"""Text on disk as a corpus: files, folders and patterns of plain text and rows; or the interpreter's own library."""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import logging
import os
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from recyclegpt.data.readers import read_rows, read_text, suffix_of
from recyclegpt.data.rows import ROWS
from recyclegpt.data.source import Record, Split
from recyclegpt.errors import ConfigError
from recyclegpt.files import sha256_of

# fmt: off
_NOT_TEXT = {  # left out of folders and patterns, and counted
    ".7z", ".epub", ".lz4", ".rar", ".tar", ".tgz", ".whl", ".zip",
    ".avi", ".bmp", ".gif", ".ico", ".jpeg", ".jpg", ".mov", ".mp3", ".mp4", ".png", ".svg", ".tif", ".tiff", ".wav",
    ".webp",
    ".doc", ".docx", ".odt", ".otf", ".pdf", ".ppt", ".pptx", ".ttf", ".woff", ".woff2", ".xls", ".xlsx",
    ".bin", ".ckpt", ".db", ".feather", ".h5", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth", ".safetensors",
    ".sqlite",
    ".a", ".dll", ".exe", ".mo", ".o", ".pyc", ".pyd", ".so",
}
_STRUCTURED = {  # no reader here; plain text only on request
    ".eml", ".geojson", ".htm", ".html", ".ipynb", ".json5", ".mbox", ".plist", ".rss", ".rtf", ".srt", ".vtt", ".warc",
    ".xhtml", ".xml", ".yaml", ".yml",
}
# fmt: on
_MANY_FILES = 20
_log = logging.getLogger(__name__)


class TextFiles:
    """Text files as a corpus.

    A document is a plain text file or a row; bad lines and rows are left out and counted. Without `val_paths`, every
    1/`val_fraction`-th document is held out for validation; where there are fewer than twenty plain text files, the
    tail of each, cut at a line end.

    Args:
        paths: files, folders (with their subfolders, hidden files left out) and patterns (`*`, `**`); `~` is expanded.
            What a file is says its name, also that of a link.
        val_paths: the same for validation; these files are left out of training.
        val_fraction: share of the text kept for validation where `val_paths` is not given.
        as_text: read HTML, notebooks and what else has no reader as plain text.

    Raises:
        ConfigError: naming every path that matches no file, and the files without a reader.
    """

    kind = "text_files"

    def __init__(
        self,
        paths: list[str],
        val_paths: list[str] | None = None,
        val_fraction: float = 0.05,
        field: str = "text",
        as_text: bool = False,
    ) -> None:
        problems: list[str] = []
        if not 0 < val_fraction < 1:
            problems.append(f"data.val_fraction: {val_fraction} is not between 0 and 1")
        self.left_out: Counter[str] = Counter()
        """Files of folders and patterns that hold no text, by kind."""
        found = _find("data.paths", paths, as_text, self.left_out, problems)
        self.val_files = None
        if val_paths is not None:
            self.val_files = _find("data.val_paths", val_paths, as_text, self.left_out, problems)
        held_out = {file.resolve() for file in self.val_files or ()}
        self.files = [file for file in found if file.resolve() not in held_out]
        if found and not self.files:
            problems.append("data.val_paths: names every file of data.paths, so that none is left to train on")
        if problems:
            raise ConfigError(problems)
        self.val_fraction = val_fraction
        self.field = field

    def fingerprint(self) -> str:
        """sha256 of names, contents and the rule that divides them. Reads every file each time."""
        if self.left_out:
            kinds = ", ".join(f"{number} {suffix}" for suffix, number in self.left_out.most_common())
            _log.warning("data.paths: left out %d files that hold no text: %s", self.left_out.total(), kinds)
        digest = hashlib.sha256(json.dumps([self.kind, 2, self.val_fraction, self.field]).encode())
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

    def whole(self) -> Iterator[Record]:
        """All documents undivided: of `val_paths` where they are given, else of `paths`."""
        for file in self.val_files or self.files:
            yield from self._read(file)

    def _read(self, file: Path, split: Split | None = None) -> Iterator[Record]:
        return read_rows(file, self.field) if _holds_rows(file) else read_text(file, split, self.val_fraction)


def _holds_rows(file: Path) -> bool:
    return bool(suffix_of(file)) and suffix_of(file) in ROWS


def _find(key: str, paths: Sequence[str], as_text: bool, left_out: Counter[str], problems: list[str]) -> list[Path]:
    """Every file that `paths` names, sorted, once each; adds to `left_out` by kind, and to `problems`."""
    paths = paths if isinstance(paths, Sequence) and not isinstance(paths, str) else [paths]
    if not paths or "" in paths:  # as a path, nothing is the current folder
        problems.append(f"{key}: empty; name at least one file, folder or pattern")
        return []
    found: dict[Path, Path] = {}
    for given in paths:
        if not isinstance(given, str):
            problems.append(f"{key}: {given!r} is no text; begin a name that is a number with ./ (./2024)")
            continue
        path = Path(given).expanduser()
        is_file = path.exists() and not path.is_dir()
        files = [path] if is_file else [one for one in _files_in(path) if not _goes_with_rows(one)]
        texts = [file for file in files if is_file or suffix_of(file) not in _NOT_TEXT]
        left_out.update(suffix_of(file) for file in files if not is_file and suffix_of(file) in _NOT_TEXT)
        if not texts:
            why = "matches no file" if "*" in given else "holds no text file" if path.is_dir() else "does not exist"
            problems.append(f"{key}: {given!r} {why}; name a file, a folder or a pattern that does")
        for file in texts:
            # Links are resolved only to read each file once, under a name that says what it is if it has one.
            known = found.get(file.resolve())
            if known is None or (bool(file.suffix), known.name) > (bool(known.suffix), file.name):
                found[file.resolve()] = file.parent.resolve() / file.name
    refused = sorted(file for file in found.values() if suffix_of(file) in _STRUCTURED | _NOT_TEXT and not as_text)
    if refused:
        names = ", ".join(str(file) for file in refused[:3]) + (" ..." if len(refused) > 3 else "")
        problems.append(
            f"{key}: {len(refused)} files have no reader ({names}); convert them to text, name files or patterns "
            "without them, or set data.as_text=true to take them as plain text, markup included"
        )
    for folder in sorted({file.parent.parent for file in found.values() if file.suffix == ".arrow"}):
        splits = sorted({file.parent.name for file in found.values() if file.parent.parent == folder})
        if len(splits) > 1 and (folder / "dataset_dict.json").is_file():
            problems.append(f"{key}: {folder} holds several splits ({', '.join(splits)}); name the one to read")
    return sorted(found.values())


def _goes_with_rows(file: Path) -> bool:
    """Whether `datasets` has put a file next to the rows of a dataset: notes, or a cache of its rows and indices."""
    is_note = file.name in ("dataset_info.json", "state.json") and any(file.parent.glob("*.arrow"))
    return is_note or file.name == "dataset_dict.json" or file.match("cache-*.arrow")


def _files_in(path: Path) -> list[Path]:
    """Files of a folder or pattern. Pipes and broken links are among them: reading them reports the problem.

    `**` is read as a folder is, and then what the rest of the pattern matches.
    """
    at = path.parts.index("**") if "**" in path.parts else len(path.parts)
    rest = [part for part in path.parts[at + 1 :] if part != "**"] or ["*"]
    tops = [(top, list(_walk(top, set())) if top.is_dir() else [top]) for top in _matching(path.parts[:at])]
    return [file for top, files in tops for file in files if file == top or _ends_like(file.relative_to(top), rest)]


def _matching(parts: Sequence[str]) -> list[Path]:
    """What a pattern without `**` matches; what of it exists as it is spelt is no pattern."""
    known = next((upto for upto in range(len(parts), 0, -1) if Path(*parts[:upto]).exists()), 0)
    top, rest = Path(*parts[:known]), parts[known:]
    return [top / name for name in sorted(glob.glob(str(Path(*rest)), root_dir=top))] if rest else [top]  # noqa: PTH207


def _ends_like(path: Path, patterns: Sequence[str]) -> bool:
    return len(path.parts) >= len(patterns) and all(map(fnmatch, path.parts[-len(patterns) :], patterns))


def _walk(folder: Path, above: set[Path]) -> Iterator[Path]:
    """Files of a folder and of its subfolders, links among them too, but none that leads back up."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        yield folder  # reading it reports the problem
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name == "__pycache__":
            continue
        if not entry.is_dir():
            yield Path(entry.path)
        elif (inner := Path(entry.path).resolve()) not in above:
            yield from _walk(Path(entry.path), {*above, folder.resolve(), inner})


# Tests are left out because Debian does not ship them: results should not depend on who packaged Python.
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
# These describe the machine that built Python, not the language.
_SKIPPED_PREFIXES = ("config-", "_sysconfigdata", "sitecustomize", "usercustomize", "__editable__")
_VAL_ONE_IN = 20


class PythonStdlib:
    """About 12 MB of real text on every machine; with `root`, the Python files of that folder instead.

    About one file in twenty is held out for validation, by a hash of its path.
    """

    kind = "python_stdlib"

    def __init__(self, root: str | None = None) -> None:
        self.root = Path(root).expanduser() if root else Path(sysconfig.get_path("stdlib"))

    def files(self, split: Split | None = None) -> list[Path]:
        """Source files of a split (None: both), sorted by path. Empty files, such as many `__init__.py`, are ignored.

        Raises:
            ConfigError: the folder holds no Python source.
        """
        found = []
        for folder, folders, names in os.walk(self.root):
            skipped = {name for name in (*folders, *names) if name.startswith(_SKIPPED_PREFIXES)} | _SKIPPED_FOLDERS
            folders[:] = [name for name in folders if name not in skipped]
            paths = (Path(folder, name) for name in names if name.endswith(".py") and name not in skipped)
            found += [path for path in paths if path.stat().st_size > 0]
        if not found:
            raise ConfigError(f"data: {self.root} holds no Python source; use data=text_files data.paths=[...] instead")
        found.sort(key=self._relative)
        return [path for path in found if split is None or _split_of(self._relative(path)) == split]

    def fingerprint(self) -> str:
        """sha256 of every path and content."""
        digest = hashlib.sha256(f"{self.kind} 1".encode())
        for path in self.files():
            digest.update(self._relative(path).encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def records(self, split: Split) -> Iterator[Record]:
        """One document per file."""
        for path in self.files(split):
            try:
                with tokenize.open(path) as file:  # reads the encoding declaration
                    yield Record(file.read())
            except (OSError, SyntaxError, UnicodeError) as error:
                yield Record("", f"{path}: {error}")

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _split_of(relative: str) -> Split:
    return "val" if int(hashlib.sha256(relative.encode()).hexdigest()[:8], 16) % _VAL_ONE_IN == 0 else "train"
