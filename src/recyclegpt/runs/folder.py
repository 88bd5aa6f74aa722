"""What ties a run folder to one configuration: its hash, and small JSON files that are never half written."""

from __future__ import annotations

import json
from pathlib import Path

from recyclegpt.errors import ConfigError

PROVENANCE = "provenance.json"
RESULT = "result.json"


def claim(folder: Path, expected_hash: str) -> bool:
    """Make sure that `folder` may hold the run with this config hash; create it where it does not exist.

    Only `provenance.json` is asked: Hydra rewrites `.hydra/` before the run can look.

    Returns:
        Whether the folder already belongs to this very config, so that the run may continue or be skipped.

    Raises:
        ConfigError: the folder belongs to another config, or its provenance cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = read_hash(folder)
    if found is None:
        return False
    if found != expected_hash:
        raise ConfigError(
            f"{folder}: holds a run of another config (config_hash {found}, this run has {expected_hash}); "
            f"choose another folder (name=..., sweep.tag=... or hydra.run.dir=...), or move this one away"
        )
    return True


def read_hash(folder: Path) -> str | None:
    """The config hash a run folder was written with; None where no run has written its `provenance.json`.

    Raises:
        ConfigError: the file is there but holds no hash.
    """
    path = folder / PROVENANCE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["config_hash"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path}: cannot read its config_hash ({error!r}); move the folder away or choose another"
        ) from error
    if not isinstance(found, str):
        raise ConfigError(f"{path}: config_hash is {found!r}, not a string; move the folder away or choose another")
    return found


def remove_empty_parents(folder: Path) -> None:
    """Remove the empty folders above one that is gone, up to the working folder."""
    here = Path.cwd()
    for parent in folder.absolute().parents:
        if parent == here or here not in parent.parents:
            return
        try:
            parent.rmdir()
        except OSError:  # something is in it
            return
