"""Scores of given continuations equal those by hand; continuations equal those alone."""

from __future__ import annotations

import itertools
import logging
import math

import pytest
import torch

from recyclegpt.data.tokenizer import TextTokenizer
from recyclegpt.decoding import Alternating, Autoregressive, Decoder, SamplingConfig, Strategy, Verified
from recyclegpt.evaluation import scoring
from recyclegpt.evaluation.perplexity import NAMES, score_texts, windows
from recyclegpt.evaluation.scoring import SCORINGS, Asked, BatchGenerator, Pair, Scored, Scorer
from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT

CONTEXT = 48
VOCABULARY = 23


def random_model(seed: int, depth: int = 1) -> RecycleGPT:
    """A tiny fp64 model with weights large enough that its text varies."""
    config = ModelConfig(VOCABULARY, CONTEXT, num_layers=2, hidden_size=16, num_heads=4, num_kv_heads=2)
    model = RecycleGPT(config, RecycleConfig(num_layers=depth)).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.4, generator=generator)
    return model


def random_pairs(seed: int, num: int = 9) -> list[Pair]:
    generator = torch.Generator().manual_seed(seed)

    def draw(least: int) -> tuple[int, ...]:
        length = int(torch.randint(least, 12, (1,), generator=generator))
        return tuple(torch.randint(VOCABULARY, (length,), generator=generator).tolist())

    return [Pair(draw(1), draw(0)) for _ in range(num)]


@torch.no_grad()
def by_definition(model: RecycleGPT, pair: Pair, name: str, num_recycled: int) -> Scored:
    """Every token from the text before it alone: no batch, no padding, no unrolling, no shared pass."""
    text, begin = [*pair.context, *pair.continuation], len(pair.context)
    total, greedy = 0.0, True
    for p in range(begin, len(text)):
        step = {"backbone": 0, "module": int(p >= 2), "alternating": (p - begin) % (num_recycled + 1)}[name]
        known = text[:p]
        hidden = model.backbone_states(
            torch.tensor([known[: p - step]])
        )  # as far as the backbone had read when p was written
        state = hidden
        for k in range(1, step + 1):
            recycled = model.recycle(torch.tensor([known[1 : p - step + k]]), state)
            state = torch.cat([hidden, recycled[:, hidden.shape[1] - 1 :]], dim=1)
            last = recycled
        log_p = model.logits((last if step else hidden)[0, -1]).log_softmax(-1)
        total += float(log_p[text[p]])
        greedy &= int(log_p.argmax()) == text[p]
    return Scored(total, greedy)


@pytest.mark.parametrize("num_recycled", [1, 2, 3])
def test_batches_score_as_the_definition_does(num_recycled: int) -> None:
    model, pairs = random_model(num_recycled, depth=1 + num_recycled % 2), random_pairs(num_recycled)
    found = Scorer(model, num_recycled=num_recycled, batch_size=4).score(pairs)
    for pair, scored in zip(pairs, found, strict=True):
        assert list(scored) == list(SCORINGS)
        for name in SCORINGS:
            expected = by_definition(model, pair, name, num_recycled)
            assert scored[name].log_likelihood == pytest.approx(expected.log_likelihood, rel=1e-9, abs=1e-12)
            assert scored[name].is_greedy == expected.is_greedy
    values = [[scored[name].log_likelihood for scored in found] for name in SCORINGS]
    assert all(a != b for a, b in itertools.combinations(values, 2))


@pytest.mark.parametrize("num_recycled", [1, 2])
@pytest.mark.parametrize("name", ["backbone", "alternating"])
def test_what_a_decoder_writes_is_greedy_in_its_own_scoring(name: str, num_recycled: int) -> None:
    strategy = Alternating(num_recycled) if name == "alternating" else Autoregressive()
    varied = 0
    for seed in range(6):
        model = random_model(seed)
        prompts = [[*pair.context] for pair in random_pairs(seed)]
        texts = Decoder(model).generate(prompts, strategy, 17).tokens
        pairs = [Pair(tuple(prompt), tuple(text)) for prompt, text in zip(prompts, texts, strict=True)]
        found = Scorer(model, num_recycled=num_recycled).score(pairs)
        assert all(scored[name].is_greedy for scored in found)
        varied += sum(not all(scored[other].is_greedy for other in SCORINGS) for scored in found)
    assert varied > 10, "every scoring finds these texts greedy: the test would not see a wrong source"


