from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, processors

from recyclegpt.data import TextTokenizer, Tokenized, TokenizerConfig, tokenize_corpus
from recyclegpt.data import corpus as tokenizing
from recyclegpt.data.corpus import build_shards, build_tokenizer, token_pieces
from recyclegpt.data.shards import TokenShards, write_shards
from recyclegpt.data.source import Record, Skipped, Split
from recyclegpt.errors import ConfigError


class Lines:
    """A corpus in memory."""

    kind = "lines"

    def __init__(self, train: list[str], val: list[str], bad: int = 0) -> None:
        self.texts = {"train": train, "val": val}
        self.bad = bad
        self.num_readings = 0

    def fingerprint(self) -> str:
        return repr(self.texts)

    def records(self, split: Split) -> Iterator[Record]:
        self.num_readings += 1
        yield from map(Record, self.texts[split])
        for number in range(self.bad if split == "train" else 0):
            yield Record("", f"lines:{number}: broken")


PIECE_CHARS = 1 << 20  # longer documents are cut
CORPUS = Lines([f"document {i} with some words\n" for i in range(50)], ["held out\n"] * 5)


def test_every_document_begins_and_ends_once_also_one_cut_in_pieces(tmp_path: Path) -> None:
    content = TextTokenizer.bytes()._content
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    start = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    texts = ["short", "long line\n" * (PIECE_CHARS // 4), "", "last"]
    config = TokenizerConfig("file", path=str(tmp_path))
    tokenize_corpus(Lines(texts, ["held out"]), config, tmp_path / "out")
    own, shards, _, _ = Tokenized(str(tmp_path / "out")).open(1)
    tokens = shards.read(0, shards.num_tokens)
    expected = [token for text in texts if text for token in (start, *text.encode(), 256)]
    assert own.start_ids == [start]
    np.testing.assert_array_equal(tokens, expected)


def test_how_much_is_tokenized_at_once_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"document {number} " + "with a long line\n" * (number * 7) for number in range(40)]
    corpus = Lines([*texts, "word\n" * (PIECE_CHARS // 4)], ["held out"])
    tokenizer = TextTokenizer.train(texts, 300)
    contents = []
    for batch in (1, 1000, 1 << 22):
        monkeypatch.setattr(tokenizing, "_BATCH_CHARS", batch)
        folder = tmp_path / f"batch{batch}"
        write_shards(
            lambda split: token_pieces(split, corpus.records(split), tokenizer, Skipped(0)), tokenizer, folder, {}, 5000
        )
        contents.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert len(contents[0]) > 5
    assert contents[0] == contents[1] == contents[2]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.data())
def test_reading_across_shards(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    tokens = np.arange(sum(lengths)).astype(np.uint16)
    files = [folder / f"{i}.npy" for i in range(len(lengths))]
    for file, piece in zip(files, np.split(tokens, np.cumsum(lengths)[:-1]), strict=True):
        np.save(file, piece)
    shards = pickle.loads(pickle.dumps(TokenShards(list(zip(files, lengths, strict=True)), 99)))
    start = data.draw(st.integers(0, len(tokens)))
    stop = data.draw(st.integers(start, len(tokens)))
    np.testing.assert_array_equal(shards.read(start, stop), tokens[start:stop])


def test_written_tokens_are_the_documents_joined_by_end_tokens(tmp_path: Path) -> None:
    meta = tokenize_corpus(CORPUS, TokenizerConfig("byte"), tmp_path / "out", tokens_per_shard=64)
    tokenizer, train, val, _ = Tokenized(str(tmp_path / "out")).open(0)
    expected = [token for text in CORPUS.texts["train"] for token in [*text.encode(), 256]]
    assert train.read(0, train.num_tokens).tolist() == expected
    assert val.num_tokens == 5 * len("held out\n.")
    assert len(meta["splits"]["train"]["shards"]) > 1
    assert meta["splits"]["train"]["num_documents"] == 50
    assert meta["splits"]["train"]["num_bytes"] == sum(map(len, CORPUS.texts["train"]))
    assert meta == json.loads((tmp_path / "out" / "meta.json").read_text())
    assert tokenizer.fingerprint == TextTokenizer.bytes().fingerprint
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_writing_never_replaces_a_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(ConfigError, match="exists already"):
        tokenize_corpus(CORPUS, TokenizerConfig("byte"), tmp_path)
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_failed_writing_leaves_nothing(tmp_path: Path) -> None:
    corpus = Lines(["good"], ["val"], bad=3)
    with pytest.raises(ConfigError, match="max_skipped=2") as caught:
        tokenize_corpus(corpus, TokenizerConfig("byte"), tmp_path / "out", max_skipped=2)
    assert "lines:0: broken (and 2 more like it)" in caught.value.problems
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("out*"))


def test_skipped_documents_are_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    corpus = Lines(["good", ""], ["val"], bad=2)
    meta = tokenize_corpus(corpus, TokenizerConfig("byte"), tmp_path / "out", max_skipped=2)
    assert (len(meta["skipped"]), meta["empty"]) == (2, 1)
    assert "lines: left out documents that cannot be read: 2\n  lines:0: broken (and 1 more like it)" in caplog.text
    assert "lines: left out documents that are empty: 1\n  lines, document 2" in caplog.text


def test_cache_is_built_once_and_repaired(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fingerprint = CORPUS.fingerprint()
    config = TokenizerConfig("bpe", vocab_size=280)
    tokenizer = build_tokenizer(CORPUS, config, tmp_path, 0)
    folder = build_shards(CORPUS, fingerprint, tokenizer, tmp_path, 0)
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert build_tokenizer(CORPUS, config, tmp_path, 0).fingerprint == tokenizer.fingerprint
    assert build_shards(CORPUS, fingerprint, tokenizer, tmp_path, 0) == folder
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    good = (folder / "train-00000.npy").read_bytes()
    (folder / "train-00000.npy").write_bytes(good[:-2] + b"\x07\x00")
    assert build_shards(CORPUS, fingerprint, tokenizer, tmp_path, 0) == folder
    assert "checksum" in caplog.text
    assert (folder / "train-00000.npy").read_bytes() == good


def test_two_builders_at_once_write_one_cache(tmp_path: Path) -> None:
    corpus = Lines(CORPUS.texts["train"], CORPUS.texts["val"])
    tokenizer = TextTokenizer.bytes()
    with ThreadPoolExecutor(4) as pool:
        builds = [pool.submit(build_shards, corpus, corpus.fingerprint(), tokenizer, tmp_path, 0) for _ in range(4)]
        folders = {build.result() for build in builds}
    assert len(folders) == 1
    assert corpus.num_readings == 2  # each split once


def test_damaged_shards_are_left_out_up_to_the_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "out"
    tokenize_corpus(CORPUS, TokenizerConfig("byte"), folder, tokens_per_shard=500)
    whole = Tokenized(str(folder)).open(0)
    (folder / "train-00000.npy").unlink()
    np.save(folder / "train-00001.npy", np.zeros(3, np.uint16))
    _, train, _, digest = Tokenized(str(folder)).open(2)
    assert 0 < train.num_tokens < whole[1].num_tokens
    assert digest != whole[3]
    assert "train-00000.npy: cannot be opened" in caplog.text
    with pytest.raises(ConfigError, match=r"max_skipped=1.*train-00000.*train-00001"):
        Tokenized(str(folder)).open(1)


def test_another_tokenizer_beside_the_shards_is_refused(tmp_path: Path) -> None:
    tokenize_corpus(CORPUS, TokenizerConfig("byte"), tmp_path / "out")
    TextTokenizer.train(CORPUS.texts["train"], 280).save(tmp_path / "out" / "tokenizer.json")
    with pytest.raises(ConfigError, match="did not write its shards"):
        Tokenized(str(tmp_path / "out")).open(0)


def test_large_vocabularies_get_four_bytes(tmp_path: Path) -> None:
    class Large(TextTokenizer):
        vocab_size = 70_000  # type: ignore[assignment]

    folder = build_shards(CORPUS, "x", Large(TextTokenizer.bytes()._tokenizer), tmp_path, 0)
    assert np.load(folder / "train-00000.npy").dtype == np.uint32
