"""The monitor measures what it says and leaves training as it was."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from torch.utils.data import DataLoader, Dataset

from recyclegpt.callbacks import DecodingMonitor, RngIsolation
from recyclegpt.callbacks.decoding_monitor import TAGS, marked_text
from recyclegpt.data import Batch
from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT
from recyclegpt.training import LitRecycleGPT, LossConfig, adamw, constant


class Rows(Dataset[Batch]):
    """Random rows that are the same for everyone."""

    def __init__(self, length: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.text = torch.randint(29, (length, 2, 26), generator=generator)

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, index: int) -> Batch:
        return Batch(torch.stack([self.text[index, :, n : n + 24] for n in range(3)]), None, {"batch": index + 1})


class RowData(LightningDataModule):
    tokenizer = None

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(Rows(4, 0), batch_size=None, generator=torch.Generator().manual_seed(0))

    def val_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(Rows(2, 1), batch_size=None, generator=torch.Generator().manual_seed(0))

    def val_prompts(self, num: int, length: int) -> torch.Tensor:
        return Rows(num, 2).text[:, 0, :length]


class Dropping(LitRecycleGPT):
    """Draws a random number in every training step, as dropout would."""

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch, batch_idx) * torch.rand(()).add(0.5)


def fit(
    tmp_path: Path, *callbacks: object, depth: int = 1, sanity: int = 0, epochs: int = 2
) -> tuple[Trainer, LitRecycleGPT]:
    seed_everything(3, verbose=False)
    model = RecycleGPT(ModelConfig(29, 24, num_layers=1, hidden_size=16, num_heads=2), RecycleConfig(num_layers=depth))
    module = Dropping(
        model,
        LossConfig(),
        functools.partial(adamw, lr=1e-2),
        functools.partial(constant),
        8,
        torch.ones(29),
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        limit_train_batches=4,
        num_sanity_val_steps=sanity,
        inference_mode=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        default_root_dir=tmp_path,
        callbacks=[RngIsolation(), *callbacks],
    )
    trainer.fit(module, RowData())
    return trainer, module


def monitor(folder: Path, temperature: float = 0.0, **settings: object) -> DecodingMonitor:
    chosen = {"num_prompts": 2, "prompt_tokens": 6, "new_tokens": 8, "repetitions": 2, **settings}
    decoding = {"strategy": "verified", "dtype": "float32", "temperature": temperature}
    return DecodingMonitor(decoding, str(folder), **chosen)


def test_training_with_the_monitor_equals_training_without_bit_for_bit(tmp_path: Path) -> None:
    _, without = fit(tmp_path)
    _, sampled = fit(tmp_path, monitor(tmp_path, temperature=1.0))
    for (name, mine), other in zip(without.state_dict().items(), sampled.state_dict().values(), strict=True):
        assert torch.equal(mine, other), name


def test_every_tag_is_measured_and_written(tmp_path: Path) -> None:
    trainer, _ = fit(tmp_path, monitor(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "decoding.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1]
    assert [row["step"] for row in rows] == [4, 8]
    for tag in TAGS:
        value = float(trainer.callback_metrics[tag])
        assert math.isfinite(value), tag
        assert rows[-1][tag] == pytest.approx(value, rel=1e-5)
    metrics = trainer.callback_metrics
    assert 0 <= metrics["decode/acceptance"] <= 1
    assert 1 <= metrics["decode/mean_accepted_length"] <= 2
    assert metrics["decode/ceiling_alternating"] >= metrics["decode/ceiling_verified"]
    assert rows[-1]["acceptance_by_position"] == [pytest.approx(float(metrics["decode/acceptance_by_position/1"]))]
    assert rows[-1]["drafter"] == "module"
    assert len(rows[0]["repetitions"]["verified"]) == 2


def test_without_a_module_only_the_baseline_is_measured(tmp_path: Path) -> None:
    trainer, _ = fit(tmp_path, monitor(tmp_path), depth=0)
    measured = {tag for tag in TAGS if math.isfinite(trainer.callback_metrics[tag])}
    assert measured == {"decode/tokens_per_s_autoregressive", "decode/nll_autoregressive", "decode/seconds"}


def test_epochs_left_out_and_the_last_one(tmp_path: Path) -> None:
    trainer, _ = fit(tmp_path, monitor(tmp_path, every_n_epochs=3), epochs=5)
    rows = [json.loads(line) for line in (tmp_path / "decoding.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 3, 4], "the last epoch is always decoded"
    assert math.isfinite(trainer.callback_metrics["decode/agreement"])


def test_tags_are_logged_as_nan_where_decoding_is_off(tmp_path: Path) -> None:
    trainer, _ = fit(tmp_path, monitor(tmp_path, every_n_epochs=0))
    assert all(math.isnan(trainer.callback_metrics[tag]) for tag in TAGS)
    assert not (tmp_path / "decoding.jsonl").exists()


def test_rows_after_the_point_of_resumption_are_written_again(tmp_path: Path) -> None:
    rows = [{"epoch": 0, "step": 0, "old": True}, {"epoch": 1, "step": 4, "old": True}]
    (tmp_path / "decoding.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fit(tmp_path, monitor(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "decoding.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 4, 8]
    assert [row.get("old", False) for row in rows] == [True, False, False]


def test_nothing_runs_in_the_sanity_check(tmp_path: Path) -> None:
    class Counting(DecodingMonitor):
        calls = 0

        def _measure(self, trainer: Trainer, pl_module: LitRecycleGPT) -> object:
            assert not trainer.sanity_checking
            self.calls += 1
            return super()._measure(trainer, pl_module)

    counting = Counting(prompt_tokens=6, new_tokens=8, num_prompts=1, repetitions=1)
    fit(tmp_path, counting, sanity=1)
    assert counting.calls == 2


def test_a_failed_measurement_is_reported_and_does_not_end_training(tmp_path: Path) -> None:
    class Failing(DecodingMonitor):
        def _measure(self, trainer: Trainer, pl_module: LitRecycleGPT) -> object:
            torch.rand(100)
            raise RuntimeError("no memory left")

    _, without = fit(tmp_path)
    with pytest.warns(UserWarning, match="decoding was not measured after step [48]: RuntimeError: no memory left"):
        trainer, module = fit(tmp_path, Failing(prompt_tokens=6, new_tokens=8))
    assert math.isnan(trainer.callback_metrics["decode/agreement"])
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), without.parameters(), strict=True))


def test_marked_text_shows_who_wrote_what_and_is_escaped() -> None:
    text = marked_text(lambda ids: "".join("<abc>"[i] for i in ids), [1, 2], [0, 1, 2, 3], [False, True, True, False])
    assert text == "<pre><em>...ab</em>&lt;<strong>ab</strong>c</pre>"
