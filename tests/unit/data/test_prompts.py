"""Prompts drawn at random, against all that could be drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recyclegpt.data import prompts
from recyclegpt.data.packed_rows import TokenArray
from recyclegpt.data.prompts import draw_prompts
from recyclegpt.errors import ConfigError

END = 0


def corpus(lengths: list[int], ends: bool = True) -> np.ndarray:
    """Documents of these lengths, every token another one, so that a prompt says where it was taken."""
    tokens: list[int] = []
    for length in lengths:
        begin = len(tokens) + 1
        tokens += [*range(begin, begin + length), END]
    return np.array(tokens if ends else tokens[:-1], np.int64)


def places(tokens: np.ndarray, length: int) -> tuple[list[int], list[int]]:
    """Where documents that are long enough begin, and where else a window of one lies."""
    begins, inside = [], []
    for start in range(len(tokens) - length + 1):
        if END in tokens[start : start + length]:
            continue
        (begins if start == 0 or tokens[start - 1] == END else inside).append(start)
    return begins, inside


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(1, 4), st.booleans(), st.data())
def test_documents_first_then_windows_none_twice(
    lengths: list[int], length: int, ends: bool, data: st.DataObject
) -> None:
    tokens = corpus(lengths, ends)
    begins, inside = places(tokens, length)
    num = data.draw(st.integers(1, len(begins) + len(inside) + 2))
    seed = data.draw(st.integers(0, 3))
    if num > len(begins) + len(inside):
        with pytest.raises(ConfigError, match=f"holds {len(begins) + len(inside)} of"):
            draw_prompts(TokenArray(tokens), END, num, length, seed)
        return
    drawn = draw_prompts(TokenArray(tokens), END, num, length, seed)
    assert drawn.shape == (num, length)
    where = [int(prompt[0]) - 1 for prompt in drawn]
    assert [tokens[start : start + length].tolist() for start in where] == drawn.tolist()
    assert len(set(where)) == num
    assert set(where[: len(begins)]) <= set(begins)
    assert set(where[len(begins) :]) <= set(inside)


def test_seed_decides_and_all_are_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "_CHUNK", 7)  # end tokens are found across what is read at once
    tokens = TokenArray(corpus([5] * 40))
    first = draw_prompts(tokens, END, 10, 3, seed=1)
    assert first.tolist() == draw_prompts(tokens, END, 10, 3, seed=1).tolist()
    assert first.tolist() != draw_prompts(tokens, END, 10, 3, seed=2).tolist()
    every = draw_prompts(tokens, END, 120, 3, seed=1)
    begins, inside = places(corpus([5] * 40), 3)
    assert sorted(prompt[0] - 1 for prompt in every) == sorted(begins + inside)
