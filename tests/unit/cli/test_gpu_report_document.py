"""What a GPU report keeps of the files that its calls leave."""

from __future__ import annotations

from pathlib import Path

from recyclegpt.cli.gpu_report_calls import Record
from recyclegpt.cli.gpu_report_document import MOST_POINTS, PROFILE_LINES, make_document, profile_table, thinned

PROFILE = """\
-----------------------  ------------  ------------  ------------  ------------  ------------
                   Name    Self CPU %      Self CPU     Self CUDA   Self CUDA %    # of Calls
-----------------------  ------------  ------------  ------------  ------------  ------------
 void gemm<128, 64>(...)        0.00%       0.000us       9.100ms        60.10%           300
               aten::mm         1.25%     120.000us       0.000us         0.00%            12
-----------------------  ------------  ------------  ------------  ------------  ------------
Self CPU time total: 9.600ms
Self CUDA time total: 15.100ms
"""


def record(part: str, name: str, status: str = "complete", **changes: object) -> Record:
    return Record(**{"part": part, "name": name, "status": status, "command": "", **changes})  # type: ignore[arg-type]


def document(*records: Record) -> dict[str, dict[str, object]]:
    held: dict[str, dict[str, object]] = make_document(
        ["decode", "training", "train", "trained"], {(r.part, r.name): r for r in records}, {"smoke": False}
    )["parts"]
    return held


def test_a_profile_is_told_by_the_devices_own_time() -> None:
    assert profile_table(PROFILE) == [
        ["operation", "CUDA time", "share", "calls"],
        ["void gemm<128, 64>(...)", "9.100ms", "60.10%", "300"],
        ["aten::mm", "0.000us", "0.00%", "12"],
    ]
    lines = PROFILE.splitlines()
    assert len(profile_table("\n".join([*lines[:3], *[lines[3]] * 50]))) == 1 + PROFILE_LINES
    assert profile_table("nothing of the kind") == []


def test_profiles_lie_beside_their_benchmark(tmp_path: Path) -> None:
    (tmp_path / "profile_module.txt").write_text(PROFILE)
    call = record("training", "gpt_350m", document={"rows": []}, facts={"shape": "gpt_350m", "folder": str(tmp_path)})
    assert list(document(call)["training"]["profiles"]) == ["gpt_350m, module"]  # type: ignore[call-overload]


def test_a_part_is_what_its_calls_came_to() -> None:
    def status(*statuses: str) -> object:
        return document(*(record("decode", str(i), status) for i, status in enumerate(statuses)))["decode"]["status"]

    assert status() == "not run"
    assert status("complete", "complete") == "complete"
    assert status("complete", "failed") == status("complete", "skipped") == "partial"
    assert status("skipped", "failed") == "failed"
    assert status("skipped", "skipped") == "skipped"
    assert status("failed", "stopped") == "stopped"


def test_rows_of_calls_that_failed_do_not_count() -> None:
    rows = {"rows": [{"tokens_per_s": 1.0}], "stages": {"verified": {"backbone": 1e-3}}}
    held = document(
        record("decode", "a", document=rows, facts={"shape": "gpt_125m", "call": "depths"}),
        record("decode", "b", "failed", document=rows),
        record("decode", "c", document=None),
    )["decode"]
    assert held["rows"] == [{"shape": "gpt_125m", "call": "depths", "tokens_per_s": 1.0}]
    assert held["stages"] == [{"shape": "gpt_125m", "call": "depths", "decoder": "verified", "backbone": 1e-3}]


def test_a_run_that_left_nothing_is_told_as_such(tmp_path: Path) -> None:
    run = record("train", "run", "failed", facts={"folder": str(tmp_path / "none"), "note": "as planned"})
    held = document(run)["train"]
    assert (held["result"], held["decoding"], held["notes"]) == (None, [], ["as planned"])
    assert "monitor_share" not in held


def test_a_long_curve_is_thinned_to_means() -> None:
    points = [[float(x), 2.0 * x] for x in range(1001)]
    few = thinned(points)
    assert len(few) <= MOST_POINTS
    assert few[0] == [2.5, 5.0]
    assert thinned(points[:100]) == points[:100]
