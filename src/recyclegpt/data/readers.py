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
_OTHER_MARKS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_NO_FILE = "is no regular file"


def read_text(file: Path, start: int = 0, stop: int | None = None) -> Iterator[Record]:
    """One document, in pieces of about a megabyte cut at line ends, so that a large file is never in memory.

    A line that is not UTF-8 is left out; a file with NUL bytes is not text and is left out from that line on.

    Args:
        file: read as UTF-8, with or without a byte order mark; CR LF becomes LF.
        start: first byte, at a line start.
        stop: end of the part that is read; None: of the file.
    """
    waiting: str | None = None
    told = False
    try:
        for piece in _pieces(_regular(file), start, stop):
            if isinstance(piece, Record):
                told = True
                yield piece
                continue
            if waiting is not None:
                yield Record(waiting, ends=False)
            waiting = piece
    except OSError as error:
        told = True
        yield Record("", f"{file}: {error.strerror or error}")
    if waiting is not None:
        yield Record(waiting)
    elif not told and start == 0:
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
                if any(b"\0" in line for line in lines):
                    break
                yield from _decode(file, lines, line_number)
                line_number += len(lines)
                lines, size = [], 0
    if lines:
        yield from _decode(file, lines, line_number)


def _decode(file: Path, lines: list[bytes], line_number: int) -> Iterator[str | Record]:
    if line_number == 1:
        for mark, encoding in _OTHER_MARKS.items():
            if lines[0].startswith(mark):
                yield Record("", f"{file}:1: {encoding}, not UTF-8; convert it (iconv -f {encoding} -t UTF-8)")
                return
        lines[0] = lines[0].removeprefix(_BOM)
    for index, line in enumerate(lines):
        if b"\0" in line:
            yield from _decode_lines(file, lines[:index], line_number)
            where = f"{file}:{line_number + index}"
            yield Record("", f"{where}: a NUL byte, so this is not a text file; left out from this line on")
            return
    yield from _decode_lines(file, lines, line_number)


def _decode_lines(file: Path, lines: list[bytes], line_number: int) -> Iterator[str | Record]:
    together = b"".join(lines)
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


def _regular(file: Path) -> Path:
    """The file, unless it is a pipe or the like, whose reading would wait for ever.

    Raises:
        OSError: it is no regular file, or there is none.
    """
    if not stat.S_ISREG(file.stat().st_mode):
        raise OSError(errno.EINVAL, _NO_FILE)
    return file


def tail_start(file: Path, fraction: float) -> int | None:
    """The first line start in the last `fraction` of a file, in bytes; None where no line starts there.

    Raises:
        OSError: if the file cannot be read.
    """
    size = _regular(file).stat().st_size
    with file.open("rb") as opened:
        opened.seek(int(size * (1 - fraction)))
        opened.readline()
        at = opened.tell()
    return at if at < size else None


def read_jsonl(file: Path, field: str) -> Iterator[Record]:
    """One document a line, in `field`. Blank lines are nothing; a line that cannot be read is named."""
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
    if line.count(json.dumps(field).encode()) > 1 and _says_twice(line, field):
        return Record("", f"{where}: {field!r} twice in one object, so that it has two texts")
    return _text_record(value[field], field, where)


def _says_twice(line: bytes, field: str) -> bool:
    # The hook sees inner objects first, so that the last it was given are the line's own.
    pairs: list[tuple[str, Any]] = []

    def note(found: list[tuple[str, Any]]) -> dict[str, Any]:
        pairs[:] = found
        return dict(found)

    json.loads(line.decode(), object_pairs_hook=note)
    return [name for name, _ in pairs].count(field) > 1


def read_parquet(file: Path, field: str) -> Iterator[Record]:
    """One document a row, in the column `field`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(_regular(file)) as table:
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
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        yield Record("", f"{file}: after row {number}: {why}")


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
