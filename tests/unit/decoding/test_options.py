"""Confidence, penalties, filters and stops, each against a slow definition."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor

from recyclegpt.decoding import (
    Alternating,
    Autoregressive,
    Decoder,
    Sampler,
    SamplingConfig,
    StopStrings,
    TextStreamer,
    Verified,
    decoder,
    processed_probabilities,
)
from recyclegpt.decoding.drafters import ModuleDrafter
from recyclegpt.decoding.sampling import penalised
from recyclegpt.decoding.session import Session
from recyclegpt.models import RecycleGPT

from . import test_sampling
from .test_exactness import random_model
from .test_sampling import NUM_TOKENS, PROMPT, VOCABULARY, p_value
from .toy import CountingModel


@torch.no_grad()
def alternate_while_sure(
    model: RecycleGPT, prompt: list[int], m: int, threshold: float, number: int, penalty: float = 1.0
) -> list[int]:
    """Alternating decoding with a threshold, every state recomputed from the whole text."""

    def after_penalty(state: Tensor) -> Tensor:
        logits = model.logits(state)[None]
        if penalty != 1:
            logits = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([text]), logits)
        return logits[0]

    text = list(prompt)
    while len(text) < len(prompt) + number:
        hidden = model.backbone_states(torch.tensor([text]))
        text.append(int(after_penalty(hidden[0, -1]).argmax()))
        states, read, chance = hidden, len(text) - 1, 1.0
        for _ in range(m):
            recycled = model.recycle(torch.tensor([text[1:]]), states)
            probability = after_penalty(recycled[0, -1]).float().softmax(-1)
            chance *= float(probability.max())
            if chance <= threshold:
                break
            text.append(int(probability.argmax()))
            states = torch.cat([hidden, recycled[:, read - 1 :]], dim=1)
    return text[len(prompt) : len(prompt) + number]


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 1.0])
def test_alternating_recycles_while_it_is_sure(threshold: float) -> None:
    prompts = [[1, 2, 3], [7], [4, 4, 9, 1, 2]]
    checked = 0
    for seed in range(4):
        model = random_model(seed, sharpness=0.35)
        for m in (1, 3):
            result = Decoder(model).generate(prompts, Alternating(m, threshold), 19)
            assert result.tokens == [alternate_while_sure(model, prompt, m, threshold, 19) for prompt in prompts]
            checked += result.counts.num_verified
            # What was recycled last, before a row ended, no backbone pass has seen.
            seen = sum(sum(row[: len(row) - row[::-1].index(False)]) for row in result.drafted)
            assert result.counts.num_verified == result.counts.num_accepted == seen
            plain = Decoder(model).generate(prompts, Autoregressive(), 19).tokens
            assert threshold < 1 or result.tokens == plain, "at 1 nothing is recycled"
            verified = Decoder(model).generate(prompts, Verified(m, threshold), 19)
            assert verified.tokens == plain
            assert verified.counts.num_accepted <= verified.counts.num_matched <= verified.counts.num_verified
    assert (checked == 0) == (threshold == 1)


def test_at_threshold_one_not_even_certainty_is_enough() -> None:
    model = CountingModel(always)
    model.logits = lambda state: 1e3 * state  # type: ignore[method-assign]
    for m in (1, 3):
        assert Decoder(model).generate([[4]], Alternating(m, 0.999), 12).counts.num_backbone_passes == 12 // (m + 1)
        assert Decoder(model).generate([[4]], Alternating(m, 1.0), 12).counts.num_backbone_passes == 12


def test_alternating_obeys_penalty_and_threshold_up_to_the_end_of_the_context() -> None:
    """Past the first bucket of slots, and where proposals stand beyond the context."""
    prompts = [[1, 2, 3], [7], list(range(20))]
    for seed, (m, threshold, penalty) in enumerate([(1, 0.0, 1.4), (3, 0.3, 1.4), (8, 0.0, 0.8), (8, 0.5, 1.1)]):
        model = random_model(seed, sharpness=0.3)
        config = model.config
        result = Decoder(model).generate(
            prompts, Alternating(m, threshold), config.context_length, SamplingConfig(repetition_penalty=penalty)
        )
        for row, prompt in enumerate(prompts):
            number = config.context_length - len(prompt)
            assert result.tokens[row] == alternate_while_sure(model, prompt, m, threshold, number, penalty)
        assert result.finish == ["context"] * 3
        assert max(len(set(text)) for text in result.tokens) > 5, "the texts repeat themselves"


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    m=st.integers(1, 8),
    threshold=st.floats(0, 1),
    penalty=st.sampled_from([0.7, 1.0, 1.3, 2.0]),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    number=st.integers(0, 100),
)
def test_verified_is_exact_for_any_threshold_and_penalty(
    seed: int, m: int, threshold: float, penalty: float, lengths: list[int], number: int
) -> None:
    model = random_model(seed)
    prompts = [
        torch.randint(23, (length,), generator=torch.Generator().manual_seed(seed)).tolist() for length in lengths
    ]
    greedy = SamplingConfig(repetition_penalty=penalty)
    plain = Decoder(model).generate(prompts, Autoregressive(), number, greedy)
    exact = Decoder(model).generate(prompts, Verified(m, threshold), number, greedy)
    assert (exact.tokens, exact.finish) == (plain.tokens, plain.finish)
    assert [len(text) for text in exact.tokens] == [min(number, 96 - length) for length in lengths]


@torch.no_grad()
def test_asking_the_module_no_further_changes_nothing_but_the_calls() -> None:
    """A CPU leaves the module once no row is sure; one that is not asked drafts all, and nobody sees those tokens."""
    proposed = []
    for greedy in (True, False):
        model = random_model(4, sharpness=0.3)
        sessions = []
        for device in ("cpu", "cuda"):
            sampler = Sampler.seeded(
                SamplingConfig(temperature=0.0 if greedy else 1.0, coupled=False), 2, 0, model.device
            )
            session = Session(model, Verified(4, 0.12), sampler, 2, 90)
            assert isinstance(session.drafter, ModuleDrafter)
            session.prefill([[1, 2], [3, 4, 5]], [80, 80], 90)
            session.drafter.exits_early = device == "cpu"
            sessions.append(session)
        calls = []
        for session in sessions:
            recycle, called = session.drafter.recycle, []
            session.drafter.recycle = lambda *args, recycle=recycle, called=called, **options: (
                called.append(1) or recycle(*args, **options)
            )
            calls.append(called)
        for _ in range(12):
            for session in sessions:
                session.sampler.refill()
                session.step(90)
            one, two = sessions
            assert torch.equal(one.record_5B, two.record_5B)
            proposed += one.record.num_drafted.tolist()
            for row in range(2):
                end = int(one.record.position[row] + one.record.num_drafted[row]) + 1
                assert torch.equal(one.text.tokens_BS[row, :end], two.text.tokens_BS[row, :end])
        assert len(calls[0]) < len(calls[1]) == 12 * 4
    assert {0, 1, 2} <= set(proposed), "the threshold should be crossed on either side"


@dataclass(frozen=True)
class DropsUnlikely(Verified):
    """The tempting mistake: a threshold on the probability of the token that was drawn."""

    def verify(self, backbone: Any, drafts: Any, sampler: Sampler) -> tuple[Tensor, Tensor]:
        tokens_Bm, _, q_BmV = drafts
        sure_Bm = q_BmV.gather(2, tokens_Bm[..., None]).squeeze(2) > 0.3
        return super().verify(backbone, drafts._replace(count_B=sure_Bm.long().cumprod(1).sum(1)), sampler)


def test_verified_sampling_stays_exact_under_a_threshold() -> None:
    model = random_model(3, vocab_size=VOCABULARY, sharpness=0.5)
    sampling = SamplingConfig(temperature=1.0, coupled=False)
    for m, threshold in ((1, 0.4), (2, 0.5)):
        assert p_value(model, Verified(m, threshold), sampling) > 1e-3
    assert p_value(model, DropsUnlikely(1), sampling) < 1e-6, "this test would not see a biased threshold"


def test_verified_sampling_with_a_penalty_has_the_backbones_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row of a pass has its own text behind it, and so its own penalty."""
    penalty, sampling = 2.5, SamplingConfig(temperature=1.0, repetition_penalty=2.5)

    def distribution(model: RecycleGPT, _: SamplingConfig) -> Tensor:
        texts = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=NUM_TOKENS)))
        rows = torch.cat([torch.tensor(PROMPT).expand(len(texts), -1), texts], dim=1)
        with torch.no_grad():
            logits = model.logits(model.backbone_states(rows))
        result = torch.ones(len(texts)).double()
        for place in range(len(PROMPT), rows.shape[1]):
            after = RepetitionPenaltyLogitsProcessor(penalty)(rows[:, :place], logits[:, place - 1])
            result *= after.softmax(-1).gather(1, rows[:, place, None]).squeeze(1)
        return result

    model = random_model(3, vocab_size=VOCABULARY, sharpness=0.5)
    assert p_value(model, Autoregressive(), sampling) < 1e-6, "without a penalty the distribution is another"
    monkeypatch.setattr(test_sampling, "exact_distribution", distribution)
    for strategy in (Autoregressive(), Verified(3, 0.5)):
        assert p_value(model, strategy, sampling) > 1e-3


