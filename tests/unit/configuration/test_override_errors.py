"""Every mistake in an override gets a sentence that names it and what is allowed, all of them in one error."""

from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import MissingConfigException

from recyclegpt.configuration.compose import compose_or_explain, find_conf, folder_name
from recyclegpt.configuration.override_errors import Group, _explain_choice
from recyclegpt.errors import ConfigError


def problems(conf_dir: Path, *overrides: str, multirun: bool = False) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose_or_explain("train", overrides, conf_dir=conf_dir, multirun=multirun)
    assert not GlobalHydra.instance().is_initialized()
    return caught.value.problems


def test_a_right_config_composes(conf_dir):
    cfg = compose_or_explain("train", ["experiment=deep", "extra_key=5", "loss.recycle_weight=1e-1"], conf_dir=conf_dir)
    assert (cfg.depth, cfg.also_depth, cfg.extra_key, cfg.data.rows, cfg.loss.recycle_weight) == (12, 12, 5, 3, 0.1)
    assert "hydra" not in cfg
    assert "hydra" in compose_or_explain("train", [], conf_dir=conf_dir, with_hydra=True)
    assert not HydraConfig.initialized()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("loss.recycle_wieght=1", "unknown key loss.recycle_wieght: did you mean loss.recycle_weight?"),
        ("recycle_weight=1", "unknown key recycle_weight: did you mean loss.recycle_weight?"),
        ("los.recycle_weight=1", "unknown key los.recycle_weight: did you mean loss.recycle_weight?"),
        ("loss/recycle_weight=1", "unknown key loss/recycle_weight: did you mean loss.recycle_weight?"),
        ("loss.zz=1", "unknown key loss.zz: keys of loss are recycle_weight, schedule"),
        ("depth.x=1", "unknown key depth.x: depth is a value and has no keys"),
        ("hydra.run.dri=1", "unknown key hydra.run.dri: did you mean hydra.run.dir?"),
        ("extra_key=1", "unknown key extra_key: keys are name, seed, "),
        ("~nothing", "unknown key nothing: keys are "),
        ("data=foo", "data=foo: no such choice; choose from: stdlib, text_files, tiny"),
        ("data=stdlip", "did you mean data=stdlib? choose from: stdlib, text_files, tiny"),
        ("data=null", "data=null: data is chosen by name; choose from: stdlib, "),
        ("+data=tiny", "+data=tiny: a choice of data is already made; write data=tiny"),
        ("hydra/sweeper=foo", "hydra/sweeper=foo: no such choice; choose from: basic, controlled"),
        ("+depth=1", "+depth=1: depth is already there; write depth=1"),
        ("loss=1", "loss=1: loss is a section; set one of its keys (loss.recycle_weight, loss.schedule)"),
        ("depth=1,2", "depth=1,2: asks for several runs; add -m to sweep, write depth=[...] for a list"),
        ("depth", "depth: is not KEY=VALUE"),
        ("=3", "=3: has no key; write KEY=VALUE"),
        ("name=a(b", "quote it for the shell and for Hydra: \"name='a(b'\""),
        ("name=it's", "quote it for the shell and for Hydra: 'name=\"it's\"'"),
        ("data=text_files", "data.paths: has no value; set data.paths=..."),
        ("depth=???", "depth: has no value; set depth=..."),
        ("depth=${dpeth}", "depth: ${dpeth} points to a key that does not exist; did you mean ${depth}?"),
        ("depth=${oc.env:NOT_SET_HERE}", "Environment variable 'NOT_SET_HERE' not found"),
        ("depth=${nosuch:1}", "Unsupported interpolation type nosuch"),
        ("hydra.run.dir=${nowhere}", "hydra.run.dir: its value points to a key that does not exist"),
    ],
)
def test_one_mistake_is_one_problem(conf_dir, override, expected):
    (problem,) = problems(conf_dir, override)
    assert expected in problem
    assert "\n" not in problem
    assert "earch path" not in problem


def test_quoting_as_proposed_works(conf_dir):
    for value in ("'a(b'", '"it\'s"'):
        assert compose_or_explain("train", [f"name={value}"], conf_dir=conf_dir).name == value[1:-1]


def test_all_mistakes_come_at_once(conf_dir):
    found = problems(conf_dir, "name=a(b", "data=foo", "dpeth=3", "depth=???", "seed=${nowhere}", "loss=3")
    assert len(found) == 6
    for start in ("name=a(b:", "data=foo:", "unknown key dpeth:", "depth: has no value", "seed: ${nowhere}", "loss=3:"):
        assert any(problem.startswith(start) for problem in found), start


def test_a_key_of_an_experiment_is_known_whatever_the_order(conf_dir):
    (problem,) = problems(conf_dir, "extra_key=1", "experiment=deep", "dpeth=1")
    assert problem.startswith("unknown key dpeth")


