"""`generate`, `evaluate` and `tokenize` on a run trained here."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest

from recyclegpt.cli.main import main

Run = Callable[..., int]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    argv = ["train", "debug=smoke", "data=text_files", f"data.paths=[{corpus}]", "data.tokenizer.vocab_size=300"]
    assert main([*argv, "trainer.limit_train_batches=40", f"hydra.run.dir={folder}"]) == 0
    return folder


def test_generate_streams_a_continuation(run: Run, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = "def alpha(beta, n=1):  # (a, b) = [1, 2]"
    outputs = {}
    for strategy in ("autoregressive", "alternating", "verified"):
        argv = [f"checkpoint={trained}", f"decoding.strategy={strategy}", "decoding.dtype=float64"]
        assert run("generate", *argv, "--prompt", prompt, "--stats") == 0
        printed = capsys.readouterr()
        assert printed.out.startswith(prompt)
        assert len(printed.out) > len(prompt) + 4
        assert f"{strategy}: " in printed.err
        outputs[strategy] = printed.out
    assert outputs["verified"] == outputs["autoregressive"]


def test_prompt_from_file_and_stdin(
    run: Run, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompt.txt").write_text("def gamma(", encoding="utf-8")
    assert run("generate", f"checkpoint={trained}", "--prompt-file", tmp_path / "prompt.txt") == 0
    from_file = capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", StringIO("def gamma("))
    assert run("generate", f"checkpoint={trained}") == 0
    assert capsys.readouterr().out == from_file
    assert run("generate", f"checkpoint={trained}", "--prompt", "def gamma(", "--no-prompt") == 0
    assert "def gamma(" + capsys.readouterr().out == from_file


def test_an_empty_prompt_begins_a_document(run: Run, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", f"checkpoint={trained}", "--prompt", "") == 0
    assert capsys.readouterr().out.strip()


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_printed(
    run: Run, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", f"checkpoint={trained}", "--prompt", "def alpha " * 90) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "the context holds 64" in printed.err


def test_sampling_repeats_with_its_seed(run: Run, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def sample(seed: int) -> str:
        argv = ["decoding=sampled", "decoding.temperature=1.5", "decoding.top_p=1.0", f"decoding.seed={seed}"]
        assert run("generate", f"checkpoint={trained}", *argv, "decoding.max_new_tokens=30", "--prompt", "def ") == 0
        return capsys.readouterr().out

    assert sample(1) == sample(1) != sample(2)


def test_newest_run_is_the_default(run: Run, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", f"checkpoint={trained.parent}", "--prompt", "def ") == 0
    capsys.readouterr()
    assert run("generate", "--prompt", "def ") == 2
    assert "outputs/train does not exist" in capsys.readouterr().err


def test_evaluate_finds_what_training_found(run: Run, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", f"checkpoint={trained}") == 0
    lines = capsys.readouterr().out.splitlines()
    document = json.loads(lines[-1])
    expected = json.loads((trained / "result.json").read_text())["metrics"]
    for name, value in document["metrics"].items():
        assert value == pytest.approx(expected[name], rel=1e-6), name
    assert any("ppl_alternating" in line for line in lines)


def test_evaluate_on_another_corpus(
    run: Run, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("Something else entirely, said in English.\n" * 400, encoding="utf-8")
    argv = [
        "data=text_files",
        f"data.paths=[{other}]",
        "data.val_fraction=0.5",
        "data.num_val_batches=1",
        "data.batch_size=2",
    ]
    assert run("evaluate", f"checkpoint={trained}", *argv) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["metrics"]["val/loss_backbone"] > 4


def test_tokenized_corpus_trains_like_its_text(
    run: Run, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [setting for setting in small if setting.startswith("data")]
    assert run("tokenize", *data, f"output={tmp_path / 'shards'}") == 0
    assert "documents" in capsys.readouterr().out
    assert run("train", "debug=smoke", "data=tokenized", "data.path=shards", "hydra.run.dir=a") == 0
    assert run("train", *small, "hydra.run.dir=b") == 0
    losses = [
        json.loads((tmp_path / name / "result.json").read_text())["metrics"]["val/loss_backbone"] for name in ("a", "b")
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("source", ["shape", "checkpoint"])
def test_bench_prints_a_table_and_one_json_line(
    run: Run, trained: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["bench.prompt_tokens=8", "bench.new_tokens=12", "bench.repetitions=2", "bench.num_recycled=[1,2]"]
    shape = ["model.num_layers=2", "model.hidden_size=32", "model.num_heads=2", "bench.vocab_size=64"]
    assert run("bench", *argv, *([f"checkpoint={trained}"] if source == "checkpoint" else shape)) == 0
    printed = capsys.readouterr().out.splitlines()
    document = json.loads(printed[-1])
    rows = document["rows"]
    assert [(row["strategy"], row["num_recycled"]) for row in rows] == [
        ("autoregressive", 0),
        ("alternating", 1),
        ("verified", 1),
        ("alternating", 2),
        ("verified", 2),
    ]
    assert rows[0]["speedup"] == 1
    for row in rows[1:]:
        assert row["spread"][0] <= row["tokens_per_s"] <= row["spread"][1]
        kept, cycle = row["acceptance"], row["num_recycled"] * document["costs"]["bytes_ratio"]
        assert row["ceiling_bytes"] == pytest.approx((1 + row["num_recycled"] * kept) / (1 + cycle))
    assert any("random weights" in line for line in printed) == (source == "shape")


def test_bench_names_every_mistake(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", "bench.new_tokens=0", "bench.strategies=[fast]", "bench.dtype=int3", "device=tpu9") == 2
    message = capsys.readouterr().err
    for word in ("bench.new_tokens: 0", "'fast' is unknown", "bench.dtype: 'int3'", "device: 'tpu9'"):
        assert word in message
    assert run("bench", "bench.new_tokens=999") == 2
    assert "exceed the context" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["generate", "bench", "evaluate", "tokenize", "train"])
def test_help(run: Run, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    text = capsys.readouterr().out
    assert command in text or "Hydra" in text
