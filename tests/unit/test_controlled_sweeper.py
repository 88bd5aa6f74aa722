"""The grid times the seeds, and every control once a seed."""

import itertools
from unittest.mock import Mock

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import OmegaConf

# Hydra executes plugin modules, its own sweeper too, once more when it first looks for plugins; a class imported before
# would then derive from a class that no longer is the one its module names.
Plugins.instance()

from hydra_plugins.recyclegpt_controlled_sweeper.controlled_sweeper import ControlledSweeper, ControlledSweeperConf  # noqa: E402 - see above

GRID = {"recycle.num_layers": "1,2", "loss.recycle_weight": "0.1,0.3", "seed": "1,2"}
CONTROLS = {"no_module": ["recycle=none"], "deeper_backbone": ["recycle=none", "model.num_layers=10"]}


NO_MODULE, DEEPER = "++sweep.control=no_module", "++sweep.control=deeper_backbone"


def jobs(params, controls, command_line=(), present=None):
    sweeper = ControlledSweeper(params=params, controls=controls)
    sweeper.config = OmegaConf.create()
    config = OmegaConf.create(present or {})
    loader = Mock(get_sources=list, get_group_options=lambda *_: [], load_sweep_config=lambda *_: config)
    sweeper.hydra_context = Mock(config_loader=loader)
    lines = [f"{key}={value}" for key, value in params.items()] + list(command_line)
    return sweeper.jobs(OverridesParser.create().parse_overrides(lines))


def test_two_by_two_grid_two_seeds_two_controls():
    grid = [
        [f"recycle.num_layers={depth}", f"loss.recycle_weight={weight}", f"seed={seed}"]
        for depth, weight, seed in itertools.product((1, 2), (0.1, 0.3), (1, 2))
    ]
    controls = [["seed=1", "recycle=none", NO_MODULE], ["seed=2", "recycle=none", NO_MODULE]] + [
        [f"seed={seed}", "recycle=none", "model.num_layers=10", DEEPER] for seed in (1, 2)
    ]
    assert jobs(GRID, CONTROLS) == grid + controls


def test_what_is_not_swept_holds_for_controls_and_they_win():
    found = jobs(GRID, CONTROLS, ["sweep=depth", "model.num_layers=4", "trainer.max_epochs=1"])
    assert found[-1] == ["seed=2", "sweep=depth", "model.num_layers=10", "trainer.max_epochs=1", "recycle=none", DEEPER]
    assert all("trainer.max_epochs=1" in job for job in found)
    assert len(found) == 12


def test_seeds_come_from_the_command_line_or_not_at_all():
    assert len(jobs(GRID, CONTROLS, ["seed=7"])) == 4 + 2
    assert len(jobs(GRID, CONTROLS, ["seed=range(0,3)"])) == 12 + 6
    assert jobs({"depth": "1,2"}, {"plain": ["recycle=none"]}) == [
        ["depth=1"],
        ["depth=2"],
        ["recycle=none", "++sweep.control=plain"],
    ]


def test_a_control_that_is_in_the_grid_runs_once():
    found = jobs({"recycle": "none,shallow", "seed": "1,2"}, {"no_module": ["recycle=none"]})
    assert len(found) == 4


def test_an_axis_within_a_control():
    assert jobs({"depth": "1"}, {"wide": ["width=3,4"]}) == [
        ["depth=1"],
        ["depth=1", "width=3", "++sweep.control=wide"],
        ["depth=1", "width=4", "++sweep.control=wide"],
    ]


def test_a_control_may_be_deeper_than_whatever_the_others_are():
    controls = {"deeper": ["recycle=none", "model.num_layers+=3"]}
    found = jobs({"depth": "1"}, controls, ["model=small"], present={"model": {"num_layers": 12}})
    assert found[-1] == ["depth=1", "model=small", "recycle=none", "model.num_layers=15", "++sweep.control=deeper"]
    present = {"model": {"num_layers": 12}, "depth": 1}
    found = jobs({"depth": "1,2"}, {"deeper": ["model.num_layers+=depth"]}, present=present)
    assert found[-1] == ["model.num_layers=13", "++sweep.control=deeper"]
    for line, told in (("model.num_layers+=x", "model.num_layers is 12, x is None"), ("model.layers+=1", "is None")):
        with pytest.raises(HydraException, match=f"adds whole numbers, and .*{told}"):
            jobs({"depth": "1"}, {"deeper": [line]}, present={"model": {"num_layers": 12}})


def test_its_settings_are_typed():
    settings = OmegaConf.structured(ControlledSweeperConf)
    settings.controls = CONTROLS
    settings.params = GRID
    with pytest.raises(ValueError, match="Invalid value"):
        settings.controls = {"no_module": "recycle=none"}
