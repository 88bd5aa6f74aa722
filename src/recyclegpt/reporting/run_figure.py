"""One run's trade-off: speed against quality, and agreement by confidence and by place in the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

COLOURS = {"autoregressive": "#666666", "alternating": "#2a9d8f", "verified": "#3d5a98"}


def draw_run(
    speeds: Mapping[str, float],
    perplexities: Mapping[str, float],
    offered: Sequence[float],
    agreement: Sequence[float],
    agreement_by_place: Sequence[float],
) -> Any:
    """A matplotlib figure of three panels; None where matplotlib is not installed.

    Args:
        speeds: tokens per second by decoder; NaN: not measured.
        perplexities: held-out perplexity of the text each decoder takes, by decoder.
        offered: share of tokens drafted at confidence thresholds from 0 up, in equal steps.
        agreement: share of those that equal the backbone's own choice.
        agreement_by_place: agreement in equal parts of a row, from its first token to its last.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    # Not pyplot: it would choose a screen, and keep every figure of a long run.
    figure = Figure(figsize=(13, 3.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for name, speed in speeds.items():
        left.scatter(speed, perplexities[name], s=90, color=COLOURS[name], label=name)
    left.set(xlabel="tokens per second", ylabel="held-out perplexity", title="Speed against quality")
    left.margins(0.25)
    thresholds = [step / len(offered) for step in range(len(offered))]
    middle.plot(thresholds, agreement, marker="o", ms=3, color="#2a9d8f", label="agreement of drafted tokens")
    middle.plot(thresholds, offered, marker="o", ms=3, color="#b5651d", label="share of tokens drafted")
    middle.set(xlabel="confidence threshold", ylim=(0, 1.03), title="What decoding.confidence_threshold trades")
    places = [(i + 0.5) / len(agreement_by_place) for i in range(len(agreement_by_place))]
    right.bar(places, agreement_by_place, width=0.9 / len(places), color="#3d5a98")
    right.set(xlabel="place in the row (share of its length)", ylim=(0, 1), title="Agreement by place")
    left.legend()
    middle.legend()
    for axis in (left, middle, right):
        axis.grid(alpha=0.25)
    return figure
