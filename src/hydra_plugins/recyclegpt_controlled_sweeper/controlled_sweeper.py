"""`hydra/sweeper=controlled`: a grid plus named controls, each run once for every seed.

It leaves `jobs.json`, every job that was asked for, in the folder of the sweep, so that a report knows what is
missing, and names failed jobs at the end.

No `from __future__ import annotations` here: Hydra loads a plugin before `sys.modules` knows it, and a dataclass looks
its string annotations up there.
"""

import itertools
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from recyclegpt.configuration.compose import UNHASHED
from recyclegpt.errors import ConfigError, RunError
from recyclegpt.files import write_json

SEED = "seed"
FILE_NAME = "jobs.json"
FORMAT = 1
CONTROL = "++sweep.control="


@dataclass
class ControlledSweeperConf:
    """`hydra.sweeper`: `params` is the grid, `controls` maps a name to the overrides of one control.

    A control may write `KEY+=N`, "N more than the other runs have": a deeper backbone, whatever the model.
    """

    _target_: str = "hydra_plugins.recyclegpt_controlled_sweeper.controlled_sweeper.ControlledSweeper"
    params: dict[str, str] | None = None
    controls: dict[str, list[str]] = field(default_factory=dict)


ConfigStore.instance().store(
    group="hydra/sweeper", name="controlled", node=ControlledSweeperConf, provider="recyclegpt"
)


class ControlledSweeper(Sweeper):
    """A control takes part in none of the grid's other axes: it is run with its own overrides, once for each seed.

    Settings that are not swept (those of the command line) hold for grid and controls alike; a control's own override
    of the same key wins. A control that equals a job of the grid is not run twice. Each job of a control gets its name
    as `sweep.control`.
    """

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def __init__(
        self, params: Mapping[str, str] | None = None, controls: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        super().__init__()
        self.params, self.controls = dict(params or {}), dict(controls or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        """Run all jobs.

        Raises:
            RunError: naming every job that failed, after all have run.
            ConfigError: the same, where each failed by a mistake in its settings.
        """
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([f"{key}={value}" for key, value in self.params.items()] + arguments)
        shared = [o for o in overrides if not o.is_sweep_override() and o.key_or_group not in self.params]
        self._name_folders_by_what_differs(shared)
        jobs = self.jobs(overrides)
        self.validate_batch_is_legal(jobs)  # composes each: a mistake in the last is found before the first has run
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        add_jobs(folder, jobs, {line for job in _grid(shared) for line in job})
        results: list[JobReturn] = list(self.launcher.launch(jobs, initial_job_idx=0))
        _raise_failures(results)
        return results

    def jobs(self, overrides: Sequence[Override]) -> list[list[str]]:
        shared = [o for o in overrides if not o.is_sweep_override() or o.get_key_element() == SEED]
        distinct = {frozenset(job): job for job in reversed(_grid(overrides))}
        jobs = list(reversed(distinct.values()))
        for name, control in self.controls.items():
            for job in _grid([*shared, *self._parse_control(control, shared)]):
                if frozenset(job) not in distinct:
                    distinct[frozenset(job)] = job
                    jobs.append([*job, f"{CONTROL}{name}"])
        return jobs

    def _name_folders_by_what_differs(self, shared: Sequence[Override]) -> None:
        """Leave settings that hold for all jobs out of `override_dirname`, which folders are named after."""
        key = "hydra.job.config.override_dirname.exclude_keys"
        excluded = sorted({*OmegaConf.select(self.config, key), *(o.key_or_group for o in shared)})
        # Every job is composed anew from these overrides.
        self.config.hydra.overrides.hydra.append(f"{key}=[{','.join(excluded)}]")

    def _parse_control(self, control: Sequence[str], shared: Sequence[Override]) -> list[Override]:
        """A control's overrides, every `KEY+=N` as `KEY=` what the other runs have plus N: a number, or its key.

        Raises:
            HydraException: KEY is not a whole number in their config, or N neither one nor the key of one.
        """
        loader = self.hydra_context.config_loader
        fixed = [str(o.input_line) for o in shared if not o.is_sweep_override()]
        lines = []
        for line in control:
            key, is_increase, value = line.partition("+=")
            if is_increase:
                others = loader.load_sweep_config(self.config, fixed)
                present = OmegaConf.select(others, key)
                more = int(value) if value.isdecimal() else OmegaConf.select(others, value)
                if not isinstance(present, int) or not isinstance(more, int):
                    raise HydraException(f"{line}: adds whole numbers, and {key} is {present!r}, {value} is {more!r}")
                line = f"{key}={present + more}"
            lines.append(line)
        return OverridesParser.create(config_loader=loader).parse_overrides(lines)


def _raise_failures(results: Sequence[JobReturn]) -> None:
    failed = [result for result in results if result.status == JobStatus.FAILED]
    if not failed:
        return
    errors = [result._return_value for result in failed]  # `return_value` would raise it
    names = [" ".join(line for line in result.overrides or [] if not line.startswith(CONTROL)) for result in failed]
    if all(isinstance(error, ConfigError) for error in errors):
        found = [(problem, name) for error, name in zip(errors, names, strict=True) for problem in error.problems]
        problems = dict.fromkeys(problem for problem, _ in found)
        raise ConfigError([f"{it} (in {'; '.join(job for same, job in found if same == it)})" for it in problems])
    last = [f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}" for error in errors]
    lines = [f"{len(failed)} of {len(results)} jobs failed"]
    lines += [f"  - {name}: {line}" for name, line in zip(names, last, strict=True)]
    lines.append("The same command runs them again; jobs that are complete are skipped.")
    raise RunError("\n".join(lines)) from errors[0]


def _grid(overrides: Sequence[Override]) -> list[list[str]]:
    """Every combination of the overrides' values; of two overrides of a key the later counts."""
    axes: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            axes[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            axes[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise HydraException(f"{override.input_line}: is not a list of values; write KEY=VALUE1,VALUE2")
    return [list(job) for job in itertools.product(*axes.values())]


def add_jobs(folder: Path, jobs: Sequence[Sequence[str]], shared: Collection[str] = ()) -> None:
    """Write the jobs of a sweep; those written by an earlier start in the same folder stay, ahead of new ones.

    Overrides in `shared` hold for all jobs and are left out of each.

    Raises:
        ConfigError: the folder holds a sweep whose shared settings are others, so that its jobs could not be compared.
    """
    path = folder / FILE_NAME
    settings = sorted(line for line in shared if line.lstrip("+~").partition("=")[0].split(".")[0] not in UNHASHED)
    empty: dict[str, Any] = {"shared": settings, "jobs": []}
    document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else empty
    if document["shared"] != settings:
        raise ConfigError(
            f"{folder}: holds a sweep with other settings ({' '.join(document['shared'])}; this command has "
            f"{' '.join(settings)}); choose another folder (sweep.tag=...), or move this one away"
        )
    listed: list[object] = document["jobs"]
    for job in jobs:
        control = next((line.removeprefix(CONTROL) for line in job if line.startswith(CONTROL)), None)
        overrides = [line for line in job if not line.startswith(CONTROL) and line not in shared]
        entry = {"overrides": overrides, "control": control}
        if entry not in listed:
            listed.append(entry)
    write_json(path, {"format": FORMAT, "shared": settings, "jobs": listed})
