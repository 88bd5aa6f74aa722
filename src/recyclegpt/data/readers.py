"""Readers of text and rows on disk that name file and line of what they cannot read."""

from __future__ import annotations

import codecs
import csv
import errno
import gzip
import io
import json
import stat
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from recyclegpt.data.source import EMPTY, Record, Split

ROWS = {".jsonl", ".jsonlines", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".pq", ".arrow"}
"""Names of files that hold one document a row."""
PACKED = {".gz", ".zst"}
"""Compressed files that are read as what the name before says."""
MESSAGES = "messages"
_TABLES = {".parquet", ".pq", ".arrow"}
_NOT_JSON = "not JSON ({}); is the line cut off?"
_PIECE_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_FAILURES = (OSError, EOFError, zlib.error, csv.Error, pa.ArrowException)


def suffix_of(file: Path) -> str:
    """What the name says a file is, in lower case; of `a.jsonl.gz` `.jsonl`."""
    inner = file.with_suffix("") if file.suffix.lower() in PACKED else file
    return inner.suffix.lower()


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
    except _FAILURES as error:
        has_problems = True
        yield Record("", f"{file}: {_reason(error)}")
    if pending:
        yield Record(pending)
    elif not has_problems and split != "val":
        yield Record("", f"{EMPTY}{file}")


def _pieces(file: Path, split: Split | None, val_fraction: float) -> Iterator[Record]:
    """Pieces of the text, and each line that is not text as a problem."""
    good: list[str] = []
    size = start = 0
    cut = int(_size(file) * (1 - val_fraction)) if split else 0
    with _open(file) as lines:
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


def read_rows(file: Path, field: str) -> Iterator[Record]:
    """One document per row, in `field`, or where that is missing a conversation in `messages`.

    Blank JSON lines are ignored; a row that cannot be read is named.
    """
    num_rows, readers = 0, {".json": _json, ".csv": _csv, ".tsv": _csv}
    read = readers.get(suffix_of(file), _table if suffix_of(file) in _TABLES else _json_lines)
    try:
        for where, row in read(file, field):
            num_rows += 1
            yield row_record(row, field, f"{file}{where}")
        if num_rows == 0:
            yield Record("", f"{EMPTY}{file}")
    except _FAILURES as error:
        yield Record("", f"{file}: after row {num_rows}: {_reason(error)}")


def _json_lines(file: Path, _: str) -> Iterator[tuple[str, Any]]:
    with _open(file) as lines:
        for number, with_mark in enumerate(lines, start=1):
            line = with_mark.removeprefix(_BOM if number == 1 else b"")
            if line.strip():
                yield f":{number}", parse_json(line)


def _json(file: Path, field: str) -> Iterator[tuple[str, Any]]:
    """The items of an array, one object, or lines."""
    with _open(file) as opened:
        content = opened.read().removeprefix(_BOM)
    whole = parse_json(content)
    if isinstance(whole, ValueError) and not content.lstrip().startswith(b"["):
        yield from _json_lines(file, field)
    elif isinstance(whole, list):
        yield from ((f": item {number}", row) for number, row in enumerate(whole, start=1))
    else:
        yield "", whole


def _csv(file: Path, _: str) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(1 << 30)
    with _open(file) as opened:
        lines = io.TextIOWrapper(opened, "utf-8-sig", "surrogateescape", newline="")
        header = lines.readline()
        of_csv = max(",;\t|", key=header.count)
        names = next(csv.reader([header], delimiter=of_csv), [])
        delimiter = "\t" if suffix_of(file) == ".tsv" else of_csv
        rows = csv.DictReader(lines, names, delimiter=delimiter, strict=True)
        while True:
            start = rows.line_num + 2
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:  # a quote that is not closed takes all lines that follow
                end = rows.reader.line_num + 1
                yield f":{start}", ValueError(f"double quotes that do not fit ({error}); left out up to line {end}")
                rows.line_num = rows.reader.line_num
                continue
            if any(row.pop(None, ())):
                why = f"more cells than columns; put texts with {delimiter!r} in double quotes"
                yield f":{rows.line_num + 1}", ValueError(why)
            else:
                yield f":{rows.line_num + 1}", row


