from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recyclegpt.data import TextFiles, TokenizerConfig, readers, tokenize_corpus
from recyclegpt.data.chat import documents
from recyclegpt.data.source import EMPTY, Skipped, Split
from recyclegpt.errors import ConfigError

LATIN = "if the file is Latin-1, convert it: iconv -f latin1 -t utf-8"


def texts(source: TextFiles, split: str) -> list[str]:
    found, current = [], ""
    for record in documents(source.records(split), Skipped(0)):  # type: ignore[arg-type]
        current += record.text
        if record.ends:
            found.append(current)
            current = ""
    assert current == ""
    return found


def problems(records: object) -> list[str]:
    return [record.problem for record in records if record.problem]  # type: ignore[attr-defined]


def test_paths_folders_patterns_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a.txt", "notes/b.md", "notes/deep/c.py", "notes/.hidden/d.txt", "notes/image.png", "more/e.rst"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    source = TextFiles(["~/a.txt", "~/notes", f"{tmp_path}/*/e.*", "~/notes/b.md"])
    assert [file.relative_to(tmp_path.resolve()).as_posix() for file in source.files] == [
        "a.txt",
        "more/e.rst",
        "notes/b.md",
        "notes/deep/c.py",
    ]


def test_everything_missing_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError) as caught:
        TextFiles([str(tmp_path / "no.txt"), str(tmp_path / "*.md"), str(tmp_path / "empty")], val_fraction=2)
    assert len(caught.value.problems) == 4
    for words in ("does not exist", "matches no file", "holds no text file", "val_fraction"):
        assert words in str(caught.value)
    with pytest.raises(ConfigError, match="empty"):
        TextFiles([])


def test_an_empty_path_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("text")
    monkeypatch.chdir(tmp_path)
    for paths in ("", [""], ["a.txt", ""]):
        with pytest.raises(ConfigError, match="paths: empty"):
            TextFiles(paths)


def test_a_rotated_file_is_what_it_was() -> None:
    assert {readers.suffix_of(f"a.jsonl{end}") for end in ("", ".1", ".bak", ".gz")} == {".jsonl"}
    assert readers.suffix_of("notes.2024") == ""


def test_few_files_give_their_tails(tmp_path: Path) -> None:
    lines = [f"line {number}\n" for number in range(100)]
    (tmp_path / "a.txt").write_text("".join(lines))
    (tmp_path / "b.txt").write_text("one line without an end")
    source = TextFiles([str(tmp_path)], val_fraction=0.1)
    train, val = texts(source, "train"), texts(source, "val")
    assert train[0] + val[0] == "".join(lines)
    assert train[0].endswith("\n")
    assert 8 <= val[0].count("\n") <= 11
    assert train[1:] == ["one line without an end"]


def test_many_files_are_divided_whole(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:02}.txt").write_text(f"text {number}\nmore\n")
    source = TextFiles([str(tmp_path)], val_fraction=0.1)
    train, val = texts(source, "train"), texts(source, "val")
    assert sorted(train + val) == sorted(f"text {number}\nmore\n" for number in range(40))
    assert len(val) == 4


def test_val_paths_are_kept_out_of_training(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name)
    source = TextFiles([str(tmp_path)], val_paths=[str(tmp_path / "b.txt")])
    assert texts(source, "train") == ["a", "c"]
    assert texts(source, "val") == ["b"]
    with pytest.raises(ConfigError, match="none is left"):
        TextFiles([str(tmp_path)], val_paths=[str(tmp_path)])


def test_rows_of_jsonl_and_parquet_are_divided(tmp_path: Path) -> None:
    rows = [{"body": f"text {number}"} for number in range(30)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows[:15]) + "\n\n")
    pq.write_table(pa.Table.from_pylist(rows[15:]), tmp_path / "b.parquet")
    source = TextFiles([str(tmp_path)], val_fraction=0.1, field="body")
    train, val = texts(source, "train"), texts(source, "val")
    assert sorted(train + val) == sorted(row["body"] for row in rows)
    assert val == ["text 1", "text 11", "text 21"]


def test_two_documents_are_enough_for_both_splits(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    source = TextFiles([str(tmp_path)])
    assert (texts(source, "train"), texts(source, "val")) == (["one"], ["two"])


def test_every_bad_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(
        b'\xef\xbb\xbf{"text": "good"}\r\n'
        b'{"text": "\xff"}\n'
        b'{"text": "cut off\n'
        b'{"other": 1}\n'
        b'{"text": 7}\n'
        b'{"text": null}\n'
        b'{"text": ""}\n'
        b"[1]\n"
        b'{"text": "\\ud800"}\n'
        b"\n"
        b'{"text": "last"}'
    )
    records = list(readers.read_rows(file, "text"))
    assert [record.text for record in records if record.problem is None] == ["good", "last"]
    found = problems(records)
    assert [int(problem.removeprefix(EMPTY).split(":")[1]) for problem in found] == list(range(2, 10))
    for words, problem in zip(
        ("0xff", "cut off", "['other']", "int", "NoneType", "empty", "list", "surrogate"), found, strict=True
    ):
        assert words in problem


def test_bad_parquet_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["good", None, ""]}), file)
    assert problems(readers.read_rows(file, "text")) == [
        f"{file}: row 2: 'text' is NoneType, not text",
        f"{EMPTY}{file}: row 3",
    ]
    assert "['text']" in problems(readers.read_rows(file, "body"))[0]
    file.write_bytes(b"PAR1 not really")
    assert len(problems(readers.read_rows(file, "text"))) == 1
    assert len(problems(readers.read_rows(tmp_path / "none.parquet", "text"))) == 1


def test_bad_text_is_named_and_the_rest_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbffirst\r\nbad \xe9\r\nthird\n")
    records = list(readers.read_text(file))
    assert [record.text for record in records if not record.problem] == ["first\nthird\n"]
    assert problems(records) == [f"{file}:2: byte 0xe9 is not UTF-8; {LATIN}"]
    file.write_bytes(b"ok\nPK\0\1")
    assert problems(readers.read_text(file)) == [
        f"{file}:2: a NUL byte, so not a text file; left out from this line on"
    ]
    file.write_bytes(b"")
    assert problems(readers.read_text(file)) == [f"{EMPTY}{file}"]
    assert len(problems(readers.read_text(tmp_path / "none.txt"))) == 1


def test_large_files_come_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_PIECE_BYTES", 50)
    lines = [f"line {number} é\n" for number in range(30)]
    file = tmp_path / "a.txt"
    file.write_text("".join(lines))
    records = list(readers.read_text(file))
    assert "".join(record.text for record in records) == "".join(lines)
    assert [record.ends for record in records] == [False] * (len(records) - 1) + [True]
    raw = file.read_bytes().replace(b"line 20 \xc3", b"line 20 \xff")
    file.write_bytes(raw)
    assert problems(readers.read_text(file)) == [f"{file}:21: byte 0xff is not UTF-8; {LATIN}"]
    assert problems(readers.read_text(file, "val", 0.4)) == [f"{file}:21: byte 0xff is not UTF-8; {LATIN}"]


@given(st.lists(st.text("ab\u00e9\n", min_size=1), min_size=1, max_size=8), st.floats(0.01, 0.9))
def test_head_and_tail_are_the_whole(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], fraction: float
) -> None:
    file = tmp_path_factory.mktemp("text") / "a.txt"
    file.write_bytes("".join(parts).encode())

    def together(split: Split) -> str:
        return "".join(record.text for record in readers.read_text(file, split, fraction))

    assert together("train") + together("val") == "".join(parts)


def test_skipping_stops_at_the_limit_and_names_everything(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("broken\n" * 10)
    with pytest.raises(ConfigError) as caught:
        list(documents(TextFiles([str(tmp_path)]).records("train"), Skipped(4, "text_files")))
    assert "max_skipped=4" in caught.value.problems[0]
    assert [problem for problem in caught.value.problems[1:] if "(and 4 more like it)" not in problem] == []


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.write_text("other"),
        lambda file: file.rename(file.with_name("z.txt")),
        lambda file: (file.parent / "b.txt").write_text("more"),
    ],
)
def test_fingerprint_follows_the_content(tmp_path: Path, change: Callable[[Path], object]) -> None:
    file = tmp_path / "a.txt"
    file.write_text("text")
    before = TextFiles([str(tmp_path)]).fingerprint()
    assert TextFiles([str(tmp_path)]).fingerprint() == before
    assert TextFiles([str(tmp_path)], val_fraction=0.2).fingerprint() != before
    change(file)
    assert TextFiles([str(tmp_path)]).fingerprint() != before


def test_a_file_is_what_its_name_says_also_through_links(tmp_path: Path) -> None:
    """As the Hugging Face cache stores files; folder, link and pattern find the same ones, and loops end."""
    blob = tmp_path / "blobs/1f3a"
    for file, content in ((blob, '{"text": "row"}\n'), (tmp_path / "far/b.txt", "plain")):
        file.parent.mkdir()
        file.write_text(content)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "train.jsonl").symlink_to(blob)
    (corpus / "same.jsonl").symlink_to(blob)
    (corpus / "linked").symlink_to(tmp_path / "far")
    (corpus / "loop").symlink_to(corpus)
    (tmp_path / "link").symlink_to(corpus)
    for path in ("corpus", "link", "corpus/**", "corpus/*", "cor*"):
        source = TextFiles([str(tmp_path / path)])
        assert sorted(file.name for file in source.files) == ["b.txt", "same.jsonl"]
    assert texts(TextFiles([str(corpus)], val_paths=[str(blob)]), "train") == ["plain"]


def test_every_kind_of_rows_is_read_compressed_too(tmp_path: Path) -> None:
    rows = [{"text": f'say "hi", {number}\nand more', "id": number} for number in range(4)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "lines.json").write_text(lines)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    with pa.output_stream(str(tmp_path / "d.jsonl.zst"), compression="zstd") as packed:
        packed.write(lines.encode())
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t"), ("b.csv", ";")):
        with (tmp_path / f"e{suffix}").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["id", "text"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    saved = datasets.DatasetDict({"train": datasets.Dataset.from_list(rows), "test": datasets.Dataset.from_list(rows)})
    saved.save_to_disk(str(tmp_path / "saved"))
    for file in [one for one in tmp_path.iterdir() if one.is_file()] + [tmp_path / "saved/train"]:
        source = TextFiles([str(file)], val_fraction=0.5)
        found = texts(source, "train") + texts(source, "val")
        assert sorted(found) == [row["text"] for row in rows], file
    with pytest.raises(ConfigError, match=r"holds several splits \(test, train\)"):
        TextFiles([str(tmp_path / "saved")])
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(lines.encode() * 99)[:-40])
    assert "ended before" in problems(readers.read_text(tmp_path / "cut.txt.gz"))[0]


def test_what_has_no_reader_is_refused_or_text_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.txt", "b.ipynb", "c.html", "d.png", "e.png"):
        (tmp_path / name).write_text("x")
    with pytest.raises(ConfigError, match=r"2 files have no reader .*b\.ipynb.*data\.as_text=true"):
        TextFiles([str(tmp_path)])
    source = TextFiles([str(tmp_path)], as_text=True)
    assert [file.name for file in source.files] == ["a.txt", "b.ipynb", "c.html"]
    source.fingerprint()
    assert "left out 2 files that hold no text: 2 .png" in caplog.text


def test_the_reason_is_never_lost(tmp_path: Path) -> None:
    """Whichever way a corpus is read, and a hundred lines of a kind in one line."""
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n' * 50)
    (tmp_path / "b.jsonl").write_text('{"messages": [{"role": "user", "content": "x"}]}\n' * 9)
    for kind in ("byte", "bpe"):
        with pytest.raises(ConfigError) as caught:
            tokenize_corpus(TextFiles([str(tmp_path)]), TokenizerConfig(kind), tmp_path / "out")
        assert len(caught.value.problems) == 3
        wrong = r"a.jsonl:1: no field 'text' among \['body'\]; set data.field \(and \d+ more"
        assert re.search(wrong, str(caught.value))
        assert "only a tokenizer with a chat template" in str(caught.value)


def test_rows_of_csv_that_do_not_fit_are_named_and_never_cut(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('id,text\n1,Hello, world\n2,fits,\n3,"no" quote\n4,good\n5,"never\nclosed\n6,lost\n')
    wide, quote, unclosed = problems(readers.read_rows(file, "text"))
    assert wide == f"{file}:2: more cells than columns; put texts with ',' in double quotes"
    assert quote.startswith(f"{file}:4: double quotes that do not fit (',' expected")
    assert unclosed == f"{file}:6: double quotes that do not fit (unexpected end of data); left out up to line 8"
    assert [record.text for record in readers.read_rows(file, "text") if not record.problem] == ["fits", "good"]


def test_headers_of_csv_as_programs_write_them(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("sep=|\n\nid|text\n1|one, two\n3|a|b\n")
    good, bad = readers.read_rows(file, "text")
    assert good.text == "one, two"
    assert bad.problem == f"{file}:5: more cells than columns; put texts with '|' in double quotes"
    file.write_text("text,id,text\na,1,b\n")
    assert problems(readers.read_rows(file, "text")) == [f"{file}: two columns are named 'text'; rename one"]
    assert [record.text for record in readers.read_rows(file, "id")] == ["1"]


def test_line_ends_of_old_systems_and_marks_inside_joined_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"".join(b"line %d\r" % number for number in range(100)))
    source = TextFiles([str(tmp_path / "a.txt")], val_fraction=0.1)
    assert texts(source, "train")[0].count("\n") == 91
    assert texts(source, "val")[0].count("\n") == 9
    for name, line, text in (
        ("b.txt", "x\n", "x\nx\n"),
        ("c.jsonl", '{"text": "x"}\r', "xx"),
        ("d.csv", "text\rx\r", "x"),
    ):
        (tmp_path / name).write_bytes(line.encode("utf-8-sig") * (1 if name == "d.csv" else 2))
        found = TextFiles([str(tmp_path / name)]).whole()
        assert "".join(record.text for record in found if not record.problem) == text


def test_values_over_several_lines_and_the_chats_of_sharegpt(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    talk = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]
    file.write_text("\n".join(json.dumps(row, indent=1) for row in ({"text": "a"}, {"conversations": talk}, {"b": 1})))
    good, chat, bad = readers.read_rows(file, "text")
    assert good.text == "a"
    assert chat.messages == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    assert bad.problem == f"{file}: item 3: no field 'text' among ['b']; set data.field"


def test_patterns_below_names_with_brackets_and_inside_saved_datasets(tmp_path: Path) -> None:
    saved = tmp_path / "my [1]"
    datasets.Dataset.from_list([{"text": "a"}]).save_to_disk(str(saved))
    (saved / "b.txt").write_text("b")
    for path in (saved / "*", saved / "**/*"):
        assert [file.name for file in TextFiles([str(path)]).files] == ["b.txt", "data-00000-of-00001.arrow"]


