"""`evaluate tasks=[...]` and `bench prompts=FILE` on a run trained here."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from recyclegpt.benchmark import prompt_set
from recyclegpt.benchmark.speed import decode

Run = Callable[..., int]


@pytest.fixture(scope="module")
def trained(trained: Path) -> Path:
    return trained / "run"


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Settings that name a little BLiMP and a little WikiText."""
    (tmp_path / "blimp").mkdir()
    for name in ("one", "two"):
        pairs = [{"sentence_good": f"a {n}", "sentence_bad": f"b {n}", "linguistics_term": name} for n in range(3)]
        text = "".join(json.dumps(pair) + "\n" for pair in pairs)
        (tmp_path / "blimp" / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "wiki.txt").write_text(" = A = \n def alpha \n = B = \n def beta \n", encoding="utf-8")
    return [f"task_files.blimp_local={tmp_path / 'blimp'}", f"task_files.wikitext_local={tmp_path / 'wiki.txt'}"]


def test_tasks_are_scored_in_three_ways(
    run: Run, trained: Path, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [f"checkpoint={trained}", *files, "decoding.num_recycled=2"]
    assert run("evaluate", *argv, "tasks=[blimp_local,wikitext_local]") == 0
    lines = capsys.readouterr().out.splitlines()
    header = lines[0].split()
    assert header[:5] == ["task", "metric", "n", "backbone", "stderr"]
    assert "alternating - backbone" in lines[0]
    shown = [line.split()[0] for line in lines[2:] if "local" in line and not line.startswith("{")]
    assert shown == ["blimp_local", "blimp_local::one", "blimp_local::two", *["wikitext_local"] * 3]
    document = json.loads(lines[-1])
    assert document["num_recycled"] == 2
    assert document["tasks"]["blimp_local"]["num_samples"] == 6
    assert set(document["tasks"]["blimp_local::one::one"]["metrics"]["acc"]) == {"backbone", "module", "alternating"}
    values = document["tasks"]["wikitext_local"]["metrics"]["byte_perplexity"]
    assert len({scored["value"] for scored in values.values()}) == 3
    assert all(scored["stderr"] > 0 for scored in values.values())
    assert run("evaluate", *argv, "tasks=[blimp_local]", "scorings=[backbone]", "limit=1") == 0
    out = capsys.readouterr().out
    assert "a quick look, not a result" in out
    assert "module" not in out.splitlines()[0]


def test_a_task_file_has_its_text_written_once(
    run: Run, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    (tmp_path / "own").mkdir()
    (tmp_path / "data.jsonl").write_text('{"q": "def alpha(", "a": "x"}\n{"q": "return", "a": "y"}\n', encoding="utf-8")
    (tmp_path / "own" / "mine.yaml").write_text(
        f"task: mine\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path / 'data.jsonl'}}}}}\n"
        "output_type: generate_until\ntest_split: test\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\n"
        'generation_kwargs: {until: ["\\n"], max_gen_toks: 8}\nmetric_list: [{metric: exact_match}]\n',
        encoding="utf-8",
    )
    assert run("evaluate", f"checkpoint={trained}", "tasks=[mine]", "tasks_path=own", "decoding=sampled") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["task", "metric", "n", "written", "stderr"]
    assert "texts written by verified decoding" in "\n".join(lines)
    assert json.loads(lines[-1])["tasks"]["mine"]["metrics"]["exact_match"]["written"]["value"] == 0
    assert run("evaluate", f"checkpoint={trained}", "tasks=[mine]", "tasks_path=nowhere") == 2
    assert "tasks_path: nowhere is not a folder" in capsys.readouterr().err


def test_a_missing_harness_ends_in_its_remedy(
    run: Run, trained: Path, files: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "recyclegpt.evaluation.lm_eval_adapter", raising=False)
    assert run("evaluate", f"checkpoint={trained}", *files, "tasks=[blimp_local]") == 2
    assert "pip install 'recyclegpt[eval]'" in capsys.readouterr().err


def test_mistakes_are_reported_together(run: Run, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "tasks=[blimp_local]", "scorings=[backbone,both]", "limit=1.5", "batch_size=0",
        "decoding.num_recycled=9",
    ]  # fmt: skip
    assert run("evaluate", f"checkpoint={trained}", *argv) == 2
    err = capsys.readouterr().err
    assert "4 problems" in err
    for words in ("'both'] is unknown", "limit: 1.5", "batch_size: 0", "decoding.num_recycled: 9"):
        assert words in err
    assert run("evaluate", "tasks=[blimp_local,wikitext_local]", "task_files.wikitext_local=nowhere.txt") == 2
    err = capsys.readouterr().err
    assert "set task_files.blimp_local=..." in err
    assert run("evaluate", "tasks=[wikitext_local]", "task_files.wikitext_local=nowhere.txt") == 2
    assert "nowhere.txt cannot be read" in capsys.readouterr().err


def test_a_set_of_prompts_is_decoded_by_category(
    run: Run, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    lines = [{"category": "code", "prompt": "def alpha(beta"}, {"category": "text", "turns": ["return", "then"]}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    argv = [f"checkpoint={trained}", "prompts=p.jsonl", "bench.new_tokens=[12]", "bench.repetitions=1"]
    argv += ["bench.adaptive=[false,true]", "decoding.draft_dtype=[null,int8]", "decoding.temperature=0.7"]
    assert run("bench", *argv, "output_dir=speeds", "bench.dtype=[float32]", "bench.num_prompts=2") == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = [row for row in document["rows"] if row["category"] == "overall"]
    assert [(row["strategy"], row["adaptive"], row["draft_dtype"]) for row in rows] == [
        ("autoregressive", False, None),
        *[
            (*strategy, dtype)
            for dtype in (None, "int8")
            for strategy in (("alternating", False), ("verified", False), ("verified", True))
        ],
    ]
    assert {row["category"] for row in document["rows"]} >= {"code", "text", "overall"}
    assert all(row["equal"] == 1 for row in document["rows"] if row["strategy"] == "verified")
    assert json.loads((tmp_path / "speeds" / "prompts.json").read_text()) == document
    assert "1 of 2 prompts have several turns" in caplog.text


def test_mistakes_with_prompts(run: Run, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.jsonl").write_text('{"category": "a"}\n', encoding="utf-8")
    assert run("bench", "prompts=p.jsonl", "bench.new_tokens=[20,40]") == 2
    err = capsys.readouterr().err
    assert "prompts: text means nothing" in err
    assert "bench.new_tokens: [20, 40]" in err
    assert run("bench", "prompts=p.jsonl", f"checkpoint={trained}") == 2
    assert "p.jsonl:1: lacks a prompt, messages, or turns" in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()


def test_what_was_measured_survives_an_interruption(
    run: Run, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "def a"}\n{"prompt": "def b"}\n', encoding="utf-8")
    decoded: list[object] = []

    def decode_or_stop(*given: Any, **more: Any) -> Any:
        decoded.append(given)
        if len(decoded) == 8:  # three warm-ups, the three decoders on the first prompt, one on the second
            raise KeyboardInterrupt
        return decode(*given, **more)

    monkeypatch.setattr(prompt_set, "decode", decode_or_stop)
    argv = ["prompts=p.jsonl", "bench.new_tokens=[8]", "output_dir=speeds", "bench.repetitions=1"]
    assert run("bench", f"checkpoint={trained}", *argv) == 130
    decoded.clear()
    assert run("bench", f"checkpoint={trained}", *argv) == 0
    assert len(decoded) == 3 + 3, "the warm-ups, and the second prompt"


def test_the_measurement_of_a_real_model(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`experiments/005_smollm2/measure.py`, on a model that takes no time; other engines are not asked."""
    scripts = Path(__file__).resolve().parents[2] / "experiments/005_smollm2"
    monkeypatch.syspath_prepend(scripts)
    (tmp_path / "p.jsonl").write_text('{"category": "coding", "prompt": "def a"}\n', encoding="utf-8")
    argv = [str(trained), "--tune", "p.jsonl", "--prompts", "p.jsonl", "--out", "out", "--new-tokens", "16", "--busy"]
    monkeypatch.setattr(sys, "argv", ["measure.py", *argv, "--sections", "choose", "speed", "waterfall", "quality"])
    monkeypatch.chdir(tmp_path)
    measure = importlib.import_module("measure")
    monkeypatch.setattr(measure, "LENGTHS", {"module": (1,), "ngram": (2,), "ngram+module": (3,)})
    measure.main()
    sections = json.loads((tmp_path / "out/results.json").read_text())["sections"]
    assert [row["lever"] for row in sections["waterfall"]["rows"]][:2] == ["autoregressive", "module"]
    assert all(row["predicted"] > 0 for row in sections["waterfall"]["rows"])
    assert {row["equal"] for row in sections["speed"]["rows"] if row["strategy"] == "verified"} == {1}
    assert len(sections["texts"]["rows"]) == 3
    assert (tmp_path / "out/waterfall.png").exists()
