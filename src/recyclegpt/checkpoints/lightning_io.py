"""How Lightning writes and reads checkpoints: through `checkpoints.file`, never through its own writer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO

from recyclegpt.checkpoints.file import SaveError, read_checkpoint, remove_checkpoint, write_checkpoint


class VerifiedCheckpointIO(CheckpointIO):
    """Atomic writes with a checksum; verified reads that run no code, whatever the caller asks for.

    Args:
        facts: for the file next to each checkpoint, such as the config's hash.
    """

    def __init__(self, facts: dict[str, Any] | None = None) -> None:
        self.facts = facts or {}
        self.error: SaveError | None = None
        """Why the last checkpoint was not written, inside `errors_held`."""
        self._holds_errors = False

    @contextmanager
    def errors_held(self) -> Iterator[None]:
        """Keep a failed write in `error` instead of raising it.

        One process writes while the others wait at a barrier, which an exception would never reach.
        """
        self._holds_errors, self.error = True, None
        try:
            yield
        finally:
            self._holds_errors = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            SaveError: it could not be written, and errors are not held.
        """
        try:
            write_checkpoint(checkpoint, Path(path), {"step": checkpoint.get("global_step"), **self.facts})
        except SaveError as error:
            if not self._holds_errors:
                raise
            self.error = error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint into CPU memory; Lightning moves what it needs to a device."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint and its checksum."""
        remove_checkpoint(Path(path))
