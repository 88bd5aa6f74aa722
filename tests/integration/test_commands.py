"""`generate`, `evaluate` and `tokenize` on a run trained here."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest

from recyclegpt.commands.main import main
from tests.small_run import small_on

Run = Callable[..., int]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    argv = ["train", *small_on(corpus), "callbacks=no_monitor", "trainer.limit_train_batches=40"]
    assert main([*argv, f"hydra.run.dir={folder}"]) == 0
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
        assert ("mean accepted length" in printed.err) == (strategy != "autoregressive")
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


def test_evaluate_measures_the_whole_of_given_files_whatever_their_length(
    run: Run, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short, long = "Ähm.", "Something else entirely, said in English.\n" * 40
    (tmp_path / "short.txt").write_text(short, encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": long}) + "\n", encoding="utf-8")
    for paths, num_bytes in (("short.txt", 5), ("short.txt,rows.jsonl", 5 + len(long))):
        assert run("evaluate", f"checkpoint={trained}", "data=text_files", f"data.paths=[{paths}]") == 0
        document = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert document["metrics"]["bytes"] == num_bytes
    for name in ("backbone", "recycle", "alternating"):
        assert document["metrics"][f"val/loss_{name}"] > 4
        assert document["stderr"][f"val/ppl_{name}"] > 0
    (tmp_path / "short.txt").write_text("", encoding="utf-8")
    assert run("evaluate", f"checkpoint={trained}", "data=text_files", "data.paths=[short.txt]") == 2
    message = capsys.readouterr().err
    assert "no document can be read" in message
    assert "short.txt: is empty" in message


def test_tokenized_corpus_trains_like_its_text(
    run: Run, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [setting for setting in small if setting.startswith("data")]
    assert run("tokenize", *data, f"output_dir={tmp_path / 'shards'}") == 0
    assert "documents" in capsys.readouterr().out
    plain = ["train", "callbacks=no_monitor", "~callbacks.trade_off", "debug=smoke"]
    assert run(*plain, "data=tokenized", "data.path=shards", "hydra.run.dir=a") == 0
    assert run("train", *small, "callbacks=no_monitor", "hydra.run.dir=b") == 0
    losses = [
        json.loads((tmp_path / name / "result.json").read_text())["metrics"]["val/loss_backbone"] for name in ("a", "b")
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("source", ["shape", "checkpoint"])
def test_bench_prints_a_table_and_one_json_line(
    run: Run, trained: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["bench.prompt_tokens=[8]", "bench.new_tokens=[12]", "bench.repetitions=2", "bench.num_recycled=[1,2]"]
    shape = ["model.num_layers=2", "model.hidden_size=32", "model.num_heads=2", "bench.vocab_size=64"]
    assert run("bench", *argv, *([f"checkpoint={trained}"] if source == "checkpoint" else shape)) == 0
    printed = capsys.readouterr().out.splitlines()
    document = json.loads(printed[-1])
    rows = document["rows"]
    expected = [("autoregressive", 0), ("alternating", 1), ("verified", 1), ("alternating", 2), ("verified", 2)]
    assert [(row["strategy"], row["num_recycled"]) for row in rows] == expected
    assert rows[0]["speedup"] == 1
    for row in rows[1:]:
        assert row["spread"][0] <= row["tokens_per_s"] <= row["spread"][1]
        assert row["speedup_spread"][0] <= row["speedup"] <= row["speedup_spread"][1]
        kept, m = row["acceptance"], row["num_recycled"]
        assert row["ceiling_bytes"] == pytest.approx((1 + m * kept) / (1 + m * document["costs"]["bytes_ratio"]))
        cost = row["verify_cost"] + row["draft_cost"] + (m - 1) * row["single_draft_cost"]
        assert row["ceiling_measured"] == pytest.approx((1 + m * kept) / cost)
        assert row["time_to_first_token_s"] > 0
        assert row["peak_memory_bytes"] > 2**20
        assert row["acceptance_given"] == (source == "shape" and row["strategy"] == "verified")
        assert len(row["acceptance_by_position"]) == m
        assert (row["drafter"], row["draft_vocab"]) == ("module", None)
        assert row["bandwidth_share"] > 0
    assert set(document["breakdown"]) == {"autoregressive", "alternating", "verified"}
    folder = Path(next(line for line in printed if line.startswith("written to")).removeprefix("written to "))
    assert json.loads((folder / "bench.json").read_text()) == document
    assert (folder / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_bench_measures_every_combination_and_transformers(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench.new_tokens=[6]", "bench.repetitions=1", "bench.dtype=[float32,int8]", "bench.num_prompts=1"]
    argv += ["bench.strategies=[alternating]", "bench.breakdown=false", "output_dir=here"]
    argv += ["model.num_layers=1", "model.hidden_size=16", "model.num_heads=2", "bench.vocab_size=64"]
    grid = ["bench.recycle_num_layers=[1,2]", "bench.batch=[1,3]", "bench.prompt_tokens=[4,8]"]
    assert run("bench", *argv, *grid) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    keys = ("recycle_num_layers", "dtype", "batch", "prompt_tokens")
    groups = list(itertools.product([1, 2], ["float32", "int8"], [1, 3], [4, 8]))
    assert list(dict.fromkeys(tuple(row[key] for key in keys) for row in rows)) == groups
    assert run("bench", *argv, "bench.baselines=[transformers]", "bench.prompt_tokens=[4]") == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    (row,) = [row for row in rows if row["strategy"] == "transformers"]
    assert row["dtype"] == "float32", "transformers has no int8 weights to compare with"
    assert row["tokens_per_s"] == max(row["tokens_per_s_by_cache"].values())
    assert row["cache"] in row["tokens_per_s_by_cache"]
    assert Path("here/bench.png").exists()


def test_bench_names_every_mistake(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", "bench.new_tokens=[0]", "bench.strategies=[fast]", "device=tpu9") == 2
    message = capsys.readouterr().err
    for word in ("bench.new_tokens: 0", "'fast' is unknown", "device: 'tpu9'"):
        assert word in message
    argv = ["bench.batch=[1,0]", "bench.acceptance_by_position=[0.5,2]", "bench.baselines=[vllm]"]
    assert run("bench", *argv, "bench.recycle_num_layers=[0]", "bench.num_recycled=[9]") == 2
    message = capsys.readouterr().err
    for word in ("bench.batch: 0", "bench.acceptance_by_position: 2", "'vllm'", "num_layers: 0", "9 is"):
        assert word in message
    assert run("bench", "bench.dtype=[int3]") == 2
    assert "bench.dtype: 'int3'" in capsys.readouterr().err
    assert run("bench", "bench.new_tokens=[999]") == 2
    assert "exceed the context" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("bench.new_tokens=[1]", "give 3 or more"),
        ("bench.num_recycled=[]", "the list is empty"),
        ("bench.num_recycled=1", "is not a ListConfig, list or tuple"),
        ("bench.repetitions=[2,3]", "bench.repetitions"),
        ("output_dir=/proc/x", "/proc/x cannot be written"),
    ],
)
def test_bench_refuses_before_it_measures(
    run: Run, wrong: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recyclegpt.commands.bench.measure_grid", lambda *_: pytest.fail("measured"))
    assert run("bench", wrong) == 2
    printed = capsys.readouterr().err
    assert wrong.partition("=")[0] in printed
    assert message in printed
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("decoding.num_recycled=1.5", "could not be converted to Integer"),
        ("decoding.temperature=hot", "could not be converted to Float"),
        ("decoding.stop=['']", "an empty string would end every text"),
        ("decoding.seed=-1", "is not between 0 and"),
        ("device=meta", "meta is not supported"),
        ("device=cuda:9", "sees"),
        ("checkpoint=nowhere", "nowhere does not exist"),
    ],
)
def test_generate_names_a_setting_of_the_wrong_kind(
    run: Run, trained: Path, wrong: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", f"checkpoint={trained}", wrong, "--prompt", "x") == 2
    printed = capsys.readouterr()
    assert wrong.partition("=")[0] in printed.err
    assert message in printed.err
    assert not printed.out