def test_one_token_changed_is_no_longer_greedy() -> None:
    model = random_model(0)
    (text,) = Decoder(model).generate([[1, 2, 3]], Alternating(), 10).tokens
    for place in range(10):
        changed = [*text]
        changed[place] = (text[place] + 1) % VOCABULARY
        (scored,) = Scorer(model).score([Pair((1, 2, 3), tuple(changed))])
        assert not scored["alternating"].is_greedy


def test_chunks_of_logits_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = random_model(5), random_pairs(5)
    whole = Scorer(model).score(pairs)
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", 2 * VOCABULARY)
    for one, other in zip(whole, Scorer(model).score(pairs), strict=True):
        for name in SCORINGS:
            assert one[name].log_likelihood == pytest.approx(other[name].log_likelihood, rel=1e-12)
            assert one[name].is_greedy == other[name].is_greedy


def test_the_oldest_tokens_are_left_out_and_counted_once(caplog: pytest.LogCaptureFixture) -> None:
    model = random_model(2)
    text = tuple(torch.randint(VOCABULARY, (CONTEXT + 20,)).tolist())
    long, fitting = Pair(text[:-5], text[-5:]), Pair(text[-CONTEXT - 1 : -5], text[-5:])
    scorer = Scorer(model)
    with caplog.at_level(logging.WARNING):
        a, b = scorer.score([long, fitting])
    assert a == b
    assert scorer.num_cut == 1
    assert caplog.text.count("1 of 2 texts are longer than the context of 48 tokens") == 1


def test_a_continuation_longer_than_the_context_keeps_its_end() -> None:
    text = tuple(torch.randint(VOCABULARY, (CONTEXT + 20,)).tolist())
    (scored,) = Scorer(random_model(3)).score([Pair(text[:1], text[1:])])
    (end,) = Scorer(random_model(3)).score([Pair(text[-CONTEXT - 1 : -CONTEXT], text[-CONTEXT:])])
    assert scored == end


def test_an_empty_continuation_is_certain() -> None:
    assert Scorer(random_model(0)).score([Pair((1,), ())]) == [dict.fromkeys(SCORINGS, Scored(0.0, True))]


def test_a_model_without_a_module_is_scored_by_its_backbone(caplog: pytest.LogCaptureFixture) -> None:
    scorer = Scorer(random_model(0, depth=0))
    assert scorer.scorings == ("backbone",)
    assert "no recyclable module" in caplog.text
    assert list(scorer.score(random_pairs(0))[0]) == ["backbone"]


@pytest.mark.parametrize("num_tokens", [1, 2, CONTEXT, CONTEXT + 1, 5 * CONTEXT + 7])
@pytest.mark.parametrize(("length", "multiple"), [(CONTEXT, 1), (CONTEXT, 2), (CONTEXT, 3), (2, 3), (1, 1)])
def test_windows_score_every_token_once_behind_half_a_window(num_tokens: int, length: int, multiple: int) -> None:
    text = list(range(1, 1 + num_tokens))
    found = list(windows(text, (0,), length, multiple))
    assert [token for pair in found for token in pair.continuation] == text
    begin = 0
    for pair in found:
        row = [*pair.context, *pair.continuation]
        assert pair.context
        assert len(row) <= length + 1
        assert row == [0, *text][begin + 1 + len(pair.continuation) - len(row) : begin + 1 + len(pair.continuation)]
        assert begin == 0 or len(pair.context) >= length // 2
        assert begin % multiple == 0 or length < 2 * multiple
        begin += len(pair.continuation)


