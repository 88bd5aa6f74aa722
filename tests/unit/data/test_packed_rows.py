"""Rows and their shifted views; every row once a pass, and a position that is one number."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from recyclegpt.data.loaders import TrainLoader, ValBatches
from recyclegpt.data.packed_rows import Batch, PackedRows, Packing, TokenArray, read_windows
from recyclegpt.errors import ConfigError

lengths = st.integers(1, 12)
view_counts = st.integers(2, 5)


def all_rows(packing: Packing, tokens: np.ndarray) -> torch.Tensor:
    num_rows = packing.num_rows(len(tokens))
    return packing.views(read_windows(TokenArray(tokens), packing, list(range(num_rows))))[0]


@given(lengths, view_counts, st.integers(0, 200))
def test_each_token_is_the_backbones_target_once(row_length: int, num_views: int, num_tokens: int) -> None:
    packing = Packing(row_length, num_views)
    tokens = np.arange(num_tokens)
    if packing.num_rows(num_tokens) == 0:
        assert num_tokens < packing.window
        return
    views = all_rows(packing, tokens)
    targets = views[1].flatten().tolist()
    assert targets == list(range(1, len(targets) + 1))
    assert views.max() >= num_tokens - row_length, "nothing that would have filled one more row is dropped"


@given(lengths, view_counts, st.integers(20, 200))
def test_view_n_is_shifted_by_n(row_length: int, num_views: int, num_tokens: int) -> None:
    tokens = np.random.default_rng(0).integers(0, 99, num_tokens)
    packing = Packing(row_length, num_views)
    views = all_rows(packing, tokens)
    for n in range(num_views):
        for row in range(views.shape[1]):
            for t in range(row_length):
                assert views[n, row, t] == tokens[row * row_length + t + n]


@given(st.lists(st.integers(0, 3), min_size=16, max_size=60))
def test_documents_are_counted_from_their_ends(tokens: list[int]) -> None:
    packing = Packing(row_length=5, num_views=3, mask_documents=True, eos_id=0)
    window = np.array(tokens[:7])[None]
    _, documents = packing.views(window)
    assert documents is not None
    assert documents.dtype == torch.int32
    for n in range(3):
        for t in range(5):
            assert documents[n, 0, t] == sum(token == 0 for token in tokens[: t + n])  # ends strictly before this token


TOKENS = TokenArray(np.arange(4 * 37 + 2))  # 37 rows of 4, so that batches never divide a pass
PACKING = Packing(row_length=4, num_views=3)


def stream(rank: int = 0, world_size: int = 1, batch_size: int = 3, seed: int = 5) -> PackedRows:
    return PackedRows(TOKENS, PACKING, batch_size, seed, rank, world_size)


def loaded(rows: PackedRows, num_workers: int) -> Iterator[Batch]:
    return iter(DataLoader(rows, batch_size=None, num_workers=num_workers, collate_fn=lambda batch: batch))


def row_numbers(batch: Batch) -> list[int]:
    return (batch.views_NBT[0, :, 0] // 4).tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_ranks_share_each_pass_exactly(world_size: int) -> None:
    streams = [iter(stream(rank, world_size)) for rank in range(world_size)]
    seen: list[int] = []
    while len(seen) < 3 * 37:
        for rows in streams:
            seen += row_numbers(next(rows))
    passes = [seen[start : start + 37] for start in range(0, 3 * 37, 37)]
    assert all(sorted(one) == list(range(37)) for one in passes)
    assert passes[0] != passes[1]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than a small machine has cores
@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_order_does_not_depend_on_workers(num_workers: int) -> None:
    for rank in (0, 1):
        alone = itertools.islice(stream(rank, 2), 15)
        shared = itertools.islice(loaded(stream(rank, 2), num_workers), 15)
        for one, other in zip(alone, shared, strict=True):
            assert torch.equal(one.views_NBT, other.views_NBT)
            assert one.state == other.state


def test_seed_decides_the_order() -> None:
    first = [row_numbers(batch) for batch in itertools.islice(stream(seed=1), 5)]
    assert first == [row_numbers(batch) for batch in itertools.islice(stream(seed=1), 5)]
    assert first != [row_numbers(batch) for batch in itertools.islice(stream(seed=2), 5)]


def test_batch_larger_than_the_corpus_goes_round() -> None:
    batch = next(iter(stream(batch_size=100)))
    assert sorted(row_numbers(batch)[:74]) == sorted([*range(37)] * 2)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_goes_on_from_epoch_to_epoch_and_from_a_state(num_workers: int) -> None:
    whole = [batch.views_NBT for batch in itertools.islice(stream(), 14)]
    loader = TrainLoader(stream(), num_workers, 1, None)
    seen = []

    def epoch(num_batches: int) -> None:
        for batch in itertools.islice(loader, num_batches):
            loader.trained_on(batch.state)
            seen.append(batch.views_NBT)

    epoch(4)
    epoch(3)
    state = loader.state
    assert state == {"batch": 7}
    loader.close()
    loader = TrainLoader(stream(), num_workers, 1, state)
    epoch(2)
    loader.close()
    epoch(5)
    loader.close()
    assert all(torch.equal(one, other) for one, other in zip(whole, seen, strict=True))


def test_a_batch_given_but_not_trained_on_comes_again() -> None:
    loader = TrainLoader(stream(), 0, 1, None)
    batches = iter(loader)
    loader.trained_on(next(batches).state)
    lost = next(batches)
    assert torch.equal(next(iter(loader)).views_NBT, lost.views_NBT)


def test_loader_leaves_the_global_generator_alone_and_saves_nothing_itself() -> None:
    before = torch.get_rng_state()
    loader = TrainLoader(stream(), 0, 1, None)
    next(iter(loader))
    assert torch.equal(torch.get_rng_state(), before)
    assert loader.state_dict() == {}


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_validation_is_fixed_and_equal_on_every_rank(world_size: int) -> None:
    ranks = [ValBatches(TOKENS, PACKING, 2, 3, rank, world_size) for rank in range(world_size)]
    assert {len(rank) for rank in ranks} == {3}
    rows = [row for rank in ranks for row in rank.rows.flatten().tolist()]
    assert len(set(rows)) == len(rows) == 6 * world_size
    for rank in ranks:
        first, again = list(rank), list(rank)
        assert all(torch.equal(one.views_NBT, other.views_NBT) for one, other in zip(first, again, strict=True))
        assert [row_numbers(batch) for batch in first] == rank.rows.tolist()


def test_validation_takes_what_there_is_and_says_when_it_is_too_little() -> None:
    assert len(ValBatches(TOKENS, PACKING, 10, 100)) == 3
    with pytest.raises(ConfigError, match=r"val_batch_size: 20 on 2 rank.*37"):
        ValBatches(TOKENS, PACKING, 20, 1, 0, 2)


class Damaged(PackedRows):
    """Meets something it cannot read in its third batch."""

    def batch(self, number: int) -> Batch:
        if number == 2:
            raise ConfigError(["corpus/a.txt:3: byte 0xff is not UTF-8", "corpus/b.txt: cannot be read"])
        return super().batch(number)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_mistake_found_by_a_worker_arrives_as_it_is(num_workers: int) -> None:
    loader = TrainLoader(Damaged(TOKENS, PACKING, 2, 1), num_workers, 1, None)
    batches = iter(loader)
    next(batches), next(batches)
    with pytest.raises(ConfigError) as caught:
        next(batches)
    assert caught.value.problems == ["corpus/a.txt:3: byte 0xff is not UTF-8", "corpus/b.txt: cannot be read"]
    loader.close()


def test_the_first_batches_repeat_on_request() -> None:
    few = PackedRows(TOKENS, PACKING, 3, 5, num_batches=2)
    numbers = [row_numbers(batch) for batch in itertools.islice(few, 5)]
    first, second = (row_numbers(batch) for batch in itertools.islice(stream(), 2))
    assert numbers == [first, second, first, second, first]
