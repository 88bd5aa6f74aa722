"""States on disk: the same numbers whether computed or read, whatever the batch; damage is found."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from recyclegpt.data import Batch
from recyclegpt.errors import ConfigError
from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT
from recyclegpt.training.state_cache import StateCache, states_key

TEXT = torch.randint(29, (5, 11), generator=torch.Generator().manual_seed(0))
DOCUMENTS = torch.arange(11).expand(5, 11) // 6


def batch(*rows: int) -> Batch:
    views, documents = (torch.stack([x[[*rows], n : n + 8] for n in range(3)]) for x in (TEXT, DOCUMENTS))
    return Batch(views, documents, {}, np.array(rows))


def test_states_are_the_same_computed_and_read(tmp_path: Path) -> None:
    model = RecycleGPT(ModelConfig(29, 8, num_layers=1, hidden_size=16, num_heads=2), RecycleConfig(num_layers=1))
    torch.nn.init.normal_(model.backbone.layers[0].mlp.down_proj.weight)  # type: ignore[union-attr,arg-type]
    cache = StateCache(tmp_path / "a", 5, 8, 16)
    computed = cache.states(model, batch(0, 3, 1))
    plain = model.states(*batch(0, 3, 1)[:2]).hidden_BTC
    assert torch.equal(computed.hidden_BTC, plain.bfloat16().float())
    assert torch.equal(computed.best_BT, model.logits(computed.hidden_BTC).argmax(-1))
    assert cache.share == 3 / 5
    model.backbone.requires_grad_(False).zero_grad()
    torch.nn.init.zeros_(model.backbone.norm.weight)  # what is computed from now on is zero
    again = StateCache(tmp_path / "a", 5, 8, 16)
    read = again.states(model, batch(1, 4, 0))
    assert torch.equal(read.hidden_BTC[[2, 0]], computed.hidden_BTC[[0, 2]])
    assert torch.equal(read.best_BT[[2, 0]], computed.best_BT[[0, 2]])
    assert not read.hidden_BTC[1].any()
    beside = StateCache(tmp_path / "a", 5, 8, 16, normalisers=True)
    for _ in range(2):
        known = beside.states(model, batch(3, 1))
        assert known.normaliser_BT is not None
        torch.testing.assert_close(known.normaliser_BT, model.logits(known.hidden_BTC).logsumexp(-1))
        with (tmp_path / "a" / "normalisers.f32").open("r+b") as file:
            file.write(b"damage" * 20)
    with (tmp_path / "a" / "states.bf16").open("r+b") as file:
        file.seek(3 * 8 * 16 * 2)
        file.write(b"damage")
    assert not again.states(model, batch(3)).hidden_BTC.any()
    key = states_key(model, {})
    model.lm_head.weight.data[3, 3] += 1
    assert states_key(model, {}) != key


def test_a_full_disk_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ConfigError, match=r"training.cache_states: .* needs .* GB"):
        StateCache(tmp_path / "a", 5, 8, 16)
