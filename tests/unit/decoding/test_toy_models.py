"""Exact tokens and counts with modules that always, never or sometimes agree."""

from __future__ import annotations

import pytest

from recyclegpt.decoding import Alternating, Autoregressive, Decoder, Verified
from recyclegpt.errors import ConfigError

from .toy import CountingModel


def always(position: int) -> bool:
    return True


def never(position: int) -> bool:
    return False


@pytest.mark.parametrize("num_recycled", [1, 2, 3, 8])
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 4, 9, 20])
def test_always_agreeing_module_costs_one_pass_per_m_plus_1_tokens(num_recycled: int, num_tokens: int) -> None:
    for strategy in (Alternating(num_recycled), Verified(num_recycled)):
        result = Decoder(CountingModel(always)).generate([[5, 6, 7]], strategy, num_tokens)
        assert result.tokens == [list(range(8, 8 + num_tokens))]
        assert result.counts.num_tokens == num_tokens
        if result.counts.num_verified:
            assert result.counts.agreement == result.counts.acceptance == 1
        if strategy.lossless:  # the prompt's pass gives one token, each later one m + 1
            assert result.counts.num_backbone_passes == 1 + -(-(num_tokens - 1) // (num_recycled + 1))
        else:  # the prompt's pass gives m + 1 already
            assert result.counts.num_backbone_passes == -(-num_tokens // (num_recycled + 1))


def test_never_agreeing_module_is_rejected_every_time() -> None:
    result = Decoder(CountingModel(never)).generate([[5]], Verified(2), 6)
    assert result.tokens == [[6, 7, 8, 9, 10, 11]]
    assert result.drafted == [[False] * 6]
    assert result.counts.num_backbone_passes == 6
    assert result.counts.acceptance == 0


def test_alternating_keeps_wrong_tokens_and_counts_them() -> None:
    result = Decoder(CountingModel(never)).generate([[5]], Alternating(1), 6)
    # backbone 6, module skips to 8, backbone counts on from there
    assert result.tokens == [[6, 8, 9, 11, 12, 14]]
    assert result.drafted == [[False, True] * 3]
    assert result.counts.agreement == 0
    assert result.counts.acceptance == 1


def test_sometimes_agreeing_module_is_kept_up_to_the_first_error() -> None:
    result = Decoder(CountingModel(lambda position: position % 3 != 0)).generate([[1]], Verified(2), 9)
    assert result.tokens == [list(range(2, 11))]
    # the token at position p is p + 1; a recycled token at a multiple of 3 is rejected, so the backbone writes it
    assert [position for position, ours in enumerate(result.drafted[0], start=1) if ours] == [2, 4, 5, 7, 8]
    assert (result.counts.num_accepted, result.counts.num_verified) == (5, 6)
    assert result.counts.mean_accepted_length == 1 + 5 / 3, "one token by the prefill, eight in three steps"


def test_autoregressive_reads_one_token_a_pass_and_never_calls_the_module() -> None:
    model = CountingModel(always)
    model.recycle = None  # type: ignore[method-assign, assignment]
    result = Decoder(model).generate([[5, 6]], Autoregressive(), 4)
    assert result.tokens == [[7, 8, 9, 10]]
    assert model.read_shapes == [(1, 2), (1, 1), (1, 1), (1, 1)]


@pytest.mark.parametrize("strategy", [Autoregressive(), Alternating(1), Alternating(3), Verified(1), Verified(3)])
@pytest.mark.parametrize("stop", range(6, 12))
def test_stop_token_ends_on_any_half_step_and_is_kept(strategy: object, stop: int) -> None:
    result = Decoder(CountingModel(always)).generate([[5]], strategy, 30, stop_tokens=[stop, 40])
    assert result.tokens == [list(range(6, stop + 1))]
    assert result.finish == ["stop"]


def test_rows_that_end_do_not_disturb_the_others() -> None:
    result = Decoder(CountingModel(lambda position: position % 2 == 0)).generate(
        [[5, 6, 7], [20], [30, 31]], Verified(2), 12, stop_tokens=[10]
    )
    assert result.tokens == [[8, 9, 10], list(range(21, 33)), list(range(32, 44))]
    assert result.finish == ["stop", "length", "length"]


@pytest.mark.parametrize("strategy", [Autoregressive(), Alternating(8), Verified(8)])
def test_context_end(strategy: object) -> None:
    model = CountingModel(always, context_length=12)
    full = list(range(12))
    result = Decoder(model).generate([full, full[:11], full[:9]], strategy, 5)
    assert result.tokens == [[], [11], [9, 10, 11]]
    assert result.finish == ["context"] * 3
    assert Decoder(model).generate([[1]], strategy, 0).tokens == [[]]


def test_every_bad_input_is_named_at_once() -> None:
    model = CountingModel(always, context_length=4)
    model.recyclable = None
    with pytest.raises(ConfigError) as error:
        Decoder(model).generate([[1] * 5, [], [99], [1]], Verified(1), -1)
    assert len(error.value.problems) == 5
