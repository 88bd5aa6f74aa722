"""`generate-corpus` on a run trained here: interrupted, repeated, refused, and trained on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from recyclegpt.checkpoints.load import load_trained
from recyclegpt.commands.main import main
from recyclegpt.data import Tokenized
from recyclegpt.data.generated import GeneratedCorpus
from recyclegpt.decoding import corpus_writer
from tests.chat_tokenizer import write_chat_tokenizer

Run = Callable[..., int]
SIZES = ["num_documents=10", "num_val_documents=4", "prompt_tokens=8", "batch_size=4"]
SIZES += ["decoding.max_new_tokens=40", "decoding.temperature=1.0"]


@pytest.fixture(autouse=True, scope="module")
def small_pieces() -> Iterator[None]:
    """A piece is a batch, so that there are several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_writer, "ROUNDS", 1)
        yield


@pytest.fixture(scope="module")
def trained(trained: Path) -> Path:
    return trained / "run"


@pytest.fixture(scope="module")
def whole(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus written without an interruption."""
    folder = tmp_path_factory.mktemp("generated") / "whole"
    assert main(["generate-corpus", f"checkpoint={trained}", f"output_dir={folder}", *SIZES]) == 0
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def documents(folder: Path, split: int) -> tuple[list[list[int]], int]:
    tokenizer, *splits, _ = Tokenized(str(folder)).open(0)
    tokens = splits[split].read(0, splits[split].num_tokens)
    assert tokens[-1] == tokenizer.eos_id
    found = [part.tolist() for part in np.split(tokens, np.flatnonzero(tokens == tokenizer.eos_id) + 1)]
    return found[:-1], tokenizer.vocab_size


def test_documents_begin_as_the_corpus_and_end_once(whole: Path, trained: Path, corpus: Path) -> None:
    train, vocab_size = documents(whole, 0)
    val, _ = documents(whole, 1)
    assert (len(train), len(val)) == (10, 4)
    assert all(9 <= len(document) <= 8 + 40 + 1 for document in train + val)
    assert max(map(max, train)) < vocab_size
    encode = load_trained(trained).tokenizer.encode
    beginnings = {tuple(encode(path.read_text())[:8]) for path in corpus.iterdir()}
    assert {tuple(document[:8]) for document in train} <= beginnings
    assert len({tuple(document) for document in train + val}) == 14


def test_training_on_it(run: Run, whole: Path) -> None:
    data = ["data=tokenized", f"data.path={whole}", "data.num_val_batches=1", "model.context_length=16"]
    assert run("train", "debug=smoke", "callbacks=no_monitor", "trainer.max_epochs=1", *data, "hydra.run.dir=run") == 0
    assert json.loads(Path("run/result.json").read_text())["status"] == "completed"


@pytest.mark.parametrize("stopped", ["write", "finish"])
def test_interrupted_and_begun_again_it_is_the_same(
    run: Run,
    trained: Path,
    whole: Path,
    stopped: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    original = getattr(GeneratedCorpus, stopped)
    calls = []

    def stop_later(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == (3 if stopped == "write" else 1):
            raise KeyboardInterrupt
        return original(*arguments)

    command = ("generate-corpus", f"checkpoint={trained}", "output_dir=out", *SIZES)
    with monkeypatch.context() as patch:
        patch.setattr(GeneratedCorpus, stopped, stop_later)
        assert run(*command) == 130
    assert not Path("out").exists()
    assert len(list(Path("out.unfinished").glob("*.npz"))) == (2 if stopped == "write" else 4)
    assert run(*command) == 0
    assert content(Path("out")) == content(whole)
    assert f"{8 if stopped == 'write' else 14} of 14 documents are there" in caplog.text
    assert not Path("out.unfinished").exists()


def test_what_is_complete_is_not_written_again(
    run: Run, trained: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(whole)
    monkeypatch.setattr(
        "recyclegpt.commands.generate_corpus.Decoder.optimised", lambda *_, **__: pytest.fail("decodes")
    )
    # The same weights elsewhere are the same model.
    assert run("generate-corpus", f"checkpoint={trained.parent}", f"output_dir={whole}", *SIZES) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "is complete" in lines[0]
    document = json.loads(lines[-1])
    train, _ = documents(whole, 0)
    val, _ = documents(whole, 1)
    assert sum(facts["num_documents"] for facts in document["splits"].values()) == 14
    assert sum(facts["num_tokens"] for facts in document["splits"].values()) == sum(map(len, train + val))
    assert document["tokens_per_s"] is None
    ends = [document["splits"][split][f"num_{end}"] for split in ("train", "val") for end in ("length", "stop")]
    assert sum(ends) + sum(facts["num_unknown"] for facts in document["splits"].values()) == 14
    assert content(whole) == before


def test_another_corpus_in_the_same_folder_is_refused(
    run: Run, trained: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(whole)
    other = ["decoding.seed=1", "decoding.strategy=autoregressive"]
    assert run("generate-corpus", f"checkpoint={trained}", f"output_dir={whole}", *SIZES, *other) == 2
    message = capsys.readouterr().err
    for words in ("decoding.seed: ", "has 0, this command 1", "decoding.strategy: ", "output_dir: "):
        assert words in message
    assert "batch_size" not in message
    assert content(whole) == before


def test_another_corpus_gives_the_prompts(
    run: Run, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "other.txt"
    text.write_text("Something else entirely, said in English.\n" * 400, encoding="utf-8")
    data = ["data=text_files", f"data.paths=[{text}]", "data.val_fraction=0.5"]
    small = [*SIZES, "num_documents=3", "num_val_documents=2", "decoding.max_new_tokens=4"]
    assert run("generate-corpus", f"checkpoint={trained}", "output_dir=out", *data, *small) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["splits"]["val"]["num_documents"] == 2
    encode = load_trained(trained).tokenizer.encode
    whole_text = encode(text.read_text())
    train, _ = documents(Path("out"), 0)
    places = [whole_text[start : start + 8] for start in range(len(whole_text))]
    assert all(document[:8] in places for document in train)


def test_answers_to_prompts(run: Run, tiny_checkpoint: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    """Conversations as the template writes them; more rows side by side change no byte."""
    folder = write_chat_tokenizer(tiny_checkpoint())
    asked = ["Why <|im_end|>?", "And?", "How is it? " * 99, "sky", "blue", "red"]
    lines = [json.dumps({"prompt": text}) for text in asked[:-1]]
    lines.append(json.dumps({"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "red"}]}))
    Path("p.jsonl").write_text("\n".join(lines), encoding="utf-8")
    command = ["generate-corpus", f"checkpoint={folder}", "prompts=p.jsonl", "num_val_documents=1", "sampled_share=0.5"]
    command += ["decoding.strategy=autoregressive", "decoding.max_new_tokens=9", "decoding.temperature=1"]
    assert run(*command, "output_dir=out", "batch_size=2") == 0
    assert "1 of 6 prompts leave no room" in caplog.text
    tokenizer, train, val, _ = Tokenized("out").open(0)
    for split, corpus in (("train", train), ("val", val)):
        begin = 0
        for length, num_prompt in np.load(f"out/{split}-documents.npy").tolist():
            tokens, begin = corpus.read(begin, begin + length).tolist(), begin + length
            question = tokenizer.decode(tokens[:num_prompt])
            assert question.endswith("<|im_start|>assistant\n")
            assert any(text in question for text in asked)
            assert tokenizer.decode(tokens[num_prompt:]).endswith("<|im_end|>\n<|endoftext|>")
        assert begin == corpus.num_tokens
    whole = content(Path("out"))
    assert run(*command, "output_dir=wide", "batch_size=4") == 0
    shards = [name for name in whole if name.endswith(".npy")]
    assert all((Path("wide") / name).read_bytes() == whole[name] for name in shards)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["decoding.strategy=alternating"], "decoding.strategy: alternating keeps tokens"),
        (["decoding.stop=[x]"], "decoding.stop: documents end with the end token"),
        (["batch_size=0", "num_documents=-1"], "num_documents: -1"),
        (["sampled_share=2"], "sampled_share: 2.0 is not between"),
        (["prompt_tokens=60"], "exceed the context of 64; take 4"),
        (["num_documents=100000"], "ask for fewer"),
        (["output_dir=/proc/x"], "/proc/x cannot be written"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(
    run: Run, trained: Path, wrong: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate-corpus", f"checkpoint={trained}", "output_dir=out", *SIZES, *wrong) == 2
    assert message in capsys.readouterr().err
    assert not list(Path().iterdir())
