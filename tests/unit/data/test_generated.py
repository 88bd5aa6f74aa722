"""A corpus on its way: pieces, what interrupts them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from recyclegpt.data import TextTokenizer, Tokenized
from recyclegpt.data.generated import FACTS, GeneratedCorpus, GeneratedPiece
from recyclegpt.data.source import Split
from recyclegpt.errors import ConfigError

TOKENIZER = TextTokenizer.bytes()
END = TOKENIZER.eos_id
NUM: dict[Split, int] = {"train": 3, "val": 1}
ENDS = ("length", "stop")
IDENTITY = {"decoding.temperature": 1.0, "checkpoint": "a" * 64, "decoding.top_k": None}


def piece(split: Split, number: int) -> GeneratedPiece:
    text = f"{split} {number}".encode()
    tokens = np.array([*text, END, *text, END], np.uint16)
    lengths = np.array([len(text) + 1] * 2)
    return GeneratedPiece(tokens, lengths, np.array([1, 4]), np.array([len(text), 2]), np.array([0, 1]))


def corpus(folder: Path) -> GeneratedCorpus:
    return GeneratedCorpus(folder, IDENTITY)


def write(folder: Path, upto: int = 4, tokens_per_shard: int = 1 << 20) -> int:
    """Write at most `upto` missing pieces, and finish where none is missing; how many were written."""
    found = corpus(folder)
    written = 0
    with found.writing():
        for split, num in NUM.items():
            for number in range(num):
                if found.read(split, number) is None:
                    if written == upto:
                        return written
                    found.write(split, number, piece(split, number))
                    written += 1
        found.finish(NUM, TOKENIZER, ENDS, tokens_per_shard)
    return written


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_folder_holds_all_pieces_in_order(tmp_path: Path) -> None:
    assert corpus(tmp_path / "out").finished() is None
    assert write(tmp_path / "out", tokens_per_shard=32) == 4
    _, train, val, _ = Tokenized(str(tmp_path / "out")).open(0)
    expected = np.concatenate([piece("train", number).tokens for number in range(3)])
    assert train.read(0, train.num_tokens).tolist() == expected.tolist()
    assert val.read(0, val.num_tokens).tolist() == piece("val", 0).tokens.tolist()
    meta = corpus(tmp_path / "out").finished()
    assert meta is not None
    assert meta["splits"]["train"]["num_documents"] == 6
    assert meta["splits"]["train"]["num_bytes"] == 6 * len("train 0")
    assert len(meta["splits"]["train"]["shards"]) == 2
    assert meta[FACTS]["identity"] == IDENTITY
    assert meta[FACTS]["totals"]["train"] == {"num_new_tokens": 3 * (7 + 2), "num_length": 3, "num_stop": 3}
    assert np.load(tmp_path / "out" / "val-documents.npy").tolist() == [[6, 1], [6, 4]]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_interrupted_corpus_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    write(tmp_path / "whole")
    (tmp_path / "out").mkdir()  # an empty folder of the user's is no obstacle
    assert write(tmp_path / "out", upto=2) == 2
    unfinished = tmp_path / "out.unfinished"
    (unfinished / ".train-000002.npz.0123.tmp").write_bytes(b"half")
    (tmp_path / "out.partial").mkdir()  # killed while the shards were written
    assert write(tmp_path / "out") == 2
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_a_piece_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    found = corpus(tmp_path / "out")
    with found.writing():
        monkeypatch.setattr("os.fsync", fail)
        with pytest.raises(OSError, match="No space"):
            found.write("train", 0, piece("train", 0))
        assert found.read("train", 0) is None
        assert not list(found.unfinished.glob(".*"))


@pytest.mark.parametrize("state", ["finished", "unfinished"])
def test_another_corpus_is_refused_with_every_difference(tmp_path: Path, state: str) -> None:
    write(tmp_path / "out", upto=4 if state == "finished" else 1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other = GeneratedCorpus(tmp_path / "out", {**IDENTITY, "decoding.temperature": 0.5, "checkpoint": "b" * 64})
    with pytest.raises(ConfigError) as caught:
        other.finished() if state == "finished" else other.writing().__enter__()
    problems = caught.value.problems
    assert [problem.split(":")[0] for problem in problems] == ["decoding.temperature", "checkpoint", "output_dir"]
    assert "has 1.0, this command 0.5" in problems[0]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("precious")
    for name in ("file", "mine"):
        with pytest.raises(ConfigError, match=r"holds no generated corpus; choose another folder"):
            corpus(tmp_path / name).finished()
    with pytest.raises(ConfigError, match=r"cannot be written"), corpus(tmp_path / "file" / "below").writing():
        pass


def test_a_damaged_finished_corpus_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "out")
    shard = tmp_path / "out" / "train-00000.npy"
    shard.write_bytes(shard.read_bytes()[:-2] + b"xx")
    with pytest.raises(ConfigError, match="checksum"):
        corpus(tmp_path / "out").finished()


def test_two_processes_do_not_write_the_same(tmp_path: Path) -> None:
    found = corpus(tmp_path / "out")
    with found.writing():
        pass
    with (
        FileLock(found.unfinished / "lock"),
        pytest.raises(ConfigError, match="another process is writing"),
        corpus(tmp_path / "out").writing(),
    ):
        pass
