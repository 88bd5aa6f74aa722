"""Text that cannot be read, in part or at all."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from .case import Cases
from .place import SMALL, Place

CASES = Cases("data")
GOOD = "def alpha(beta, n=1):\n    return beta + n\n"
LINE = json.dumps({"text": GOOD * 3})


def jsonl(*bad: str | bytes, num_good: int = 60) -> bytes:
    """Good JSON lines, with others at the place of the third."""
    lines = [LINE.encode()] * num_good
    lines[2:2] = [line.encode() if isinstance(line, str) else line for line in bad]
    return b"\n".join(lines) + b"\n"


def parquet(values: Sequence[object], column: str = "text", kind: pa.DataType | None = None) -> bytes:
    """A Parquet file of one column."""
    sink = io.BytesIO()
    pq.write_table(pa.table({column: pa.array(values, kind)}), sink)
    return sink.getvalue()


def _trained(name: str, file: str, content: bytes, *words: str) -> None:
    @CASES.tolerated(name, *words)
    def _(place: Place) -> Sequence[str]:
        place.copy("corpus")
        place.write(f"corpus/{file}", content)
        return ("train", *SMALL, "logger=none")


def _refused(name: str, file: str, content: bytes, *words: str, more: Sequence[str] = ()) -> None:
    @CASES.refused(name, *words)
    def _(place: Place) -> Sequence[str]:
        place.write(f"texts/{file}", content)
        return ("train", *SMALL, "data.paths=[texts]", *more)


UNREADABLE = "cannot be read: 1"
_trained(
    "a line that is not UTF-8",
    "x.txt",
    GOOD.encode() * 9 + b"caf\xe9\n" + GOOD.encode() * 9,
    "x.txt:19: byte 0xe9",
    UNREADABLE,
)
_trained("a text in UTF-16", "x.txt", (GOOD * 20).encode("utf-16"), "x.txt:1: UTF-16", "cannot be read")
_trained(
    "a text in UTF-16 without a mark", "x.txt", (GOOD * 20).encode("utf-16-le"), "x.txt:1: a NUL byte", "cannot be read"
)
_trained(
    "a NUL byte in a text",
    "x.txt",
    GOOD.encode() * 4 + b"a\0b\n" + GOOD.encode(),
    "x.txt:9: a NUL byte",
    "cannot be read",
)
_trained("a text without bytes", "x.txt", b"", "x.txt", "are empty: 1")
_trained("a text of a byte order mark alone", "x.txt", b"\xef\xbb\xbf", "x.txt", "are empty: 1")
_trained(
    "a JSON line cut off at the end",
    "x.jsonl",
    jsonl() + b'{"text": "def al',
    "x.jsonl:61: not JSON",
    "cut off",
    UNREADABLE,
)
_trained("a JSON line that is not UTF-8", "x.jsonl", jsonl(b'{"text": "caf\xe9"}'), "x.jsonl:3: byte 0xe9", UNREADABLE)
_trained(
    "a JSON line without the field",
    "x.jsonl",
    jsonl('{"body": "x"}'),
    "x.jsonl:3: no field 'text' among ['body']",
    UNREADABLE,
)
_trained(
    "a JSON line whose text is a number",
    "x.jsonl",
    jsonl('{"text": 5}'),
    "x.jsonl:3: 'text' is int, not text",
    UNREADABLE,
)
_trained(
    "a JSON line whose text is null", "x.jsonl", jsonl('{"text": null}'), "x.jsonl:3: 'text' is NoneType", UNREADABLE
)
_trained("a JSON line that is a list", "x.jsonl", jsonl("[1, 2]"), "x.jsonl:3: a JSON list, not an object", UNREADABLE)
_trained(
    "a JSON line with half a surrogate pair",
    "x.jsonl",
    jsonl('{"text": "\\ud800"}'),
    "x.jsonl:3: half a surrogate",
    UNREADABLE,
)
_trained("a JSON line nested without end", "x.jsonl", jsonl("[" * 200_000), "x.jsonl:3: not JSON", UNREADABLE)
_trained(
    "a JSON line with an endless number", "x.jsonl", jsonl('{"text": ' + "9" * 9000 + "}"), "x.jsonl:3:", UNREADABLE
)
_trained("a JSON line with an empty text", "x.jsonl", jsonl('{"text": ""}'), "x.jsonl:3", "are empty: 1")
_trained("JSON lines without bytes", "x.jsonl", b"", "x.jsonl", "are empty: 1")
_trained("a Parquet file cut off", "x.parquet", parquet([GOOD] * 60)[:-40], "x.parquet: after row 0", UNREADABLE)
_trained("a Parquet file that is a text", "x.parquet", GOOD.encode() * 20, "x.parquet: after row 0", UNREADABLE)
_trained("a Parquet file without bytes", "x.parquet", b"", "x.parquet: after row 0", UNREADABLE)
_trained(
    "a Parquet file without the column",
    "x.parquet",
    parquet([GOOD], "body"),
    "x.parquet: no column 'text' among ['body']",
    UNREADABLE,
)
_trained(
    "a Parquet row without text",
    "x.parquet",
    parquet([GOOD, None, GOOD] * 1),
    "x.parquet: row 2: 'text' is NoneType",
    UNREADABLE,
)
_trained(
    "Parquet rows of bytes",
    "x.parquet",
    parquet([b"a"], kind=pa.binary()),
    "x.parquet: row 1: 'text' is bytes",
    UNREADABLE,
)

_refused(
    "one large JSON array in place of lines",
    "x.jsonl",
    json.dumps([{"text": GOOD}] * 40, indent=1).encode(),
    "x.jsonl:1:",
    "max_skipped=10",
    more=["data.max_skipped=10"],
)
_refused(
    "more unreadable lines than allowed",
    "x.jsonl",
    jsonl(*["{"] * 4),
    "x.jsonl:3",
    "x.jsonl:6",
    "more than data.max_skipped=3 documents cannot be read",
    more=["data.max_skipped=3"],
)
_refused("texts that are all empty", "x.txt", b"", "no readable training document", "x.txt")
_refused("a text of spaces in place of a corpus", "x.txt", b"  \n" * 4000, "do not fill one row")
_refused(
    "a text in UTF-16 in place of a corpus",
    "x.txt",
    (GOOD * 200).encode("utf-16"),
    "no readable training document",
    "x.txt:1: UTF-16",
)
_refused(
    "too little text for one row", "x.txt", GOOD.encode() * 40, "do not fill one row", more=["data.val_fraction=0.97"]
)
_refused(
    "a validation split smaller than a batch",
    "x.txt",
    GOOD.encode() * 90,
    "data.val_batch_size",
    "the validation split has",
    more=["data.val_fraction=0.01"],
)
_refused("a text without a line end in its tail", "x.txt", b"alpha beta " * 2000, "the val split holds no document")
_refused("one JSON line alone", "x.jsonl", LINE.encode(), "the val split holds no document")
_refused("a corpus of files that are no text", "x.png", b"\x89PNG", "data.paths: 'texts' holds no text file")
_refused("an archive in place of texts", "x.zip", b"PK", "data.paths: 'texts' holds no text file")
_refused(
    "a share for validation of all text",
    "x.txt",
    GOOD.encode() * 90,
    "data.val_fraction: 1.0 is not between 0 and 1",
    more=["data.val_fraction=1.0"],
)
_refused(
    "a folder that does not exist", "x.txt", b"x", "data.paths: 'nowhere' does not exist", more=["data.paths=[nowhere]"]
)
_refused(
    "a pattern that matches nothing",
    "x.txt",
    b"x",
    "data.paths: 'texts/*.md' matches no file",
    more=["data.paths=['texts/*.md']"],
)
_refused("a path with a NUL byte", "x.txt", b"x", "data.paths", "NUL", more=["data.paths=['a\0b']"])
_refused(
    "the same files for training and validation",
    "x.txt",
    GOOD.encode() * 90,
    "data.val_paths: names every file of data.paths",
    more=["data.val_paths=[texts]"],
)


@CASES.tolerated("a link that leads nowhere", "corpus/gone.txt", "cannot be read: 1")
def _(place: Place) -> Sequence[str]:
    place.copy("corpus")
    (place.root / "corpus/gone.txt").symlink_to("nothing.txt")
    return ("train", *SMALL, "logger=none")


@CASES.tolerated("a link to itself", "corpus/loop.txt", "cannot be read: 1")
def _(place: Place) -> Sequence[str]:
    place.copy("corpus")
    (place.root / "corpus/loop.txt").symlink_to("loop.txt")
    return ("train", *SMALL, "logger=none")


@CASES.tolerated("a pipe among the texts", "corpus/pipe.txt", "no regular file", "cannot be read: 1")
def _(place: Place) -> Sequence[str]:
    place.copy("corpus")
    os.mkfifo(place.root / "corpus/pipe.txt")
    return ("train", *SMALL, "logger=none")


@CASES.refused("a pipe in place of a corpus", "data.paths: 'pipe.txt'", "no regular file")
def _(place: Place) -> Sequence[str]:
    os.mkfifo(place.root / "pipe.txt")
    return ("train", *SMALL, "data.paths=[pipe.txt]")


@CASES.tolerated("bad lines tokenized", "x.jsonl:3: not JSON", "x.jsonl:4: 'text' is int", "cannot be read: 2")
def _(place: Place) -> Sequence[str]:
    place.copy("corpus")
    place.write("corpus/x.jsonl", jsonl("{", '{"text": 1}'))
    return ("tokenize", "data=text_files", "data.paths=[corpus]", "data.tokenizer.kind=byte", "output=shards")


@CASES.refused("too many bad lines tokenized", "x.jsonl:3", "data.max_skipped=0")
def _(place: Place) -> Sequence[str]:
    place.copy("corpus")
    place.write("corpus/x.jsonl", jsonl("{"))
    argv = ["data=text_files", "data.paths=[corpus]", "data.tokenizer.kind=byte", "data.max_skipped=0"]
    return ("tokenize", *argv, "output=shards")


@CASES.tolerated("bad lines in a corpus that is in the cache already", "x.jsonl:3: not JSON", "cannot be read: 1")
def _(place: Place) -> Sequence[str]:
    from .place import run_in

    place.copy("corpus")
    place.write("corpus/x.jsonl", jsonl("{ cached"))
    argv = ["train", *SMALL, "logger=none"]
    code, text = run_in(place.root, [*argv, "hydra.run.dir=first"])
    assert code == 0, text
    return (*argv, "hydra.run.dir=second")


@CASES.refused("more bad lines in the cache than allowed now", "x.jsonl:3: not JSON", "data.max_skipped=0")
def _(place: Place) -> Sequence[str]:
    from .place import run_in

    place.copy("corpus")
    place.write("corpus/x.jsonl", jsonl("{ limited"))
    argv = ["train", *SMALL, "logger=none"]
    code, text = run_in(place.root, [*argv, "hydra.run.dir=first"])
    assert code == 0, text
    return (*argv, "hydra.run.dir=second", "data.max_skipped=0")


@CASES.tolerated("ten megabytes in one line", "run folder:")
def _(place: Place) -> Sequence[str]:
    place.copy("corpus")
    place.write("corpus/x.txt", b"n = 1; " * 1_500_000)
    return ("train", *SMALL, "logger=none", "data.tokenizer.kind=byte")


@CASES.tolerated("ten megabytes in one JSON line", "run folder:")
def _(place: Place) -> Sequence[str]:
    place.copy("corpus")
    place.write("corpus/x.jsonl", jsonl(json.dumps({"text": "n = 1; " * 1_500_000})))
    return ("train", *SMALL, "logger=none", "data.tokenizer.kind=byte")


@CASES.tolerated("Windows line ends and a byte order mark", "run folder:")
def _(place: Place) -> Sequence[str]:
    place.copy("corpus")
    place.write("corpus/x.txt", b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode() * 20)
    return ("train", *SMALL, "logger=none")
