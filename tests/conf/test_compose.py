"""Every shipped choice of every group composes, resolves and names only what exists."""

from pathlib import Path

import pytest

from recyclegpt.configuration.compose import compose_or_explain, find_conf
from recyclegpt.configuration.hash import config_hash, to_plain
from recyclegpt.configuration.instantiate import check
from recyclegpt.errors import ConfigError

CONF = find_conf()
# `paths` is not chosen by users but by the primary configs, one each.
CHOICES = sorted(
    (path.parent.name, path.stem) for path in CONF.glob("*/*.yaml") if path.parent.name not in ("hydra", "paths")
)

# Given by the command when it builds, so not in the files.
GIVEN_LATER = {"model.vocab_size", "trainer.callbacks", "trainer.logger", "trainer.precision"}
# Values that the user has to give.
MANDATORY = {
    "data=text_files": ["data.paths=[corpus.txt]"],
    "data=hf_stream": ["data.name=some/corpus"],
    "data=tokenized": ["data.path=shards"],
    "model=hf": ["model.path=folder"],
}


def composed(*overrides: str):
    return compose_or_explain("train", ["paths.output_dir=outputs/test", *overrides])


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=lambda value: value)
def test_every_choice_composes_and_fits_its_targets(group, choice):
    cfg = composed(f"{group}={choice}", *MANDATORY.get(f"{group}={choice}", []))
    assert check(cfg, extra=GIVEN_LATER) == []
    assert to_plain(cfg)["seed"] is not None


@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_several_nodes_compose(trainer):
    cfg = composed(f"trainer={trainer}", "trainer.num_nodes=4", "trainer.devices=8")
    assert check(cfg, extra=GIVEN_LATER) == []
    assert (cfg.trainer.num_nodes, cfg.trainer.devices) == (4, 8)


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_every_command_has_a_config_that_composes(name):
    # Which values a command wants from the user is its own affair.
    assert compose_or_explain(name, [], check_values=False)


@pytest.mark.parametrize("choice", sorted(MANDATORY))
def test_what_the_user_has_to_give_is_asked_for(choice):
    keys = [override.split("=")[0] for override in MANDATORY[choice]]
    with pytest.raises(ConfigError) as caught:
        composed(choice)
    assert [problem.split(":")[0] for problem in caught.value.problems] == keys


def test_the_same_run_elsewhere_has_the_same_hash():
    here = config_hash(composed())
    assert config_hash(composed("paths.output_dir=/elsewhere", "paths.cache_dir=/cache", "name=other")) == here
    assert config_hash(compose_or_explain("train", [])) == here
    assert config_hash(composed("seed=2")) != here


def test_files_are_yaml_that_hydra_reads():
    assert not [path for path in CONF.rglob("*") if path.is_file() and path.suffix != ".yaml"]
    assert Path(CONF, "train.yaml").is_file()