def test_repetition_penalty_and_min_p_are_those_of_transformers() -> None:
    torch.manual_seed(0)
    logits, text = torch.randn(3, 20), torch.randint(20, (3, 7))
    seen = torch.zeros(3, 20, dtype=torch.bool).scatter(1, text, True)
    config = SamplingConfig(temperature=0.7, min_p=0.2, repetition_penalty=1.7)
    expected = RepetitionPenaltyLogitsProcessor(1.7)(text, logits.clone())
    torch.testing.assert_close(penalised(logits, config, seen), expected)
    kept = MinPLogitsWarper(0.2)(text, expected / 0.7).softmax(-1)
    torch.testing.assert_close(processed_probabilities(logits, config, seen), kept)
    by_hand = processed_probabilities(
        torch.tensor([0.5, 0.3, 0.15, 0.05]).log(), SamplingConfig(temperature=1.0, min_p=0.31)
    )
    torch.testing.assert_close(by_hand, torch.tensor([0.625, 0.375, 0, 0]))


@torch.no_grad()
def test_greedy_decoding_obeys_the_penalty() -> None:
    sampling = SamplingConfig(repetition_penalty=1.6)
    for seed in range(5):
        model, prompt = random_model(seed), [3, 5, 3]
        text = list(prompt)
        for _ in range(20):
            logits = model.logits(model.backbone_states(torch.tensor([text])))[:, -1]
            text.append(int(RepetitionPenaltyLogitsProcessor(1.6)(torch.tensor([text]), logits).argmax()))
        for strategy in (Autoregressive(), Verified(1), Verified(4)):
            assert Decoder(model).generate([prompt, [1]], strategy, 20, sampling).tokens[0] == text[3:]
        assert Decoder(model).generate([prompt], Autoregressive(), 20).tokens[0] != text[3:]


