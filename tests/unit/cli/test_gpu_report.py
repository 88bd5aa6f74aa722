"""The order of a GPU report, its budget, and what a second start does again. No call is really made here."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from recyclegpt.cli import gpu_report
from recyclegpt.cli.compose import compose_or_explain
from recyclegpt.cli.gpu_report_calls import Finished, in_this_process
from recyclegpt.cli.gpu_report_parts import EXPECTED_S, PARTS
from recyclegpt.cli.main import main
from recyclegpt.errors import ConfigError, RunError, Stopped
from recyclegpt.reporting.pages import Written

ROW = {"recycle_num_layers": 2, "tokens_per_s": 4e5, "flops_per_token": 1e9, "variant": "module", "mfu": 0.5}
DOCUMENT = {"rows": [ROW], "vocab_size": 4096, "train_tokens": 10**8, "module": {"flops_share": 0.2, "time_share": 0.2}}


def never(argv: Sequence[str]) -> bool:
    return False


class Program:
    """Stands in for the program: takes as long as expected, and leaves what the real one would leave."""

    def __init__(self) -> None:
        self.now = 0.0
        self.argvs: list[tuple[str, ...]] = []
        self.limits: list[float] = []
        self.slower = 1.0
        self.breaks: Callable[[Sequence[str]], bool] = never

    def __call__(self, argv: Sequence[str], log: Path, limit_s: float) -> Finished:
        self.argvs.append(tuple(argv))
        self.limits.append(limit_s)
        if self.breaks(argv):
            self.now += 1
            return Finished(1, "", "torch.OutOfMemoryError: CUDA out of memory")
        folder = next(
            (Path(part.partition("=")[2].strip("'")) for part in argv if part.startswith("hydra.run.dir=")), None
        )
        if folder is None:
            self.now += 15 * self.slower
        else:
            self.now += 150
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            (folder / "checkpoints" / "last.ckpt").touch()
            train = {"steps": 100, "tokens": 1e6, "seconds": 100.0, "tokens_per_s": 1e4}
            (folder / "result.json").write_text(json.dumps({"train": train}))
            rows = [{"step": 50 * (i + 1), "decode/seconds": 1.0, "decode/acceptance": 0.5 + i} for i in range(2)]
            (folder / "decoding.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"cut')
        return Finished(0, f"a table\n{json.dumps(DOCUMENT)}\n", "")

    @property
    def commands(self) -> list[str]:
        return [argv[0] if argv[0] != "gpu-report" else argv[1] for argv in self.argvs]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """`start(program, "budget_s=100")` is one start of the command, in one folder."""
    monkeypatch.setattr(gpu_report, "code_now", lambda *_: "code")
    # Pages and pictures are tests/unit/reporting's.
    monkeypatch.setattr(gpu_report, "write_gpu_report", lambda *_: Written([], []))
    monkeypatch.chdir(tmp_path)

    def start(program: Program, *settings: str) -> dict[str, Any]:
        begin = program.now
        cfg = compose_or_explain("gpu_report", ["out=out", *settings])
        return gpu_report.report(cfg, "recyclegpt gpu-report", program, clock=lambda: program.now - begin)

    return start


def statuses(document: dict[str, Any]) -> dict[str, str]:
    return {name: part["status"] for name, part in document["parts"].items()}


def test_all_parts_run_in_order_within_the_budget(start: Callable[..., Any]) -> None:
    program = Program()
    document = start(program)
    assert statuses(document) == dict.fromkeys(PARTS, "complete")
    assert program.commands == [
        "doctor", *(f"measure={name}" for name in ("machine", "checks", "kernels")),
        *["bench"] * 10, "measure=corpus", "train", "bench", "evaluate",
    ]  # fmt: skip
    assert program.now <= 600
    assert len(set(program.argvs)) == len(program.argvs)
    assert document["parts"]["train"]["monitor_share"] == 0.02
    assert document["parts"]["train"]["curves"] == {"decode/acceptance": [[5e5, 0.5], [1e6, 1.5]]}
    rows = document["parts"]["training"]["rows"]
    assert [(row["shape"], row["time_share"]) for row in rows] == [
        (shape, 0.2) for shape in ("gpt_125m", "gpt_350m", "paper_1b3")
    ]
    targets = {target["name"]: target["verdict"] for target in document["targets"]}
    assert targets["gpt_350m: training MFU with dual loss"] == "met"
    assert json.loads(Path("out/report.json").read_text())["targets"] == document["targets"]


def test_every_command_is_one_that_the_program_takes(start: Callable[..., Any]) -> None:
    program = Program()
    start(program)
    for name, *argv in program.argvs:
        if name == "doctor":
            continue
        cfg = compose_or_explain(name.replace("-", "_"), argv, check_values=False)
        assert cfg is not None


def test_two_starts_suffice_for_the_plan() -> None:
    second = sum(seconds for name, seconds in EXPECTED_S.items() if name.startswith(("train/", "trained/")))
    assert second <= 600
    # The corpus is made in the first.
    assert sum(EXPECTED_S.values()) - second + EXPECTED_S["train/corpus"] <= 600


def test_the_page_has_this_plan() -> None:
    page = (Path(__file__).parents[3] / "docs" / "gpu.md").read_text(encoding="utf-8")
    planned = {
        part: float(seconds) for part, seconds in re.findall(r"^\| `(\w+)` \|.*\| (\d+) \|$", page, re.MULTILINE)
    }
    assert planned == {
        part: sum(seconds for name, seconds in EXPECTED_S.items() if name.startswith(f"{part}/")) for part in PARTS
    }


def test_a_second_start_has_nothing_to_do(start: Callable[..., Any]) -> None:
    program = Program()
    first = start(program)
    done = len(program.argvs)
    second = start(program)
    assert len(program.argvs) == done
    assert second["parts"] == first["parts"]


def test_what_failed_is_told_and_done_again(start: Callable[..., Any]) -> None:
    program = Program()
    program.breaks = lambda argv: "model=gpt_350m" in argv
    with pytest.raises(RunError, match="3 measurements did not") as told:
        start(program)
    assert "training, gpt_350m: torch.OutOfMemoryError: CUDA out of memory" in str(told.value)
    document = json.loads(Path("out/report.json").read_text())
    assert statuses(document) == dict.fromkeys(PARTS, "complete") | {"decode": "partial", "training": "partial"}
    program.breaks = never
    before = len(program.argvs)
    assert statuses(start(program)) == dict.fromkeys(PARTS, "complete")
    assert all("model=gpt_350m" in argv for argv in program.argvs[before:])
    assert len(program.argvs) - before == 3


def test_a_part_alone_keeps_what_was_measured_before(start: Callable[..., Any]) -> None:
    program = Program()
    document = start(program, "parts=[environment]")
    assert statuses(document) == dict.fromkeys(PARTS, "not run") | {"environment": "complete"}
    document = start(program, "parts=[train]")
    assert statuses(document)["environment"] == statuses(document)["train"] == "complete"
    assert not [part for part in program.argvs[-1] if part.startswith("trainer.limit")]  # no speed was measured
    assert statuses(start(program, "parts=[trained]"))["trained"] == "complete"
    assert program.commands[-2:] == ["bench", "evaluate"]


def test_a_smoke_run_in_the_same_folder_is_no_measurement(start: Callable[..., Any]) -> None:
    program = Program()
    start(program, "smoke=true", "device=cpu")
    document = start(program, "parts=[environment]")
    assert statuses(document) == dict.fromkeys(PARTS, "not run") | {"environment": "complete"}
    assert start(program, "smoke=true", "device=cpu", "parts=[decode]")["parts"]["training"]["status"] == "complete"


def test_a_part_that_is_not_asked_for_plans_nothing(start: Callable[..., Any]) -> None:
    program = Program()
    program.breaks = lambda argv: argv[0] == "train"
    with pytest.raises(RunError):
        start(program)
    Path("out/train/plan.json").unlink()
    start(program, "parts=[environment]", "budget_s=120")
    assert not Path("out/train/plan.json").exists()


def test_another_commit_measures_again(start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    program = Program()
    start(program, "parts=[environment]")
    monkeypatch.setattr(gpu_report, "code_now", lambda *_: "other code")
    document = start(program, "parts=[kernels]")
    assert statuses(document)["environment"] == "not run"
    start(program, "parts=[environment]")
    assert program.commands.count("doctor") == 2


def test_without_a_repository_the_program_itself_is_the_version(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_report, "git_state", lambda *_: None)
    assert start(Program(), "parts=[environment]", "commit=abc")["git"]["commit"] == "abc"
    monkeypatch.undo()
    changed = tmp_path / "package"
    changed.mkdir()
    monkeypatch.setattr(gpu_report, "PACKAGE", changed)
    first = gpu_report.code_now(None)
    assert gpu_report.code_now(None) == first
    (changed / "a.py").touch()
    assert gpu_report.code_now(None) != first
    committed = {"commit": "c", "dirty": True, "diff_sha256": "d"}
    assert gpu_report.code_now(committed) == "c+d"


def test_what_does_not_fit_is_not_begun(start: Callable[..., Any]) -> None:
    program = Program()
    document = start(program, "budget_s=100")
    assert program.now <= 115
    assert statuses(document)["train"] == "skipped"
    assert statuses(document)["trained"] == "not run"
    (corpus,) = document["parts"]["train"]["calls"]
    assert corpus["error"].startswith("needs about 60 s, and ")
    targets = {target["name"]: target["source"] for target in document["targets"]}
    assert "needs about" in targets["the monitor's share of an epoch"]


def test_training_is_shortened_before_it_is_left_out(start: Callable[..., Any]) -> None:
    def batches(program: Program) -> int:
        (argv,) = (argv for argv in program.argvs if argv[0] == "train")
        return next(int(part.partition("=")[2]) for part in argv if part.startswith("trainer.limit_train_batches="))

    quick, slow = Program(), Program()
    slow.slower = 1.01
    start(quick, "out=quick")
    start(slow, "out=slow")
    assert 0.3 * batches(quick) < batches(slow) < batches(quick)
    late = Program()
    late.slower = 2.4
    document = start(late, "out=late")
    assert "train" not in late.commands
    assert [call["status"] for call in document["parts"]["train"]["calls"]] == ["complete", "skipped"]
    assert late.now <= 600


def test_no_call_may_take_more_than_is_left(start: Callable[..., Any]) -> None:
    program = Program()
    start(program)
    used = [15.0 * i for i in range(len(program.limits))]
    assert all(60 <= limit <= 600 - spent for limit, spent in zip(program.limits[:14], used[:14], strict=True))


def test_sigterm_stops_the_call_and_leaves_a_report(start: Callable[..., Any]) -> None:
    program = Program()

    def stopped(argv: Sequence[str]) -> bool:
        if argv[0] == "bench":
            os.kill(os.getpid(), signal.SIGTERM)
        return False

    program.breaks = stopped
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="the same command goes on"):
        start(program)
    assert signal.getsignal(signal.SIGTERM) is before
    document = json.loads(Path("out/report.json").read_text())
    assert statuses(document)["decode"] == "stopped"
    assert statuses(document)["environment"] == "complete"


def test_without_transformers_the_report_says_so(start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    program = Program()
    document = start(program, "parts=[decode]")
    assert not [argv for argv in program.argvs if "bench.baselines=[transformers]" in argv]
    assert document["parts"]["decode"]["notes"] == [
        "transformers was not measured: it is not installed; pip install 'recyclegpt[hf]'."
    ]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ([], "torch sees no CUDA device"),
        (["device=cpu"], "take hours on a CPU; add smoke=true"),
        (["device=tpu", "parts=[decode,all]"], "parts: 'all' is unknown; there are environment, checks"),
        (["device=tpu", "parts=[decode,all]"], "device: 'tpu' is neither cuda nor cpu"),
        (["measure=all", "device=cpu", "smoke=true"], "measure: 'all' is unknown"),
        (["budget_s=0", "device=cpu", "smoke=true"], "budget_s: 0 is not positive"),
        (["parts=[]", "device=cpu", "smoke=true"], "parts: the list is empty"),
        (["smoke=perhaps"], "smoke: 'perhaps' is not"),
        (["budget=3"], "unknown key budget"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    settings: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["gpu-report", *settings]) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_refused(start: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(ConfigError, match=r"out: .* cannot be written"):
        start(Program())


def test_two_starts_do_not_measure_each_other(start: Callable[..., Any]) -> None:
    Path("out").mkdir()
    with FileLock("out/.lock"), pytest.raises(ConfigError, match="another start measures in out"):
        start(Program())


def test_the_report_names_every_command_that_measured(start: Callable[..., Any]) -> None:
    program = Program()
    assert start(program, "parts=[environment]")["commands"] == ["recyclegpt gpu-report"]
    document = json.loads(Path("out/report.json").read_text())
    Path("out/report.json").write_text(json.dumps(document | {"commands": ["an earlier one"]}))
    assert start(program)["commands"] == ["an earlier one", "recyclegpt gpu-report"]
    Path("out/report.json").write_text(json.dumps(document | {"commands": ["of other code"], "code": "other"}))
    assert start(program)["commands"] == ["recyclegpt gpu-report"]


def test_a_file_in_the_way_is_named(start: Callable[..., Any]) -> None:
    Path("out").mkdir()
    Path("out/environment").touch()
    with pytest.raises(ConfigError, match="out: out cannot be written"):
        start(Program())


def test_what_was_measured_outlives_a_start_without_time(start: Callable[..., Any]) -> None:
    program = Program()
    start(program, "parts=[kernels]")
    record = Path("out/kernels/kernels.json")
    record.write_text(record.read_text().replace("measure=kernels", "measure=others"))
    start(program, "parts=[kernels]", "budget_s=1")
    assert "measure=others" in record.read_text()
    assert json.loads(record.read_text())["status"] == "complete"


def test_an_interrupt_inside_a_smoke_run_ends_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu_report, "write_gpu_report", lambda *_: Written([], []))
    monkeypatch.setattr("recyclegpt.cli.main.main", lambda argv: calls.append(argv) or 130)
    cfg = compose_or_explain("gpu_report", ["out=out", "smoke=true", "device=cpu"])
    with pytest.raises(Stopped) as told:
        gpu_report.report(cfg, "recyclegpt gpu-report", in_this_process)
    assert told.value.code == 130
    assert len(calls) == 1
