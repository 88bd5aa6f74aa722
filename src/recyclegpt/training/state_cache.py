"""The final states of a frozen backbone on disk, so that a corpus that is read again needs no pass of the backbone.

R rows of the corpus, B rows of a batch, T positions, C model width.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from recyclegpt.data import Batch
from recyclegpt.errors import ConfigError
from recyclegpt.models import RecycleGPT
from recyclegpt.training.cross_entropy import log_normaliser, most_likely

FORMAT = 1
_PRESENT = 1 << 32
_FILES = ("states.bf16", "tokens.i32", "checksums.i64", "normalisers.f32", "normaliser_checksums.i64")


class KnownStates(NamedTuple):
    """What a batch's rows give in the frozen backbone."""

    hidden_BTC: Tensor
    """In the dtype of the backbone's weights, rounded to bf16."""
    best_BT: Tensor
    """The token that the backbone predicts at each position, int64."""
    normaliser_BT: Tensor | None = None
    """`log_normaliser` of the states, where it is kept."""


class StateCache:
    """States of rows by their number, each with a checksum; a row that is absent or damaged is computed and written.

    Training computes the same whether states were computed or read: they are rounded to bf16 in both cases, and a row
    is computed by itself, so that it does not depend on its batch. Processes may share a folder: what they write to a
    row is the same, and is read only once its checksum fits.

    With `normalisers` the `log_normaliser` of the states is kept too, also for states that are there already.

    Raises:
        ConfigError: the disk does not hold it, or the folder cannot be written.
    """

    def __init__(self, folder: Path, num_rows: int, row_length: int, width: int, normalisers: bool = False) -> None:
        self.folder, tokens = folder, (num_rows, row_length)
        kinds: list[tuple[Any, tuple[int, ...]]] = [(np.int16, (*tokens, width)), (np.int32, tokens)]
        kinds += [(np.int64, (num_rows,)), (np.float32, tokens), (np.int64, (num_rows,))][: 3 if normalisers else 1]
        files = _FILES[: len(kinds)]
        sizes = [int(np.prod(shape)) * np.dtype(kind).itemsize for kind, shape in kinds]
        self.num_bytes = sum(sizes)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                for name, size in zip(files, sizes, strict=True):
                    _allocate(folder / name, size)
        except OSError as error:
            free = shutil.disk_usage(folder.parent).free if folder.parent.exists() else 0
            raise ConfigError(
                f"training.cache_states: {folder} needs {self.num_bytes / 1e9:.3g} GB, of which {free / 1e9:.3g} are "
                f"free ({error.strerror}); make room, choose another data.cache_dir, or set it to false"
            ) from error
        maps: list[NDArray[Any]] = [
            np.memmap(folder / name, kind, "r+", shape=shape) for name, (kind, shape) in zip(files, kinds, strict=True)
        ]
        self._states_RTC, self._tokens_RT, self._checksums_R, *self._normalisers = maps

    @property
    def share(self) -> float:
        """Share of the rows that are there."""
        return float(np.count_nonzero(self._checksums_R)) / len(self._checksums_R)

    @torch.no_grad()
    def states(self, model: RecycleGPT, batch: Batch) -> KnownStates:
        """The states of a training batch's rows, by the backbone where they are not there yet."""
        rows_B = batch.rows_B
        assert rows_B is not None
        for b, row in enumerate(rows_B.tolist()):
            if _checksum(self._states_RTC[row], self._tokens_RT[row]) != self._checksums_R[row]:
                documents = None if batch.documents_NBT is None else batch.documents_NBT[:, b : b + 1]
                hidden_1TC = model.states(batch.views_NBT[:, b : b + 1], documents, num_unrolled=0).hidden_BTC
                hidden_TC = hidden_1TC[0].bfloat16()
                self._states_RTC[row] = hidden_TC.view(torch.int16).cpu().numpy()
                self._tokens_RT[row] = most_likely(hidden_TC.to(model.dtype), model.lm_head.weight).cpu().numpy()
                self._checksums_R[row] = _checksum(self._states_RTC[row], self._tokens_RT[row])
        hidden_BTC = torch.from_numpy(self._states_RTC[rows_B]).view(torch.bfloat16).to(model.device, model.dtype)
        best_BT = torch.from_numpy(self._tokens_RT[rows_B].astype(np.int64)).to(model.device)
        if not self._normalisers:
            return KnownStates(hidden_BTC, best_BT)
        normalisers_RT, checksums_R = self._normalisers
        for hidden_TC, row in zip(hidden_BTC, rows_B.tolist(), strict=True):
            if _checksum(normalisers_RT[row]) != checksums_R[row]:
                normalisers_RT[row] = log_normaliser(hidden_TC, model.lm_head.weight).cpu().numpy()
                checksums_R[row] = _checksum(normalisers_RT[row])
        return KnownStates(hidden_BTC, best_BT, torch.from_numpy(normalisers_RT[rows_B]).to(model.device))


def _checksum(*parts: NDArray[Any]) -> int:
    found = 0
    for part in parts:
        found = zlib.crc32(part.tobytes(), found)
    return _PRESENT | found


def states_key(model: RecycleGPT, facts: Mapping[str, Any]) -> str:
    """Name of a cache: a digest of the weights of backbone and LM head, and of all else that states depend on."""
    digest = hashlib.sha256(json.dumps([FORMAT, facts], sort_keys=True).encode())
    for part in (model.backbone, model.lm_head):
        for weight in part.state_dict().values():
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _allocate(file: Path, size: int) -> None:
    """Reserve the disk now: a memory-mapped file that cannot grow would end the process later."""
    with file.open("ab") as opened:
        if opened.tell() != size:
            os.posix_fallocate(opened.fileno(), 0, size)
