"""The way into Hydra: flags told from overrides, the config composed and explained first, then `hydra.main`."""

from __future__ import annotations

import difflib
import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from recyclegpt.configuration.compose import VERSION_BASE, compose_or_explain, find_conf
from recyclegpt.errors import ConfigError, Stopped

_SWITCHES = {
    "-m": "--multirun",
    "-r": "--run",
    "-h": "--help",
    "-sc": "--shell-completion",
    "--resolve": "--resolve",
    "--hydra-help": "--hydra-help",
    "--version": "--version",
}
_WITH_VALUE = {
    "-c": "--cfg",
    "-p": "--package",
    "-cn": "--config-name",
    "-cd": "--config-dir",
    "-cp": "--config-path",
    "-i": "--info",
}
_CHOICES = {
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}
_REFUSED = "--experimental-rerun"


@dataclass
class Flags:
    """Hydra's command-line flags, told from the overrides they are mixed with."""

    overrides: list[str] = field(default_factory=list)
    switches: set[str] = field(default_factory=set)
    values: dict[str, str] = field(default_factory=dict)

    @property
    def multirun(self) -> bool:
        return "--multirun" in self.switches

    @property
    def runs(self) -> bool:
        """Whether the task will run, and not only something be shown."""
        shows = {"--help", "--hydra-help", "--version", "--shell-completion"} & self.switches
        return not shows and not {"--cfg", "--info"} & self.values.keys()

    def to_argv(self) -> list[str]:
        """As Hydra's own parser takes them: overrides in one row, then flags (mixed, it would refuse some)."""
        own = ("--config-name", "--config-path")
        passed = [f"{flag}={value}" for flag, value in self.values.items() if flag not in own]
        return [*self.overrides, *sorted(self.switches), *passed]


def parse_flags(argv: Sequence[str]) -> Flags:
    """Tell Hydra's flags (`-m`, `--cfg job`, ...) from overrides, wherever they stand.

    Raises:
        ConfigError: naming every flag that is unknown, lacks its value or has an impossible one.
    """
    flags = Flags()
    problems = []
    long_names = {*_SWITCHES.values(), *_WITH_VALUE.values()}
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        if not token.startswith("-") or token == "-":
            flags.overrides.append(token)
            continue
        name, equals, value = token.partition("=")
        name = {**_SWITCHES, **_WITH_VALUE}.get(name, name)
        if name == _REFUSED:
            problems.append(f"{name}: would unpickle a file, which can run anything; give the overrides instead")
        elif name not in long_names:
            near = difflib.get_close_matches(name, long_names, n=1)
            hint = f"did you mean {near[0]}?" if near else "overrides are KEY=VALUE"
            problems.append(f"{token}: unknown flag; {hint}")
        elif name in _SWITCHES.values():
            flags.switches.add(name)
        else:
            allowed = _CHOICES.get(name)
            if not equals:
                if name == "--info":
                    value = rest.pop(0) if rest and rest[0] in _CHOICES[name] else "all"
                elif rest and not rest[0].startswith("-"):
                    value = rest.pop(0)
            if not value:
                choices = f" ({', '.join(allowed)})" if allowed else ""
                problems.append(f"{token}: needs a value{choices}")
            elif allowed is not None and value not in allowed:
                problems.append(f"{name} {value}: choose from: {', '.join(allowed)}")
            flags.values[name] = value
    if problems:
        raise ConfigError(problems)
    return flags


