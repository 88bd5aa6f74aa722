"""Grouping, means, spreads and fronts, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from recyclegpt.reporting import pareto_front, read_runs, summarise, swept_keys
from recyclegpt.reporting.settings import lines_along, pooled_spread

from .conftest import MakeRun


def test_runs_that_differ_in_the_seed_alone_are_one_setting(tmp_path: Path, make_run: MakeRun) -> None:
    for depth, seed, ppl in ((1, 1, 30.0), (1, 2, 34.0), (2, 1, 20.0)):
        make_run(f"d{depth}s{seed}", depth=depth, seed=seed, ppl=ppl)
    make_run("plain", depth=0, control="no_module", ppl=33.0)
    make_run("deeper", depth=0, control="deeper_by_2", layers=10, ppl=32.0)
    runs = read_runs(tmp_path)
    assert swept_keys(runs) == ["recycle.num_layers"]
    settings = summarise(runs)
    assert [setting.label for setting in settings] == ["depth 1", "depth 2", "no module", "deeper by 2"]
    first, second, plain, _ = settings
    assert first.mean("val/ppl_backbone") == 32
    assert first.spread("val/ppl_backbone") == pytest.approx(8**0.5)
    assert second.spread("val/ppl_backbone") is None
    assert plain.mean("val/ppl_recycle") is None
    assert first.mean("train.tokens") == 20_000
    assert first.mean("model.num_parameters") == 1001
    assert pooled_spread(settings, "val/ppl_backbone") == pytest.approx(8**0.5)
    assert pooled_spread([second], "val/ppl_backbone") is None


def test_without_a_sweeper_a_model_without_module_is_a_control(tmp_path: Path, make_run: MakeRun) -> None:
    make_run("a", depth=0)
    make_run("b", depth=1)
    make_run("c", depth=2)
    assert [setting.control for setting in summarise(read_runs(tmp_path))] == [None, None, "no_module"]


def test_a_named_control_with_a_module_is_a_setting_like_others(tmp_path: Path, make_run: MakeRun) -> None:
    make_run("a", weight=0.3)
    make_run("b", weight=0.1, control="weight_0.1")
    settings = summarise(read_runs(tmp_path))
    assert [setting.values for setting in settings] == [{"loss.recycle_weight": 0.1}, {"loss.recycle_weight": 0.3}]


def test_lines_keep_all_else_fixed(tmp_path: Path, make_run: MakeRun) -> None:
    for depth, weight in ((1, 0.3), (2, 0.3), (4, 0.3), (2, 0.1), (4, 0.1), (1, 1.0)):
        make_run(f"{depth}-{weight}", depth=depth, weight=weight)
    make_run("plain", depth=0, control="no_module")
    settings = summarise(read_runs(tmp_path))
    depths = {
        name: [setting.values["recycle.num_layers"] for setting in line]
        for name, line in lines_along(settings, "recycle.num_layers")
    }
    assert depths == {"weight 0.1": [2, 4], "weight 0.3": [1, 2, 4]}
    weights = dict(lines_along(settings, "loss.recycle_weight"))
    assert [setting.values["loss.recycle_weight"] for setting in weights["depth 2"]] == [0.1, 0.3]


def test_pareto_by_hand() -> None:
    assert pareto_front([(1.0, 30.0), (1.5, 31.0), (1.4, 32.0), (1.2, 29.0), (1.5, 31.0)]) == [3, 1, 4]
    assert pareto_front([]) == []
    assert pareto_front([(1.0, 1.0)]) == [0]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_every_point_is_on_the_front_or_beaten_by_it(points: list[tuple[int, int]]) -> None:
    front = [points[i] for i in pareto_front(points)]
    for x, y in points:
        beaten = any(a >= x and b <= y and (a, b) != (x, y) for a, b in points)
        assert ((x, y) in front) != beaten
        assert not beaten or any(a >= x and b <= y for a, b in front)


def test_controls_of_other_settings_are_not_averaged(tmp_path: Path, make_run: MakeRun) -> None:
    make_run("a", depth=1)
    for number, rate in enumerate((0.1, 0.2)):
        folder = make_run(f"plain{number}", depth=0, control="no_module", ppl=30 + number)
        config = yaml.safe_load((folder / ".hydra/config.yaml").read_text()) | {"optimizer": {"lr": rate}}
        (folder / ".hydra/config.yaml").write_text(yaml.safe_dump(config))
    make_run("plain2", depth=0, control="no_module", weight=9, ppl=33, seed=2)
    settings = summarise(read_runs(tmp_path))
    assert [(setting.label, len(setting.runs)) for setting in settings[1:]] == [
        ("no module, optimizer.lr 0.1", 1),
        ("no module, optimizer.lr 0.2", 1),
        ("no module, optimizer.lr None", 1),
    ]


def test_a_copy_is_no_further_seed(tmp_path: Path, make_run: MakeRun) -> None:
    make_run("a", seed=1, ppl=30)
    make_run("b", seed=1, ppl=30)
    make_run("c", seed=2, ppl=32)
    runs = read_runs(tmp_path)
    (setting,) = summarise(runs)
    assert setting.numbers("val/ppl_backbone") == [30, 32]
    assert [run.name for run in setting.runs] == ["a", "c"]


def test_a_run_whose_config_cannot_be_read_spoils_no_table(tmp_path: Path, make_run: MakeRun) -> None:
    make_run("a", depth=1)
    make_run("b", depth=2)
    make_run("c", depth=4).joinpath(".hydra/config.yaml").write_bytes(b"\xff\x00")
    runs = read_runs(tmp_path)
    assert swept_keys(runs) == ["recycle.num_layers"]
    assert [setting.label for setting in summarise(runs)] == ["depth 1", "depth 2"]