def test_messages_written_as_json_in_a_text_column_are_a_conversation(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "hi"}]
    file = tmp_path / "a.csv"
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([["messages"], [json.dumps(talk)], [str(talk)]])
    good, bad = readers.read_rows(file, "text")
    assert good.messages == talk
    assert bad.problem == f"{file}:3: 'messages' is text, but not a list of messages in JSON"


def test_tables_are_read_packed_and_in_both_arrow_formats_without_caches(tmp_path: Path) -> None:
    rows = pa.table({"text": ["a", "b", "c"]})
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), rows.schema) as writer:
        writer.write_table(rows)
    pq.write_table(rows, tmp_path / "b.parquet")
    packed = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "c.parquet.gz").write_bytes(gzip.compress(packed))
    with pa.output_stream(str(tmp_path / "d.parquet.zst"), compression="zstd") as opened:
        opened.write(packed)
    for file in tmp_path.iterdir():
        assert [record.text for record in readers.read_rows(file, "text")] == ["a", "b", "c"], file
    saved = tmp_path / "saved"
    datasets.Dataset(rows).save_to_disk(str(saved))
    again = datasets.load_from_disk(str(saved))
    again.map(lambda row: {"text": row["text"].upper()})
    again.filter(lambda row: row["text"] != "a")
    assert len(list(saved.glob("cache-*.arrow"))) == 2
    assert [file.name for file in TextFiles([str(saved)]).files] == ["data-00000-of-00001.arrow"]


