"""The hash names what is computed; a folder keeps to it; JSON files are whole."""

import hashlib
import json
import math

import pytest
from omegaconf import OmegaConf

from recyclegpt.configuration.compose import config_hash, to_plain
from recyclegpt.errors import ConfigError
from recyclegpt.files import write_json
from recyclegpt.runs.folder import claim, read_provenance

BASE = {
    "name": "default",
    "seed": 1,
    "resume": "never",
    "model": {"num_layers": 2, "also": "${seed}"},
    "paths": {"output_dir": "/runs/a", "cache_dir": "???"},
    "logger": {"save_dir": "${paths.output_dir}"},
    "sweep": {"name": "adhoc", "tag": "${now:%S}"},
    "callbacks": {"checkpoint": {"dirpath": "${paths.output_dir}/checkpoints"}, "cache": "${paths.cache_dir}"},
}


def config(**changes):
    cfg = OmegaConf.create(BASE)
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, force_add=True)
    OmegaConf.set_struct(cfg, True)
    return cfg


def test_the_hash_is_that_of_the_canonical_json():
    canonical = (
        '{"callbacks":{"cache":"<paths.cache_dir>","checkpoint":{"dirpath":"<paths.output_dir>/checkpoints"}},'
        '"model":{"also":1,"num_layers":2},"seed":1}'
    )
    assert config_hash(config()) == hashlib.sha256(canonical.encode()).hexdigest()[:16] == "039ab9e60bca29b5"


@pytest.mark.parametrize(
    "same",
    [
        {"name": "other"},
        {"resume": "auto"},
        {"paths__output_dir": "/runs/b"},
        {"paths__output_dir": "${hydra:runtime.output_dir}"},
        {"logger": {"_target_": "another"}},
        {"logger": None},
        {"sweep__tag": "x"},
        {"hydra": {"run": {"dir": "${nowhere}"}}},
    ],
    ids=str,
)
def test_where_a_run_is_kept_does_not_count(same):
    assert config_hash(config(**same)) == config_hash(config())


@pytest.mark.parametrize(
    "different",
    [
        {"seed": 2},
        {"model__num_layers": 3},
        {"model__num_layers": "2"},
        {"model__also": None},
        {"extra": 1},
        {"callbacks__checkpoint__dirpath": "/elsewhere"},
    ],
    ids=str,
)
def test_what_a_run_computes_counts(different):
    assert config_hash(config(**different)) != config_hash(config())


def test_the_order_of_keys_does_not_count():
    assert config_hash(OmegaConf.create(dict(reversed(BASE.items())))) == config_hash(config())


def test_hashing_leaves_the_config_alone():
    cfg = config()
    before = OmegaConf.to_yaml(cfg)
    config_hash(cfg)
    assert OmegaConf.to_yaml(cfg) == before
    assert OmegaConf.is_struct(cfg)


def test_plain_is_resolved_and_without_hydra():
    cfg = config(paths__cache_dir="/cache", sweep__tag="now", hydra={"verbose": False})
    plain = to_plain(cfg)
    assert type(plain["model"]) is dict
    assert plain["model"] == {"num_layers": 2, "also": 1}
    assert plain["callbacks"]["checkpoint"]["dirpath"] == "/runs/a/checkpoints"
    assert "hydra" not in plain
    assert "hydra" in cfg


def test_a_folder_keeps_to_its_config(tmp_path):
    folder = tmp_path / "runs" / "new"
    assert claim(folder, "aaaa") is False
    assert folder.is_dir()
    write_json(folder / "provenance.json", {"config_hash": "aaaa"})
    assert claim(folder, "aaaa") is True
    with pytest.raises(ConfigError) as caught:
        claim(folder, "bbbb")
    assert all(word in str(caught.value) for word in (str(folder), "aaaa", "bbbb", "hydra.run.dir"))


def test_only_provenance_is_asked(tmp_path):
    write_json(tmp_path / "result.json", {"config_hash": "other"})
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("seed: 3")
    assert read_provenance(tmp_path) is None
    assert claim(tmp_path, "aaaa") is False


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\xff"])
def test_a_broken_provenance_is_refused_by_name(tmp_path, text):
    (tmp_path / "provenance.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"provenance\.json: .*config_hash"):
        claim(tmp_path, "aaaa")


def test_json_has_null_for_what_is_not_finite(tmp_path):
    path = tmp_path / "deep" / "result.json"
    write_json(path, {"a": math.nan, "b": [math.inf, -math.inf, 1.5], "c": {"d": (1, math.nan)}, "e": "ü"})
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "a": None,
        "b": [None, None, 1.5],
        "c": {"d": [1, None]},
        "e": "ü",
    }


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("recyclegpt.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]