def _table(file: Path, field: str) -> Iterator[tuple[str, Any]]:
    with _open(file) as opened:
        is_arrow = suffix_of(file) == ".arrow"
        if file.suffix.lower() in PACKED:
            opened = cast(BinaryIO, io.BytesIO(opened.read()))  # tables are read from their end
        is_file = opened.read(6) == b"ARROW1"  # `datasets` writes streams
        opened.seek(0)
        opener = pa.ipc.open_file if is_file else pa.ipc.open_stream
        table = opener(opened) if is_arrow else pq.ParquetFile(opened)
        names = (table.schema if is_arrow else table.schema_arrow).names
        wanted = field if field in names else MESSAGES
        if wanted not in names:
            yield "", dict.fromkeys(names)
            return
        if is_arrow:
            batches = map(table.get_batch, range(table.num_record_batches)) if is_file else table
        else:
            batches = table.iter_batches(batch_size=1024, columns=[wanted])
        for number, value in enumerate((value for batch in batches for value in batch.column(wanted)), start=1):
            try:
                yield f": row {number}", {wanted: value.as_py()}
            except UnicodeDecodeError as error:
                yield f": row {number}", error


def parse_json(line: bytes) -> Any:
    """A JSON value, or the error."""
    try:
        return json.loads(line.decode())
    except ValueError as error:
        return error if isinstance(error, UnicodeDecodeError) else ValueError(_NOT_JSON.format(error))
    except RecursionError:
        return ValueError(_NOT_JSON.format("nested too deeply"))


def row_record(row: Any, field: str, where: str) -> Record:
    """The document that a row holds in `field`, or where that is missing in `messages`."""
    if isinstance(row, UnicodeDecodeError):
        return Record("", f"{where}: {_bad_bytes(row)}")
    if isinstance(row, ValueError):
        return Record("", f"{where}: {row}")
    if isinstance(row, str):
        return text_record(row, field, where)
    if not isinstance(row, Mapping):
        return Record("", f"{where}: a JSON {type(row).__name__}, not an object with the field {field!r}")
    if field not in row and MESSAGES in row:
        field = MESSAGES
    if field not in row:
        return Record("", f"{where}: no field {field!r} among {sorted(map(str, row))}; set data.field")
    return text_record(row[field], field, where)


def text_record(value: object, field: str, where: str) -> Record:
    """A document that was found in the column `field` of a row: a text, or a conversation."""
    if field == MESSAGES and isinstance(value, str) and value:  # as tables without lists hold them
        value = parse_json(value.encode(errors="replace"))
        if not isinstance(value, list):
            return Record("", f"{where}: {field!r} is text, but not a list of messages in JSON")
    if isinstance(value, list) and value:
        if not all(isinstance(one, dict) and "role" in one and "content" in one for one in value):
            return Record("", f"{where}: {field!r} is a list, but not of messages with 'role' and 'content'")
        # Columns of a table hold None where a message lacks a key.
        messages = [{key: one[key] for key in one if one[key] is not None or key == "content"} for one in value]
        why = f"{field!r} holds messages, which only a tokenizer with a chat template can write"
        remedy = "set data.tokenizer.kind=file and data.tokenizer.path to the folder of one"
        return Record("", f"{where}: {why}; {remedy}", messages=messages)
    if value in ("", []):
        return Record("", f"{EMPTY}{where}")
    if not isinstance(value, str):
        return Record("", f"{where}: {field!r} is {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # no tokenizer takes it
        code = ord(value[error.start])
        if 0xDC80 <= code <= 0xDCFF:
            return Record("", f"{where}: byte 0x{code - 0xDC00:02x} is not UTF-8")
        return Record("", f"{where}: half a surrogate pair, which is not text")
    return Record(value)


def _open(file: Path) -> BinaryIO:
    """The open file, decompressed; a pipe or the like is refused, since reading it could block for ever.

    Raises:
        OSError: it is no regular file, or does not exist.
    """
    if not stat.S_ISREG(file.stat().st_mode):
        raise OSError(errno.EINVAL, "is no regular file")
    if file.suffix.lower() == ".gz":
        opened = cast(Any, gzip.GzipFile(file))
    elif file.suffix.lower() == ".zst":
        opened = io.BufferedReader(pa.input_stream(str(file), compression="zstd"))
    else:
        opened = file.open("rb")
    if opened.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        opened.close()
        raise OSError(errno.EINVAL, "UTF-16; convert it: iconv -f utf-16 -t utf-8")
    return cast(BinaryIO, opened)


def _size(file: Path) -> int:
    """Bytes of the text."""
    if file.suffix.lower() not in PACKED:
        return file.stat().st_size
    with _open(file) as opened:
        return sum(map(len, iter(lambda: opened.read(_PIECE_BYTES), b"")))


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _bad_bytes(error: UnicodeDecodeError) -> str:
    found = f"byte 0x{error.object[error.start]:02x} is not UTF-8"
    is_latin = all(byte < 0x80 or byte >= 0xA0 for byte in error.object)
    return f"{found}; if the file is Latin-1, convert it: iconv -f latin1 -t utf-8" if is_latin else found