def test_sampling_with_a_penalty_stays_exact_and_independent_of_the_batch() -> None:
    model = random_model(2, sharpness=0.2)
    sampling = SamplingConfig(temperature=1.0, repetition_penalty=1.5, min_p=0.02)
    prompts = [[1, 2, 3], [4]]
    for strategy in (Alternating(2), Verified(3)):
        together = Decoder(model).generate(prompts, strategy, 15, sampling, seed=3)
        for row, prompt in enumerate(prompts):
            assert (
                together.tokens[row]
                == Decoder(model).generate([prompt], strategy, 15, sampling, seed=3 + row).tokens[0]
            )


def always(position: int) -> bool:
    return True


def letters(tokens: list[int]) -> str:
    """The toy counts upwards: 0 is a, 25 is z, and on."""
    return "".join(chr(ord("a") + token % 26) for token in tokens)


@pytest.mark.parametrize("stop", ["h", "i", "hi", "ghi", "ijk", "jk"])
@pytest.mark.parametrize("strategy", [Autoregressive(), Alternating(1), Alternating(4), Verified(3)])
def test_a_stop_string_ends_the_text_on_any_half_step(stop: str, strategy: Any) -> None:
    model = CountingModel(lambda position: position % 3 != 0 or strategy.name != "verified")
    stops = StopStrings([stop, "xyz"], letters)
    result = Decoder(model).generate([[4, 5], [6, 7]], strategy, 30, stop_strings=stops)
    for row, begin in enumerate(("g", "i")):
        text = letters(result.tokens[row])
        assert result.finish[row] == "stop"
        assert text.startswith(begin)
        # the first stop is complete with the last token and not before; the prompt (ef, gh) is not searched
        found = [text.find(string) for string in (stop, "xyz") if string in text]
        assert found
        assert text.endswith((stop, "xyz"))
        assert not any(string in text[:-1] for string in (stop, "xyz"))


