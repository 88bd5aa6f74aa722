"""Steps, guard, accumulation, compilation and checkpoints of the LightningModule."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from tokenizers import Tokenizer, models
from torch.utils.data import DataLoader

from recyclegpt.checkpoints.load import find_checkpoint, hyper_parameters, load_trained
from recyclegpt.data import Batch, TextTokenizer
from recyclegpt.errors import ConfigError
from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT
from recyclegpt.training import DualLoss, LitRecycleGPT, LossConfig, MuonAdamW, NonFiniteError, adamw, constant

TEXT = torch.randint(29, (16, 26), generator=torch.Generator().manual_seed(0))


class Data(LightningDataModule):
    """Rows of one fixed text in batches of a given size."""

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader[Batch]:
        batches = [
            Batch(torch.stack([rows[:, n : n + 24] for n in range(3)]), None, {"batch": number + 1})
            for number, rows in enumerate(TEXT.split(self.batch_size))
        ]
        return DataLoader(batches, batch_size=None, generator=torch.Generator())  # type: ignore[arg-type]

    val_dataloader = train_dataloader


def build(max_skipped_steps: int = 2, optimizer: Any = None, compiled: bool = False) -> LitRecycleGPT:
    seed_everything(3, verbose=False)
    model = RecycleGPT(ModelConfig(29, 24, num_layers=1, hidden_size=16, num_heads=2), RecycleConfig(num_layers=1))
    return LitRecycleGPT(
        model,
        LossConfig(),
        optimizer or functools.partial(adamw, lr=1e-2),
        functools.partial(constant),
        8,
        torch.ones(29),
        hyper_parameters(model, {"seed": 3}),
        max_skipped_steps,
        use_compile=compiled,
    )


def tiny_tokenizer() -> TextTokenizer:
    """29 tokens, as many as the model embeds."""
    vocab = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz .")}
    return TextTokenizer(Tokenizer(models.BPE(vocab={**vocab, "</s>": 28}, merges=[])))


def fit(module: LitRecycleGPT, data: Data, tmp_path: Path, **settings: Any) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        limit_train_batches=16 // data.batch_size,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        default_root_dir=tmp_path,
        **settings,
    )
    trainer.fit(module, data)
    return trainer


def test_accumulating_two_half_batches_equals_one_batch(tmp_path: Path) -> None:
    whole, halves = build(), build()
    fit(whole, Data(8), tmp_path, gradient_clip_val=1.0, precision="64-true")
    fit(halves, Data(4), tmp_path, gradient_clip_val=1.0, precision="64-true", accumulate_grad_batches=2)
    for mine, other in zip(halves.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def sgd(named_parameters: Any) -> torch.optim.SGD:
    return torch.optim.SGD([parameter for _, parameter in named_parameters], lr=1.0)


def test_gradients_are_clipped_to_the_norm(tmp_path: Path) -> None:
    module = build(optimizer=sgd)
    before = torch.nn.utils.parameters_to_vector(module.parameters()).clone()
    fit(module, Data(16), tmp_path, gradient_clip_val=0.01)  # one step
    moved = float((torch.nn.utils.parameters_to_vector(module.parameters()) - before).detach().norm())
    assert moved == pytest.approx(0.01, rel=1e-3)


def test_fused_adamw_is_clipped_in_mixed_precision(tmp_path: Path) -> None:
    module = build(optimizer=functools.partial(adamw, lr=1e-2))
    fit(module, Data(8), tmp_path, gradient_clip_val=1.0, precision="bf16-mixed")


def test_the_recycle_weight_follows_the_steps(tmp_path: Path) -> None:
    module = build()
    module.dual_loss = DualLoss(LossConfig(recycle_weight=0.8, recycle_schedule="ramp", schedule_switch=1.0))
    seen = []
    plain = DualLoss.forward

    def recording(self: DualLoss, *args: Any) -> Any:
        seen.append(self.config.recycle_weight_at(args[4]))
        return plain(self, *args)

    module.dual_loss.forward = recording.__get__(module.dual_loss)  # type: ignore[method-assign]
    fit(module, Data(4), tmp_path)
    assert seen == pytest.approx([0, 0.1, 0.2, 0.3])


class Poisoned(LitRecycleGPT):
    """Its loss is not finite in the steps named."""

    poison: tuple[int, ...] = ()
    value = torch.nan

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * self.value if batch_idx in self.poison else loss


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("optimizer", [adamw, MuonAdamW])
def test_a_step_that_is_not_finite_changes_nothing(tmp_path: Path, value: float, optimizer: Any) -> None:
    module = build(optimizer=functools.partial(optimizer, lr=1e-2))
    module.__class__ = Poisoned
    module.poison, module.value = (1, 2), value
    trainer = fit(module, Data(4), tmp_path, gradient_clip_val=1.0)
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())
    assert module.num_skipped_steps == 2
    assert trainer.callback_metrics["train/skipped_steps"] == 2

    other = build(optimizer=functools.partial(optimizer, lr=1e-2))
    other.__class__ = Poisoned
    other.poison = (1, 2, 3)
    with pytest.raises(NonFiniteError, match=r"3 steps in a row, last at step 3; lower optimizer\.lr"):
        fit(other, Data(4), tmp_path)
    assert all(torch.isfinite(parameter).all() for parameter in other.parameters())


def test_a_loss_that_is_not_finite_makes_every_gradient_so(tmp_path: Path) -> None:
    """Its gradient may be finite by itself; then other ranks would take the step and this one would not."""

    class Infinite(LitRecycleGPT):
        def loss_terms(self, batch: Batch, *known: Any) -> Any:
            terms = super().loss_terms(batch, *known)
            return terms._replace(loss=terms.loss + torch.inf)

    module = build(max_skipped_steps=9)
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    module.__class__ = Infinite
    fit(module, Data(4), tmp_path)
    assert module.num_skipped_steps == 4
    assert all(torch.equal(weight, before[name]) for name, weight in module.state_dict().items())


def test_the_rows_of_a_skipped_step_are_saved(tmp_path: Path) -> None:
    class Named(Data):
        def train_dataloader(self) -> DataLoader[Batch]:
            loader = super().train_dataloader()
            loader.dataset[:] = [  # type: ignore[index]
                batch._replace(rows_B=np.array([10 * number, 10 * number + 1]))
                for number, batch in enumerate(loader.dataset)  # type: ignore[arg-type, var-annotated]
            ]
            return loader

    module = build()
    module.__class__ = Poisoned
    module.poison = (3, 4)
    fit(module, Named(2), tmp_path, accumulate_grad_batches=2)
    lines = [json.loads(line) for line in (tmp_path / "not_finite.jsonl").read_text().splitlines()]
    assert [(line["step"], line["rank"], line["format"]) for line in lines] == [(1, 0, 1), (2, 0, 1)]
    assert [[batch["rows"] for batch in line["batches"]] for line in lines] == [
        [[20, 21], [30, 31]],
        [[40, 41], [50, 51]],
    ]
    assert all(line["grad_norm"] == "nan" for line in lines)


def test_the_count_of_skipped_steps_survives_a_restart(tmp_path: Path) -> None:
    module = build()
    module.__class__ = Poisoned
    module.poison = (2, 3)
    fit(module, Data(4), tmp_path).save_checkpoint(tmp_path / "step_4.ckpt")
    resumed = build()
    resumed.on_load_checkpoint(torch.load(tmp_path / "step_4.ckpt", weights_only=True))
    assert (resumed.num_skipped_steps, resumed.num_skipped_in_a_row) == (2, 2)


def test_compilation_in_place_keeps_the_keys(tmp_path: Path) -> None:
    plain, compiled = build(), build(compiled=True)
    assert list(plain.state_dict()) == list(compiled.state_dict())
    assert compiled.model.backbone.layers[0]._compiled_call_impl is not None


def test_checkpoint_gives_the_model_back_and_loads_weights_only(tmp_path: Path) -> None:
    module = build()
    trainer = fit(module, Data(8), tmp_path)
    folder = tmp_path / "run" / "checkpoints"
    trainer.save_checkpoint(folder / "step_0000002.ckpt")
    tiny_tokenizer().save(folder / "tokenizer.json")
    torch.load(folder / "step_0000002.ckpt", weights_only=True)
    trained = load_trained(tmp_path)
    assert trained.path == folder / "step_0000002.ckpt"
    assert (trained.step, trained.config) == (2, {"seed": 3})
    tokens = TEXT[:2]
    with torch.no_grad():
        expected = module.model.eval().recycle(tokens[:, 1:], module.model.backbone_states(tokens[:, :-1]))
        got = trained.model.recycle(tokens[:, 1:], trained.model.backbone_states(tokens[:, :-1]))
    assert torch.equal(got, expected)
    assert trained.model.lm_head.weight is trained.model.backbone.embed_tokens.weight


def test_the_newest_checkpoint_is_the_one_of_the_most_steps(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("step_9.ckpt", "step_10.ckpt", "step_10.ckpt.tmp", "other.ckpt"):
        torch.save({}, folder / name)
    assert find_checkpoint(tmp_path).name == "step_10.ckpt"


def test_what_cannot_be_loaded_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist; give a run folder"):
        load_trained(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="holds no step_"):
        load_trained(tmp_path)
    broken = tmp_path / "step_1.ckpt"
    broken.write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(ConfigError, match="give one of this project"):
        load_trained(broken)
    torch.save({"hyper_parameters": {"format": 99}, "state_dict": {}}, tmp_path / "step_2.ckpt")
    with pytest.raises(ConfigError, match="has format 99, this version reads 1"):
        load_trained(tmp_path)


class Evil:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_malicious_checkpoint_runs_nothing(tmp_path: Path) -> None:
    torch.save({"hyper_parameters": Evil(tmp_path / "ran")}, tmp_path / "step_1.ckpt")
    with pytest.raises(ConfigError):
        load_trained(tmp_path)
    assert not (tmp_path / "ran").exists()
