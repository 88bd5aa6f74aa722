"""Does a change of the code leave every result as it was? Record what a commit computes, then compare two records.

    python experiments/same_results.py record old.json --run RUN [--texts FOLDER] [--export FOLDER] [--scores F]
    python experiments/same_results.py compare old.json new.json

A record holds, to the last digit: the losses of every training step (train with trainer.log_every_n_steps=1), the
held-out metrics of result.json, generated texts (one file each), the SHA-256 of every exported tensor, and the scores
that `recyclegpt evaluate tasks=[...]` printed as its last line. Speeds and paths differ from run to run: left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

LOSSES = ("train/loss", "train/loss_backbone", "train/loss_recycle", "train/grad_norm")


def losses(run: Path) -> dict[str, list[float]]:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in LOSSES}


def held_out(run: Path) -> dict[str, float]:
    metrics = json.loads((run / "result.json").read_text(encoding="utf-8"))["metrics"]
    return {name: value for name, value in metrics.items() if name.startswith("val/")}


def tensors(folder: Path) -> dict[str, str]:
    digests = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                tensor = file.get_tensor(name)
                content = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
                digests[f"{name} {tuple(tensor.shape)}"] = hashlib.sha256(content).hexdigest()
    return digests


def scores(path: Path) -> Any:
    document = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    return {key: value for key, value in document.items() if key not in ("checkpoint", "hardware", "seconds")}


def record(arguments: argparse.Namespace) -> None:
    run = Path(arguments.run)
    document: dict[str, Any] = {"losses": losses(run), "held_out": held_out(run)}
    if arguments.texts:
        document["texts"] = {path.stem: path.read_text("utf-8") for path in sorted(Path(arguments.texts).glob("*.txt"))}
    for folder in arguments.export:
        document[f"export {Path(folder).name}"] = tensors(Path(folder))
    if arguments.scores:
        document["scores"] = scores(Path(arguments.scores))
    Path(arguments.record).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def compare(old: dict[str, Any], new: dict[str, Any]) -> int:
    num_different = 0
    for part, before in old.items():
        after = new.get(part, {})
        different = [key for key, value in before.items() if after.get(key) != value]
        print(f"{part}: {len(before) - len(different)} of {len(before)} equal")
        for key in different:
            print(f"  {key}: was {str(before[key])[:70]!r}, is {str(after.get(key))[:70]!r}")
        num_different += len(different)
    return num_different


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("record")
    recording.add_argument("--run", required=True)
    recording.add_argument("--texts")
    recording.add_argument("--export", action="append", default=[])
    recording.add_argument("--scores")
    comparing = commands.add_parser("compare")
    comparing.add_argument("old")
    comparing.add_argument("new")
    arguments = parser.parse_args()
    if arguments.command == "record":
        record(arguments)
        return 0
    old, new = (json.loads(Path(path).read_text(encoding="utf-8")) for path in (arguments.old, arguments.new))
    return int(compare(old, new) > 0)


if __name__ == "__main__":
    sys.exit(main())
