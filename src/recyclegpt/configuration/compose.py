"""Composing a configuration before Hydra does, so that all that is wrong with it comes out in one message.

Hydra stops at the first mistake and names files, not remedies. Here the overrides are composed once; only when that
fails are they tried one by one (`override_errors.py` says what is wrong with each).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override

from hydra_plugins.recyclegpt_controlled_sweeper.increase import increased
from recyclegpt.configuration.hydra_node import hydra_problems
from recyclegpt.configuration.interpolations import is_multirun, value_problems
from recyclegpt.configuration.override_errors import Group, explain_override, explain_parse, explain_section
from recyclegpt.configuration.yaml_files import checked_files
from recyclegpt.errors import ConfigError

VERSION_BASE = "1.3"
PACKAGE = Path(__file__).resolve().parents[1]


def find_conf(package: Path = PACKAGE) -> Path:
    """The folder of the configuration groups: `recyclegpt/conf` of an installed package, else `conf` of the repository.

    Raises:
        ConfigError: neither is there.
    """
    places = (package / "conf", package.parents[1] / "conf")
    for place in places:
        if place.is_dir():
            return place
    raise ConfigError(f"no configuration folder: neither {places[0]} nor {places[1]} exists; install recyclegpt again")


def register_resolvers() -> None:
    """All resolvers of ours.

    `${folder_name:TEXT}`: TEXT as the name of one folder: without `=`, `,`, `/` and the like, at most 120 characters.
    """
    OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)


def folder_name(text: str) -> str:
    """`text` as the name of one folder: letters, digits, `.`, `_`, `+`, `-`; `default` when empty."""
    name = re.sub(r"[^\w.+\-]+", "-", str(text)).strip("-.") or "default"
    if len(name) <= 120:
        return name
    # File systems end at 255 bytes; a digest keeps two long names that begin alike apart.
    return f"{name[:107]}-{hashlib.sha256(str(text).encode()).hexdigest()[:12]}"


def compose_or_explain(
    config_name: str,
    overrides: Sequence[str],
    *,
    conf_dir: Path | None = None,
    extra_dir: Path | None = None,
    multirun: bool = False,
    check_values: bool = True,
    with_hydra: bool = False,
    also_check: Callable[[DictConfig], list[str]] | None = None,
) -> DictConfig:
    """Compose a config from its overrides, or say all that is wrong with them.

    Of a multirun (`multirun`, or a config with `hydra.mode: MULTIRUN`) the job of each axis's first value is composed
    and returned; every other value of every axis, and every control of the sweeper, is tried by itself.

    Args:
        config_name: the primary config, without `.yaml`.
        overrides: Hydra overrides alone; flags such as `-m` are parsed by `hydra_entry.parse_flags`.
        conf_dir: folder of the groups; default: `find_conf()`.
        extra_dir: one more folder searched first (Hydra's `--config-dir`).
        multirun: whether comma-separated values are an axis of a sweep.
        check_values: whether a mandatory value without one, and an interpolation that leads nowhere, are problems.
        with_hydra: keep the `hydra` node.
        also_check: finds the problems of one job's config that are not about composing, types and combinations say. It
            sees what the sound overrides compose to, so that its findings come out together with the unsound ones.

    Raises:
        ConfigError: every problem, each with the override or key it is about, and what is allowed instead.
    """
    register_resolvers()
    folder = (conf_dir or find_conf()).resolve()
    for searched in (folder, extra_dir):
        if searched is not None and not searched.is_dir():
            raise ConfigError(f"{searched}: no such configuration folder")
    with checked_files(), _opened(folder, extra_dir) as loader:
        composition = _Composition(loader, config_name, multirun, check_values, also_check)
        cfg = composition.compose(list(overrides))
    if composition.problems or cfg is None:
        raise ConfigError(list(dict.fromkeys(composition.problems)))
    if not with_hydra:
        with flag_override(cfg, ["struct", "readonly"], [False, False]):
            cfg.pop("hydra", None)
    return cfg


@dataclass
class _Composition:
    loader: ConfigLoaderImpl
    config_name: str
    multirun: bool
    check_values: bool
    also_check: Callable[[DictConfig], list[str]] | None = None
    problems: list[str] = field(default_factory=list)
    bad: set[str] = field(default_factory=set)
    """Overrides that have become a problem; later jobs are composed without them."""
    incomplete: str = ""
    """Why the config last composed could not run as it is: a group without a choice, which a sweep may still make."""
    chosen: dict[tuple[str, ...], DictConfig] = field(default_factory=dict)
    """Configs of choices of groups alone, by those choices."""

    def compose(self, lines: list[str]) -> DictConfig | None:
        given = self._parse(lines)
        # Without values that are axes, the mode can be told whatever the values are.
        single = [_values(override)[0] for override in given]
        cfg = self._accept(single)
        if cfg is None:
            return None
        swept = self.multirun or is_multirun(cfg)
        if not swept:
            self.problems += [
                f"{o.input_line}: asks for several runs; add -m to sweep, write "
                f"{o.get_key_element()}=[...] for a list, or quote the value: \"{o.get_key_element()}='...'\""
                for o in given
                if o.is_sweep_override()
            ]
            self._finish(cfg)
            return cfg
        axes, controls = self._sweep(cfg, given)
        first = [values[0] for values in axes.values()]
        cfg = self._accept(first)
        if cfg is None:
            return None
        self._finish(cfg)
        for i, axis in enumerate(axes.values()):
            for value in axis[1:]:
                self._try_job([*first[:i], value, *first[i + 1 :]], f"with {value}: ")
        fixed = {key: values[0] for key, values in axes.items() if len(values) == 1 or key == "seed"}
        for name, control in controls.items():
            where = f"hydra.sweeper.controls.{name}: "
            own = {o.get_key_element(): v for o in self._parse(control, where) for v in _values(o)[:1]}
            self._try_job(list({**fixed, **own}.values()), where)
        return cfg

    def _try_job(self, overrides: list[str], where: str) -> None:
        """Add the problems of one job that are not those of the first, which is the same in all but one place."""
        before, self.problems = self.problems, []
        cfg = self._accept(overrides)
        if cfg is not None:
            self._finish(cfg)
        new = [problem for problem in self.problems if problem not in before]
        self.problems = before + [p if p.startswith(where.removeprefix("with ")) else where + p for p in new]

    def _parse(self, lines: Sequence[str], where: str = "") -> list[Override]:
        parsed = []
        for line in lines:
            try:
                parsed += OverridesParser.create(config_loader=self.loader).parse_overrides([str(line)])
            except RecursionError:
                self.problems.append(f"{where}{str(line)[:60]}...: is nested too deeply to be read")
            except (HydraException, ValueError) as error:
                self.problems.append(where + explain_parse(str(line), str(error)))
        axes = []
        for override in parsed:
            try:
                _values(override)
                axes.append(override)
            except (HydraException, IndexError) as error:
                what = "no values" if isinstance(error, IndexError) else str(error)
                self.problems.append(f"{where}{override.input_line}: {what}; write KEY=VALUE1,VALUE2")
        return axes

    def _sweep(self, cfg: DictConfig, given: list[Override]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """The axes (values that hold for all jobs among them, one value long) and the controls of a sweep."""
        sweeper = cfg.hydra.sweeper
        params = OmegaConf.select(sweeper, "params") or {}
        axes: dict[str, list[str]] = {}
        own = self._parse([f"{key}={value}" for key, value in params.items()], "hydra.sweeper.params: ")
        for override in [*own, *given]:  # the command line wins over the file
            axes[override.get_key_element()] = _values(override)
        controls = OmegaConf.select(sweeper, "controls") or {}
        return axes, {str(name): self._increase(str(name), lines or [], cfg) for name, lines in controls.items()}

    def _increase(self, name: str, control: Sequence[object], cfg: DictConfig) -> list[str]:
        try:
            return increased([str(line) for line in control], cfg)
        except HydraException as error:
            self.problems.append(f"hydra.sweeper.controls.{name}: {error}")
            return []

    def _load(self, overrides: list[str], mode: RunMode = RunMode.MULTIRUN) -> DictConfig:
        # MULTIRUN forgives a mandatory group without a choice, so that each override can be judged by itself.
        return self.loader.load_configuration(self.config_name, overrides, run_mode=mode, from_shell=False)

    def _load_all(self, overrides: list[str]) -> DictConfig:
        self.incomplete = ""
        try:
            return self._load(overrides, RunMode.RUN)
        except Exception as error:
            cfg = self._load(overrides)
            self.incomplete = explain_section(error)
            return cfg

    def _accept(self, overrides: list[str]) -> DictConfig | None:
        """The config of all overrides that compose; the others become problems, once."""
        good = [line for line in overrides if line not in self.bad]
        try:
            cfg = self._load_all(good)
        except Exception as error:
            combined = error
        else:
            self.problems += self._sections(good)
            return cfg
        try:
            cfg = self._load([])
        except Exception as error:  # the files themselves, not the overrides
            self.problems.append(f"{self.config_name}: {explain_section(error)}")
            return None
        accepted: list[str] = []
        # Choices of groups first: which keys there are depends on them.
        for line in sorted(good, key=lambda line: self._group(line) is None):
            try:
                cfg = self._load([*accepted, line])
                accepted.append(line)
            except Exception as error:
                self.bad.add(line)
                self.problems.append(explain_override(line, error, cfg, self._group(line)))
        if len(accepted) == len(good):  # each is in order, in this order; together as given they are not
            self.problems.append(f"{' '.join(good)}: {explain_section(combined)}")
        self.problems += self._sections(accepted)
        return cfg

    def _sections(self, overrides: Sequence[str]) -> list[str]:
        """Overrides that put one value where a whole section stands, which OmegaConf does without a word."""
        problems = []
        choices = tuple(line for line in overrides if self._group(line) is not None)
        for line in overrides:
            (override,) = OverridesParser.create().parse_overrides([line])
            key, value = override.key_or_group, override.value()
            replaces = not (override.is_delete() or override.is_add() or override.is_force_add())
            if line in choices or not replaces or value is None or isinstance(value, dict):
                continue
            if choices not in self.chosen:
                self.chosen[choices] = self._load(list(choices))
            section = OmegaConf.select(
                self.chosen[choices], key, throw_on_missing=False, throw_on_resolution_failure=False
            )
            if isinstance(section, DictConfig):
                inside = ", ".join(f"{key}.{name}" for name in list(section)[:8])
                problems.append(f"{line}: {key} is a section; set one of its keys ({inside})")
        return problems

    def _group(self, line: str) -> Group | None:
        (override,) = OverridesParser.create().parse_overrides([line])
        options = self.loader.get_group_options(override.key_or_group)
        return Group(override.key_or_group, tuple(sorted(options))) if options else None

    def _finish(self, cfg: DictConfig) -> None:
        if self.incomplete:
            self.problems.append(f"{self.config_name}: {self.incomplete}")
        self.problems += hydra_problems(cfg)
        if self.check_values:
            found = value_problems(cfg)
            self.problems += found
            if self.also_check is not None and not found and not self.incomplete:
                self.problems += self.also_check(cfg)


@contextmanager
def _opened(folder: Path, extra_dir: Path | None) -> Iterator[ConfigLoaderImpl]:
    with initialize_config_dir(str(folder), job_name="recyclegpt", version_base=VERSION_BASE):
        loader = GlobalHydra.instance().config_loader()
        assert isinstance(loader, ConfigLoaderImpl)
        if extra_dir is not None:
            path = loader.get_search_path()
            path.prepend("command-line", f"file://{extra_dir.resolve()}", SearchPathQuery(provider="schema"))
            loader.repository.initialize_sources(path)
        yield loader


def _values(override: Override) -> list[str]:
    """The override, once for every value of its sweep."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():
        raise HydraException("is not a list of values that can be tried one by one")
    values = [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    if not values:
        raise IndexError
    return values
