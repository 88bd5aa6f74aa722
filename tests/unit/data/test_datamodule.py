from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from recyclegpt.data import (
    Batch,
    HFStream,
    TextDataModule,
    TextFiles,
    TextFilesData,
    TokenizedData,
    TokenizerConfig,
    tokenize_corpus,
)
from recyclegpt.data.loaders import state_in
from recyclegpt.errors import ConfigError


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("".join(f"line {number} of a small corpus\n" for number in range(300)))
    return file


def make(text: Path, **settings: Any) -> TextDataModule:
    source = settings.pop("source", None) or TextFiles([str(text)], val_fraction=0.2)
    rows = {key: settings.pop(key) for key in ("row_length", "num_views", "seed") if key in settings}
    defaults = {"tokenizer": TokenizerConfig("byte"), "batch_size": 4, "num_val_batches": 3}
    data = TextDataModule(source, **{**defaults, "cache_dir": text.parent / "cache", **settings})
    data.connect(**{"row_length": 16, **rows})
    return data


class Recorder(LightningModule):
    """Trains on nothing and remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[torch.Tensor] = []
        self.num_validated = 0

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch.views_NBT.clone())
        return self.weight.sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        assert isinstance(batch, Batch)
        self.num_validated += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveEachStep(Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.folder / f"step-{trainer.global_step}.ckpt")


def fit(data: TextDataModule, folder: Path, max_steps: int, ckpt_path: Path | None = None) -> Recorder:
    model = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        limit_train_batches=5,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[SaveEachStep(folder)],
        num_sanity_val_steps=1,
    )
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return model


def streamed(text: Path, num_workers: int) -> TextDataModule:
    source = HFStream("text", data_files=str(text), num_val_documents=20, shuffle_buffer=9)
    return make(text, source=source, num_workers=num_workers, row_length=8)


def packed(text: Path, num_workers: int) -> TextDataModule:
    return make(text, num_workers=num_workers)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("build", [packed, streamed])
def test_lightning_resumes_exactly_in_the_middle_of_an_epoch_twice(
    text: Path, tmp_path: Path, build: Any, num_workers: int
) -> None:
    whole = fit(build(text, num_workers), tmp_path / "whole", 13)
    assert len(whole.seen) == 13
    assert whole.num_validated == 3 * 2 + 1
    folder = tmp_path / "pieces"
    first = fit(build(text, num_workers), folder, 4)
    second = fit(build(text, num_workers), folder, 8, folder / "step-4.ckpt")
    third = fit(build(text, num_workers), folder, 13, folder / "step-8.ckpt")
    pieces = first.seen + second.seen + third.seen
    assert len(pieces) == 13
    assert all(torch.equal(one, other) for one, other in zip(whole.seen, pieces, strict=True))


def test_checkpointed_state_loads_with_weights_only(text: Path, tmp_path: Path) -> None:
    data = streamed(text, 0)
    loader = data.train_dataloader()
    for batch in itertools.islice(loader, 3):
        data.trained_on(batch.state)
    torch.save(data.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    other = streamed(text, 0)
    other.load_state_dict(state)
    expected, found = next(iter(loader)), next(iter(other.train_dataloader()))
    assert torch.equal(expected.views_NBT, found.views_NBT)


def test_state_of_another_run_is_refused_with_every_difference(text: Path) -> None:
    state = make(text).state_dict()
    make(text).load_state_dict(state)
    make(text, num_workers=2, num_val_batches=2).load_state_dict(state)  # neither changes the order
    with pytest.raises(ConfigError) as caught:
        make(text, row_length=8, seed=2).load_state_dict(state)
    assert len(caught.value.problems) == 2
    assert "model.context_length: the checkpoint was trained with 16, this run has 8" in caught.value.problems[0]
    with pytest.raises(ConfigError, match="format 99"):
        make(text).load_state_dict({"format": 99})
    with pytest.raises(ConfigError, match="number of processes: the checkpoint was trained with 2, this run has 1"):
        make(text).load_state_dict({**state, "world_size": 2, "ranks": state["ranks"] * 2})
    text.write_text(text.read_text() + "one more line\n")
    with pytest.raises(ConfigError, match="data: its files have changed"):
        make(text).load_state_dict(state)


def test_streams_refuse_another_number_of_workers(text: Path) -> None:
    state = streamed(text, 0).state_dict()
    streamed(text, 1).load_state_dict(state)
    with pytest.raises(ConfigError, match="num_workers: the checkpoint was trained with 1, this run has 2"):
        streamed(text, 2).load_state_dict(state)


def test_what_the_rest_of_the_house_asks_for(text: Path) -> None:
    data = make(text, num_views=4)
    batch = next(iter(data.train_dataloader()))
    assert batch.views_NBT.shape == (4, 4, 16)
    assert batch.documents_NBT is None
    assert next(iter(data.val_dataloader())).views_NBT.shape == (4, 4, 16)
    assert data.tokenizer.vocab_size == 257
    assert data.train_num_tokens is not None
    assert int(data.unigram_counts().sum()) == data.train_num_tokens
    assert data.unigram_counts().shape == (257,)
    assert data.val_tokens(10).tolist() == data.val_tokens()[:10].tolist()
    assert data.tokenizer.decode(data.val_tokens(30).tolist()).startswith("line 2")
    assert len(data.fingerprint) == 64
    assert data.fingerprint == make(text, num_views=4).fingerprint != make(text).fingerprint


def test_documents_are_numbered_on_request(text: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "abc"}\n' * 100)
    data = make(text, source=TextFiles([str(file)], val_fraction=0.2), mask_documents=True)
    documents = next(iter(data.train_dataloader())).documents_NBT
    assert documents is not None
    assert documents.max() >= 3


def test_prompts_come_from_different_documents(text: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f'{{"text": "document {number} is here"}}\n' for number in range(100)))
    data = make(text, source=TextFiles([str(file)], val_fraction=0.2))
    prompts = data.val_prompts(5, 12)
    assert torch.equal(prompts, data.val_prompts(5, 12))
    texts = [data.tokenizer.decode(prompt) for prompt in prompts.tolist()]
    assert len(set(texts)) == 5
    assert all(text.startswith("document ") for text in texts)
    assert data.val_prompts(3, 60).shape == (3, 60)  # no document is that long
    with pytest.raises(ConfigError, match="prompts"):
        data.val_prompts(3, 10_000)


def test_second_start_reads_no_text(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(text, tokenizer=TokenizerConfig("bpe", vocab_size=280)).setup()

    def fail(*_: object) -> Iterator[object]:
        raise AssertionError("text was read again")

    monkeypatch.setattr(TextFiles, "records", fail)
    data = make(text, tokenizer=TokenizerConfig("bpe", vocab_size=280))
    data.setup()
    data.setup()
    assert data.tokenizer.vocab_size == 280


def test_bad_settings_are_all_named(text: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        make(text, batch_size=-1, num_workers=-2, tokenizer=None)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "data.batch_size",
        "data.num_workers",
        "data.tokenizer",
    ]
    with pytest.raises(ConfigError, match="row_length: 0"):
        make(text, row_length=0)
    data = TextDataModule(TextFiles([str(text)]), TokenizerConfig("byte"), 4, cache_dir=text.parent)
    with pytest.raises(RuntimeError, match="connect"):
        data.train_dataloader()


def test_tokenized_data_gives_the_rows_of_its_text(text: Path, tmp_path: Path) -> None:
    shared: dict[str, Any] = {"batch_size": 2, "cache_dir": tmp_path / "cache"}
    files = TextFilesData([str(text)], val_fraction=0.3, tokenizer=TokenizerConfig("byte"), **shared)
    tokenize_corpus(TextFiles([str(text)], val_fraction=0.3), TokenizerConfig("byte"), tmp_path / "out")
    shards = TokenizedData(str(tmp_path / "out"), **shared)
    rows = []
    for data in (files, shards):
        data.connect(row_length=8)
        assert state_in({type(data).__name__: data.state_dict()}) == data.state_dict()
        rows.append(next(iter(data.train_dataloader())).views_NBT)
    assert torch.equal(*rows)
