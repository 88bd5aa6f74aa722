"""A checkpoint on disk: whole or absent, with a checksum that is compared before it is read.

`step_0000500.ckpt` is written by `torch.save`; `step_0000500.ckpt.json` holds its size and sha256. Lightning's own
writer stages in the system's temporary folder, so its rename is not atomic where that is another file system
(https://github.com/Lightning-AI/pytorch-lightning/issues/21253).
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch

from recyclegpt.errors import ConfigError, RunError
from recyclegpt.files import TEMPORARY, atomic_write, write_whole

SIDECAR_FORMAT = 1
_verified: set[tuple[str, int, int, int]] = set()


class DamagedCheckpoint(ConfigError):  # noqa: N818 - it names a state of the file
    """A checkpoint differs from what was written, or its checksum cannot be read."""


class SaveError(RunError):
    """A checkpoint could not be written; the earlier ones are intact."""


def checkpoint_name(step: int) -> str:
    """File name of the checkpoint after a number of optimizer steps."""
    return f"step_{step:07d}.ckpt"


def list_checkpoints(folder: Path, upto: int | None = None) -> list[Path]:
    """The checkpoints directly in a folder, newest step first; those after step `upto` left out."""
    found = [
        (int(match.group(1)), path)
        for path in folder.glob("step_*.ckpt")
        if (match := re.fullmatch(r"step_(\d+)\.ckpt", path.name))
    ]
    return [path for step, path in sorted(found, reverse=True) if upto is None or step <= upto]


def sidecar(path: Path) -> Path:
    """The file that holds size and checksum of a checkpoint."""
    return path.with_name(f"{path.name}.json")


class _HashingFile:
    """Hashes what `torch.save` writes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256, self.size = file, hashlib.sha256(), 0

    def write(self, piece: bytes) -> int:
        self.sha256.update(piece)
        self.size += len(piece)
        return self.file.write(piece)

    def flush(self) -> None:
        self.file.flush()


def write_checkpoint(checkpoint: dict[str, Any], path: Path, facts: dict[str, Any] | None = None) -> None:
    """Write a checkpoint and its checksum; a crash leaves the old file or the whole new one.

    Args:
        checkpoint: what `torch.load(weights_only=True)` can read back.
        facts: more for the sidecar, such as the step.

    Raises:
        SaveError: the folder cannot be written or its disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            hashing = _HashingFile(file)
            torch.save(checkpoint, cast(IO[bytes], hashing))
            # Without a checksum the old file stays readable until the new one takes its place, and so does the new.
            sidecar(path).unlink(missing_ok=True)
        described = {"format": SIDECAR_FORMAT, "size": hashing.size, "sha256": hashing.sha256.hexdigest()}
        write_whole(sidecar(path), json.dumps(described | (facts or {}), indent=2) + "\n")
    except (OSError, RuntimeError) as error:
        # torch's zip writer turns what the file's write raised into a RuntimeError of its own.
        cause = error if isinstance(error, OSError) else error.__context__ or error.__cause__ or error
        if isinstance(cause, KeyboardInterrupt):  # a second Ctrl-C
            raise cause from error
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "the disk is full" if full else getattr(cause, "strerror", None) or cause
        raise SaveError(f"checkpoint: {path} could not be written ({why}); earlier checkpoints are intact") from error
    _verified.add(_identity(path))


def verify(path: Path) -> bool:
    """Compare a checkpoint with its checksum; a file that has not changed since is not read again.

    Returns:
        False where there is no checksum.

    Raises:
        DamagedCheckpoint: naming the file and what differs.
    """
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise DamagedCheckpoint(f"checkpoint: {path} is not a regular file; give another")
    try:
        expected = json.loads(sidecar(path).read_bytes())
        size, digest = int(expected["size"]), str(expected["sha256"])
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"checkpoint: {sidecar(path)} cannot be read ({error!r})") from error
    try:
        found = path.stat().st_size
        if found != size:
            raise DamagedCheckpoint(f"checkpoint: {path} has {found:,} bytes, not {size:,}; use an earlier one")
        if _identity(path) not in _verified:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise DamagedCheckpoint(f"checkpoint: {path} is corrupt (its sha256 differs); use an earlier one")
            _verified.add(_identity(path))
    except OSError as error:
        raise DamagedCheckpoint(f"checkpoint: {path} cannot be read ({error.strerror or error})") from error
    return True


def read_checkpoint(path: Path, map_location: torch.device | str = "cpu") -> dict[str, Any]:
    """Verify a checkpoint and read it. Only tensors and plain values are unpickled, so no file can run code.

    Raises:
        ConfigError: it is damaged, or not a checkpoint.
    """
    verify(path)
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True, mmap=True)
    except Exception as error:  # the unpickler raises whatever bad bytes lead it to
        # torch's own message advises unpickling all the same.
        unsafe = type(error).__name__ == "UnpicklingError"
        why = "it holds more than tensors and plain values" if unsafe else (str(error).splitlines() or [""])[0][:200]
        raise ConfigError(f"checkpoint: {path} cannot be read ({why}); give one of this project") from error
    if not isinstance(checkpoint, dict):
        raise ConfigError(f"checkpoint: {path} holds a {type(checkpoint).__name__}, not a checkpoint of this project")
    return checkpoint


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint and its checksum; it is no error if they are missing."""
    path.unlink(missing_ok=True)
    sidecar(path).unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> list[Path]:
    """Remove what a killed process has left in a folder. No other may be writing there."""
    left = [file for file in folder.glob(f".*{TEMPORARY}") if re.search(r"\.[0-9a-f]{8}\.tmp$", file.name)]
    left += [file for file in folder.glob("*.ckpt.json") if not file.with_suffix("").exists()]
    for file in left:
        file.unlink(missing_ok=True)
    return left


def _identity(path: Path) -> tuple[str, int, int, int]:
    """What changes when a file is replaced or rewritten."""
    found = path.stat()
    return str(path.resolve()), found.st_ino, found.st_size, found.st_mtime_ns
