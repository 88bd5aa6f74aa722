"""Training curves, from TensorBoard's event files."""

from __future__ import annotations

from recyclegpt.reporting.runs import Run

TAGS = ("train/loss_backbone", "train/loss_recycle")


def training_curve(run: Run) -> tuple[list[float], list[float], list[float]]:
    """Tokens seen, the backbone's and the module's training loss (nats per token) at every logged step.

    The lists are empty where the run logged nothing, the last one also where it has no module. A step trained twice,
    because the run was interrupted, counts as it was trained last; the cut-off end of a file is left out.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    steps: dict[str, dict[int, float]] = {tag: {} for tag in TAGS}
    for path in sorted(path for path in (run.folder / "tensorboard").glob("events.*") if path.is_file()):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0, "images": 1, "tensors": 1})
        events.Reload()
        for tag in set(TAGS) & set(events.Tags()["scalars"]):
            steps[tag].update((event.step, event.value) for event in events.Scalars(tag))
    backbone, module = (dict(sorted(steps[tag].items())) for tag in TAGS)
    num_steps, num_tokens = run.train.get("steps"), run.train.get("tokens")
    per_step = num_tokens / num_steps if num_steps and num_tokens else 1.0
    # Lightning logs the N-th step as step N - 1.
    return [(step + 1) * per_step for step in backbone], list(backbone.values()), list(module.values())