def test_the_earlier_of_two_stops_in_one_cycle_counts() -> None:
    model = CountingModel(always)
    stops = StopStrings(["j"], letters)
    both = Decoder(model).generate([[4]], Alternating(8), 30, stop_tokens=[8], stop_strings=stops)
    assert letters(both.tokens[0]) == "fghi"
    both = Decoder(model).generate([[4]], Alternating(8), 30, stop_tokens=[11], stop_strings=stops)
    assert letters(both.tokens[0]) == "fghij"
    assert both.counts.num_tokens == 5


@pytest.mark.parametrize("strategy", [Autoregressive(), Alternating(4), Verified(3)])
def test_a_stop_in_the_prompt_alone_ends_nothing(strategy: Any) -> None:
    model = CountingModel(always)
    stops = StopStrings(["ef", "fg", "d"], letters)  # inside the prompt, and across its end
    result = Decoder(model).generate([[3, 4, 5]], strategy, 7, stop_tokens=[3, 5], stop_strings=stops)
    assert letters(result.tokens[0]) == "ghijklm"
    assert result.finish == ["length"]


@pytest.mark.parametrize("stop", range(6, 15))
def test_stops_of_either_kind_end_at_the_same_place(stop: int) -> None:
    """A cycle writes 5, then 6 to 9, then 10 to 13: ends on the backbone's token, the first, an inner and the last."""
    for strategy in (Autoregressive(), Alternating(3), Verified(3)):
        by_token = Decoder(CountingModel(always)).generate([[4], [4]], strategy, 30, stop_tokens=[stop])
        stops = StopStrings([letters([stop - 1, stop])], letters)
        by_string = Decoder(CountingModel(always)).generate([[4], [4]], strategy, 30, stop_strings=stops)
        assert by_token.tokens == by_string.tokens == [list(range(5, stop + 1))] * 2
        assert by_token.drafted == by_string.drafted
        assert by_token.counts == by_string.counts
        assert by_token.finish == by_string.finish == ["stop"] * 2


def test_a_stop_on_the_last_token_allowed_is_a_stop() -> None:
    stops = StopStrings(["j"], letters)
    for strategy in (Autoregressive(), Alternating(3), Verified(3)):
        result = Decoder(CountingModel(always)).generate([[4]], strategy, 5, stop_strings=stops)
        assert (letters(result.tokens[0]), result.finish) == ("fghij", ["stop"])
        result = Decoder(CountingModel(always)).generate([[4]], strategy, 4, stop_strings=stops)
        assert (letters(result.tokens[0]), result.finish) == ("fghi", ["length"])


def by_byte(tokens: list[int]) -> str:
    """A token a byte; from 256 on a token is special and holds none."""
    return bytes(token for token in tokens if token < 256).decode("utf-8", errors="replace")


def test_the_end_of_a_stop_string_by_hand() -> None:
    text = list("naïve café\n\nEND".encode())
    for string in ("n", "ï", "é\n", "\n\n", "END", "naïve café"):
        stops = StopStrings(["never", string], by_byte)
        place = len(by_byte(text).split(string)[0].encode()) + len(string.encode())
        assert stops.first_stop(text, len(text)) == place, "all at once"
        # token by token, and in runs of three: told with the run that completes it, and at the same place
        for run in (1, 3):
            ends = [
                stops.first_stop(text[: begin + run], len(text[begin : begin + run])) for begin in range(0, 17, run)
            ]
            told = (place - 1) // run
            assert ends[: told + 1] == [None] * told + [place]
    assert StopStrings(["café"], by_byte).first_stop(text[:11], 11) is None, "half a character completes nothing"
    assert StopStrings(["END", "\n"], by_byte).first_stop(text, len(text)) == 13, (
        "the first in the text, not in the list"
    )
    with_special = [*b"E", 256, 256, *b"ND"]
    assert StopStrings(["END"], by_byte).first_stop(with_special, 1) == 5
    assert StopStrings([], by_byte).first_stop(text, 3) is None
    assert StopStrings(["a"], by_byte).first_stop([], 0) is None


