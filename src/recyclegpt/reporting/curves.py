"""Training curves, from the event files that TensorBoard reads."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from recyclegpt.reporting.runs import Run

TAGS = ("train/loss_backbone", "train/loss_recycle")

Curve = tuple[list[float], list[float], list[float]]


def training_curve(run: Run) -> Curve:
    """Tokens seen, the backbone's and the module's training loss (nats per token) at every logged step.

    The lists are empty where the run logged nothing, the last one where it has no module. A step that was trained
    twice, because the run was interrupted, counts as it was trained last.
    """
    steps = read_scalars(run.folder / "tensorboard", TAGS)
    backbone, module = (dict(sorted(steps[tag].items())) for tag in TAGS)
    num_steps, num_tokens = run.train.get("steps"), run.train.get("tokens")
    per_step = num_tokens / num_steps if num_steps and num_tokens else 1.0
    # Lightning writes at step N - 1 what the N-th step found.
    return [(step + 1) * per_step for step in backbone], list(backbone.values()), list(module.values())


def read_scalars(folder: Path, tags: tuple[str, ...]) -> dict[str, dict[int, float]]:
    """Value by step of scalars in a folder's event files, the files in order of age; a cut-off end is left out."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.util.tensor_util import make_ndarray

    wanted = {tag: tag.encode() for tag in tags}
    found: dict[str, dict[int, float]] = {tag: {} for tag in tags}
    for path in sorted(path for path in folder.glob("events.*") if path.is_file()):
        for record in _records(path.read_bytes()):
            # Pictures and texts are long, and most scalars are not asked for: look before parsing.
            if not any(name in record for name in wanted.values()):
                continue
            try:
                event = Event.FromString(record)
            except Exception:  # noqa: BLE001 - protobuf, which has no types here, names it; the next record is another
                continue
            for value in event.summary.value:
                if value.tag in found and value.HasField("simple_value"):
                    found[value.tag][event.step] = value.simple_value
                elif value.tag in found and value.HasField("tensor"):
                    found[value.tag][event.step] = float(make_ndarray(value.tensor))
    return found


def _records(data: bytes) -> Iterator[bytes]:
    """The records of an event file: length, its checksum, content, its checksum (TFRecord).

    Checksums are not computed: in Python that takes longer than all the rest, and a wrong length shows by itself.
    """
    place = 0
    while place + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        begin, end = place + 12, place + 12 + length
        if end + 4 > len(data):
            return  # cut off, or still growing
        yield data[begin:end]
        place = end + 4


def smoothed(values: list[float], window: int) -> list[float]:
    """Mean of the last `window` values at every place; fewer at the beginning."""
    total, result = 0.0, []
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        result.append(total / min(i + 1, window))
    return result
