"""The embedded default corpus: the Python source of the running interpreter's own standard library."""

from __future__ import annotations

import hashlib
import os
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from recyclegpt.data.source import Record, Split
from recyclegpt.errors import ConfigError

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
