from __future__ import annotations

import gzip
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recyclegpt.data import HFStream, Packing, TextTokenizer, TokenizerConfig
from recyclegpt.data.corpus import open_corpus
from recyclegpt.data.hf_stream import StreamRows
from recyclegpt.data.loaders import TrainLoader
from recyclegpt.data.packed_rows import Batch
from recyclegpt.data.source import EMPTY, Record
from recyclegpt.errors import ConfigError

TOKENIZER = TextTokenizer.bytes()
NUM_DOCUMENTS = 60


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A local dataset of four files, which `load_dataset` opens by the same call as one on the hub."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    for shard in range(4):
        rows = [{"text": f"document number {i} " + "x" * (i % 7)} for i in range(shard, NUM_DOCUMENTS, 4)]
        (folder / f"train-{shard}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "validation.jsonl").write_text(json.dumps({"text": "held out"}) + "\n")
    return folder


def source(folder: Path, **settings: Any) -> HFStream:
    files = {"train": str(folder / "train-*.jsonl"), "validation": str(folder / "validation.jsonl")}
    settings = {"val_split": "validation", "shuffle_buffer": 7, "data_files": files, **settings}
    return HFStream("json", **settings)


def read(reader: Iterator[tuple[Record, Any]]) -> list[str]:
    return [record.text for record, _ in reader]


@pytest.mark.parametrize("num_parts", [1, 2, 3, 4, 8])
def test_parts_share_the_documents(folder: Path, num_parts: int) -> None:
    stream = source(folder)
    seen = Counter(text for part in range(num_parts) for text in read(stream.documents("train", part, num_parts)))
    assert len(seen) == NUM_DOCUMENTS
    assert set(seen.values()) == {1}


@pytest.mark.parametrize("num_parts", [1, 2, 3])
def test_reading_goes_on_from_any_state(folder: Path, num_parts: int) -> None:
    stream = source(folder)
    pairs = list(stream.documents("train", num_parts - 1, num_parts))
    for number, (_, state) in enumerate(pairs, start=1):
        rest = read(stream.documents("train", num_parts - 1, num_parts, state))
        assert rest == [record.text for record, _ in pairs[number:]]


def test_first_documents_are_held_out_of_training(folder: Path) -> None:
    stream = source(folder, val_split=None, num_val_documents=5)
    val = read(stream.documents("val"))
    assert len(val) == 5
    for num_parts in (1, 4):
        train = [text for part in range(num_parts) for text in read(stream.documents("train", part, num_parts))]
        assert len(train) == NUM_DOCUMENTS - 5
        assert not set(train) & set(val)


def test_folder_is_a_dataset_too(folder: Path) -> None:
    stream = HFStream(str(folder), val_split="validation")
    assert len(list(stream.records("train"))) == NUM_DOCUMENTS


def test_what_is_not_there_is_named(folder: Path) -> None:
    (problem, *_) = [record.problem for record in source(folder, field="body").records("train")]
    assert "no field 'body' among ['text']" in (problem or "")
    with pytest.raises(ConfigError, match="split nothing"):
        list(source(folder, train_split="nothing").records("train"))
    with pytest.raises(ConfigError, match="nowhere"):
        list(HFStream(str(folder / "nowhere")).records("train"))


def test_bad_documents_are_named(folder: Path) -> None:
    (folder / "train-0.jsonl").write_text('{"text": "good"}\n{"text": null}\n{"text": ""}\n')
    found = [record.problem for record in source(folder).records("train") if record.problem]
    assert len(found) == 2
    assert "NoneType" in found[0]
    assert found[1].startswith(EMPTY)
    assert found[1].endswith("train-0.jsonl:3")


def test_only_the_column_of_the_text_matters(folder: Path) -> None:
    """An extra column, a column of another type or a broken line costs a run nothing but what cannot be read."""
    (folder / "train-0.jsonl").write_text('{"text": "a", "n": 1}\n\n{"text": "cut o\n{"text": "b", "n": "x"}\n')
    (folder / "a.csv").write_text("text,id\none,1\n")
    (folder / "b.csv").write_text("id,more,text\nx,y,two\n")
    records = list(source(folder).records("train"))
    assert sum(record.problem is None for record in records) == 2 + NUM_DOCUMENTS * 3 // 4
    (problem,) = [record.problem for record in records if record.problem]
    assert "not JSON" in problem
    pq.write_table(pa.table({"text": ["one"], "id": [1]}), folder / "a.parquet")
    pq.write_table(pa.table({"text": ["two"], "id": ["x"], "more": [1.5]}), folder / "b.parquet")
    for kind in ("csv", "parquet"):
        stream = HFStream(kind, data_files=[str(folder / f"{name}.{kind}") for name in "ab"], num_val_documents=9)
        assert [record.text for record in stream.records("val")] == ["one", "two"]


def test_fewer_documents_than_are_held_out_are_refused(folder: Path, tmp_path: Path) -> None:
    stream = source(folder, val_split=None, num_val_documents=NUM_DOCUMENTS + 1)
    with pytest.raises(ConfigError, match=r"num_val_documents: json has 60 documents, fewer than 61"):
        open_corpus(stream, TokenizerConfig("byte"), tmp_path, 0)


def rows(folder: Path, rank: int = 0, world_size: int = 1, **settings: Any) -> StreamRows:
    packing = Packing(row_length=8, num_views=3, eos_id=256)
    return StreamRows(source(folder, **settings), TOKENIZER, packing, 3, 1, 0, rank, world_size)


def test_without_a_buffer_rows_follow_the_stream(folder: Path) -> None:
    texts = [record.text for record in source(folder).records("train")]
    expected = [token for text in texts for token in [*text.encode(), 256]]
    batches = itertools.islice(rows(folder, shuffle_buffer=1), 30)
    targets = [token for batch in batches for token in batch.views_NBT[1].flatten().tolist()]
    assert targets == expected[1 : len(targets) + 1]


def test_rows_of_a_shuffled_stream_are_those_of_the_stream(folder: Path) -> None:
    def windows(shuffle_buffer: int, num_batches: int) -> Counter[tuple[int, ...]]:
        batches = itertools.islice(rows(folder, shuffle_buffer=shuffle_buffer), num_batches)
        return Counter(tuple(row) for batch in batches for row in batch.views_NBT[0].tolist())

    shuffled, plain = windows(7, 20), windows(1, 23)
    # After 60 rows out of a buffer of 7, the rows given are 60 of the first 67.
    assert shuffled <= plain
    assert sum(shuffled.values()) == 60


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_is_exact_twice(folder: Path, num_workers: int) -> None:
    def train(loader: TrainLoader, num_batches: int) -> list[Batch]:
        found = []
        for batch in itertools.islice(loader, num_batches):
            loader.trained_on(batch.state)
            found.append(batch)
        return found

    whole = train(TrainLoader(rows(folder), num_workers, 1, None), 75)  # more than two passes
    pieces: list[Batch] = []
    state = None
    for num_batches in (7, 32, 36):
        loader = TrainLoader(rows(folder), num_workers, 1, state)
        pieces += train(loader, num_batches)
        state = loader.state
        loader.close()
    assert len(pieces) == len(whole)
    assert all(torch.equal(one.views_NBT, other.views_NBT) for one, other in zip(whole, pieces, strict=True))
    names, again = ([name for batch in batches for name in batch.rows_B.tolist()] for batches in (whole, pieces))  # type: ignore[union-attr]
    assert names == again
    assert len(set(names)) == len(names) == 3 * len(whole), "no row has been given twice, in none of the passes"


def test_a_worker_without_documents_says_so(folder: Path) -> None:
    for shard in range(1, 4):
        (folder / f"train-{shard}.jsonl").unlink()
    (folder / "train-0.jsonl").write_text('{"text": "only one"}\n')
    with pytest.raises(ConfigError, match="part 2 of 2"):
        next(iter(rows(folder, rank=1, world_size=2)))


def test_bad_rows_of_a_folder_cost_only_themselves(tmp_path: Path) -> None:
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines/train.jsonl").write_text('{"text": "a"}\n{bad\n{"text": "b"}\n')
    records = list(HFStream(str(tmp_path / "lines"), num_val_documents=1).records("train"))
    assert [record.text for record in records] == ["", "b"]
    assert "train.jsonl:2: not JSON" in (records[0].problem or "")
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells/train.csv").write_text("id,text\n0,a\n1,b, cut\n2,c\n")
    (bad,) = [
        one.problem for one in HFStream(str(tmp_path / "cells"), num_val_documents=9).records("val") if one.problem
    ]
    assert "train.csv:3: more cells than columns" in bad


def test_arrays_and_packed_and_empty_files_are_rows_too(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"text": "a"}, {"b": 1}]')
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(b'[{"text": "b"}, 5]'))
    (tmp_path / "c.json").touch()
    (tmp_path / "d.json.zst").write_bytes(pa.compress(b'{"text": "d"}', "zstd", asbytes=True))
    records = list(HFStream("json", data_files=str(tmp_path / "*"), num_val_documents=9).records("val"))
    assert [record.text for record in records if not record.problem] == ["a", "b", "d"]
    found = [record.problem or "" for record in records if record.problem]
    assert [problem.replace(f"{tmp_path}/", "")[:14] for problem in found] == [
        "a.json: item 2",
        "b.json.gz: ite",
        "empty: c.json",
    ]


def test_files_and_saved_datasets_are_told_where_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "state.json").write_text("{}")
    for name in (tmp_path / "a.jsonl", tmp_path):
        with pytest.raises(ConfigError, match=r"data=text_files 'data\.paths="):
            HFStream(str(name))
