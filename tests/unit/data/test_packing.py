from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from recyclegpt.data.packed_rows import Packing, TokenArray, read_windows

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