def test_the_reason_is_that_of_the_whole_file(tmp_path: Path) -> None:
    lines = '[\n{"text": "a"},\n{"text": "b"}\n'
    wide = "UTF-16; convert it: iconv -f utf-16 -t utf-8"
    for name, content, why in (
        ("cut.json", lines.encode(), "not JSON (Expecting ',' delimiter"),
        ("latin.json", (lines[:-2] + ',"x": "\xe4"}]').encode("latin1"), f"byte 0xe4 is not UTF-8; {LATIN}"),
        ("a.csv", "text\nx\n".encode("utf-16"), wide),
        ("a.jsonlines", '{"text": "x"}\n'.encode("utf-16"), wide),
    ):
        (tmp_path / name).write_bytes(content)
        (found,) = problems(readers.read_rows(tmp_path / name, "text"))
        assert why in found


def test_named_files_without_text_and_names_that_are_numbers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_text("%PDF-1.4")
    with pytest.raises(ConfigError, match=r"1 files have no reader .*a\.pdf.*data\.as_text=true"):
        TextFiles([str(tmp_path / "a.pdf")])
    for paths in ([2024], 2024, [None]):
        with pytest.raises(ConfigError, match=r"is no text; begin a name that is a number with"):
            TextFiles(paths)  # type: ignore[arg-type]
