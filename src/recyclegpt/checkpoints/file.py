"""A checkpoint on disk: there whole or not at all, with a checksum beside it that is compared before it is read.

`step_0000500.ckpt` is what `torch.save` writes; `step_0000500.ckpt.json` holds its size and sha256. A file is written
under a temporary name in the same folder, brought to the disk and renamed, so that a process killed at any moment
leaves the old file or the new one. Lightning's own writer stages in the system's temporary folder, which loses that
promise where it is another file system (https://github.com/Lightning-AI/pytorch-lightning/issues/21253).
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import queue
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from recyclegpt.errors import ConfigError, RunError
from recyclegpt.files import TEMPORARY, temporary_beside, write_whole

SIDECAR_FORMAT = 1
_MARGIN_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 22
_verified: set[tuple[str, int, int, int]] = set()


class DamagedCheckpoint(ConfigError):  # noqa: N818 - it names a state of the file
    """A checkpoint is not what was written: cut off, altered, or its checksum cannot be read."""


class SaveError(RunError):
    """A checkpoint could not be written; the earlier ones are as they were."""


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
    """Where size and checksum of a checkpoint stand."""
    return path.with_name(f"{path.name}.json")


def write_checkpoint(checkpoint: dict[str, Any], path: Path, facts: dict[str, Any] | None = None) -> None:
    """Write a checkpoint and its checksum so that a crash leaves the old file or the whole new one.

    Args:
        checkpoint: what `torch.load(weights_only=True)` can read back.
        path: the file; its folder is made where it is missing.
        facts: more for the file beside it, such as the step.

    Raises:
        SaveError: the folder cannot be written or its disk is full. The earlier checkpoints are as they were.
    """
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_free_space(path.parent, _num_bytes(checkpoint))
        try:
            with temporary.open("xb+", buffering=0) as file:
                with _Hashing(file) as hashing:
                    torch.save(checkpoint, cast(IO[bytes], hashing))
                    os.fsync(file.fileno())
                size = file.tell()
            # Without a checksum the old file stays readable until the new one has taken its place, and so does that.
            sidecar(path).unlink(missing_ok=True)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        described = {"format": SIDECAR_FORMAT, "size": size, "sha256": hashing.hexdigest, **(facts or {})}
        write_whole(sidecar(path), json.dumps(described, indent=2) + "\n")
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        # torch's zip writer turns what the file's write raised into a RuntimeError of its own.
        cause = error if isinstance(error, OSError) else error.__context__ or error.__cause__ or error
        if isinstance(cause, KeyboardInterrupt):  # a second Ctrl-C
            raise cause from error
        raise SaveError(_explain(path, cause)) from error
    _remember(path)


def verify(path: Path) -> bool:
    """Compare a checkpoint with the checksum beside it; a file that has not changed since is not read again.

    Returns:
        False where there is no checksum to compare it with.

    Raises:
        DamagedCheckpoint: naming the file and what differs.
    """
    beside = sidecar(path)
    remedy = "use an earlier checkpoint, or copy this one again"
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise DamagedCheckpoint(
            f"checkpoint: {path} {'is a folder' if path.is_dir() else 'is no regular file'}; {remedy}"
        )
    try:
        expected = json.loads(beside.read_bytes())
        written_as = expected["format"]
        ours = written_as == SIDECAR_FORMAT
        size, digest = (int(expected["size"]), str(expected["sha256"])) if ours else (0, "")
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DamagedCheckpoint(f"checkpoint: {beside} cannot be read ({error!r}); {remedy}") from error
    if not ours:
        raise DamagedCheckpoint(
            f"checkpoint: {beside} has format {written_as}, this version reads {SIDECAR_FORMAT}; "
            "use the version that wrote it"
        )
    try:
        found = path.stat().st_size
        if found != size:
            raise DamagedCheckpoint(f"checkpoint: {path} has {found:,} bytes, {size:,} were written; {remedy}")
        if _key(path) not in _verified:
            with path.open("rb") as file:
                altered = hashlib.file_digest(file, "sha256").hexdigest() != digest
            if altered:
                raise DamagedCheckpoint(f"checkpoint: {path} is not what was written (its sha256 differs); {remedy}")
            _remember(path)
    except OSError as error:
        raise DamagedCheckpoint(f"checkpoint: {path} cannot be read ({error.strerror or error})") from error
    return True


def read_checkpoint(path: Path, map_location: torch.device | str = "cpu") -> dict[str, Any]:
    """Verify a checkpoint and read it. Tensors and plain values alone are unpickled, so that no file can run code.

    Raises:
        ConfigError: it is damaged, or not a checkpoint.
    """
    verify(path)
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True, mmap=True)
    except Exception as error:  # the unpickler raises whatever bad bytes lead it to
        told = (str(error).splitlines() or [""])[0][:200]
        # torch's own words advise to unpickle all the same, and to save the file again.
        if type(error).__name__ == "UnpicklingError":
            told = "it holds other things than tensors and plain values, which are never unpickled"
        elif "mmap can only" in told:
            told = "it is no zip file, as checkpoints are"
        raise ConfigError(
            f"checkpoint: {path} cannot be read ({told}); it is damaged or not a checkpoint of this project"
        ) from error
    if not isinstance(checkpoint, dict):
        raise ConfigError(f"checkpoint: {path} holds a {type(checkpoint).__name__}, not a checkpoint of this project")
    return checkpoint


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint and what stands beside it; one that is not there is no error."""
    path.unlink(missing_ok=True)
    sidecar(path).unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> list[Path]:
    """Remove what a process that was killed while writing has left in a folder. No other may be writing there."""
    left = [file for file in folder.glob(f".*{TEMPORARY}") if re.search(r"\.[0-9a-f]{8}\.tmp$", file.name)]
    left += [file for file in folder.glob("*.ckpt.json") if not file.with_suffix("").exists()]
    for file in left:
        file.unlink(missing_ok=True)
    return left


