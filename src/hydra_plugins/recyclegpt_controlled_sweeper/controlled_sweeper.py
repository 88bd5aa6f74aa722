"""`hydra/sweeper=controlled`: the basic sweeper's grid plus named controls, each run once for every seed.

No `from __future__ import annotations` here: Hydra loads a plugin before `sys.modules` knows it, and a dataclass looks
its string annotations up there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

SEED = "seed"


@dataclass
class ControlledSweeperConf:
    """`hydra.sweeper`: `params` is the grid, `controls` maps a name to the overrides of one control."""

    _target_: str = "hydra_plugins.recyclegpt_controlled_sweeper.controlled_sweeper.ControlledSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None
    controls: dict[str, list[str]] = field(default_factory=dict)


ConfigStore.instance().store(
    group="hydra/sweeper", name="controlled", node=ControlledSweeperConf, provider="recyclegpt"
)


class ControlledSweeper(BasicSweeper):
    """A control takes part in none of the grid's other axes: it is run with its own overrides, once for each seed.

    Settings that are not swept (those of the command line) hold for grid and controls alike; a control's own override
    of the same key wins. A control that equals a job of the grid is not run twice.
    """

    def __init__(
        self,
        max_batch_size: int | None = None,
        params: Mapping[str, str] | None = None,
        controls: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__(max_batch_size=max_batch_size, params=dict(params or {}))
        self.controls = {name: list(overrides) for name, overrides in (controls or {}).items()}

    def split_arguments(  # type: ignore[override]  # static in the base class, which knows no controls
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """All jobs, the grid's first, in batches of `max_batch_size`."""
        shared = [o for o in overrides if not o.is_sweep_override() or o.get_key_element() == SEED]
        jobs = _grid(overrides)
        for control in self.controls.values():
            loader = self.hydra_context.config_loader if self.hydra_context is not None else None
            own = OverridesParser.create(config_loader=loader).parse_overrides(control)
            jobs += _grid([*shared, *own])
        distinct: dict[frozenset[str], list[str]] = {}
        for job in jobs:
            distinct.setdefault(frozenset(job), job)
        return list(self.split_overrides_to_chunks(list(distinct.values()), max_batch_size))


def _grid(overrides: list[Override]) -> list[list[str]]:
    return BasicSweeper.split_arguments(overrides, None)[0]
