"""Files on disk as documents: plain text and rows, packed or not. What cannot be read is named with file and line."""

from __future__ import annotations

import bz2
import codecs
import errno
import gzip
import io
import lzma
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

from recyclegpt.data.rows import BOM, DAMAGE, bad_bytes, rows_of, split_lines
from recyclegpt.data.source import EMPTY, Record, Split

PACKED: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".zst": lambda raw: pa.input_stream(raw, compression="zstd"),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}
"""Compressed files, which are read as what the name before says."""
_PIECE_BYTES = 1 << 20


def suffix_of(name: str | Path) -> str:
    """What the name says a file is, in lower case; of `a.jsonl.gz`, `a.jsonl.1` and `a.jsonl.bak` `.jsonl`."""
    file = Path(name)
    while file.suffix[1:].isdigit() or file.suffix.lower() in (".bak", ".old", ".orig"):
        file = file.with_suffix("")
    inner = file.with_suffix("") if file.suffix.lower() in PACKED else file
    return inner.suffix.lower()


def unpack(raw: BinaryIO, name: str) -> BinaryIO:
    """An open file, decompressed as its name says.

    Raises:
        OSError: it is UTF-16.
    """
    pack = PACKED.get(Path(name).suffix.lower())
    opened = cast(Any, raw if pack is None else pack(raw))
    if not hasattr(opened, "peek"):
        opened = io.BufferedReader(opened)
    if opened.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise OSError(errno.EINVAL, "UTF-16; convert it: iconv -f utf-16 -t utf-8")
    return cast(BinaryIO, opened)


def read_text(file: Path, split: Split | None = None, val_fraction: float = 0.0) -> Iterator[Record]:
    """One document, in pieces of about a megabyte cut at line ends, so that a large file is never in memory.

    A line that is not UTF-8 is left out. A file with a NUL byte is not text and is left out from that line on.

    Args:
        file: read as UTF-8, without byte order marks; CR LF and CR become LF.
        split: None: all of it; `val`: the lines that begin in its last part; `train`: the others.
        val_fraction: the last part's share of the bytes.
    """
    good: list[str] = []
    size = start = num_problems = 0
    try:
        cut = int(_size(file) * (1 - val_fraction)) if split else 0
        with open_file(file) as opened:
            for number, line in enumerate(split_lines(opened), start=1):
                in_val = start > cut
                start += len(line)
                if split is not None and in_val != (split == "val"):
                    continue
                try:
                    if b"\0" in line:
                        num_problems += 1
                        yield Record("", f"{file}:{number}: a NUL byte, so not a text file; left out from this line on")
                        break
                    text = line.replace(BOM, b"").decode()  # others than the first are of files joined to one
                except UnicodeDecodeError as error:
                    num_problems += 1
                    yield Record("", f"{file}:{number}: {bad_bytes(error)}")
                    continue
                if size >= _PIECE_BYTES:
                    yield Record(_unix(good), ends=False)
                    good, size = [], 0
                good.append(text)
                size += len(line)
    except (OSError, *DAMAGE) as error:
        num_problems += 1
        yield Record("", f"{file}: {_reason(error)}")
    if good:
        yield Record(_unix(good))
    elif not num_problems and split != "val":
        yield Record("", f"{EMPTY}{file}")


def _unix(lines: list[str]) -> str:
    return "".join(lines).replace("\r\n", "\n").replace("\r", "\n")


def read_rows(file: Path, field: str) -> Iterator[Record]:
    """One document per row: see `rows_of`."""
    try:
        with open_file(file) as opened:
            yield from rows_of(opened, suffix_of(file), str(file), field)
    except (OSError, *DAMAGE) as error:
        yield Record("", f"{file}: {_reason(error)}")


@contextmanager
def open_file(file: Path) -> Iterator[BinaryIO]:
    """The open file, decompressed; a pipe or the like is refused, since reading it could block for ever.

    Raises:
        OSError: it is no regular file, or does not exist.
    """
    if not stat.S_ISREG(file.stat().st_mode):
        raise OSError(errno.EINVAL, "is no regular file")
    with file.open("rb") as raw, unpack(raw, file.name) as opened:
        yield opened


def _size(file: Path) -> int:
    """Bytes of the text."""
    if file.suffix.lower() not in PACKED:
        return file.stat().st_size
    with open_file(file) as opened:
        return sum(map(len, iter(lambda: opened.read(_PIECE_BYTES), b"")))


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
