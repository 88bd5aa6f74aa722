"""From `report.json` to tables, figures, pages, and the block of a README."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from recyclegpt.errors import ConfigError
from recyclegpt.reporting.gpu_figures import gpu_figures
from recyclegpt.reporting.gpu_readme import BEGIN, END, NOTHING_YET, fill_in, readme_block
from recyclegpt.reporting.gpu_report import SMOKE, is_gpu_report, read_gpu_report, write_gpu_report

from .gpu_documents import gpu_document

ROOT = Path(__file__).resolve().parents[3]
COMMITTED = ROOT / "experiments" / "005_gpu" / "report.json"


def write(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(gpu_document(**changes)))
    return folder


def test_a_report_is_written_beside_its_document(tmp_path: Path) -> None:
    folder = write(tmp_path / "out")
    written = write_gpu_report(folder, folder)
    assert not written.not_drawn
    text = (folder / "report.md").read_text()
    assert "# GPU report: NVIDIA H200" in text
    assert "| paper\\_1b3: alternating over autoregressive | 1.60x | at least 1.50x | met |" in text
    assert "Measured copy: 4.3 TB/s" in text
    assert "All measurements together took 474 s." in text
    assert "Commit: aaaaaaaaaaaa." in text
    assert "Held out, and never trained on: attrs." in text
    assert "| paper\\_1b3 autoregressive | 1000 | 100 | 300 | 10 | 10 | 10 |" in text
    assert "| mm | 9ms | 9% | 8 |" in text
    assert "| lm\\_head | 32,000 | 1,664 | 1 | False | True | 28.0 | 88.4% |" in text
    assert SMOKE not in text
    for name in ("decode_num_recycled", "bandwidth", "batch", "training", "run", "trained_num_recycled"):
        assert f"(figures/{name}.png)" in text
        assert (folder / "figures" / f"{name}.png").stat().st_size > 10_000
        assert f'id="figure-{name}"' in (folder / "report.html").read_text()
    with (folder / "targets.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["verdict"] for row in rows} == {"met"}
    with (folder / "decode.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(gpu_document()["parts"]["decode"]["rows"])


def test_a_report_elsewhere_takes_its_document_along(tmp_path: Path) -> None:
    parts = {"training": gpu_document()["parts"]["training"]}
    folder, output = write(tmp_path / "out", parts=parts), tmp_path / "experiments" / "005_gpu"
    write_gpu_report(folder, output, "On an H200")
    assert read_gpu_report(output / "report.json") == gpu_document(parts=parts)
    first = (output / "report.md").read_text()
    assert first.startswith("# On an H200\n")
    write_gpu_report(output, output, "On an H200")  # the copy is all it needs
    assert (output / "report.md").read_text() == first


def test_what_was_not_measured_leaves_no_figure_and_says_so(tmp_path: Path) -> None:
    failed = {"name": "gpt_350m", "status": "failed", "seconds": 3.0, "command": "", "error": "CUDA out of memory"}
    parts = {
        "decode": {"status": "not run", "seconds": 0, "calls": []},
        "training": {"status": "failed", "seconds": 3.0, "calls": [failed], "rows": []},
    }
    folder = write(tmp_path, parts=parts, smoke=True, git=None, environment={})
    write_gpu_report(folder, folder)
    text = (folder / "report.md").read_text()
    assert SMOKE in text
    assert "training, gpt\\_350m: failed: CUDA out of memory" in text
    assert "not measured | training: CUDA out of memory" in text
    assert "![" not in text
    assert gpu_figures(parts) == []


def test_verified_decoding_is_drawn_at_every_number_of_recycled_tokens() -> None:
    """Its acceptance is measured, and so a little different at each."""
    (figure,) = [f for f in gpu_figures(gpu_document()["parts"]) if f.name == "decode_num_recycled"]
    assert [panel.title for panel in figure.panels] == ["gpt_125m", "gpt_350m", "paper_1b3"]
    lines = {series.label: list(series.x) for series in figure.panels[0].series if series.label}
    assert lines["verified, depth 1 (80% kept)"] == [1, 2, 4]
    assert lines["alternating, depth 6"] == [1, 2, 4]


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ("{", "cannot be read"),
        ('{"kind": "gpu-report"}', "is no report of a GPU"),
        ('{"kind": "gpu-report", "parts": {}, "format": 2}', "has format 2, this version reads 1"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, document: str, told: str) -> None:
    (tmp_path / "report.json").write_text(document)
    with pytest.raises(ConfigError, match=told):
        write_gpu_report(tmp_path, tmp_path)


def test_a_folder_of_runs_is_no_gpu_report(tmp_path: Path) -> None:
    assert not is_gpu_report(tmp_path)
    assert not is_gpu_report(tmp_path / "nowhere")
    assert is_gpu_report(write(tmp_path))


def test_the_block_holds_every_target_and_where_it_was_measured() -> None:
    document = gpu_document()
    document["parts"]["train"]["monitor_share"] = 0.04
    del document["parts"]["trained"]
    block = readme_block(document)
    assert "| paper_1b3: alternating over autoregressive | **1.60x** | at least 1.50x |" in block
    assert "| the monitor's share of an epoch | 4.0% (missed) | at most 3.0% |" in block
    assert "| trained model: lossless, one recycled token | not measured | at least 1.50x |" in block
    assert "Measured on NVIDIA H200, commit aaaaaaaaaaaa, `recyclegpt gpu-report`." in block
    assert readme_block(None) == NOTHING_YET
    with pytest.raises(ConfigError, match="smoke"):
        readme_block(gpu_document(smoke=True))


def test_fast_paths_that_are_not_right_are_told_first(tmp_path: Path) -> None:
    document = gpu_document()
    document["parts"]["checks"] = {
        "status": "complete",
        "rows": [
            {"check": "kernels", "error": 0.5, "allowed": 0.1, "passed": False, "why": None},
            {"check": "loss", "error": 0.1, "allowed": 0.2, "passed": True, "why": None},
        ],
    }
    assert "**Fast paths that are not right on this device: kernels. Do not trust" in readme_block(document)
    write_gpu_report(write(tmp_path, parts=document["parts"]), tmp_path)
    page = (tmp_path / "report.md").read_text()
    assert page.index("not right on this device: kernels. Do not trust") < page.index("## Targets")
    document["parts"]["checks"]["rows"].pop(0)
    assert "Do not trust" not in readme_block(document)
    document["parts"]["checks"]["status"] = "stopped"
    assert "**The fast paths were not checked on this device. Do not trust" in readme_block(document)


def test_the_block_goes_between_the_marks() -> None:
    text = f"# Title\n{BEGIN}\nold\n{END}\nrest\n"
    once = fill_in(text, "new", "README.md")
    assert once == f"# Title\n{BEGIN}\nnew\n{END}\nrest\n"
    assert fill_in(once, "new", "README.md") == once
    for bad in ("nothing", f"{BEGIN} {BEGIN} {END}", f"{END} {BEGIN}", BEGIN, f"{BEGIN} {END} {END}"):
        with pytest.raises(ConfigError, match="once each"):
            fill_in(bad, "new", "README.md")


def test_the_readme_says_what_the_committed_report_says() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    document = read_gpu_report(COMMITTED) if COMMITTED.exists() else None
    assert readme == fill_in(readme, readme_block(document), "README.md"), "run recyclegpt report --readme README.md"
