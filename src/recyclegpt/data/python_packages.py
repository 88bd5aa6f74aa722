"""A few hundred megabytes of real text without a download: the Python source of all that is installed here."""

from __future__ import annotations

import hashlib
import json
import logging
import string
import tokenize
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from recyclegpt.data.installed import InstalledFile, default_roots, installed_files
from recyclegpt.data.sources import SPLITS, Record, Split
from recyclegpt.errors import ConfigError

_VAL_ONE_IN = 20
_MAX_BYTES = 1 << 20
_MAX_LINE = 1000
_MAX_MEAN_LINE = 100
_MIN_LETTERS = 0.25
_LETTERS = string.ascii_letters.encode()
# Shorter lines ("return None", "else:") stand in every package and say nothing of where a file comes from.
_TELLING_LINE = 20
_MOST_KNOWN = 0.5
_log = logging.getLogger(__name__)


class PythonPackages:
    """The standard library and all installed packages, split by package: what is held out was never trained on.

    A package belongs to the validation split by a hash of its name, one in twenty; so the choice is the same on every
    machine, and the share of bytes is one in twenty in expectation only. `installed_files` says what a package is.
    Packages copy from each other, so a held-out file is left out where half of its telling lines (twenty characters and
    more) occur in training: the forks and copies measured know more than 0.6 of them, other files mostly less than 0.3.

    Tests of packages are kept: they are real Python too, and more text is worth more than a second reading of less.
    Generated text and tables are left out much as for Codex (arXiv 2107.03374, section 3.1): files of more than a
    megabyte, with a line of more than 1000 bytes or a mean of more than 100, or with less than a quarter of letters.

    Both splits are in the order of a hash of each file's place, so that any beginning, such as the characters that a
    tokenizer is trained on, is a fair sample of all packages.

    Args:
        roots: folders like site-packages to read instead of the interpreter's own.

    Raises:
        ConfigError: naming every root that is no folder.
    """

    kind = "python_packages"

    def __init__(self, roots: list[str] | None = None) -> None:
        if roots is None:
            self.roots = default_roots()
            return
        self.roots, problems = [], []
        for given in [roots] if isinstance(roots, str) else roots:
            try:
                root = Path(given).expanduser().resolve()
            except RuntimeError as error:  # the home of a user who is not there, or links in a circle
                problems.append(f"data.roots: {given} is no folder ({str(error).rstrip('.')})")
                continue
            self.roots.append(root)
            if not root.is_dir():
                problems.append(f"data.roots: {root} is no folder")
        if not roots:
            problems.append("data.roots: empty; name a folder, or null for this interpreter's own packages")
        if problems:
            raise ConfigError(problems)

    def candidates(self, split: Split) -> list[InstalledFile]:
        """Files of a split by the name of their package alone, sorted by place; none of them is read."""
        return [file for file in self._installed if split_of(file.package) == split]

    def files(self, split: Split) -> list[InstalledFile]:
        """Files of a split in the order of `records`. The first call reads the whole corpus."""
        return [read.file for read in self._kept[split]]

    def packages(self, split: Split) -> list[str]:
        """Names of the packages of a split, sorted. The first call reads the whole corpus."""
        return sorted({file.package for file in self.files(split)})

    def fingerprint(self) -> str:
        """sha256 of every file's place, package and content; the corpus is read once for it."""
        digest = hashlib.sha256(f"{self.kind} 1".encode())
        for split in SPLITS:
            for read in self._kept[split]:
                digest.update(json.dumps([split, read.file.place, read.file.package, read.content]).encode())
        return digest.hexdigest()

    def records(self, split: Split) -> Iterator[Record]:
        """One document a file."""
        for file in self.files(split):
            try:
                with tokenize.open(file.path) as opened:  # honours the coding cookie
                    yield Record(opened.read())
            except (OSError, SyntaxError, UnicodeError) as error:
                yield Record("", f"{file.path}: {error}")

    @cached_property
    def _found(self) -> list[InstalledFile]:
        return installed_files(self.roots)

    @cached_property
    def _installed(self) -> list[InstalledFile]:
        """Those found whose place is text, by which they are split, ordered and told apart."""
        return [file for file in self._found if _is_text(file.place)]

    @cached_property
    def _kept(self) -> dict[Split, list[_Read]]:
        """Both splits, read and chosen by content.

        Raises:
            ConfigError: if one of them is empty.
        """
        left_out: Counter[str] = Counter()
        val = [
            (read, frozenset(line for line in read.lines if len(line) >= _TELLING_LINE))
            for file in self.candidates("val")
            if (read := _read(file, left_out))
        ]
        telling = frozenset[bytes]().union(*(lines for _, lines in val))
        known: set[bytes] = set()
        train: list[_Read] = []
        for file in self.candidates("train"):
            if read := _read(file, left_out):
                known |= telling.intersection(read.lines)
                train.append(read._replace(lines=[]))
        new = [read._replace(lines=[]) for read, lines in val if len(lines & known) < max(1, _MOST_KNOWN * len(lines))]
        kept: dict[Split, list[_Read]] = {"train": train, "val": new}
        if problems := [f"the {split} split holds no file" for split in SPLITS if not kept[split]]:
            where = ", ".join(map(str, self.roots))
            raise ConfigError(
                [
                    f"data: {problem} of the packages in {where}; name other folders in data.roots, or use "
                    "data=text_files data.paths=[...]"
                    for problem in problems
                ]
            )
        for reads in kept.values():
            reads.sort(key=lambda read: hashlib.sha256(read.file.place.encode()).digest())
        left_out["known from training"] = len(val) - len(new)
        left_out["with a name that is not UTF-8"] = len(self._found) - len(self._installed)
        self._tell(kept, left_out)
        return kept

    def _tell(self, kept: dict[Split, list[_Read]], left_out: Counter[str]) -> None:
        for split, reads in kept.items():
            packages = {read.file.package for read in reads}
            _log.info(
                "%s: %s: %d packages, %d files, %.1f MB%s",
                self.kind,
                split,
                len(packages),
                len(reads),
                sum(read.num_bytes for read in reads) / 1e6,
                f": {', '.join(sorted(packages))}" if split == "val" else "",
            )
        why = ", ".join(f"{number} {reason}" for reason, number in sorted(left_out.items()) if number)
        _log.info("%s: files left out: %s", self.kind, why or "none")


