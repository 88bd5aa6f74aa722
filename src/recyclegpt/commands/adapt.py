"""`recyclegpt adapt`: train a recyclable module on a pretrained backbone, which stays as it is."""

from __future__ import annotations

from collections.abc import Sequence

from recyclegpt.commands import train

EXAMPLES = (
    ("a folder in Hugging Face layout", "model.path=Qwen3-0.6B data=text_files data.paths=[corpus]"),
    ("on a GPU, an EAGLE module", "model.path=Qwen3-0.6B recycle=eagle trainer=gpu"),
    ("resume an interrupted run", "model.path=Qwen3-0.6B resume=auto"),
)


def run(argv: Sequence[str]) -> int:
    """The command: `train`, from a config whose backbone is a checkpoint and frozen."""
    return train.run(argv, "adapt")
