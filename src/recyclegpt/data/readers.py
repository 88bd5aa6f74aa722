"""Readers of text, JSON lines and Parquet that name file and line of what they cannot read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recyclegpt.data.sources import EMPTY, Record

_PIECE_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"


def read_text(file: Path, start: int = 0, stop: int | None = None) -> Iterator[Record]:
    """One document, in pieces of about a megabyte cut at line ends, so that a large file is never in memory.

    A line that is not UTF-8 is left out; a file with NUL bytes is not text and is left out from there on.

    Args:
        file: read as UTF-8, with or without a byte order mark; CR LF becomes LF.
        start: first byte, at a line start.
        stop: end of the part that is read; None: of the file.
    """
    waiting: str | None = None
    try:
        for piece in _pieces(file, start, stop):
            if isinstance(piece, Record):
                yield piece
                continue
            if waiting is not None:
                yield Record(waiting, ends=False)
            waiting = piece
    except OSError as error:
        yield Record("", f"{file}: {error.strerror or error}")
    if waiting is not None:
        yield Record(waiting)
    elif file.is_file() and file.stat().st_size == 0:
        yield Record("", f"{EMPTY}{file}")


def _pieces(file: Path, start: int, stop: int | None) -> Iterator[str | Record]:
    lines: list[bytes] = []
    size, line_number = 0, 1
    with file.open("rb") as opened:
        if start:
            while opened.tell() < start:
                line_number += opened.read(min(_PIECE_BYTES, start - opened.tell())).count(b"\n")
        left = None if stop is None else stop - start
        while left is None or left > 0:
            line = opened.readline() if left is None else opened.readline(left)
            if left is not None:
                left -= len(line)
            if not line:
                break
            lines.append(line)
            size += len(line)
            if size >= _PIECE_BYTES:
                yield from _decode(file, lines, line_number)
                line_number += len(lines)
                lines, size = [], 0
    if lines:
        yield from _decode(file, lines, line_number)


def _decode(file: Path, lines: list[bytes], line_number: int) -> Iterator[str | Record]:
    if line_number == 1 and lines[0].startswith(_BOM):
        lines[0] = lines[0][len(_BOM) :]
    together = b"".join(lines)
    if b"\0" in together:
        at = together[: together.index(b"\0")].count(b"\n") + line_number
        yield Record("", f"{file}:{at}: a NUL byte, so this is not a text file")
        return
    try:
        text = together.decode()
    except UnicodeDecodeError:
        good = []
        for number, line in enumerate(lines, start=line_number):
            try:
                good.append(line.decode())
            except UnicodeDecodeError as error:
                yield Record("", f"{file}:{number}: {_bad_bytes(error)}")
        text = "".join(good)
    if text:
        yield text.replace("\r\n", "\n")


def tail_start(file: Path, fraction: float) -> int | None:
    """The first line start in the last `fraction` of a file, in bytes; None where no line starts there.

    Raises:
        OSError: if the file cannot be read.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        opened.seek(int(size * (1 - fraction)))
        opened.readline()
        at = opened.tell()
    return at if at < size else None


def read_jsonl(file: Path, field: str) -> Iterator[Record]:
    """One document a line, in `field`. Blank lines are nothing; a line that cannot be read is named."""
    try:
        with file.open("rb") as lines:
            num_lines = 0
            for number, raw in enumerate(lines, start=1):
                line = raw.removeprefix(_BOM) if number == 1 else raw
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
    return _text_record(value[field], field, where)


def read_parquet(file: Path, field: str) -> Iterator[Record]:
    """One document a row, in the column `field`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(file) as table:
            if field not in table.schema_arrow.names:
                yield Record(
                    "", f"{file}: no column {field!r} among {sorted(table.schema_arrow.names)}; set data.field"
                )
                return
            if table.metadata.num_rows == 0:
                yield Record("", f"{EMPTY}{file}")
            for batch in table.iter_batches(batch_size=1024, columns=[field]):
                for value in batch.column(0):
                    number += 1
                    yield _parquet_record(value, field, f"{file}: row {number}")
    except (OSError, pa.ArrowException) as error:
        yield Record("", f"{file}: after row {number}: {error}")


def _parquet_record(value: Any, field: str, where: str) -> Record:
    try:
        return _text_record(value.as_py(), field, where)
    except UnicodeDecodeError as error:
        return Record("", f"{where}: {_bad_bytes(error)}")


def _text_record(value: object, field: str, where: str) -> Record:
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
