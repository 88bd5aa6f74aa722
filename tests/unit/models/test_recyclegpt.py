"""One forward for training and decoding: cached equals uncached, nothing leaks, gradients are as documented."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recyclegpt.errors import ConfigError
from recyclegpt.models import KVCache, ModelConfig, RecycleConfig, RecycleGPT

CONFIG = ModelConfig(31, context_length=40, num_layers=2, hidden_size=24, num_heads=4, num_kv_heads=2)


def build(seed: int = 0, **recycle: object) -> RecycleGPT:
    model = RecycleGPT(CONFIG, RecycleConfig(**{"num_layers": 2, **recycle})).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3, generator=generator)
    return model


def views(num_views: int, num_positions: int = 12, batch: int = 2, seed: int = 0) -> torch.Tensor:
    text = torch.randint(31, (batch, num_positions + num_views - 1), generator=torch.Generator().manual_seed(seed))
    return torch.stack([text[:, n : n + num_positions] for n in range(num_views)])


@pytest.mark.parametrize("blocks", [[12], [5, 1, 1, 3, 2], [1] * 12])
@torch.no_grad()
def test_cached_equals_uncached(blocks: list[int]) -> None:
    model, rows_NBT = build(), views(2)
    full = model.backbone_states(rows_NBT[0])
    full_recycled = model.recycle(rows_NBT[1], full)
    cache = KVCache(CONFIG, 2, batch=2, num_slots=20, dtype=model.dtype)
    draft_cache = KVCache(CONFIG, 2, batch=2, num_slots=20, dtype=model.dtype)
    start = 0
    for size in blocks:
        where = slice(start, start + size)
        positions_BT = torch.arange(start, start + size).expand(2, -1)
        hidden = model.backbone_states(rows_NBT[0][:, where], positions_BT, cache=cache, num_slots_read=start + size)
        recycled = model.recycle(rows_NBT[1][:, where], hidden, positions_BT, cache=draft_cache)
        torch.testing.assert_close(hidden, full[:, where])
        torch.testing.assert_close(recycled, full_recycled[:, where])
        start += size


@torch.no_grad()
def test_rows_of_a_cache_may_stand_at_different_positions() -> None:
    model, (tokens_BT,) = build(), views(1)
    cache = KVCache(CONFIG, 2, batch=2, num_slots=16, dtype=model.dtype)
    model.backbone_states(tokens_BT[:, :6], torch.arange(6).expand(2, -1), cache=cache)
    positions_BT = torch.tensor([[6, 7], [3, 4]])  # the second row is rolled back by three
    hidden = model.backbone_states(tokens_BT.gather(1, positions_BT), positions_BT, cache=cache)
    full = model.backbone_states(tokens_BT)
    torch.testing.assert_close(hidden[0], full[0, 6:8])
    torch.testing.assert_close(hidden[1], full[1, 3:5])


@pytest.mark.parametrize("num_unrolled", [1, 3])
@torch.no_grad()
def test_no_leak_from_the_future(num_unrolled: int) -> None:
    model = build()
    text = torch.randint(31, (1, 16), generator=torch.Generator().manual_seed(3))
    rows = torch.stack([text[:, n : n + 12] for n in range(num_unrolled + 1)])
    before = model.states(rows, num_unrolled=num_unrolled)
    for changed in range(16):
        other = text.clone()
        other[0, changed] = (other[0, changed] + 1) % 31
        rows = torch.stack([other[:, n : n + 12] for n in range(num_unrolled + 1)])
        after = model.states(rows, num_unrolled=num_unrolled)
        for offset, (old, new) in enumerate(
            zip([before.hidden_BTC, *before.recycled_KBTC], [after.hidden_BTC, *after.recycled_KBTC], strict=True)
        ):
            # h_t has read tokens up to t, step k of row t up to t + k
            same = [bool((old[0, t] == new[0, t]).all()) for t in range(12)]
            assert same == [t + offset < changed for t in range(12)]


@torch.no_grad()
def test_documents_do_not_see_each_other() -> None:
    model = build()
    text = torch.randint(31, (1, 14), generator=torch.Generator().manual_seed(5))
    documents = torch.tensor([[0] * 5 + [1] * 9])
    other = text.clone()
    other[0, :5] = (other[0, :5] + 3) % 31

    def states(tokens: torch.Tensor) -> list[torch.Tensor]:
        rows = torch.stack([tokens[:, n : n + 12] for n in range(3)])
        owners = torch.stack([documents[:, n : n + 12] for n in range(3)])
        result = model.states(rows, owners, num_unrolled=2)
        return [result.hidden_BTC, *result.recycled_KBTC]

    for old, new in zip(states(text), states(other), strict=True):
        assert (old[0, 5:] == new[0, 5:]).all()
        assert not (old[0, :4] == new[0, :4]).any(dim=-1).any()


def test_fold_reads_the_token_first_and_the_state_second() -> None:
    model = build()
    fc = model.recyclable.fc
    with torch.no_grad():
        fc.weight.zero_()
        fc.weight[:, :24] = torch.eye(24)
        tokens, state = torch.tensor([[1, 2, 3]]), torch.randn(1, 3, 24, dtype=torch.double)
        assert (model.recycle(tokens, state) == model.recycle(tokens, state + 1)).all()
        fc.weight.zero_()
        fc.weight[:, 24:] = torch.eye(24)
        assert (model.recycle(tokens, state) == model.recycle(tokens + 1, state)).all()


@pytest.mark.parametrize("tied", [True, False])
def test_gradient_of_the_module_into_the_backbone_is_scaled(tied: bool) -> None:
    config = ModelConfig(31, context_length=40, num_layers=1, hidden_size=24, num_heads=4, tie_embeddings=tied)
    model = RecycleGPT(config, RecycleConfig(num_layers=1)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    grads = {}
    for share in (0.0, 0.25, 1.0):
        model.zero_grad()
        states = model.states(views(3), num_unrolled=2, backbone_grad_scale=share)
        states.recycled_KBTC[1].square().sum().backward()
        grads[share] = {
            name: torch.zeros(()) if p.grad is None else p.grad.clone() for name, p in model.backbone.named_parameters()
        }
        assert model.recyclable.fc.weight.grad.abs().sum() > 0
    for name, full in grads[1.0].items():
        assert full.abs().sum() > 0
        assert not grads[0.0][name].any()
        torch.testing.assert_close(grads[0.25][name], 0.25 * full)


def test_saved_and_loaded_model_is_the_same(tmp_path: Path) -> None:
    for tied in (True, False):
        config = ModelConfig(31, context_length=40, num_layers=1, hidden_size=24, num_heads=4, tie_embeddings=tied)
        model = RecycleGPT(config, RecycleConfig(num_layers=1, norm_inputs=True)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
        model.save_pretrained(tmp_path / str(tied))
        loaded = RecycleGPT.from_pretrained(tmp_path / str(tied)).eval()
        assert (loaded.config, loaded.recycle_config) == (model.config, model.recycle_config)
        rows = views(2)
        for old, new in zip(model.states(rows).recycled_KBTC, loaded.states(rows).recycled_KBTC, strict=True):
            assert (old == new).all()
        assert (loaded.lm_head.weight is loaded.backbone.embed_tokens.weight) == tied


def test_a_model_without_module_says_so() -> None:
    model = RecycleGPT(CONFIG)
    assert model.states(views(3)).recycled_KBTC == []
    assert model.num_parameters_recycle() == 0
    with pytest.raises(ValueError, match="no recyclable module"):
        model.recycle(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, 24))


def test_impossible_shapes_are_all_named() -> None:
    with pytest.raises(ConfigError) as error:
        ModelConfig(-1, num_layers=0, num_kv_heads=-2)
    assert [problem.split(":")[0] for problem in error.value.problems] == ["vocab_size", "num_layers", "num_kv_heads"]
    with pytest.raises(ConfigError, match="num_heads: 5 does not divide hidden_size=64; "):
        ModelConfig(10, hidden_size=64, num_heads=5)
    with pytest.raises(ConfigError, match="num_kv_heads: 3 does not divide"):
        ModelConfig(10, hidden_size=64, num_heads=4, num_kv_heads=3)
    with pytest.raises(ConfigError, match="head_dim: 3 is odd"):
        ModelConfig(10, hidden_size=12, num_heads=4)
