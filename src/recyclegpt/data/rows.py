"""Rows of JSON, CSV, Parquet and Arrow as documents; a row that cannot be read is named."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from recyclegpt.data.chat_template import CHATS, read_messages
from recyclegpt.data.source import EMPTY, Record

BOM = b"\xef\xbb\xbf"
DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, csv.Error, pa.ArrowException)
"""What readers raise for a file that is cut off or not what its name says."""
_BETWEEN = re.compile(r"[\s,]*")


def rows_of(opened: BinaryIO, suffix: str, name: str, field: str) -> Iterator[Record]:
    """One document per row, in `field`, or where that is missing a conversation in `messages` or `conversations`.

    Args:
        suffix: what it is: a key of `ROWS`.
    """
    num_rows = 0
    try:
        for where, row in ROWS[suffix](opened, suffix, field):
            num_rows += 1
            yield _document(row, field, f"{name}{where}")
        if num_rows == 0:
            yield Record("", f"{EMPTY}{name}")
    except DAMAGE as error:
        yield Record("", f"{name}: after row {num_rows}: {error}")


def split_lines(opened: BinaryIO) -> Iterator[bytes]:
    """The lines of a file, which end with LF, CR LF or CR."""
    for line in opened:
        yield from line.splitlines(keepends=True)


def bad_bytes(error: UnicodeDecodeError) -> str:
    """What is wrong with a text that is not UTF-8."""
    found = f"byte 0x{error.object[error.start]:02x} is not UTF-8"
    is_latin = all(byte < 0x80 or byte >= 0xA0 for byte in error.object)
    return f"{found}; if the file is Latin-1, convert it: iconv -f latin1 -t utf-8" if is_latin else found


def _lines(opened: BinaryIO, _suffix: str, _field: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(split_lines(opened), start=1):
        try:
            yield f":{number}", line.removeprefix(BOM).decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            yield f":{number}", error


def json_values(opened: BinaryIO, _suffix: str = "", _field: str = "") -> Iterator[tuple[str, Any]]:
    """Where each value is, and the value or the error: one a line, or the items of an array, or values over lines."""
    lines = enumerate(split_lines(opened), start=1)
    is_first = True
    for number, with_mark in lines:
        line = with_mark.removeprefix(BOM)
        if not line.strip():
            continue
        if is_first and (line.lstrip()[:1] == b"[" or line.rstrip()[-1:] in b"{[,:"):
            yield from _values(b"".join([line, *(other for _, other in lines)]), number)
            return
        is_first = False
        yield f":{number}", _parsed(line)


def _values(content: bytes, start: int) -> Iterator[tuple[str, Any]]:
    number = at = 0
    try:
        text = content.decode()
        while at < len(text):
            value, at = json.JSONDecoder().raw_decode(text, at)
            for item in value if isinstance(value, list) else [value]:
                number += 1
                yield f": item {number}", item
            at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]
    except (ValueError, RecursionError) as error:
        if number or content.lstrip().startswith(b"["):
            yield f": after item {number}" if number else "", _no_json(error)
        else:  # lines after all, of which the first is bad
            lines = enumerate(content.splitlines(), start)
            yield from ((f":{line_number}", _parsed(line)) for line_number, line in lines if line.strip())


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        return _no_json(error)


def _no_json(error: Exception) -> ValueError:
    if isinstance(error, UnicodeDecodeError):
        return error
    why = "nested too deeply" if isinstance(error, RecursionError) else error
    return ValueError(f"not JSON ({why}); is the line cut off?")


def _csv(opened: BinaryIO, suffix: str, field: str) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(1 << 30)
    lines = (line.decode("utf-8", "surrogateescape") for line in split_lines(opened))
    header, before, given = next(lines, "").removeprefix("\ufeff"), 1, ""
    while header and (not header.strip() or header.lower().startswith("sep=")):  # the latter as Excel writes it
        given = given or header.strip()[4:5]
        header, before = next(lines, ""), before + 1
    if not header:
        return
    of_csv = given or max(",;\t|", key=header.count)
    try:
        names = next(csv.reader([header], delimiter=of_csv), [])
        wanted = _wanted(names, field)
    except ValueError as error:
        yield "", error
        return
    delimiter = "\t" if suffix == ".tsv" else of_csv
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    place = names.index(wanted)
    while True:
        start = rows.line_num + before + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:  # a quote that is not closed takes all lines that follow
            end = rows.line_num + before
            yield f":{start}", ValueError(f"double quotes that do not fit ({error}); left out up to line {end}")
            continue
        if any(row[len(names) :]):
            why = f"more cells than columns; put texts with {delimiter!r} in double quotes"
            yield f":{rows.line_num + before}", ValueError(why)
        elif row:
            yield f":{rows.line_num + before}", {wanted: row[place] if place < len(row) else None}


def _table(opened: BinaryIO, suffix: str, field: str) -> Iterator[tuple[str, Any]]:
    if not (isinstance(opened, io.BufferedReader) and opened.seekable()):
        opened = io.BytesIO(opened.read())  # unpacked just now; tables are read from their end
    is_arrow, is_file = suffix == ".arrow", opened.read(6) == b"ARROW1"  # `datasets` writes streams
    opened.seek(0)
    table: Any = (pa.ipc.open_file if is_file else pa.ipc.open_stream)(opened) if is_arrow else pq.ParquetFile(opened)
    try:
        wanted = _wanted((table.schema if is_arrow else table.schema_arrow).names, field)
    except ValueError as error:
        yield "", error
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


ROWS: dict[str, Callable[[BinaryIO, str, str], Iterator[tuple[str, Any]]]] = {
    **dict.fromkeys((".jsonl", ".jsonlines", ".ndjson", ".json"), json_values),
    **dict.fromkeys((".csv", ".tsv"), _csv),
    **dict.fromkeys((".parquet", ".pq", ".arrow"), _table),
    "": _lines,
}
"""How rows are read, by the suffix of a file; one line a row without any."""


def _wanted(names: Collection[str], field: str) -> str:
    """The column to read. ValueError says why there is none."""
    found = next((name for name in (field, *CHATS) if name in names), None)
    if found is None:
        raise ValueError(f"no field {field!r} among {sorted(map(str, names))}; set data.field")
    if list(names).count(found) > 1:
        raise ValueError(f"two columns are named {found!r}; rename one")
    return found


def _document(row: Any, field: str, where: str) -> Record:
    """What a row holds: a text, or a conversation; or why it is none."""
    try:
        field, value = _value(row, field)
        if isinstance(value, str):
            value.encode()
    except UnicodeDecodeError as error:
        return Record("", f"{where}: {bad_bytes(error)}")
    except UnicodeEncodeError as error:  # no tokenizer takes it
        code = ord(error.object[error.start])
        byte = f"byte 0x{code - 0xDC00:02x} is not UTF-8" if 0xDC80 <= code <= 0xDCFF else ""
        return Record("", f"{where}: {byte or 'half a surrogate pair, which is not text'}")
    except ValueError as error:
        return Record("", f"{where}: {error}")
    if not value:
        return Record("", f"{EMPTY}{where}")
    if isinstance(value, str):
        return Record(value)
    why = f"{field!r} holds messages, which only a tokenizer with a chat template can write"
    remedy = "set data.tokenizer.kind=file and data.tokenizer.path to the folder of one"
    return Record("", f"{where}: {why}; {remedy}", messages=value)


def _value(row: Any, field: str) -> tuple[str, Any]:
    """The column of a row that is read, and the text or list of messages in it. ValueError says why there is none."""
    if isinstance(row, ValueError):
        raise row
    if isinstance(row, str):
        return field, row
    if isinstance(row, Mapping):
        field = _wanted(row, field)
        value = row[field]
        if field in CHATS and isinstance(value, str) and value:  # as tables without lists hold them
            value = _parsed(value.encode(errors="replace"))
            if not isinstance(value, list):
                raise ValueError(f"{field!r} is text, but not a list of messages in JSON")
        if isinstance(value, list) and value:
            try:
                return field, read_messages(value)
            except ValueError as error:
                raise ValueError(f"{field!r} is a list, but not of messages: {error}") from error
        if isinstance(value, str | list):
            return field, value
        raise ValueError(f"{field!r} is {type(value).__name__}, not text")
    raise ValueError(f"a JSON {type(row).__name__}, not an object with the field {field!r}")
