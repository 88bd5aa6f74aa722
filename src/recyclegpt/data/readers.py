"""Readers of text, JSON lines and Parquet that name file and line of what they cannot read."""

from __future__ import annotations

import errno
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from recyclegpt.data.source import EMPTY, Record, Split

_PIECE_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"


def read_text(file: Path, split: Split | None = None, val_fraction: float = 0.0) -> Iterator[Record]:
    """One document, in pieces of about a megabyte cut at line ends, so that a large file is never in memory.

    A line that is not UTF-8 is left out. A file with a NUL byte is not text and is left out from that line on.

    Args:
        file: read as UTF-8, with or without a byte order mark; CR LF becomes LF.
        split: None: all of it; `val`: the lines that begin in its last part; `train`: the others.
        val_fraction: the last part's share of the bytes.
    """
    pending, has_problems = "", False
    try:
        for piece in _pieces(file, split, val_fraction):
            if piece.problem is not None:
                has_problems = True
                yield piece
            else:
                if pending:
                    yield Record(pending, ends=False)
                pending = piece.text
    except OSError as error:
        has_problems = True
        yield Record("", f"{file}: {error.strerror or error}")
    if pending:
        yield Record(pending)
    elif not has_problems and split != "val":
        yield Record("", f"{EMPTY}{file}")


def _pieces(file: Path, split: Split | None, val_fraction: float) -> Iterator[Record]:
    """Pieces of the text, and each line that is not text as a problem."""
    good: list[str] = []
    size = start = 0
    with _open(file) as lines:
        cut = int(file.stat().st_size * (1 - val_fraction))
        for number, line in enumerate(lines, start=1):
            in_val = start > cut
            start += len(line)
            if split is not None and in_val != (split == "val"):
                continue
            try:
                if b"\0" in line:
                    yield Record("", f"{file}:{number}: a NUL byte, so not a text file; left out from this line on")
                    break
                good.append(line.removeprefix(_BOM if number == 1 else b"").decode())
            except UnicodeDecodeError as error:
                yield Record("", f"{file}:{number}: {_bad_bytes(error)}")
            size += len(line)
            if size >= _PIECE_BYTES:
                if good:
                    yield Record("".join(good).replace("\r\n", "\n"))
                good, size = [], 0
    if good:
        yield Record("".join(good).replace("\r\n", "\n"))


def _open(file: Path) -> BinaryIO:
    """The open file; a pipe or the like is refused, since reading it could block for ever.

    Raises:
        OSError: it is no regular file, or does not exist.
    """
    if not stat.S_ISREG(file.stat().st_mode):
        raise OSError(errno.EINVAL, "is no regular file")
    return file.open("rb")


def read_jsonl(file: Path, field: str) -> Iterator[Record]:
    """One document per line, in `field`. Blank lines are ignored; a line that cannot be read is named."""
    try:
        with _open(file) as lines:
            num_lines = 0
            for number, line in enumerate(lines, start=1):
                line = line.removeprefix(_BOM if number == 1 else b"")
                if line.strip():
                    num_lines += 1
                    yield _json_record(line, field, f"{file}:{number}")
        if num_lines == 0:
            yield Record("", f"{EMPTY}{file}")
    except OSError as error:
        yield Record("", f"{file}: {error.strerror or error}")


def _json_record(line: bytes, field: str, where: str) -> Record:
    try:
        value: Any = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return Record("", f"{where}: {_bad_bytes(error)}")
    except (ValueError, RecursionError) as error:
        return Record("", f"{where}: not JSON ({error}); is the line cut off?")
    if not isinstance(value, dict):
        return Record("", f"{where}: a JSON {type(value).__name__}, not an object with the field {field!r}")
    if field not in value:
        return Record("", f"{where}: no field {field!r} among {sorted(value)}; set data.field")
    return text_record(value[field], field, where)


def read_parquet(file: Path, field: str) -> Iterator[Record]:
    """One document per row, in the column `field`; a row that cannot be read is named."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with _open(file) as opened, pq.ParquetFile(opened) as table:
            if field not in table.schema_arrow.names:
                names = sorted(table.schema_arrow.names)
                yield Record("", f"{file}: no column {field!r} among {names}; set data.field")
                return
            if table.metadata.num_rows == 0:
                yield Record("", f"{EMPTY}{file}")
            for batch in table.iter_batches(batch_size=1024, columns=[field]):
                for value in batch.column(0):
                    number += 1
                    try:
                        yield text_record(value.as_py(), field, f"{file}: row {number}")
                    except UnicodeDecodeError as error:
                        yield Record("", f"{file}: row {number}: {_bad_bytes(error)}")
    except (OSError, pa.ArrowException) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        yield Record("", f"{file}: after row {number}: {why}")


def text_record(value: object, field: str, where: str) -> Record:
    """A document that was found in the column `field` of a row."""
    if not isinstance(value, str):
        return Record("", f"{where}: {field!r} is {type(value).__name__}, not text")
    if not value:
        return Record("", f"{EMPTY}{where}")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair, which no tokenizer takes
        return Record("", f"{where}: half a surrogate pair, which is not text")
    return Record(value)


def _bad_bytes(error: UnicodeDecodeError) -> str:
    return f"byte 0x{error.object[error.start]:02x} is not UTF-8"