def shown(strings: list[str], pieces: list[str], marks: str) -> tuple[list[str], list[tuple[str, bool]]]:
    """What is shown after each piece, and all of it with its marks."""
    waiting = iter([*pieces, ""])  # a piece more than marks: what `finish` gives
    text = TextStreamer(StopStrings(strings, letters), lambda _: next(waiting), lambda: next(waiting))
    steps = [text.add(0, mark == "r") for mark in marks]
    last = text.end()
    return ["".join(piece for piece, _ in step) for step in steps], [*itertools.chain(*steps), *last]


def test_printed_text_holds_back_what_may_be_a_stop() -> None:
    steps, everything = shown(["END"], ["one E", "N", "ough", " E", "ND", "never"], "brbrbr")
    assert steps == ["one ", "", "ENough", " ", "", ""]
    assert everything == [("one ", False), ("E", False), ("N", True), ("ough", False), (" ", True)]
    assert shown(["END"], ["so E", "N"], "br")[1] == [("so ", False), ("E", False), ("N", True)], "told at the end"
    assert shown([], ["a", "", "b"], "brb") == (["a", "", "b"], [("a", False), ("b", False)])
    assert shown(["\n\n"], ["x\n", "\ny"], "bb")[0] == ["x", ""]
    assert shown(["wxyz", "é!"], ["caf", "é", "", "wxé", "!z"], "bbrbr")[0] == ["caf", "", "", "éwx", ""]
    assert shown(["abab"], ["aba", "cabab", "ab"], "brb")[0] == ["", "abac", ""]
    # a stop that only the end completes: half a character was waiting
    assert shown(["b!"], ["a", "b", "!"], "bb") == (["a", ""], [("a", False)])


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    every=st.integers(2, 8),
    strategy=st.one_of(
        st.just(Autoregressive()),
        st.builds(Alternating, st.integers(1, 8), st.sampled_from([0.0, 0.4])),
        st.builds(Verified, st.integers(1, 8), st.sampled_from([0.0, 0.4])),
    ),
    number=st.integers(1, 100),
    stops=st.sets(st.integers(0, 22), max_size=1),
    string=st.text("abcdefghijklmnopqrstuvw", min_size=1, max_size=2),
    temperature=st.sampled_from([0.0, 0.9]),
)
def test_looking_seldom_finds_the_same_at_any_end(
    seed: int, every: int, strategy: Any, number: int, stops: set[int], string: str, temperature: float
) -> None:
    model = random_model(seed)
    found = []
    for looking in (1, every):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(decoder.CHECK_EVERY, "cpu", looking)
            if looking > 1:  # few slots to spare: a cycle that nobody has looked at yet needs them all
                patch.setitem(decoder.READ_BUCKETS, "cpu", 2)
            result = Decoder(model).generate(
                [[1, 2, 3, 4], [7], [5] * 19], strategy, number, SamplingConfig(temperature), sorted(stops), seed,
                stop_strings=StopStrings([string], letters),
            )  # fmt: skip
        counts = result.counts
        numbers = (counts.num_verified, counts.num_matched, counts.num_accepted)
        found.append((result.tokens, result.drafted, result.finish, counts.num_tokens, numbers))
    assert found[0] == found[1]


def test_looking_seldom_counts_the_same_for_alternating(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for every in (1, 8):
        monkeypatch.setitem(decoder.CHECK_EVERY, "cpu", every)
        counts = Decoder(CountingModel(always)).generate([[1]], Alternating(3), 8).counts
        found.append((counts.num_verified, counts.num_matched, counts.num_accepted))
    assert found[0] == found[1]
