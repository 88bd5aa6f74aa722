"""Whole tasks through the harness, offline, from files made here."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path

import datasets
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, processors

from recyclegpt.data.chat import render_chat
from recyclegpt.data.tokenizer import TextTokenizer
from recyclegpt.decoding import Decoder, SamplingConfig, make_strategy
from recyclegpt.errors import ConfigError
from recyclegpt.evaluation.lm_eval_adapter import RecycleLM, asked, find_tasks, run_tasks
from recyclegpt.evaluation.local_tasks import BLIMP, WIKITEXT, blimp, rolling_task, wikitext
from recyclegpt.evaluation.perplexity import ratio_stderr
from recyclegpt.evaluation.scoring import SCORINGS, Asked, BatchGenerator, Pair, Scorer
from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT
from tests.chat_tokenizer import write_chat_tokenizer

TEXTS = ["The cat sat on the mat, and it stayed.\n", "é" * 90, "x"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.bytes()


def make_model(uniform: bool = False) -> RecycleGPT:
    torch.manual_seed(3)
    model = RecycleGPT(ModelConfig(257, 32, num_layers=1, hidden_size=8, num_heads=2), RecycleConfig(1)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.5)
        if uniform:
            model.lm_head.weight.zero_()
    return model


def write_pairs(folder: Path, name: str, num: int, term: str) -> None:
    folder.mkdir(exist_ok=True)
    pairs = [
        {"sentence_good": f"The cat {n} sleeps.", "sentence_bad": f"The cat {n} sleep.", "linguistics_term": term}
        for n in range(num)
    ]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")


def test_a_uniform_model_has_as_many_choices_as_its_vocabulary(tokenizer: TextTokenizer) -> None:
    tasks = find_tasks([rolling_task("pages", TEXTS)])
    scorer = Scorer(make_model(uniform=True), batch_size=2)
    for scoring in SCORINGS:
        found = run_tasks(tasks, RecycleLM(scorer, tokenizer, scoring))["pages"]["metrics"]
        assert found["byte_perplexity"]["value"] == pytest.approx(257.0, rel=1e-12)
        assert found["bits_per_byte"]["value"] == pytest.approx(math.log2(257), rel=1e-12)
        assert found["byte_perplexity"]["stderr"] == pytest.approx(0, abs=1e-9)


def test_rolling_windows_are_scored_like_pairs(tokenizer: TextTokenizer) -> None:
    model, text = make_model(), "A text that is longer than the context, which holds 32 tokens, and then some more."
    tokens = [tokenizer.eos_id, *tokenizer.encode(text)]
    assert len(tokens) > 2 * 32
    scorer = Scorer(model)
    expected = dict.fromkeys(SCORINGS, 0.0)
    # Windows of 32 tokens, each begun by the last token of the one before; the last is filled up with older tokens.
    for begin in range(1, len(tokens), 32):
        end = min(begin + 32, len(tokens))
        (scored,) = scorer.score([Pair(tuple(tokens[max(end - 33, 0) : begin]), tuple(tokens[begin:end]))])
        for name in SCORINGS:
            expected[name] += scored[name].log_likelihood
    tasks = find_tasks([rolling_task("pages", [text])])
    for name in SCORINGS:
        found = run_tasks(tasks, RecycleLM(Scorer(model), tokenizer, name))["pages"]["metrics"]
        assert found["bits_per_byte"]["value"] == pytest.approx(-expected[name] / math.log(2) / len(text))


def test_blimp_files_are_a_group_by_phenomenon(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    write_pairs(tmp_path / "blimp", "agreement_1", 3, "agreement")
    write_pairs(tmp_path / "blimp", "agreement_2", 2, "agreement")
    write_pairs(tmp_path / "blimp", "islands", 4, "island_effects")
    tasks = find_tasks([blimp(tmp_path / "blimp")])
    assert not tasks.generative
    scorer = Scorer(make_model())
    for scoring in SCORINGS:
        found = run_tasks(tasks, RecycleLM(scorer, tokenizer, scoring))
        assert {name: one["num_samples"] for name, one in found.items()} == {
            BLIMP: 9,
            f"{BLIMP}::agreement": 5,
            f"{BLIMP}::island_effects": 4,
            f"{BLIMP}::agreement::agreement_1": 3,
            f"{BLIMP}::agreement::agreement_2": 2,
            f"{BLIMP}::island_effects::islands": 4,
        }
        right = [
            scorer.score([Pair((tokenizer.eos_id,), tuple(tokenizer.encode(f"The cat {n} {verb}.")))])[0][scoring]
            for n in range(4)
            for verb in ("sleeps", "sleep")
        ]
        expected = sum(right[2 * n].log_likelihood > right[2 * n + 1].log_likelihood for n in range(4)) / 4
        metric = found[f"{BLIMP}::island_effects::islands"]["metrics"]["acc"]
        assert metric["value"] == pytest.approx(expected)
        assert metric["stderr"] == pytest.approx(math.sqrt(expected * (1 - expected) / 3))
    assert tasks.summed_up == {name for name in found if name.count("::") == 2}


def test_wikitext_files_are_cut_into_articles(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    pages = [" = One = \n \n Some words . \n = = Part = = \n More . \n", " = Two = \n \n Other words . \n"]
    (tmp_path / "a.txt").write_text(" \n" + "".join(pages), encoding="utf-8")
    found = run_tasks(
        find_tasks([wikitext([str(tmp_path / "a.txt")])]), RecycleLM(Scorer(make_model()), tokenizer, "backbone")
    )
    assert found[WIKITEXT]["num_samples"] == 2
    assert list(found[WIKITEXT]["metrics"]) == ["word_perplexity", "byte_perplexity", "bits_per_byte"]
    assert all(metric["stderr"] > 0 for metric in found[WIKITEXT]["metrics"].values())


def write_task_file(folder: Path, data: Path) -> None:
    folder.mkdir()
    (folder / "own.yaml").write_text(
        f"task: own_capitals\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\n"
        "output_type: generate_until\ntest_split: test\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\n"
        'generation_kwargs: {until: ["\\n", "."], max_gen_toks: 12, do_sample: false}\n'
        "metric_list: [{metric: exact_match}]\n",
        encoding="utf-8",
    )


@pytest.mark.parametrize("strategy", ["autoregressive", "alternating", "verified"])
def test_a_task_file_of_ones_own_has_text_written_for_it(
    strategy: str, tokenizer: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    decoder, chosen = Decoder(model), make_strategy(strategy, 2)
    questions = ["Capital of France?", "A question much longer than all that the context of this model holds?", "?"]
    written = BatchGenerator(decoder, chosen, tokenizer, batch_size=1).write(
        [(question, Asked(12, ("\n", "."), SamplingConfig())) for question in questions]
    )
    data = tmp_path / "data.jsonl"
    rows = [{"q": q, "a": a} for q, a in zip(questions, [written[0], written[1], "no"], strict=True)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    write_task_file(tmp_path / "tasks", data)
    may_count: list[bool] = []
    monkeypatch.setattr(
        datasets.load, "increase_load_count", lambda _: may_count.append(datasets.config.HF_UPDATE_DOWNLOAD_COUNTS)
    )
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", True)
    tasks = find_tasks(["own_capitals"], tmp_path / "tasks")
    assert may_count
    assert not any(may_count), "the hub's counter of downloads would be asked, which waits where there is no network"
    assert datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    assert tasks.generative == {"own_capitals"}
    found = run_tasks(tasks, RecycleLM(Scorer(model), tokenizer, "module", BatchGenerator(decoder, chosen, tokenizer)))
    assert found["own_capitals"]["metrics"]["exact_match"]["value"] == pytest.approx(2 / 3)


def test_chats_are_rendered_by_the_template_and_answers_stay_text(tmp_path: Path) -> None:
    tokenizer = TextTokenizer.from_file(write_chat_tokenizer(tmp_path))
    adapter = RecycleLM(Scorer(make_model()), tokenizer, "backbone", chat=True)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What ends <|im_end|>?"}]
    context = adapter.apply_chat_template(chat)
    assert adapter.tok_encode(context) == render_chat(tokenizer, chat, add_generation_prompt=True)
    ids, answer = adapter._encode_pair(context, "<|im_end|> does")
    assert tokenizer.decode([*ids, *answer]).endswith("assistant\n<|im_end|> does")
    assert not {*answer} & {*tokenizer.stop_ids}
    begun = adapter.apply_chat_template([*chat, {"role": "assistant", "content": "It is"}], add_generation_prompt=False)
    assert begun == context + "It is"
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}{{ 1 }}"
    adapter.text_tokenizer = TextTokenizer.from_file(write_chat_tokenizer(tmp_path / "other", refusing))
    assert adapter.apply_chat_template(chat) == "1", "rendered without the system message"


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    write_task_file(tmp_path / "tasks", tmp_path / "missing.jsonl")
    with pytest.raises(ConfigError, match=r"own_capitals: cannot be read .*missing\.jsonl"):
        find_tasks(["own_capitals"], tmp_path / "tasks")
    with pytest.raises(ConfigError, match=r"tasks_path: .* is not a folder"):
        find_tasks(["own_capitals"], tmp_path / "nowhere")


def test_how_a_task_wants_its_text() -> None:
    assert asked({"until": "\n", "temperature": 0.7}) == Asked(256, ("\n",), SamplingConfig())
    assert asked({"until": ["a", ""], "max_gen_toks": 5, "do_sample": True, "temperature": 0.7, "top_p": 0.9}) == Asked(
        5, ("a",), SamplingConfig(temperature=0.7, top_p=0.9)
    )
    with pytest.raises(ConfigError, match="num_beams are not supported"):
        asked({"num_beams": 4})
    with pytest.raises(ConfigError, match="top_p"):
        asked({"do_sample": True, "top_p": 2.0})


def test_texts_begin_as_the_tokenizer_of_the_model_begins_them(tokenizer: TextTokenizer) -> None:
    scorer = Scorer(make_model())
    plain = RecycleLM(scorer, tokenizer, "backbone")
    assert plain.prefix_token_id == tokenizer.eos_id
    assert plain.tok_encode("ab") == tokenizer.encode("ab")
    llama = Tokenizer.from_str(json.dumps(tokenizer._content))
    llama.add_special_tokens([AddedToken("<s>", special=True)])
    start = llama.token_to_id("<s>")
    llama.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    begun = RecycleLM(scorer, TextTokenizer(llama), "backbone")
    assert begun.prefix_token_id == start
    assert begun._encode_pair("ab", " cd") == ([start, *tokenizer.encode("ab")], tokenizer.encode(" cd"))
    assert begun.tok_encode("ab", add_special_tokens=False) == tokenizer.encode("ab")


def test_standard_error_of_a_ratio_is_that_of_resampling() -> None:
    draw = random.Random(0)
    pairs = [(draw.gauss(2, 1) * (n := draw.randint(5, 40)), n) for _ in range(200)]
    resampled = []
    for _ in range(600):
        chosen = draw.choices(pairs, k=len(pairs))
        resampled.append(sum(total for total, _ in chosen) / sum(n for _, n in chosen))
    mean = sum(resampled) / len(resampled)
    spread = math.sqrt(sum((value - mean) ** 2 for value in resampled) / (len(resampled) - 1))
    assert ratio_stderr(pairs) == pytest.approx(spread, rel=0.15)
    assert ratio_stderr(pairs[:1]) is None


def test_standard_output_is_left_alone(
    tokenizer: TextTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_tasks(find_tasks([rolling_task("pages", TEXTS)]), RecycleLM(Scorer(make_model()), tokenizer, "backbone"))
    assert capsys.readouterr().out == ""
    assert sys.stdout is not sys.stderr