def hydra_run(
    task: Callable[[DictConfig], Any],
    config_name: str,
    argv: Sequence[str],
    *,
    conf_dir: Path | None = None,
    also_check: Callable[[DictConfig], list[str]] | None = None,
) -> Any:
    """Run a task under Hydra, once or as a multirun, after its configuration has been composed and explained.

    Inside the task `sys.argv` is what the program was started with, command word included, because Lightning's DDP
    launcher starts its children from it; Hydra itself sees the overrides and flags alone. Logging handlers that Hydra
    installs are gone afterwards.

    Args:
        task: called with the config of the run, or of each job.
        config_name: the primary config; `--config-name` wins over it.
        argv: overrides and Hydra's flags, without the command word.
        conf_dir: folder of the groups; default: `find_conf()`; `--config-path` wins over it.
        also_check: as in `compose_or_explain`.

    Returns:
        What the task returned; None of a multirun, and where a flag asked only to show something.

    Raises:
        ConfigError: the configuration is wrong; or the task raised it. In a multirun the other jobs have run then.
    """
    flags = parse_flags(argv)
    folder = Path(flags.values["--config-path"]) if "--config-path" in flags.values else (conf_dir or find_conf())
    name = flags.values.get("--config-name", config_name)
    extra = flags.values.get("--config-dir")
    multirun = flags.multirun
    kept: dict[Path, dict[Path, bytes]] = {}
    if "--shell-completion" not in flags.switches:
        cfg = compose_or_explain(
            name,
            flags.overrides,
            conf_dir=folder.resolve(),
            extra_dir=None if extra is None else Path(extra),
            multirun=multirun,
            check_values=flags.runs,
            with_hydra=True,
            also_check=also_check,
        )
        multirun = multirun or cfg.hydra.mode == RunMode.MULTIRUN
        kept = {} if multirun or not flags.runs else _files_of_earlier_run(cfg)
    job = _Job(task, multirun)
    hydra_argv = [sys.argv[0], *flags.to_argv()]
    try:
        with _argv(hydra_argv), _full_errors(), _global_state_kept():
            hydra.main(config_path=str(folder.resolve()), config_name=name, version_base=VERSION_BASE)(job.wrapped())()
    except _Refused as refused:
        _put_back(kept)
        raise refused.error from refused.error.__cause__
    except (HydraException, ValueError) as error:
        if job.num_started or isinstance(error, ConfigError):
            raise
        raise ConfigError(str(error)) from error
    return None if multirun else job.value


def _files_of_earlier_run(cfg: DictConfig) -> dict[Path, dict[Path, bytes]]:
    """What Hydra overwrites in the folder of an earlier run, before the task can refuse: its configs and its log."""
    try:
        folder = Path(str(cfg.hydra.run.dir))
        return {folder: {path: path.read_bytes() for path in _written_by_hydra(folder)}} if folder.is_dir() else {}
    except (OmegaConfBaseException, OSError, ValueError):  # the folder's name is known inside of the run alone
        return {}


def _written_by_hydra(folder: Path) -> list[Path]:
    return [path for path in (*folder.glob(".hydra/*.yaml"), *folder.glob("*.log")) if path.is_file()]


def _put_back(kept: dict[Path, dict[Path, bytes]]) -> None:
    for folder, files in kept.items():
        for path in _written_by_hydra(folder):
            if path not in files:
                path.unlink()
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


class _Refused(BaseException):
    """Carries a single run's ConfigError past Hydra, which would print a traceback and exit."""

    def __init__(self, error: ConfigError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass
class _Job:
    task: Callable[[DictConfig], Any]
    multirun: bool
    argv: list[str] = field(default_factory=lambda: list(sys.argv))
    value: Any = None
    num_started: int = 0

    def wrapped(self) -> Callable[[DictConfig], Any]:
        @functools.wraps(self.task)  # Hydra names the job after the task's module
        def job(cfg: DictConfig) -> Any:
            self.num_started += 1
            with _argv(self.argv):
                try:
                    self.value = self.task(cfg)
                except ConfigError as error:
                    if self.multirun:
                        raise
                    raise _Refused(error) from error
                except Stopped:
                    raise
                except SystemExit as leaving:
                    if self.multirun:
                        raise RuntimeError(f"the job ended itself by sys.exit({leaving.code!r})") from leaving
                    raise
            return self.value

        return job


@contextmanager
def _argv(argv: list[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = list(argv)
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _full_errors() -> Iterator[None]:
    """Let exceptions through: Hydra would otherwise print them, shortened, and exit."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


@contextmanager
def _global_state_kept() -> Iterator[None]:
    """Put the root logger and Hydra's record of the running config back as they were; close the log files opened."""
    instance = HydraConfig.instance()
    config = instance.cfg
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        instance.cfg = config  # Hydra leaves it behind after --cfg
        for handler in list(root.handlers):
            if handler not in handlers:
                root.removeHandler(handler)
                handler.close()
        for handler in handlers:
            if handler not in root.handlers:
                root.addHandler(handler)
        root.setLevel(level)
