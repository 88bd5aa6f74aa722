"""One message for what Hydra refuses: the key or choice, and the nearest name that exists."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from recyclegpt.configuration.command_settings import unescape
from recyclegpt.configuration.compose import compose_or_explain, find_conf, folder_name, value_problems
from recyclegpt.errors import ConfigError


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("loss.recycle_wieght=1", "unknown key loss.recycle_wieght: did you mean loss.recycle_weight?"),
        ("recycle_weight=1", "unknown key recycle_weight: did you mean loss.recycle_weight?"),
        ("loss.zzz=1", "unknown key loss.zzz: keys of loss are recycle_weight, schedule"),
        ("data=tinny", "data=tinny: no such choice; did you mean data=tiny? choose from: stdlib, text_files, tiny"),
        ("depth=1,2", "depth"),
        ("depth=[1", "depth=[1"),
        ("~nothing", "nothing"),
    ],
)
def test_a_refused_override_is_one_problem(conf_dir: Path, override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_or_explain("train", [override], conf_dir=conf_dir)
    (problem,) = caught.value.problems
    assert expected in problem
    assert "search path" not in problem


def test_a_file_that_is_no_yaml_is_named(conf_dir: Path) -> None:
    (conf_dir / "data" / "tiny.yaml").write_text("a: [1\nb: 2\n")
    with pytest.raises(ConfigError, match=r"tiny\.yaml"):
        compose_or_explain("train", ["data=tiny"], conf_dir=conf_dir)


def test_all_missing_values_are_asked_for() -> None:
    cfg = OmegaConf.create({"b": "???", "a": {"c": "???", "d": 1}})
    assert value_problems(cfg) == ["a.c: has no value; set a.c=...", "b: has no value; set b=..."]
    (problem,) = value_problems(OmegaConf.create({"a": "${nowhere}"}))
    assert problem == "a: Interpolation key 'nowhere' not found; a dollar sign of the text itself is written \\${"


def test_folders_have_names_that_every_file_system_takes() -> None:
    assert folder_name("a=1,b/c d") == "a-1-b-c-d"
    assert folder_name("///") == "default"
    long = [folder_name("x" * 300 + end) for end in "ab"]
    assert long[0] != long[1]
    assert max(map(len, long)) <= 120


def test_the_package_may_bring_its_configs(tmp_path: Path) -> None:
    (tmp_path / "package" / "conf").mkdir(parents=True)
    assert find_conf(tmp_path / "package") == tmp_path / "package" / "conf"
    assert find_conf(tmp_path / "a" / "b") == tmp_path / "conf"


def test_a_text_that_needs_quotes_is_read_with_those_that_the_message_names() -> None:
    with pytest.raises(ConfigError, match="needs quotes"):
        compose_or_explain("train", ["data=text_files", "data.paths=[~/notes,x (1)]"])
    cfg = compose_or_explain("train", ["data=text_files", 'data.paths=["~/notes","x (1)"]'], check_values=False)
    assert list(cfg.data.paths) == ["~/notes", "x (1)"]


def test_escapes_in_stop_strings_are_what_everyone_means_by_them() -> None:
    assert unescape(r"\n\n") == "\n\n"
    assert unescape(r"\tx\\n\u00e4") == "\tx\\nä"
    assert unescape(r"\d \ \xg") == r"\d \ \xg"
    assert unescape(r"\x41\0") == "A\0"
    assert unescape(r"\ud83d\ude00") == "\N{GRINNING FACE}"
    with pytest.raises(ConfigError, match="half a character"):
        unescape(r"a\ud83d")