@pytest.mark.parametrize("num_recycled", [1, 2])
@pytest.mark.parametrize("num_tokens", [1, 30, CONTEXT, 3 * CONTEXT + 5])
def test_a_whole_text_scores_as_the_definition_does(num_recycled: int, num_tokens: int) -> None:
    model = random_model(num_recycled)
    texts = [
        torch.randint(VOCABULARY, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (num_tokens, 9)
    ]
    scorer, sizes = Scorer(model, num_recycled=num_recycled, batch_size=3), torch.arange(VOCABULARY)
    values, errors = score_texts(scorer, texts, (0,), CONTEXT, sizes)
    assert values["tokens"] == num_tokens + 9
    assert values["bytes"] == sum(map(sum, texts))
    for name in SCORINGS:
        pairs = [Pair((0,), tuple(text)) for text in texts]
        if num_tokens > CONTEXT:  # else all of it in one context
            pairs = [pair for text in texts for pair in windows(text, (0,), CONTEXT, num_recycled + 1)]
        nll = -sum(by_definition(model, pair, name, num_recycled).log_likelihood for pair in pairs)
        assert values[f"val/loss_{NAMES[name]}"] == pytest.approx(nll / (num_tokens + 9), rel=1e-9)
        assert values[f"val/ppl_{NAMES[name]}"] == pytest.approx(math.exp(nll / (num_tokens + 9)), rel=1e-9)
        assert float(errors[f"val/ppl_{NAMES[name]}"] or 0) > 0
    assert values["val/bits_per_byte"] * values["bytes"] * math.log(2) == pytest.approx(
        values["val/loss_backbone"] * values["tokens"]
    )
    assert score_texts(scorer, texts[1:], (0,), CONTEXT, sizes)[1]["val/ppl_backbone"] is None, "one block"


TOKENIZER = TextTokenizer.bytes()
GREEDY = SamplingConfig()
PROMPTS = ["a", "Some words", "", "b" * 30, "more of them"]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.manual_seed(0)
    config = ModelConfig(257, 64, num_layers=1, hidden_size=16, num_heads=2)
    model = RecycleGPT(config, RecycleConfig(1)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.4)
    return Decoder(model)


@pytest.mark.parametrize("strategy", [Autoregressive(), Alternating(2), Verified()], ids=lambda it: it.name)
@pytest.mark.parametrize("sampling", [GREEDY, SamplingConfig(temperature=1.0)], ids=["greedy", "sampled"])
def test_a_batch_writes_what_each_would_alone(decoder: Decoder, strategy: Strategy, sampling: SamplingConfig) -> None:
    asked = [(prompt, Asked(10 + 5 * (len(prompt) % 2), (), sampling)) for prompt in PROMPTS]
    together = BatchGenerator(decoder, strategy, TOKENIZER, batch_size=3, seed=7).write(asked)
    one_by_one = BatchGenerator(decoder, strategy, TOKENIZER, batch_size=1, seed=7).write(asked)
    assert together == one_by_one
    for number, (prompt, settings) in enumerate(asked):
        tokens = TOKENIZER.encode(prompt) or [TOKENIZER.eos_id]
        (written,) = decoder.generate(
            [tokens], strategy, settings.max_new_tokens, sampling, [TOKENIZER.eos_id], seed=7 + number
        ).tokens
        assert together[number] == TOKENIZER.decode(written, skip_special_tokens=True)


def test_a_text_ends_before_its_stop(decoder: Decoder) -> None:
    continuer = BatchGenerator(decoder, Verified(), TOKENIZER)
    (whole,) = continuer.write([("Some words", Asked(20, (), GREEDY))])
    stop = whole[5:7]
    (cut,) = continuer.write([("Some words", Asked(20, ("never", stop), GREEDY))])
    assert cut == whole[: whole.index(stop)]


def test_a_long_prompt_keeps_its_end_and_is_counted(decoder: Decoder, caplog: pytest.LogCaptureFixture) -> None:
    continuer = BatchGenerator(decoder, Autoregressive(), TOKENIZER)
    long = "".join(chr(97 + n % 26) for n in range(90))
    with caplog.at_level(logging.WARNING):
        a, b = continuer.write([(long, Asked(10, (), GREEDY)), (long[-54:], Asked(10, (), GREEDY))])
    assert a == b
    assert continuer.num_cut == 1
    assert "1 of 2 prompts did not fit" in caplog.text
