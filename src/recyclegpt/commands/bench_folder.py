"""The folder that a benchmark writes into."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from omegaconf import DictConfig

from recyclegpt.errors import ConfigError, RunError
from recyclegpt.runs.folder import remove_empty_parents


@contextlib.contextmanager
def output_folder(cfg: DictConfig) -> Iterator[Path]:
    """Made and tried before anything is measured: a grid may take an hour. Gone again where nothing could be measured.

    Raises:
        ConfigError: it cannot be written into.
    """
    now = datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S")
    folder = Path("outputs/bench") / now if cfg.bench.output is None else Path(cfg.bench.output).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"bench.output: {folder} cannot be written ({error})") from error
    try:
        yield folder
    except (ConfigError, RunError):
        with contextlib.suppress(OSError):  # it holds something: it was there before
            folder.rmdir()
            remove_empty_parents(folder)
        raise
    print(f"\nwritten to {folder}")