def test_a_broken_file_is_named(conf_dir):
    (conf_dir / "data" / "stdlib.yaml").write_text("rows: [1\n")
    (problem,) = problems(conf_dir, "depth=3")
    assert "stdlib.yaml" in problem
    (problem,) = problems(conf_dir / "nowhere")
    assert "no such configuration folder" in problem
    with pytest.raises(ConfigError, match="Cannot find primary config 'tarin'"):
        compose_or_explain("tarin", [], conf_dir=conf_dir)


def test_a_group_without_a_choice_is_asked_for(conf_dir):
    (conf_dir / "other.yaml").write_text("defaults: [_self_, {data: '???'}]\ndepth: 1\n")
    with pytest.raises(ConfigError, match="You must specify 'data'"):
        compose_or_explain("other", [], conf_dir=conf_dir)
    with pytest.raises(ConfigError) as caught:
        compose_or_explain("other", ["dpeth=1"], conf_dir=conf_dir)
    assert caught.value.problems == ["unknown key dpeth: did you mean depth?"]
    assert compose_or_explain("other", ["data=tiny"], conf_dir=conf_dir).data.rows == 3


def test_values_are_not_asked_for_when_a_config_is_only_shown(conf_dir):
    cfg = compose_or_explain("train", ["data=text_files"], conf_dir=conf_dir, check_values=False)
    assert cfg.data.rows == 2


def test_every_value_of_a_multirun_is_tried(conf_dir):
    found = problems(conf_dir, "depth=1,2", "data=stdlib,text_files,foo", "loss.zz=1,2", multirun=True)
    assert found == [
        "unknown key loss.zz: keys of loss are recycle_weight, schedule",
        "with data=text_files: data.paths: has no value; set data.paths=...",
        "data=foo: no such choice; choose from: stdlib, text_files, tiny",
    ]
    cfg = compose_or_explain("train", ["depth=range(3,5)", "data=tiny,stdlib"], conf_dir=conf_dir, multirun=True)
    assert (cfg.depth, cfg.data.rows) == (3, 3)
    (problem,) = problems(conf_dir, "depth=interval(0,1)", multirun=True)
    assert problem.startswith("depth=interval(0,1): ")


def test_a_sweep_file_is_checked_with_its_controls(conf_dir):
    cfg = compose_or_explain("train", ["sweep=depths"], conf_dir=conf_dir)
    assert (cfg.depth, cfg.seed, cfg.loss.recycle_weight) == (1, 1, 0.1)
    # The command line wins over the file, also with an axis of its own.
    assert compose_or_explain("train", ["sweep=depths", "depth=5,6"], conf_dir=conf_dir).depth == 5
    assert problems(conf_dir, "sweep=broken") == [
        "unknown key depht: did you mean depth?",
        "hydra.sweeper.controls.other: data=nothing: no such choice; choose from: stdlib, text_files, tiny",
    ]


def test_an_extra_folder_is_searched_first(conf_dir, tmp_path):
    extra = tmp_path / "mine"
    (extra / "data").mkdir(parents=True)
    (extra / "data" / "own.yaml").write_text("rows: 99\n")
    cfg = compose_or_explain("train", ["data=own"], conf_dir=conf_dir, extra_dir=extra)
    assert cfg.data.rows == 99


def test_conf_is_found_in_a_package_then_beside_the_sources(tmp_path):
    package = tmp_path / "src" / "recyclegpt"
    package.mkdir(parents=True)
    with pytest.raises(ConfigError) as caught:
        find_conf(package)
    assert str(package / "conf") in str(caught.value)
    assert str(tmp_path / "conf") in str(caught.value)
    (tmp_path / "conf").mkdir()
    assert find_conf(package) == tmp_path / "conf"
    (package / "conf").mkdir()
    assert find_conf(package) == package / "conf"


def test_folder_names_are_one_safe_and_short_name():
    assert folder_name("recycle.num_layers-2_seed-1") == "recycle.num_layers-2_seed-1"
    assert folder_name("data.paths=[/a/b,../c]_x='y z'") == "data.paths-a-b-..-c-_x-y-z"
    assert folder_name("") == "default"
    assert folder_name("..") == "default"
    long_names = {folder_name("x" * 300 + end) for end in "ab"}
    assert len(long_names) == 2
    assert all(len(name) <= 120 for name in long_names)


def test_a_sweep_may_choose_for_a_group_without_a_choice(conf_dir):
    text = (conf_dir / "train.yaml").read_text()
    (conf_dir / "train.yaml").write_text(text.replace("data: stdlib", "data: ???"))
    (conf_dir / "sweep" / "data.yaml").write_text(
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      data: tiny,stdlib\n"
    )
    assert compose_or_explain("train", ["sweep=data"], conf_dir=conf_dir).data.rows == 3
    assert "You must specify 'data'" in problems(conf_dir)[0]


def test_a_launcher_that_is_not_installed_comes_with_its_remedy():
    error = MissingConfigException("Could not find 'hydra/launcher/joblib'", "hydra/launcher/joblib")
    told = _explain_choice(
        "hydra/launcher=joblib", "hydra/launcher", "joblib", error, Group("hydra/launcher", ("basic",))
    )
    assert told == "hydra/launcher=joblib: its plugin is not installed; pip install 'recyclegpt[sweep]'"
