"""Readers of text, JSON lines and Parquet that name file and line of what they cannot read."""

from __future__ import annotations

import errno
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recyclegpt.data.source import EMPTY, Record

_PIECE_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"


def read_text(file: Path, start: int = 0, stop: int | None = None) -> Iterator[Record]:
    """One document, in pieces of about a megabyte cut at line ends, so that a large file is never in memory.

    A line that is not UTF-8 is left out. A file with a NUL byte is not text and is left out from that line on.

    Args:
        file: read as UTF-8, with or without a byte order mark; CR LF becomes LF.
        start: first byte to read, at a line start.
        stop: first byte not to read, at a line start; None: read to the end.
    """
    pending: str | None = None
    num_problems = 0
    try:
        for line_number, lines in _blocks(_regular(file), start, stop):
            text, problems = _decode(file, line_number, lines)
            yield from problems
            num_problems += len(problems)
            if text and pending is not None:
                yield Record(pending, ends=False)
            pending = text or pending
            if any(b"\0" in line for line in lines):
                break
    except OSError as error:
        num_problems += 1
        yield Record("", f"{file}: {error.strerror or error}")
    if pending is not None:
        yield Record(pending)
    elif num_problems == 0 and start == 0:
        yield Record("", f"{EMPTY}{file}")


def _blocks(file: Path, start: int, stop: int | None) -> Iterator[tuple[int, list[bytes]]]:
    """Lines of the part of a file, about a megabyte together, with the number of the first."""
    lines: list[bytes] = []
    size, line_number = 0, 1
    with file.open("rb") as opened:
        while opened.tell() < start:
            line_number += opened.read(min(_PIECE_BYTES, start - opened.tell())).count(b"\n")
        left = file.stat().st_size - start if stop is None else stop - start
        while left > 0 and (line := opened.readline()):
            lines.append(line)
            left -= len(line)
            size += len(line)
            if size >= _PIECE_BYTES:
                yield line_number, lines
                line_number += len(lines)
                lines, size = [], 0
    if lines:
        yield line_number, lines


def _decode(file: Path, line_number: int, lines: list[bytes]) -> tuple[str, list[Record]]:
    """The text of the lines that can be read, and a record for each that cannot."""
    if line_number == 1:
        lines[0] = lines[0].removeprefix(_BOM)
    good: list[str] = []
    problems: list[Record] = []
    try:
        together = b"".join(lines).decode()
        if "\0" not in together:
            return together.replace("\r\n", "\n"), []
    except UnicodeDecodeError:
        pass
    for number, line in enumerate(lines, start=line_number):
        if b"\0" in line:
            why = "a NUL byte, so this is not a text file; left out from this line on"
            problems.append(Record("", f"{file}:{number}: {why}"))
            break
        try:
            good.append(line.decode())
        except UnicodeDecodeError as error:
            problems.append(Record("", f"{file}:{number}: {_bad_bytes(error)}"))
    return "".join(good).replace("\r\n", "\n"), problems


def _regular(file: Path) -> Path:
    """The file; a pipe or the like is refused, since reading it could block for ever.

    Raises:
        OSError: it is no regular file, or does not exist.
    """
    if not stat.S_ISREG(file.stat().st_mode):
        raise OSError(errno.EINVAL, "is no regular file")
    return file


def tail_start(file: Path, fraction: float) -> int | None:
    """The first line start in the last `fraction` of a file, in bytes; None where no line starts there.

    Raises:
        OSError: the file cannot be read.
    """
    size = _regular(file).stat().st_size
    with file.open("rb") as opened:
        opened.seek(int(size * (1 - fraction)))
        opened.readline()
        at = opened.tell()
    return at if at < size else None


def read_jsonl(file: Path, field: str) -> Iterator[Record]:
    """One document per line, in `field`. Blank lines are ignored; a line that cannot be read is named."""
    try:
        with _regular(file).open("rb") as lines:
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
    """One document per row, in the column `field`; a row that cannot be read is named."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(_regular(file)) as table:
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
                        yield _text_record(value.as_py(), field, f"{file}: row {number}")
                    except UnicodeDecodeError as error:
                        yield Record("", f"{file}: row {number}: {_bad_bytes(error)}")
    except (OSError, pa.ArrowException) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        yield Record("", f"{file}: after row {number}: {why}")


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