class _Hashing(io.RawIOBase):
    """A file that a second thread reads back and hashes while it is still written and brought to the disk, so that the
    checksum costs next to no time of its own.
    """

    def __init__(self, file: io.FileIO) -> None:
        super().__init__()
        self._file = file
        self._written: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(1)
        self._hashed = self._pool.submit(self._hash)
        self.hexdigest = ""

    def writable(self) -> bool:
        return True

    def write(self, piece: Any) -> int:
        piece = memoryview(piece).cast("B")
        at = 0
        while at < len(piece):
            at += self._file.write(piece[at:])
        self._written.put(at)
        return at

    def __exit__(self, *exception: object) -> None:
        self._written.put(0)
        self.hexdigest = self._hashed.result()
        self._pool.shutdown()

    def _hash(self) -> str:
        digest, at = hashlib.sha256(), 0
        while length := self._written.get():
            end = at + length
            while at < end:
                piece = os.pread(self._file.fileno(), min(_CHUNK_BYTES, end - at), at)
                if not piece:
                    raise OSError(errno.EIO, "what was just written cannot be read back")
                digest.update(piece)
                at += len(piece)
        return digest.hexdigest()


def _num_bytes(value: Any, seen: set[int] | None = None) -> int:
    """Bytes of the tensors inside a checkpoint, each storage counted once."""
    seen = set() if seen is None else seen
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        if storage.data_ptr() in seen:
            return 0
        seen.add(storage.data_ptr())
        return storage.nbytes()
    if isinstance(value, dict):
        return sum(_num_bytes(item, seen) for item in value.values())
    if isinstance(value, list | tuple):
        return sum(_num_bytes(item, seen) for item in value)
    return 0


def _check_free_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + _MARGIN_BYTES:
        raise OSError(errno.ENOSPC, f"{needed / 1e6:,.1f} MB are needed and {free / 1e6:,.1f} MB are free")


def _explain(path: Path, cause: BaseException) -> str:
    number = cause.errno if isinstance(cause, OSError) else None
    why = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
    remedies = {
        errno.ENOSPC: "free space on that disk",
        errno.EDQUOT: "free space in your quota",
        errno.EACCES: "make the folder writable",
        errno.EPERM: "make the folder writable",
        errno.EROFS: "that disk is mounted read-only; choose another folder",
    }
    remedy = remedies.get(number or 0, "look at that disk")
    what = "the disk is full: " if number == errno.ENOSPC else ""
    return f"checkpoint: {path} could not be written ({what}{why}); earlier checkpoints are intact; {remedy}"


def _sync_folder(folder: Path) -> None:
    """Bring the renaming itself to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _key(path: Path) -> tuple[str, int, int, int]:
    found = path.stat()
    return str(path.resolve()), found.st_ino, found.st_size, found.st_mtime_ns


def _remember(path: Path) -> None:
    _verified.add(_key(path))
