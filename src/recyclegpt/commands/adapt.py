"""`recyclegpt adapt`: train a recyclable module on a pretrained backbone, which stays as it is."""

from __future__ import annotations

from collections.abc import Sequence

from recyclegpt.commands import train


def run(argv: Sequence[str]) -> int:
    """The command: `train`, from a config whose backbone is a checkpoint and frozen."""
    return train.run(argv, "adapt")
