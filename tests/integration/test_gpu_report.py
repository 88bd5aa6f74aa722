"""The whole of a GPU report with tiny shapes on a CPU: every call is really made, and its numbers reach the pages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from recyclegpt.cli import gpu_report
from recyclegpt.cli.gpu_report_parts import PARTS
from recyclegpt.reporting.gpu_readme import BEGIN, END
from recyclegpt.reporting.pages import Written

Run = Callable[..., int]


def test_a_smoke_run_measures_everything_once(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("gpu-report", "smoke=true", "device=cpu", "out=out") == 0
    told = capsys.readouterr()
    assert "paper_1b3: alternating over autoregressive" in told.out
    document = json.loads(Path("out/report.json").read_text())
    parts = document["parts"]
    num_calls = sum(len(part["calls"]) for part in parts.values())
    assert told.err.count(": complete in ") == num_calls == 12
    assert {name: part["status"] for name, part in parts.items()} == dict.fromkeys(PARTS, "complete")
    assert document["environment"]["copy_bytes_per_s"] > 1e6
    assert document["environment"]["matmul_flops_per_s"] > 1e6
    measured = {target["name"] for target in document["targets"] if target["verdict"] != "not measured"}
    missing = {target["name"] for target in document["targets"]} - measured
    # transformers is left out of a smoke run, and a CPU has no peak to compare with.
    assert missing == {
        "paper_1b3: over transformers' eager generate",
        "paper_1b3: over transformers' compiled generate",
        "gpt_350m: training MFU with dual loss",
    }
    assert parts["train"]["result"]["train"]["steps"] == 6
    assert len(parts["train"]["decoding"]) == 2
    assert set(parts["train"]["curves"]) >= {"train/loss_backbone", "val/agreement", "decode/acceptance"}
    assert parts["trained"]["metrics"]["val/ppl_backbone"] > 1
    assert {row["decoder"] for row in parts["decode"]["stages"]} == {"autoregressive", "alternating", "verified"}
    assert parts["training"]["profiles"]
    assert [row["check"] for row in parts["checks"]["rows"] if not row["passed"]] == []
    text = Path("out/report.md").read_text()
    assert "No number here means anything" in text
    for name in ("decode_num_recycled", "bandwidth", "batch", "training", "run", "trained_num_recycled"):
        assert Path(f"out/figures/{name}.png").exists()

    # A second start finds all of it, and `report` needs no more than the document. Drawing once is enough.
    monkeypatch.setattr(gpu_report, "write_gpu_report", lambda *_: Written([], []))
    assert run("gpu-report", "smoke=true", "device=cpu", "out=out") == 0
    assert capsys.readouterr().err.count(": was complete") == num_calls
    readme = Path("README.md")
    readme.write_text(f"{BEGIN}\n{END}\n")
    assert run("report", "out", "--output", "kept", "--readme", readme) == 2
    assert "smoke" in capsys.readouterr().err
    assert not (tmp_path / "kept").exists()
    Path("out/report.json").write_text(json.dumps(json.loads(Path("out/report.json").read_text()) | {"smoke": False}))
    assert run("report", "out", "--output", "kept", "--readme", readme) == 0
    assert "kept/report.html" in capsys.readouterr().out
    assert (tmp_path / "kept" / "report.md").read_text().count("![") == text.count("![") > 4
    assert "| the monitor's share of an epoch |" in readme.read_text()


def test_a_report_on_runs_is_not_mixed_with_one_of_a_gpu(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu" / "report.json").write_text('{"kind": "gpu-report", "format": 1, "parts": {}}')
    assert run("report", "gpu", "runs") == 2
    assert "gpu: is a GPU report; give it alone" in capsys.readouterr().err
    assert run("report", "runs", "--readme", "README.md") == 2
    assert "runs is no GPU report" in capsys.readouterr().err
    assert run("report", "gpu", "--readme", "README.md") == 2
    assert "README.md cannot be read" in capsys.readouterr().err
    Path("README.md").write_text("nothing to fill in")
    assert run("report", "gpu", "--readme", "README.md") == 2
    assert "once each" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "gpu").iterdir()) == ["report.json"]
