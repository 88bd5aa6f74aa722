"""The written report: numbers, lists, escapes."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from recyclegpt.reporting import read_runs, summarise, training_curve, write_report
from recyclegpt.reporting.tables import cost_rows, effect_rows

from .conftest import MakeRun


def sweep(make_run: MakeRun, num_seeds: int = 2, losses: int = 0) -> None:
    for seed in range(1, num_seeds + 1):
        for depth in (1, 2, 4):
            make_run(f"d{depth}_s{seed}", depth=depth, seed=seed, ppl=30 + seed - depth / 10, losses=losses)
        make_run(f"plain_s{seed}", depth=0, seed=seed, control="no_module", ppl=30.5 + seed, losses=losses)


def test_the_files_and_what_they_say(tmp_path: Path, make_run: MakeRun) -> None:
    sweep(make_run, losses=3)
    make_run("fails", seed=9, status="failed", error="ValueError: a | b <script>alert(1)</script> *c*")
    make_run("half", seed=8, status="unfinished")
    jobs = [{"overrides": ["recycle.num_layers=9", "seed=1"], "control": None}]
    (tmp_path / "sweep/jobs.json").write_text(json.dumps({"format": 1, "jobs": jobs}))
    report = write_report([tmp_path / "sweep"], tmp_path / "out")
    assert {path.name for path in report.files} == {
        "results.csv", "summary.csv", "pareto.png", "along_recycle.num_layers.png", "training_loss.png",
        "report.md", "report.html",
    }  # fmt: skip
    assert all(path.stat().st_size > 0 for path in report.files)

    rows = list(csv.DictReader((tmp_path / "out/results.csv").read_text().splitlines()))
    assert len(rows) == 10
    one = next(row for row in rows if row["run"] == "d2_s1")
    assert float(one["val/ppl_backbone"]) == 30.8
    assert (one["recycle.num_layers"], one["seed"], one["train.tokens"], one["config_hash"]) == (
        "2",
        "1",
        "20000",
        "hash-d2_s1",
    )
    summary = list(csv.DictReader((tmp_path / "out/summary.csv").read_text().splitlines()))
    assert [row["seeds"] for row in summary] == ["2"] * 4
    assert float(summary[0]["val/ppl_backbone spread"]) == pytest.approx(0.5**0.5)

    markdown = (tmp_path / "out/report.md").read_text()
    assert "Runs: 8 completed, 1 failed, 1 unfinished, 1 missing." in markdown
    assert "| depth 1 | 2 | 31.40 ± 0.71 |" in markdown
    assert "| depth 4 | -0.90 ± 0.00 |" in markdown
    assert "a \\| b &lt;script&gt;" in markdown
    assert "half" in markdown.partition("## Unfinished")[2]
    assert "recycle.num\\_layers=9 seed=1" in markdown.partition("## Missing")[2]
    assert "runs differ" not in markdown
    page = (tmp_path / "out/report.html").read_text()
    assert "<script>alert(1)" not in page
    assert "http://" not in page.partition("<body>")[2].replace("http://www.w3.org", "")
    assert page.count('class="plotly-graph-div"') == 3


def test_effects_compared_with_the_spread_of_seeds(tmp_path: Path, make_run: MakeRun) -> None:
    for seed, noise in ((1, -0.5), (2, 0.5)):
        for depth in (1, 2):
            metrics = {"val/agreement": 0.5 + depth / 10 + noise / 100}
            make_run(f"{depth}-{seed}", depth=depth, seed=seed, ppl=30 + noise + depth / 10, metrics=metrics)
    runs = read_runs(tmp_path)
    rows = {row[1]: row for row in effect_rows(runs, summarise(runs))}
    assert rows["ppl backbone"][2:] == ["30.1 at 1", "30.2 at 2", "0.1", "0.71", "within the seed spread"]
    assert rows["agreement"][4:] == ["0.1", "0.0071", "larger than twice the seed spread"]
    assert cost_rows(summarise(runs)) is None, "no control"


def test_what_differs_between_runs_is_reported(tmp_path: Path, make_run: MakeRun) -> None:
    make_run("a", depth=1)
    other = make_run("b", depth=2, contended=True)
    provenance = json.loads((other / "provenance.json").read_text())
    provenance |= {"git": {"commit": "d" * 40, "dirty": True, "diff_sha256": "x"}, "data_fingerprint": "other"}
    (other / "provenance.json").write_text(json.dumps(provenance))
    write_report([tmp_path / "sweep"], tmp_path / "out")
    markdown = (tmp_path / "out/report.md").read_text()
    differing = [line.partition(":")[0] for line in markdown.splitlines() if "These runs differ" in line]
    assert differing == ["- Commit", "- Data fingerprint"]
    assert "dddddddddddd with changes" in markdown
    assert "1 runs were contended" in markdown


def test_curves_are_read_from_event_files(tmp_path: Path, make_run: MakeRun) -> None:
    (run,) = read_runs(make_run("a", losses=4))
    tokens, backbone, module = training_curve(run)
    assert tokens == [1000.0, 2000.0, 3000.0, 4000.0], "logged at the 10th, 20th, ... of 200 steps of 100 tokens"
    assert backbone == [5.0, 4.75, 4.5, 4.25]
    assert module == [6.0, 5.75, 5.5, 5.25]
    (events,) = (run.folder / "tensorboard").glob("events*")
    events.write_bytes(events.read_bytes()[:-20])
    assert len(training_curve(run)[0]) <= 4
    (plain,) = read_runs(make_run("b", depth=0))
    assert training_curve(plain) == ([], [], [])


@pytest.mark.parametrize(("package", "left"), [("plotly", "report.html"), ("matplotlib", "figures")])
def test_without_an_optional_package_the_tables_are_written(
    tmp_path: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, package: str, left: str
) -> None:
    sweep(make_run, num_seeds=1)
    for name in list(sys.modules):
        if name.partition(".")[0] == package:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    report = write_report([tmp_path / "sweep"], tmp_path / "out")
    assert report.not_drawn == [package]
    assert not (tmp_path / "out" / left).exists()
    assert {"results.csv", "summary.csv", "report.md"} <= {path.name for path in report.files}
