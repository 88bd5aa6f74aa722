"""What a checkpoint holds of the data: every rank's position, and the settings that decide which rows come when."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recyclegpt.data.packed_rows import State

STATE_FORMAT = 2
_SETTING_KEYS = {
    "data": "data: its files have changed",
    "tokenizer": "data.tokenizer: it is another one",
    "row_length": "model.context_length",
    "num_unrolled": "loss.num_unrolled",
    "seed": "seed",
    "world_size": "trainer.devices and trainer.num_nodes, the number of processes",
}
"""How a problem with a setting begins; default: `data.NAME`."""


def make_state(state: State | None, settings: Mapping[str, Any], world_size: int) -> dict[str, Any]:
    """The positions of all ranks. Collective: where processes train together, all of them have to call it."""
    state = _map_arrays(state, np.ndarray, torch.from_numpy)  # torch.load(weights_only=True) refuses numpy
    ranks: list[State | None] = [state]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        ranks = [None] * world_size
        torch.distributed.all_gather_object(ranks, state)
    return {"format": STATE_FORMAT, "world_size": world_size, "settings": settings, "ranks": ranks}


def state_in(checkpoint: Mapping[str, Any]) -> Any:
    """The state of a data module in a checkpoint, where Lightning files it under the name of its class; or None."""
    return next((one for one in checkpoint.values() if isinstance(one, dict) and {"settings", "ranks"} <= {*one}), None)


def position_of(state_dict: Mapping[str, Any], rank: int) -> State | None:
    """The position of one rank in a state without problems; None: before the first batch."""
    position: State | None = _map_arrays(state_dict["ranks"][rank], Tensor, lambda tensor: tensor.cpu().numpy())
    return position


def state_problems(state_dict: Any, settings: Mapping[str, Any], world_size: int) -> list[str]:
    """Why a run of `world_size` processes with these settings cannot resume exactly from a state; empty if it can."""
    found = state_dict.get("format") if isinstance(state_dict, dict) else None
    remedy = "or start a new run from its weights"
    if found != STATE_FORMAT:
        return [
            f"data: the checkpoint's data state has format {found}, this version reads {STATE_FORMAT}; resume with "
            f"the version that wrote it, {remedy}"
        ]
    saved = {**state_dict["settings"], "world_size": state_dict["world_size"]}
    return [
        f"{_SETTING_KEYS.get(name, f'data.{name}')}: the checkpoint was trained with {saved.get(name)}, "
        f"this run has {value}; resume with the checkpoint's, {remedy}"
        for name, value in {**settings, "world_size": world_size}.items()
        if saved.get(name) != value
    ]


def _map_arrays(value: Any, kind: type, convert: Callable[[Any], Any]) -> Any:
    """`value` with every array of a kind inside its dicts converted."""
    if isinstance(value, dict):
        return {key: _map_arrays(inner, kind, convert) for key, inner in value.items()}
    return convert(value) if isinstance(value, kind) else value