class _Read(NamedTuple):
    """A file that has been read."""

    file: InstalledFile
    content: str
    """Its sha256, or why there is none."""
    num_bytes: int
    lines: list[bytes]


def split_of(package: str) -> Split:
    """The split of a package, by its name alone."""
    return "val" if int(hashlib.sha256(package.encode()).hexdigest()[:8], 16) % _VAL_ONE_IN == 0 else "train"


def held_out_packages(source: object) -> list[str] | None:
    """The packages that a corpus holds out; None where it is not split by package."""
    return source.packages("val") if isinstance(source, PythonPackages) else None


def _is_text(name: str) -> bool:
    """Whether a name is UTF-8; of other bytes Python makes letters that stand for no text."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read(file: InstalledFile, left_out: Counter[str]) -> _Read | None:
    """The file, or None (counted in `left_out`) where its text is not worth training on; empty files do not count."""
    try:
        if not (size := file.path.stat().st_size):
            return None
        if size > _MAX_BYTES:
            left_out["too large"] += 1
            return None
        content = file.path.read_bytes()
    except OSError as error:  # `records` names it
        return _Read(file, f"unreadable: {error.strerror}", 0, [])
    lines = content.split(b"\n")
    if max(map(len, lines)) > _MAX_LINE or len(content) > _MAX_MEAN_LINE * len(lines):
        left_out["with long lines"] += 1
    elif len(content) - len(content.translate(None, _LETTERS)) < _MIN_LETTERS * len(content):
        left_out["of few letters"] += 1
    else:
        return _Read(file, hashlib.sha256(content).hexdigest(), len(content), lines)
    return None
